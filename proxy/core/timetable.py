"""Who of many replicas may send when, on which quota, while nothing tells them: by a clock that they agree on.

For limits with fewer requests than there are replicas, which cannot be divided by number. Law kept here (1): where
each request is sent in a slot of its own, by one of the replicas, any window holds at most `requests` of each limit.
Slots of a quota follow each other at `pace`, so that `requests + 1` of them span the window, and all the time from
the begin of a slot to the moment at which its request is surely counted. A limit that permits less than the one by
which slots are made admits every so many-th slot of a quota only; each limit's number is a multiple of those before.

Slots go round: quota by quota, and on each quota from replica to replica in the order of their ranks. The numbers of
the limits have no divisor in common with the number of replicas, so that they come round to each under every limit.
"""

from collections.abc import Iterable, Sequence
from math import gcd
from typing import NamedTuple

from proxy.core.letters import LimitTerms
from proxy.core.model import SECOND, Micros

LATE: Micros = SECOND
"""A slot may be used until so long after its begin; the clocks of the replicas differ by far less."""


class Slot(NamedTuple):
    """The right to send one request: from this instant on, until `LATE` later, on this quota."""

    begin: Micros
    quota: str


class Timetable:
    """The slots of one replica, the `rank`-th (from 0) of `replicas`.

    `limits`: those that cannot be divided, at least one. `bound`: how long after its grant a request may be counted.
    """

    def __init__(
        self, limits: Sequence[LimitTerms], quotas: tuple[str, ...], *, rank: int, replicas: int, bound: Micros
    ) -> None:
        self._quotas = quotas
        self._places = {quota: place for place, quota in enumerate(quotas)}
        self._rank = rank
        self._replicas = replicas
        paces = sorted((-(-(limit.window + LATE + bound) // limit.requests), limit.id) for limit in limits)
        self.step: Micros = -(-paces[0][0] // max(1, len(quotas)))
        """From slot to slot, whoever's they are."""
        self._every: dict[str, int] = {}
        number, pace = 1, self.step * max(1, len(quotas))
        for least, limit in paces:
            factor = -(-least // (number * pace))
            while gcd(factor, replicas) != 1:
                factor += 1
            number *= factor
            self._every[limit] = number

    def covers(self, limit: str) -> bool:
        """Whether the slots are for that limit, too."""
        return limit in self._every

    def interval(self, limits: Iterable[str], pinned: str | None) -> Micros:
        """The mean time from one of its slots to its next, for requests that fall under these limits."""
        rounds = self._number(limits) * self._replicas * self.step
        return rounds if pinned is None else rounds * len(self._quotas)

    def next(self, limits: Iterable[str], pinned: str | None, earliest: Micros) -> Slot | None:
        """Its first slot that begins at that instant of the common clock or later; `None`: it has none there."""
        if not self._quotas or (pinned is not None and pinned not in self._places):
            return None
        size, number = len(self._quotas), self._number(limits)
        lap = self.step * size
        turn = earliest // lap
        turn -= turn % number
        while True:
            first = (self._rank - turn) % self._replicas
            places = range(first, size, self._replicas) if pinned is None else (self._places[pinned],)
            for place in places:
                begin = turn * lap + place * self.step
                if begin >= earliest and (place - first) % self._replicas == 0:
                    return Slot(begin, self._quotas[place])
            turn += number

    def _number(self, limits: Iterable[str]) -> int:
        return max((self._every[limit] for limit in limits if limit in self._every), default=1)
