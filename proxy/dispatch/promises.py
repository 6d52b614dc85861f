"""When those who are refused are told to come back: one after another, for they all come back (law 6).

Whoever is refused has no place in the queue any more, so the next who comes is foretold the same turn: told as it is, a
crowd would return as one, and all but the first be refused again. So a lane remembers for when it has told somebody to
come back, and tells the crowd that is refused before that later moments: by as much as the lane's tokens lie apart.

Who tries again and again is no crowd: a caller is told the time again that it was told, and pushes nobody back. Callers
cannot be told apart for sure, so the first `FEW` are told their own turn all the same, and nobody is told a moment more
than `MOST` tokens or `LATEST` later: some of those who were told do not come back, or come early.
"""

from bisect import bisect_right, insort
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field

from proxy.core.model import SECOND, Micros, Pool

FEW = 8
MOST = 64
"""By how many tokens at the most somebody is told a later moment than its own turn."""

LATEST: Micros = 60 * SECOND
"""By how much at the most: as long as Postman's own clients heed a `Retry-After`."""

AGAIN: Micros = SECOND // 4
"""Whoever asks the like of what another has asked within this time is somebody else: many begin at the same moment."""

KNOWN = 1000
"""So many of whom it has told a lane remembers."""

TRIP: Micros = SECOND // 4
"""From the granting of a token to the head of the answer, at the usual."""


@dataclass(slots=True)
class Crowd:
    """Those of one lane who were refused and are expected to come back."""

    _due: list[Micros] = field(default_factory=list)
    """When they come back, in order, if they do as they were told."""
    _known: dict[Hashable, tuple[Micros, Micros]] = field(default_factory=dict)
    """When a caller comes back, and when it was told so."""

    def expected(self, now: Micros) -> int:
        """How many are; who should have come by now is not expected any more."""
        del self._due[: bisect_right(self._due, now)]
        if not self._due:
            self._known.clear()
        return len(self._due)

    def tell(self, caller: Hashable | None, came: Micros, now: Micros, turn: Micros, pace: Micros) -> Micros:
        """After how long somebody who is refused now is to come back; who tries again before its time has that time.

        Args:
            caller: who it is, if that is known.
            came: the instant at which it did.
            now: the instant.
            turn: the delay until its own turn.
            pace: of the lane.
        """
        due, told = self._known.get(caller, (now, now))
        again = due > now and came - told >= AGAIN
        if again:
            delay = max(turn, due - now)
        else:
            delay = spread(turn, self._due[0] - now, pace, len(self._due)) if self._due else turn
            if len(self._due) < KNOWN:
                insort(self._due, now + delay)
        if caller is not None and (again or len(self._known) < KNOWN):
            self._known[caller] = now + delay, now
        return delay


def pace(pool: Pool, limits: Iterable[int], quotas: int, part: tuple[int, int]) -> Micros:
    """How far the tokens lie apart that a lane gets, evenly spread; 0 without limits.

    Who comes back does so up to a second late, since it was told whole seconds, and its token returns so much later.

    Args:
        pool: whose limits they are.
        limits: those that the lane falls under.
        quotas: how many serve it.
        part: the weight of the lane's client, and that of all who wait, with its own.
    """
    own, of_all = part
    windows = [(pool.stretched(pool.limits[index]) + TRIP + SECOND, pool.limits[index].requests) for index in limits]
    return max((window * of_all // (size * max(1, quotas) * own) for window, size in windows), default=0)


def spread(turn: Micros, first: Micros, pace: Micros, crowd: int) -> Micros:
    """After how long to come back; all times are delays.

    Args:
        turn: until its own turn.
        first: until the first of a crowd that was told to come back does.
        pace: of the lane.
        crowd: how many of it are expected.
    """
    if crowd < FEW:
        return turn
    return max(turn, min(first + pace * crowd, turn + min(pace * MOST, LATEST)))
