"""The three kinds of window by which an API may count requests; time is an argument, in seconds of any one clock.

1. In its kind of window never more than the limit is let through.
2. A refused request takes no place.
3. A request at the `retry` instant of a refusal is let through, if no other came in between.
"""

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from keyturn.practice.settings import WindowKind


class Verdict(NamedTuple):
    """What a window says to one request.

    Attributes:
        allowed: Whether it may pass.
        limit: Requests in each window.
        window: The window's length in seconds.
        remaining: How many more could pass now.
        reset: The instant at which places return: all of them, or of a rolling window the oldest.
        retry: The earliest instant at which a request like this one may pass; now, if it was allowed.
    """

    allowed: bool
    limit: int
    window: float
    remaining: int
    reset: float
    retry: float


class Window(ABC):
    """A limit of so many requests in so many seconds; instants given to it never go backwards."""

    def __init__(self, limit: int, window: float) -> None:
        self.limit = limit
        self.window = window

    def admit(self, now: float) -> Verdict:
        """Let a request that arrives now pass, if a place is free, and take that place."""
        free = self.limit - self._spent(now)
        if free > 0:
            self._spend(now)
        return self._verdict(now, free, max(free - 1, 0))

    def look(self, now: float) -> Verdict:
        """What `admit` would decide; no place is taken."""
        free = self.limit - self._spent(now)
        return self._verdict(now, free, free)

    def _verdict(self, now: float, free: int, remaining: int) -> Verdict:
        reset = self._reset(now)
        return Verdict(free > 0, self.limit, self.window, remaining, reset, now if free > 0 else reset)

    @abstractmethod
    def _spent(self, now: float) -> int:
        """How many places are taken now; forgets what is over."""

    @abstractmethod
    def _spend(self, now: float) -> None:
        """Take a place."""

    @abstractmethod
    def _reset(self, now: float) -> float:
        """When places return."""


class FirstWindow(Window):
    """A window that the first request after the last one's end starts: what the real API was seen to do."""

    def __init__(self, limit: int, window: float) -> None:
        super().__init__(limit, window)
        self._count = 0
        self._end = -math.inf

    def _spent(self, now: float) -> int:
        if now >= self._end:
            self._count = 0
        return self._count

    def _spend(self, now: float) -> None:
        if self._count == 0:
            self._end = self._end_of(now)
        self._count += 1

    def _reset(self, now: float) -> float:
        return self._end if self._count else self._end_of(now)

    def _end_of(self, now: float) -> float:
        return now + self.window


class FixedWindow(FirstWindow):
    """Windows `[k * length, (k + 1) * length)` of the clock, whoever calls when."""

    def _end_of(self, now: float) -> float:
        index = math.floor(now / self.window)
        # The quotient may be rounded over a whole number; the boundaries are the products.
        if index * self.window > now:
            index -= 1
        elif (index + 1) * self.window <= now:
            index += 1
        return (index + 1) * self.window


class RollingWindow(Window):
    """Any half-open interval of the length, by a log of the instants that were let through."""

    def __init__(self, limit: int, window: float) -> None:
        super().__init__(limit, window)
        self._log: deque[float] = deque()

    def _spent(self, now: float) -> int:
        while self._log and self._log[0] + self.window <= now:
            self._log.popleft()
        return len(self._log)

    def _spend(self, now: float) -> None:
        self._log.append(now)

    def _reset(self, now: float) -> float:
        return (self._log[0] if self._log else now) + self.window


_KINDS: dict[WindowKind, type[Window]] = {"fixed": FixedWindow, "first": FirstWindow, "rolling": RollingWindow}


def window_of(kind: WindowKind, limit: int, window: float) -> Window:
    """A new window of that kind, `window` in seconds."""
    return _KINDS[kind](limit, window)


def admit_all(windows: Sequence[Window], now: float) -> Verdict:
    """Let a request pass if every window does, and then take a place in each; else in none.

    Returns:
        The verdict with least remaining, or the refusal that lasts longest.
    """
    if len(windows) == 1:
        return windows[0].admit(now)
    refusals = [verdict for verdict in (window.look(now) for window in windows) if not verdict.allowed]
    if refusals:
        return max(refusals, key=lambda verdict: verdict.retry)
    return min((window.admit(now) for window in windows), key=lambda verdict: verdict.remaining)
