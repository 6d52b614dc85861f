"""How long a caller may take over its answers: a patience, and more for what it takes meanwhile."""

import asyncio
from collections.abc import Callable

SLOWEST = 16 * 1024
"""Bytes taken that buy one second more."""
_LOOKS = 16
"""How often at the most a patience is looked at."""


class Pace:
    """Times a caller while bytes wait for it.

    All the waiting for one answer may take `patience` seconds, and one more for each `SLOWEST` bytes that are taken
    meanwhile; and `patience` without any. `left` tells how many bytes wait; `too_slow` is called once, with whether
    some were taken of late.
    """

    __slots__ = ("_left", "_loop", "_moved", "_patience", "_since", "_size", "_taken", "_timer", "_too_slow", "_waited")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        patience: float,
        left: Callable[[], int],
        too_slow: Callable[[bool], None],
    ) -> None:
        self._loop = loop
        self._patience = patience
        self._size = left
        self._too_slow = too_slow
        self._timer: asyncio.TimerHandle | None = None
        self._since: float | None = None
        """When it was last counted; `None` while nobody waits."""
        self._moved = 0.0
        """When it last took something, or the waiting began."""
        self._left = 0
        self._waited = 0.0
        self._taken = 0

    def begin(self) -> None:
        """Count for another answer."""
        self._waited, self._taken = 0.0, 0

    def wait(self) -> None:
        """Wait for the caller from now on."""
        if self._since is not None:
            return
        self._since = self._moved = self._loop.time()
        self._left = self._size()
        if self._timer is None:
            self._timer = self._loop.call_later(self._patience, self._look)

    def go_on(self) -> None:
        """Wait no more: it has taken enough."""
        if self._since is not None:
            self._count(self._loop.time())
            self._since = None

    def stop(self) -> None:
        """Look no more."""
        self._since = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _count(self, now: float) -> None:
        assert self._since is not None
        left = self._size()
        if left < self._left:
            self._taken += self._left - left
            self._moved = now
        self._left = left
        self._waited += now - self._since
        self._since = now

    def _look(self) -> None:
        self._timer = None
        if self._since is None:
            return
        now = self._loop.time()
        self._count(now)
        ends = min(self._moved + self._patience, now + self._patience + self._taken / SLOWEST - self._waited)
        if ends > now:
            delay = max(ends - now, self._patience / _LOOKS)
            self._timer = self._loop.call_later(delay, self._look)
        else:
            self._since = None
            self._too_slow(self._moved + self._patience > now)
