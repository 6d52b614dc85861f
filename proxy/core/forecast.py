"""When each lane's turn will come: the dealing of `core.line` played forward over the calendar of returning tokens.

The first `HORIZON` tokens are dealt one by one, each coming back a trip and a window after it is granted, so bursts and
several limits at once are forecast as they will happen. Beyond, positions are read off the calendar by rank
(`Buckets.nth_return`), with the client's share of it: some of them, most where turns lie far apart, since tokens that
were spent together return together.

One fact keeps it cheap: after the dealing at the present instant nothing that waits can be served by anything at
hand, so a token that returns can only serve requests through its own quota.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from proxy.core.buckets import Buckets
from proxy.core.exchange import Turns
from proxy.core.letters import Need, Place
from proxy.core.line import Line, Rehearsal
from proxy.core.model import MILLISECOND, Micros

HORIZON = 64
"""Tokens that are dealt out one by one."""

EVENTS = 16 * HORIZON
"""Returns looked at: more than tokens dealt, for a token may return that serves nobody."""

SAMPLES = 256
"""Positions beyond the horizon that are told in one exchange, at the most, but for `FEWEST` of each lane."""

FEWEST, FINEST = 16, 64
"""Of one lane, at the most: in many lanes, in few."""

CLOSE: Micros = 200 * MILLISECOND
"""Between two samples that lie no further apart nothing more needs to be told."""


@dataclass(slots=True)
class Forecast:
    """What was dealt in the rehearsal: by lane and replica, the instants of its turns."""

    turns: dict[tuple[str, Place], list[Micros]] = field(default_factory=dict)
    first: dict[str, Micros] = field(default_factory=dict)
    """The first turn of each replica."""
    dealt: int = 0


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
        for loan in lent:
            self._return(now, loan.quota, loan.need)
        self.forecast = Forecast()

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

    def _return(self, instant: Micros, quota: str, need: Need) -> None:
        """What is dealt at an instant comes back a trip and a window later; so in the order of the dealing."""
        view = self._buckets.views[need.terms]
        for limit in need.limits:
            returns = instant + self._buckets.trip + view.limits[limit].window
            self._dealt[limit].append((returns, quota))


class Ahead(NamedTuple):
    """What stands before a lane's requests under one limit, beyond those that were dealt one by one."""

    limit: str
    weight: int
    """Of all who wait under the limit, each replica of the lane's client counted."""
    others: int
    """Requests of others that wait."""


class Outlook:
    """The turns that one exchange tells: those that were dealt one by one, and samples of those beyond."""

    def __init__(self, forecast: Forecast, line: Line, buckets: Buckets, now: Micros, lanes: int) -> None:
        """`lanes`: how many are to be told."""
        self._samples = max(FEWEST, min(FINEST, SAMPLES // max(1, lanes)))
        self._forecast = forecast
        self._line = line
        self._buckets = buckets
        self._now = now
        self._crowds: dict[str, tuple[int, int]] = {}
        """Of a limit, the weight of all who wait under it and how many requests."""

    def turns(self, replica: str, place: Place) -> Turns:
        """The turns of one lane of one replica, as delays from now."""
        need, now, dealt = place.need, self._now, self._forecast.dealt
        soon = tuple([instant - now for instant in self._forecast.turns.get((replica, place), [])])
        waiting = self._line.waiting(replica, place)
        if not dealt or waiting <= len(soon) or not need.limits:
            return Turns(soon)
        own = self._line.share(place.client).weight
        ahead = self._ahead(place, waiting - len(soon))

        def turn(position: int) -> Micros:
            beyond, latest = position - len(soon), 0
            for limit, weight, others in ahead:
                first = min(others, (beyond + 1) * (weight - own) // own)
                rank = dealt + beyond + first
                latest = max(latest, self._buckets.nth_return(need.terms, limit, rank, now) - now)
            return latest

        latest = soon[-1] if soon else 0
        later = []
        for position, delay in _samples(turn, len(soon), waiting - 1, self._samples):
            latest = max(latest, delay)
            later.append((position, latest))
        return Turns(soon, tuple(later))

    def _ahead(self, place: Place, own_left: int) -> list[Ahead]:
        """For each limit of the lane, who shares it: others get their share of weights, at most what they wait with."""
        line = self._line
        share = line.share(place.client)
        rows = sum([len(line.groups[need].rows[place.client]) for need in share.needs])
        ahead = []
        for limit in place.need.limits:
            weight, waiting = self._crowd(limit)
            others = max(0, waiting - self._forecast.dealt - own_left)
            ahead.append(Ahead(limit, max(weight, share.weight) * rows, others))
        return ahead

    def _crowd(self, limit: str) -> tuple[int, int]:
        crowd = self._crowds.get(limit)
        if crowd is None:
            groups = [group for need, group in self._line.groups.items() if limit in need.limits]
            crowd = sum([group.weight for group in groups]), sum([group.waiting for group in groups])
            self._crowds[limit] = crowd
        return crowd


def _samples(turn: Callable[[int], Micros], first: int, last: int, most: int) -> list[tuple[int, Micros]]:
    """Positions of the range and their turns: both ends, and again and again the middle of what lies furthest apart."""
    found = [(position, turn(position)) for position in sorted({first, last})]
    while len(found) < most:
        furthest, after = CLOSE, -1
        for index in range(len(found) - 1):
            (low, early), (high, late) = found[index], found[index + 1]
            if late - early > furthest and high - low > 1:
                furthest, after = late - early, index
        if after < 0:
            break
        middle = (found[after][0] + found[after + 1][0]) // 2
        found.insert(after + 1, (middle, turn(middle)))
    return found
