"""Identical GETs that wait share one lease and one answer (`queue.join`)."""

from keyturn.joining.fanout import Fanout
from keyturn.joining.flights import Joining

__all__ = ["Fanout", "Joining"]
