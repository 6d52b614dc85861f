"""Request coalescing: identical GETs that wait share one lease and one answer (`queue.join`)."""

from keyturn.joining.fanout import Fanout
from keyturn.joining.shared_requests import Joining

__all__ = ["Fanout", "Joining"]
