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
        self._by_limit: dict[int, list[Kind]] = {}
        for kind in rehearsal.kinds():
            for limit in kind.limits:
                self._by_limit.setdefault(limit, []).append(kind)
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
        for limit in sorted(self._by_limit):
            returns = self._buckets.returns(limit, self._now)
            parked = iter(self._buckets.calendars[limit].parked)
            for source, opens in ((returns, False), (parked, True)):
                head = next(source, None)
                if head:
                    events.append(_Event(*head, limit, opens, number=-1, source=source))
        heapify(events)
        return events

    def _apply(self, event: _Event, events: list[_Event]) -> None:
        quota, limit = event.quota, event.limit
        if event.opens:
            self._opened.add((quota, limit))
        else:
            self._hand[quota, limit] = self._at_hand(quota, limit) + 1
        while self.forecast.dealt < HORIZON and (choice := self._choose(quota, limit)):
            self._deal(event.instant, quota, *choice, events)

    def _choose(self, quota: str, limit: int) -> tuple[Kind, str] | None:
        best: tuple[int, str] | None = None
        chosen: Kind | None = None
        for kind in self._by_limit[limit]:
            if self._serves(quota, kind):
                first = self._rehearsal.first(kind)
                if first and (best is None or first < best):
                    best, chosen = first, kind
        return (chosen, best[1]) if chosen and best else None

    def _serves(self, quota: str, kind: Kind) -> bool:
        if kind.pinned not in (None, quota):
            return False
        for limit in kind.limits:
            if self._at_hand(quota, limit) <= 0:
                return False
            parked = self._buckets.calendars[limit].parked
            if parked and quota in parked and (quota, limit) not in self._opened:
                return False
        return True

    def _at_hand(self, quota: str, limit: int) -> int:
        hand = self._hand.get((quota, limit))
        return self._buckets.quotas[quota].hand[limit] if hand is None else hand

    def _deal(self, instant: Micros, quota: str, kind: Kind, client: str, events: list[_Event]) -> None:
        replica = self._rehearsal.serve(kind, client)
        for limit in kind.limits:
            self._hand[quota, limit] = self._at_hand(quota, limit) - 1
            window = self._buckets.calendars[limit].window
            returns = instant + self._buckets.trip + window
            heappush(events, _Event(returns, quota, limit, False, self.forecast.dealt))
        self.forecast.turns.setdefault((replica, Lane(client, kind)), []).append(instant)
        self.forecast.first.setdefault(replica, instant)
        self.forecast.dealt += 1


class Ahead(NamedTuple):
    """What stands before a lane's requests under one limit, beyond those that were dealt one by one."""

    limit: int
    weight: int
    """Of all who wait under the limit, each replica of the lane's client counted."""
    others: int
    """Requests of others that wait."""


def turns(forecast: Forecast, line: Line, buckets: Buckets, *, replica: str, lane: Lane, now: Micros) -> Turns:
    """The turns of one lane of one replica, as delays from `now`."""
    instants = forecast.turns.get((replica, lane), [])
    soon = tuple([instant - now for instant in instants])
    waiting = line.waiting(replica, lane)
    if not forecast.dealt or waiting <= len(soon) or not lane.kind.limits:
        return Turns(soon)
    own = line.share(lane.client).weight
    ahead = _ahead(forecast.dealt, line, lane, waiting - len(soon))
    latest = soon[-1] if soon else 0
    later = []
    for position in _samples(len(soon), waiting):
        beyond = position - len(soon)
        for limit, weight, others in ahead:
            first = min(others, (beyond + 1) * (weight - own) // own)
            latest = max(latest, buckets.nth_return(limit, forecast.dealt + beyond + first, now) - now)
        later.append((position, latest))
    return Turns(soon, tuple(later))


def _samples(start: int, end: int) -> list[int]:
    """Up to `SAMPLES` positions of the range, evenly spread, the last one among them."""
    step = -(-(end - start) // SAMPLES)
    return [*range(start, end - 1, step), end - 1]


def _ahead(dealt: int, line: Line, lane: Lane, own_left: int) -> list[Ahead]:
    """For each limit of the lane, who shares it: others get their share of weights, but no more than they wait with."""
    share = line.share(lane.client)
    rows = sum([len(line.groups[kind].rows[lane.client]) for kind in share.kinds])
    ahead = []
    for limit in lane.kind.limits:
        groups = [group for kind, group in line.groups.items() if limit in kind.limits]
        weight = max(sum([group.weight for group in groups]), share.weight)
        others = max(0, sum([group.waiting for group in groups]) - dealt - own_left)
        ahead.append(Ahead(limit, weight * rows, others))
    return ahead
