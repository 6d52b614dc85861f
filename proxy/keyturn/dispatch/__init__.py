"""The waiting room of each pool."""

from keyturn.dispatch.capacity import Capacity
from keyturn.dispatch.lease import Lease
from keyturn.dispatch.room import Dispatch
from keyturn.dispatch.tickets import Displaced, Moved, Ticket, quota_of

__all__ = ["Capacity", "Dispatch", "Displaced", "Lease", "Moved", "Ticket", "quota_of"]
