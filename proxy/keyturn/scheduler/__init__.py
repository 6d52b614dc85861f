"""Requests wait here for a lease: the scheduler of each pool in this replica."""

from keyturn.scheduler.concurrency import ConcurrencyLimit
from keyturn.scheduler.lease import Lease
from keyturn.scheduler.scheduler import Scheduler
from keyturn.scheduler.waiter import INTERNAL, Displaced, Moved, Waiter, quota_of

__all__ = ["INTERNAL", "ConcurrencyLimit", "Displaced", "Lease", "Moved", "Scheduler", "Waiter", "quota_of"]
