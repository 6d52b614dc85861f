"""The waiting room of each pool."""

from keyturn.scheduler.capacity import Capacity
from keyturn.scheduler.lease import Lease
from keyturn.scheduler.scheduler import Scheduler
from keyturn.scheduler.tickets import Displaced, Moved, Ticket, quota_of

__all__ = ["Capacity", "Displaced", "Lease", "Moved", "Scheduler", "Ticket", "quota_of"]
