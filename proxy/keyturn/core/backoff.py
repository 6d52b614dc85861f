"""When refused requests are told to come back, so that a crowd does not return as one (law 6).

A refused request leaves its queue, so the next one would get the same estimate. Therefore it keeps a place among the
estimates until the time that it was told: later ones are told the estimate of the place behind all that wait and all
places kept. Callers are told whole seconds, so a token may idle until its caller is back and return that much later:
of the places that count, no more lie within one period of a limit than it has tokens. Those of requests refused
together count, and all from `FREE_PLACES` on. Places decide what is told, never whether a request is refused.
"""

from bisect import bisect_right, insort
from collections.abc import Iterable
from typing import NamedTuple

from keyturn.core.model import SECOND, Micros

FREE_PLACES = 8
"""Fewer places kept earlier than this put nobody back: they may be of one caller that tries again and again."""

BURST_GAP: Micros = 100
"""Requests refused no further apart are different callers'."""

MAX_PLACES = 1000
"""Places that one queue keeps; requests refused beyond them are told the time behind the last and keep none."""

MAX_DELAY: Micros = 300 * SECOND
"""Upper bound on the delay added to a request's own estimate."""

SERVICE_TIME: Micros = SECOND // 4
"""Usual time from the grant of a token to the head of the answer."""


class Pace(NamedTuple):
    """How often the tokens of a limit can be spent."""

    tokens: int
    period: Micros
    """From the grant of a token until it is available again."""

    def part(self, own: int, of_all: int) -> "Pace":
        """The pace of a client with so much of all weights."""
        tokens = max(1, self.tokens * own // of_all)
        return Pace(tokens, self.period * tokens * of_all // (self.tokens * own))


class Backoff:
    """The places kept for refused requests of one queue."""

    __slots__ = ("_kept", "_times", "_together")

    def __init__(self) -> None:
        self._times: list[Micros] = []
        """When the callers come back if they do as they are told, in order."""
        self._kept: Micros = -BURST_GAP
        self._together = 0
        """How many places were kept together, at last at `_kept`."""

    def places(self, now: Micros) -> int:
        """Count the places whose time has not come, but for those that put nobody back."""
        del self._times[: bisect_right(self._times, now)]
        kept = len(self._times)
        return kept if kept >= FREE_PLACES else min(kept, self._together if now - self._kept <= BURST_GAP else 0)

    def keep(self, own: Micros, behind: Micros, now: Micros, paces: Iterable[Pace]) -> Micros:
        """Keep a place for a refused request; returns after how long it is told to come back, in whole seconds.

        Args:
            own: the request's own estimate.
            behind: the estimate of the place behind all places kept.
            now: the instant.
            paces: of the limits that the queue falls under.
        """
        times, places = self._times, self.places(now)
        for tokens, period in paces:
            if places >= tokens:
                behind = max(behind, times[-tokens] - now + period)
        delay = max(own, min(behind, own + MAX_DELAY))
        told = max(SECOND, -(-delay // SECOND) * SECOND)
        if len(times) < MAX_PLACES:
            insort(times, now + told)
        self._together = self._together + 1 if now - self._kept <= BURST_GAP else 1
        self._kept = now
        return told
