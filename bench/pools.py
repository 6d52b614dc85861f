"""Pools for benchmarks, their clock, and an observer that ignores all events."""

import time

from keyturn.core.events import Event
from keyturn.core.model import Key, Limit, Micros, Pool, Secret


def now() -> Micros:
    """The process's monotonic clock."""
    return time.monotonic_ns() // 1000


class Nobody:
    """An observer that ignores all events."""

    def observe(self, event: Event) -> None:
        """See `core.events.Observer`."""


def pool_of(keys: int, *limits: Limit) -> Pool:
    """A pool of keys, each a quota of its own, under the same limits."""
    names = [f"k{number}" for number in range(keys)]
    return Pool("default", tuple([Key.alone(name, Secret(f"secret of {name}")) for name in names]), limits, 0)
