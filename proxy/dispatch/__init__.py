"""The waiting room of each pool."""

from proxy.dispatch.lanes import Displaced, Ticket
from proxy.dispatch.lease import Lease
from proxy.dispatch.room import Dispatch

__all__ = ["Dispatch", "Displaced", "Lease", "Ticket"]
