"""Identical GETs that wait share one lease and one answer (`queue.join`)."""

from proxy.joining.fanout import Fanout
from proxy.joining.flights import Joining

__all__ = ["Fanout", "Joining"]
