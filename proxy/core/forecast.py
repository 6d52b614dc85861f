"""When each lane's turn will come: the dealing of `core.line` played forward over the calendar of returning tokens.

The first `HORIZON` tokens are dealt one by one, each coming back a trip and a window after it is granted, so bursts and
several limits at once are forecast as they will happen. What lies beyond is told by `core.outlook`.

One fact keeps it cheap: after the dealing at the present instant nothing that waits can be served by anything at
hand, so a token that returns can only serve requests through its own quota.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from proxy.core.buckets import Buckets
from proxy.core.letters import Need, Place
from proxy.core.model import Micros
from proxy.core.rehearsal import Rehearsal

HORIZON = 64
"""Tokens that are dealt out one by one."""

EVENTS = 16 * HORIZON
"""Returns looked at: more than tokens dealt, for a token may return that serves nobody."""


@dataclass(slots=True)
class Forecast:
    """What was dealt in the rehearsal."""

    rehearsal: Rehearsal
    turns: dict[tuple[str, Place], list[Micros]] = field(default_factory=dict)
    """By replica and lane, the instants of its turns."""
    first: dict[str, Micros] = field(default_factory=dict)
    """The first turn of each replica."""
    dealt: int = 0
    taken: dict[str, int] = field(default_factory=dict)
    """By limit, the tokens that were dealt, and those that replicas will fetch."""

    def take(self, need: Need) -> None:
        """Count one token of each limit."""
        for limit in need.limits:
            self.taken[limit] = self.taken.get(limit, 0) + 1


class Loan(NamedTuple):
    """A token that a replica will fetch."""

    quota: str
    need: Need
    replica: str


@dataclass(slots=True)
class _Source:
    """Events of one limit in their order: tokens return to buckets, or closed buckets open."""

    limit: str
    opens: bool
    queue: deque[tuple[Micros, str]]
    """Instants and quotas that are known."""
    more: Iterator[tuple[Micros, str]]
    """What follows them."""

    def pop(self) -> tuple[Micros, str]:
        """Take the first event."""
        event = self.queue.popleft()
        following = next(self.more, None)
        if following:
            self.queue.append(following)
        return event


class Forecaster:
    """One rehearsal over one calendar."""

    def __init__(self, buckets: Buckets, rehearsal: Rehearsal, now: Micros, lent: Iterable[Loan]) -> None:
        self._buckets = buckets
        self._rehearsal = rehearsal
        self._now = now
        self._taken: dict[tuple[str, str], int] = {}
        self._opened: set[tuple[str, str]] = set()
        self._windows: dict[str, Micros] = {}
        """Of the limits that somebody waits under."""
        self._dealt: dict[str, deque[tuple[Micros, str]]] = {}
        """What was dealt and comes back, by limit."""
        self._needs: dict[tuple[str, str | None], list[Need]] = {}
        """By limit, and the quota that they insist on."""
        for need in rehearsal.needs:
            for limit in need.limits:
                self._windows.setdefault(limit, buckets.views[need.terms].limits[limit].window)
                self._needs.setdefault((limit, need.pinned), []).append(need)
        self._sources = [source for limit in sorted(self._windows) for source in self._read_calendar(limit)]
        self.forecast = Forecast(rehearsal)
        for loan in lent:
            self.forecast.take(loan.need)
            self._return(now, loan.quota, loan.need)

    def play(self) -> Forecast:
        """Deal out the next tokens of the calendar."""
        for _ in range(EVENTS):
            source = self._soonest()
            if not source or self.forecast.dealt >= HORIZON or not self._rehearsal.waiting:
                break
            instant, quota = source.pop()
            self._apply(instant, quota, source.limit, opens=source.opens)
        return self.forecast

    def _read_calendar(self, limit: str) -> Iterator[_Source]:
        buckets, now = self._buckets, self._now
        calendar = buckets.calendars[limit]
        for more, opens in (
            (calendar.returns(now, self._windows[limit], buckets.trip), False),
            (calendar.openings(now), True),
            (calendar.probed(now, buckets.trip, buckets.bound), True),
        ):
            head = next(more, None)
            if head:
                yield _Source(limit, opens, deque([head]), more)
        self._dealt[limit] = deque()
        yield _Source(limit, opens=False, queue=self._dealt[limit], more=iter(()))

    def _soonest(self) -> _Source | None:
        """Where the next event is; among equals, the first in the order of limits."""
        soonest: _Source | None = None
        for source in self._sources:
            if source.queue and (soonest is None or source.queue[0][0] < soonest.queue[0][0]):
                soonest = source
        return soonest

    def _apply(self, instant: Micros, quota: str, limit: str, *, opens: bool) -> None:
        if opens:
            self._opened.add((quota, limit))
        else:
            self._taken[quota, limit] = self._taken_of(quota, limit) - 1
        while self.forecast.dealt < HORIZON and (choice := self._choose(quota, limit)):
            self._deal(instant, quota, *choice)

    def _choose(self, quota: str, limit: str) -> tuple[Need, str] | None:
        best: tuple[int, str, int] | None = None
        chosen: Need | None = None
        for insists in (None, quota):
            for need in self._needs.get((limit, insists), ()):
                if self._serves(quota, need):
                    first = self._rehearsal.first(need)
                    if first and (best is None or first < best):
                        best, chosen = first, need
        return (chosen, best[1]) if chosen and best else None

    def _serves(self, quota: str, need: Need) -> bool:
        view = self._buckets.views[need.terms]
        if quota not in view.quotas and quota != need.pinned:
            return False
        for limit in need.limits:
            if self._taken_of(quota, limit) >= view.limits[limit].requests:
                return False
            if (quota, limit) not in self._opened and self._buckets.calendars[limit].closed(quota):
                return False
        return True

    def _taken_of(self, quota: str, limit: str) -> int:
        taken = self._taken.get((quota, limit))
        return self._buckets.calendars[limit].taken.get(quota, 0) if taken is None else taken

    def _deal(self, instant: Micros, quota: str, need: Need, client: str) -> None:
        replica = self._rehearsal.serve(need, client)
        for limit in need.limits:
            self._taken[quota, limit] = self._taken_of(quota, limit) + 1
        self._return(instant, quota, need)
        self.forecast.turns.setdefault((replica, Place(client, need)), []).append(instant)
        self.forecast.first.setdefault(replica, instant)
        self.forecast.dealt += 1
        self.forecast.take(need)

    def _return(self, instant: Micros, quota: str, need: Need) -> None:
        """What is dealt at an instant comes back a trip and a window later; so in the order of the dealing."""
        view = self._buckets.views[need.terms]
        for limit in need.limits:
            returns = instant + self._buckets.trip + view.limits[limit].window
            self._dealt[limit].append((returns, quota))
