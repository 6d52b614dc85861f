"""Request bodies: read before their request waits for a lease, kept in memory or in a temporary file, sent again."""

from keyturn.bodies.replay import Bodies, BodySettings, ReplayBody
from keyturn.bodies.spool import Spool

__all__ = ["Bodies", "BodySettings", "ReplayBody", "Spool"]
