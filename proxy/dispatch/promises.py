"""When those who are refused are told to come back: one after another, for they all come back (law 6).

Whoever is refused has no place in the queue any more, so the next who comes is foretold the same turn: told as it is, a
crowd would return as one, and all but the first be refused again. So a lane remembers for when it has told somebody to
come back, and tells the crowd that is refused before that later moments: by as much as the lane's tokens lie apart.

Who tries again and again is no crowd: a caller keeps the place that it was told, and pushes nobody back. Callers cannot
be told apart for sure, so the first `FEW` are told their own turn all the same, and nobody is told a moment more than
`MOST` tokens or `LATEST` later: some of those who were told do not come back, or come early.
"""

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
"""Callers whose places a lane remembers."""

TRIP: Micros = SECOND // 4
"""From the granting of a token to the head of the answer, at the usual."""


@dataclass(slots=True)
class Crowd:
    """Those of one lane who were refused and are expected to come back."""

    size: int = 0
    """How many, since nobody was expected."""
    first: Micros = 0
    """When the first of them comes back, if it does as it was told."""
    last: Micros = 0
    """When the last of them does."""
    _places: dict[Hashable, tuple[int, Micros]] = field(default_factory=dict)
    """How many were told before a caller, and when it was told last."""

    def expected(self, now: Micros) -> bool:
        """Whether somebody is, until the last of them has come."""
        if self.last <= now:
            self.size = 0
            self._places.clear()
        return self.size > 0

    def place(self, caller: Hashable | None, came: Micros) -> int:
        """How many were told before somebody who came at an instant; whoever tries again has the place that it had."""
        place, told = self._places.get(caller, (self.size, came))
        return place if came - told >= AGAIN else self.size

    def expect(self, caller: Hashable | None, place: int, now: Micros, told: Micros) -> None:
        """Somebody in that place is told to come back after a time."""
        if not self.size:
            self.first = now + told
        self.last = max(self.last, now + told)
        self.size = max(self.size, place + 1)
        if caller is not None and (len(self._places) < KNOWN or caller in self._places):
            self._places[caller] = place, now


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
        first: until the first of a crowd that was told to come back does; below zero when it has.
        pace: of the lane.
        crowd: how many of it were told.
    """
    if crowd < FEW:
        return turn
    return max(turn, min(first + pace * crowd, turn + min(pace * MOST, LATEST)))
