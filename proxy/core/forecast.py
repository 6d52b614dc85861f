"""When each lane's turn will come: the dealing of `core.line` played forward over the calendar of returning tokens.

The first `HORIZON` tokens are dealt one by one, each coming back a trip and a window after it is granted, so bursts and
several limits at once are forecast as they will happen. Beyond, positions are read off the calendar by rank
(`Buckets.nth_return`), with the client's share of it.

One fact keeps it cheap: after the dealing at the present instant nothing that waits can be served by anything at
hand, so a token that returns can only serve requests through its own quota.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush, heapreplace
from typing import NamedTuple

from proxy.core.buckets import Buckets
from proxy.core.exchange import Kind, Lane, Turns
from proxy.core.line import Line, Rehearsal
from proxy.core.model import Micros

HORIZON = 64
"""Tokens that are dealt out one by one."""

EVENTS = 16 * HORIZON
"""Returns looked at: more than tokens dealt, for a token may return that serves nobody."""

SAMPLES = 16
"""Positions beyond the horizon that are told."""


@dataclass(slots=True)
class Forecast:
    """What was dealt in the rehearsal: by lane and replica, the instants of its turns."""

    turns: dict[tuple[str, Lane], list[Micros]] = field(default_factory=dict)
    first: dict[str, Micros] = field(default_factory=dict)
    """The first turn of each replica."""
    dealt: int = 0


class _Event(NamedTuple):
    """A token returns to a bucket, or a parked bucket opens; `source` yields what comes after it."""

    instant: Micros
    quota: str
    limit: int
    opens: bool
    number: int
    """Of its source, or of the token dealt: no two events are equal, so sources are never compared."""
    source: Iterator[tuple[Micros, str]] | None = None


class Forecaster:
    """One rehearsal over one calendar."""

    def __init__(self, buckets: Buckets, rehearsal: Rehearsal, now: Micros) -> None:
        self._buckets = buckets
        self._rehearsal = rehearsal
        self._now = now
        self._hand: dict[tuple[str, int], int] = {}
        self._opened: set[tuple[str, int]] = set()
        self._kinds = rehearsal.kinds()
        self.forecast = Forecast()

    def play(self) -> Forecast:
        """Deal out the next tokens of the calendar."""
        events = self._calendar()
        for _ in range(EVENTS):
            if not events or self.forecast.dealt >= HORIZON:
                break
            event = events[0]
            following = next(event.source, None) if event.source else None
            if following:
                heapreplace(events, _Event(*following, event.limit, event.opens, event.number, event.source))
            else:
                heappop(events)
            self._apply(event, events)
        return self.forecast

    def _calendar(self) -> list[_Event]:
        events: list[_Event] = []
        for limit in sorted({limit for kind in self._kinds for limit in kind.limits}):
            returns = self._buckets.returns(limit, self._now)
            parked = iter(self._buckets.calendars[limit].parked)
            for source, opens in ((returns, False), (parked, True)):
                head = next(source, None)
                if head:
                    events.append(_Event(*head, limit, opens, number=-1, source=source))
        heapify(events)
        return events

    def _apply(self, event: _Event, events: list[_Event]) -> None:
        bucket = (event.quota, event.limit)
        if event.opens:
            self._opened.add(bucket)
        else:
            self._hand[bucket] = self._at_hand(*bucket) + 1
        while self.forecast.dealt < HORIZON and (choice := self._choose(*bucket)):
            self._deal(event.instant, event.quota, *choice, events)

    def _choose(self, quota: str, limit: int) -> tuple[Kind, str] | None:
        best: tuple[int, str, Kind] | None = None
        for kind in self._kinds:
            if limit in kind.limits and self._serves(quota, kind):
                first = self._rehearsal.first(kind)
                if first and (best is None or first < best[:2]):
                    best = (*first, kind)
        return (best[2], best[1]) if best else None

    def _serves(self, quota: str, kind: Kind) -> bool:
        if kind.pinned not in (None, quota):
            return False
        return all(self._is_open(quota, limit) and self._at_hand(quota, limit) > 0 for limit in kind.limits)

    def _at_hand(self, quota: str, limit: int) -> int:
        hand = self._hand.get((quota, limit))
        return self._buckets.quotas[quota].hand[limit] if hand is None else hand

    def _is_open(self, quota: str, limit: int) -> bool:
        return (quota, limit) in self._opened or quota not in self._buckets.calendars[limit].parked

    def _deal(self, instant: Micros, quota: str, kind: Kind, client: str, events: list[_Event]) -> None:
        replica = self._rehearsal.serve(kind, client)
        instant = max(instant, self._now)
        for limit in kind.limits:
            self._hand[quota, limit] = self._at_hand(quota, limit) - 1
            window = self._buckets.calendars[limit].window
            returns = instant + self._buckets.trip + window
            heappush(events, _Event(returns, quota, limit, False, self.forecast.dealt))
        self.forecast.turns.setdefault((replica, Lane(client, kind)), []).append(instant)
        self.forecast.first.setdefault(replica, instant)
        self.forecast.dealt += 1


def turns(forecast: Forecast, line: Line, buckets: Buckets, *, replica: str, lane: Lane, now: Micros) -> Turns:
    """The turns of one lane of one replica, as delays from `now`."""
    instants = forecast.turns.get((replica, lane), [])
    soon = tuple(instant - now for instant in instants)
    waiting = line.waiting(replica, lane)
    if not forecast.dealt or waiting <= len(soon) or not lane.kind.limits:
        return Turns(soon)
    latest = soon[-1] if soon else 0
    later = []
    for position in _samples(len(soon), waiting):
        ahead = _ahead(forecast, line, replica, lane, position - len(soon))
        instant = max(buckets.nth_return(limit, place, now) for limit, place in ahead)
        latest = max(latest, instant - now)
        later.append((position, latest))
    return Turns(soon, tuple(later))


def _samples(start: int, end: int) -> list[int]:
    """Up to `SAMPLES` positions of the range, evenly spread, the last one among them."""
    step = -(-(end - start) // SAMPLES)
    return [*range(start, end - 1, step), end - 1]


def _ahead(forecast: Forecast, line: Line, replica: str, lane: Lane, beyond: int) -> list[tuple[int, int]]:
    """For each limit of the lane: how many tokens go to others and to the lane itself before that position.

    `beyond` counts the lane's own requests after those that the forecast has dealt. The others get their share of
    weights meanwhile, but no more than they wait with.
    """
    share = line.share(lane.client)
    rows = sum(len(line.groups[kind].rows[lane.client]) for kind in share.kinds)
    own_left = line.waiting(replica, lane) - len(forecast.turns.get((replica, lane), ()))
    places = []
    for limit in lane.kind.limits:
        groups = [group for kind, group in line.groups.items() if limit in kind.limits]
        weight = max(sum(group.weight for group in groups), share.weight)
        waiting = sum(group.waiting for group in groups)
        others = (beyond + 1) * (weight * rows - share.weight) // share.weight
        others = min(others, max(0, waiting - forecast.dealt - own_left))
        places.append((limit, forecast.dealt + beyond + others))
    return places
