"""When those who are refused are told to come back: one after another, for they all come back (law 6).

Whoever is refused has no place in the queue any more, so the next who comes is foretold the same turn: told as it is, a
crowd would return as one, and all but the first be refused again. So a lane remembers for when it has told somebody to
come back, and tells the crowd that is refused before that later moments: as far apart as the lane's tokens lie, and no
more in one window than it gets. What counts are the moments at which they do come back, which are whole seconds from
when they were told: a token that idles until then returns so much later.

Who tries again and again is no crowd: a caller is told the time again that it was told, and pushes nobody back. Nor is
who does not come back: of those whose time has come a lane counts how many came, and reckons with that part of a crowd;
and how many came in vain, for other replicas refuse others, of whom it does not know. Callers cannot be told apart for
sure, so the first `FEW` are told their own turn all the same, and nobody is told a moment more than `LATEST` later.
"""

from bisect import bisect_right, insort
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import NamedTuple

from proxy.core.exchange import Kind
from proxy.core.model import SECOND, Micros, Pool

FEW = 8

LATEST: Micros = 300 * SECOND
"""By how much at the most somebody is told a later moment than its own turn."""

LATE: Micros = 10 * SECOND
"""Whoever has not come this long after its time does not come back any more."""

TRUST, MEMORY = 4, 64
"""So many are taken to have come back before anything is known; of so many at the most it is remembered."""

AGAIN: Micros = SECOND // 4
"""Whoever asks the like of what another has asked within this time is somebody else: many begin at the same moment."""

KNOWN = 1000
"""So many of whom it has told a lane remembers."""

TRIP: Micros = SECOND // 4
"""From the granting of a token to the head of the answer, at the usual."""


class Pace(NamedTuple):
    """How many tokens a lane gets in a window, before the first of them is back."""

    tokens: int
    window: Micros
    """From the granting of a token until it is at hand again."""
    replicas: int = 1
    """How many may refuse others of the same client."""


@dataclass(slots=True)
class Crowd:
    """Those of one lane who were refused and are expected to come back."""

    _due: list[Micros] = field(default_factory=list)
    """When they come back, in order, if they do as they were told."""
    _known: dict[Hashable, tuple[Micros, Micros, int]] = field(default_factory=dict)
    """When a caller comes back, when it was told so, and the number by which it is awaited."""
    _awaited: list[tuple[Micros, int, Hashable]] = field(default_factory=list)
    """Who is to come next of those who are known; a heap, in which some came, and some are to come later by now."""
    _told: int = 0
    _came: int = TRUST
    """Of those whose time has come, how many came."""
    _missed: int = 0
    """And how many did not."""
    _vain: int = 0
    """How many of those who came were refused again."""

    def come(self, caller: Hashable, now: Micros) -> bool:
        """Somebody is there; says whether it was told to come back by now."""
        due, _, _ = self._known.get(caller, (now + 1, now, 0))
        if due > now:
            return False
        del self._known[caller]
        self._note(came=1)
        return True

    @property
    def awaits(self) -> bool:
        """Whether anybody is to come back who would be known again."""
        return bool(self._known)

    def expected(self, now: Micros) -> int:
        """How many are; who should have come by now is not expected any more."""
        del self._due[: bisect_right(self._due, now)]
        while self._awaited and self._awaited[0][0] + LATE <= now:
            _, number, caller = heappop(self._awaited)
            due, _, awaited = self._known.get(caller, (now, now, 0))
            if awaited == number and due + LATE > now:
                heappush(self._awaited, (due, number, caller))
            elif awaited == number:
                del self._known[caller]
                self._note(missed=1)
        return len(self._due)

    def again(self) -> None:
        """Somebody who came back as it was told is refused again."""
        self._note(vain=1)

    def tell(
        self, caller: Hashable | None, came: Micros, now: Micros, turn: Micros, pace: Pace, *, together: bool = False
    ) -> Micros:
        """After how long somebody who is refused now is to come back; who tries again before its time has that time.

        Args:
            caller: who it is, if that is known.
            came: the instant at which it did.
            now: the instant.
            turn: the delay until its own turn.
            pace: of the lane.
            together: whether all that are expected were refused at this instant, and its turn is behind theirs.
        """
        due, told, _ = self._known.get(caller, (now, now, 0))
        again = due > now and came - told >= AGAIN
        if again:
            delay = max(turn, due - now)
        else:
            delay = spread(turn, now, self._due, self._reckoned(pace), together=together)
            if len(self._due) < KNOWN:
                insort(self._due, now + -(-delay // SECOND) * SECOND)
        if caller is not None and (again or len(self._known) < KNOWN):
            self._know(caller, now + delay, now)
        return delay

    def _know(self, caller: Hashable, due: Micros, now: Micros) -> None:
        if caller in self._known:
            number = self._known[caller][2]
        else:
            number = self._told = self._told + 1
            heappush(self._awaited, (due, number, caller))
        self._known[caller] = due, now, number

    def _note(self, *, came: int = 0, missed: int = 0, vain: int = 0) -> None:
        self._came += came
        self._missed += missed
        self._vain += vain
        if self._came + self._missed > MEMORY:
            self._came, self._missed, self._vain = (self._came + 1) // 2, self._missed // 2, self._vain // 2

    def _reckoned(self, pace: Pace) -> Pace:
        """The same, by what is known of those who were told.

        Some do not come for their tokens, or come to another replica, where nobody knows them; and some come in vain,
        for other replicas had told others the same.
        """
        part = min(1, pace.replicas * self._came / (self._came + self._missed))
        crowds = min(pace.replicas, self._came / max(1, self._came - self._vain))
        tokens = max(1, int(pace.tokens / part / crowds))
        return Pace(tokens, round(pace.window * tokens * part * crowds / pace.tokens))


def pace(pool: Pool, kind: Kind, quotas: int, part: tuple[int, int], replicas: int) -> Pace:
    """The tokens that a lane gets, by its slowest limit; without limits as many as anybody wants.

    Args:
        pool: whose limits they are.
        kind: of the lane.
        quotas: how many serve who insists on none.
        part: the weight of the lane's client, and that of all who contend with it, with its own.
        replicas: how many share the pool.
    """
    own, of_all = part
    serve = 1 if kind.pinned is not None else max(1, quotas)
    paces = []
    for limit in [pool.limits[index] for index in kind.limits]:
        window, size = pool.stretched(limit) + TRIP, limit.requests * serve
        tokens = max(1, size * own // of_all)
        paces.append(Pace(tokens, window * tokens * of_all // (size * own), replicas))
    return max(paces, key=lambda one: one.window / one.tokens, default=Pace(1, 0))


def spread(turn: Micros, now: Micros, due: Sequence[Micros], pace: Pace, *, together: bool) -> Micros:
    """After how long to come back.

    Args:
        turn: the delay until its own turn.
        now: the instant.
        due: the instants, in order, at which a crowd was told to come back.
        pace: of the lane.
        together: whether the turn is behind that of all of the crowd.
    """
    crowd = len(due)
    if crowd < FEW or not pace.window:
        return turn
    behind = turn if together else due[0] - now + crowd * pace.window // pace.tokens
    if crowd >= pace.tokens:
        behind = max(behind, due[-pace.tokens] - now + pace.window)
    return max(turn, min(behind, turn + LATEST))
