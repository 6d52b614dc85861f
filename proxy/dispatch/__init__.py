"""The waiting room of each pool."""

from proxy.dispatch.capacity import Capacity
from proxy.dispatch.lease import Lease
from proxy.dispatch.room import Dispatch
from proxy.dispatch.tickets import Displaced, Moved, Ticket, quota_of

__all__ = ["Capacity", "Dispatch", "Displaced", "Lease", "Moved", "Ticket", "quota_of"]
