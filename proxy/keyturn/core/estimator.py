"""When waiting requests will be served, estimated from a snapshot of the store (design, "The estimator").

A request's rank under a limit is the number of requests that are served before it (`core.competition`). Its estimated
wait is the time at which that limit's token of this rank is expected, the latest over all its limits.

1. Start tags are per client: a client's flows under one limit are one series of starts. They are taken to alternate.
2. A replica knows how many requests of a flow wait in its own queue, and the snapshot how many wait in how many queues
   of the flow, which are served in rotation.
3. A token that waits for nobody is used again and again, each time a service time and a window later.
4. A flow pinned to a quota competes for that quota's tokens with the other flows pinned to it, and with an equal part
   of the flows that are not pinned.
5. Flows that also fall under another limit take no more tokens than that limit gives them: where it holds them back,
   others are served in their place.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from heapq import heappop, heappush
from itertools import accumulate
from typing import NamedTuple

from keyturn.core.competition import Competition, Others
from keyturn.core.exchange import DemandClass, EstimatedWaits, Flow
from keyturn.core.flows import UNIT
from keyturn.core.messages import LimitReturns, Revision, Snapshot, WaitingFlow
from keyturn.core.model import MILLISECOND, Micros

MAX_EXACT_ESTIMATES, MAX_SAMPLED_ESTIMATES = 32, 48
"""Estimates of a queue, at the most: of its first positions one by one, and samples beyond."""

SPARE_POSITIONS = 3
"""Positions behind a short queue that are estimated one by one."""

NEWCOMER_POSITIONS = 64
"""Positions behind the queue that are sampled densely, for newcomers."""

FAR_SAMPLES = 4
"""Samples behind those, each about eight times as far away as the one before."""

DETAILED = 1_500
"""Estimates made from one snapshot before further queues are sampled more coarsely."""

OVERTAKING_ROUNDS = 6
"""Steps in which it is found how many requests that another limit holds back are served first."""

SAMPLE_DISTANCE: Micros = 50 * MILLISECOND
"""Samples no further apart need none between them."""


class _Calendar:
    """When the tokens of a limit are expected, by rank.

    A period is a service time and a window. A stage is a number of periods in which the same tokens return; another one
    begins with the period in which more tokens return for the first time, such as those of a quota closed for long.
    """

    def __init__(self, returns: LimitReturns, window: Micros, service: Micros) -> None:
        self.period = max(1, window + service)
        self.tokens = 0
        rounds: dict[int, list[tuple[Micros, Micros, int]]] = {}
        for early, late, tokens in _spans(returns, window):
            number = max(0, -(-late // self.period) - 1)
            origin = number * self.period
            rounds.setdefault(number, []).append((late - origin, max(early, origin) - origin, tokens))
            self.tokens += tokens
        self._stages: list[tuple[int, int, list[tuple[Micros, Micros, int]], list[int]]] = []
        spans: list[tuple[Micros, Micros, int]] = []
        base = last = 0
        for number in sorted(rounds):
            base += (number - last) * sum([tokens for _, _, tokens in spans])
            spans = sorted(spans + rounds[number])
            counts = list(accumulate([tokens for _, _, tokens in spans]))
            self._stages.append((base, number, spans, counts))
            last = number
        self._bases = [stage[0] for stage in self._stages]
        self._numbers = [stage[1] for stage in self._stages]

    def at(self, rank: int) -> Micros:
        """The delay until the token of that rank is expected; only where there are any."""
        base, number, spans, counts = self._stages[bisect_right(self._bases, rank) - 1]
        periods, inside = divmod(rank - base, counts[-1])
        index = bisect_right(counts, inside)
        late, early, tokens = spans[index]
        left = counts[index] - inside - 1
        return (number + periods) * self.period + late - (late - early) * left // tokens

    def count(self, delay: Micros) -> int:
        """How many tokens are expected until then; one that returns twice counts twice."""
        number, inside = divmod(delay, self.period)
        stage = bisect_right(self._numbers, number) - 1
        if stage < 0:
            return 0
        base, first, spans, counts = self._stages[stage]
        index = bisect_left(spans, (inside + 1,))
        found = base + (number - first) * counts[-1] + (counts[index - 1] if index else 0)
        if index < len(spans):
            late, early, tokens = spans[index]
            found += tokens * (inside - early) // (late - early) if early < inside else 0
        return found


def _spans(returns: LimitReturns, window: Micros) -> Iterator[tuple[Micros, Micros, int]]:
    """Spans of time, in each of which so many tokens return evenly, the last of them at its end."""
    if returns.available > 0:
        yield 0, 0, returns.available
    yield from [(delay, delay, 1) for delay in returns.next]
    told, last = len(returns.next), returns.next[-1] if returns.next else 0
    for rank, delay in returns.ranks:
        if rank >= told:
            yield last, delay, rank + 1 - told
            told, last = rank + 1, delay
    if returns.cooling > told:
        yield last, max(last, window), returns.cooling - told
    if returns.in_use > 0:
        yield window, window, returns.in_use


class _Held(NamedTuple):
    """Flows under a limit that other limits hold back, and the calendars of these."""

    flows: Competition
    calendars: list[_Calendar]

    def count(self, delay: Micros) -> int:
        """How many of their requests can be served until then at the most."""
        return min([calendar.count(delay) for calendar in self.calendars])


class _Group(NamedTuple):
    """Limits for which the same flows compete.

    `unpinned`: for a pinned flow, those that are not pinned; `rivals` are then those pinned alike. `free` and `held`:
    the rivals without and with other limits, where there are any with.
    """

    calendars: list[_Calendar]
    rivals: Competition
    unpinned: Competition | None = None
    free: Competition | None = None
    held: tuple[_Held, ...] = ()


class _Claim:
    """A flow under the limits of a group: its positions ranked, and the ranks turned into delays."""

    def __init__(self, flow: WaitingFlow, group: _Group, others: Others, quotas: int) -> None:
        self._client, self._tag, self._cost = flow.client, flow.tag, flow.cost
        self._group, self._others, self._quotas = group, others, quotas
        own = group.rivals.clients.get(flow.client, [])
        beside = [one for one in own if (one.limits, one.pinned) != (flow.limits, flow.pinned)]
        self._known = sum([one.waiting for one in own])
        held = [part.flows.clients.get(flow.client, []) for part in group.held]
        self._held_known = [sum([one.waiting for one in part]) for part in held]
        self._held_beside = [[one.waiting for one in part] for part in held]
        self._beside = [one.waiting for one in beside if not any(one in part for part in held)]
        self._floor: tuple[int, Micros] = (0, 0)
        """A position, and the delay until it is served."""

    def at(self, position: int) -> Micros:
        """The delay until a position of the flow is served."""
        place, group = position, self._group
        if self._beside:
            place += sum([min(waiting, position) for waiting in self._beside])
        if group.held:
            return self._between(position, place)
        before = self._before(group.rivals, place)
        return self._served(place, before + place - self._known if place > self._known else before)

    def _served(self, place: int, rank: int) -> Micros:
        """The delay until a place is served that has this rank among the flows that are listed."""
        group = self._group
        others = self._others.before(self._tag + place * self._cost) if self._others.waiting else 0
        if group.unpinned is not None:
            others = (self._before(group.unpinned, place) + others) // self._quotas
        if len(group.calendars) == 1:
            return group.calendars[0].at(rank + others)
        return max([calendar.at(rank + others) for calendar in group.calendars])

    def _before(self, flows: Competition, place: int) -> int:
        return flows.before(self._tag + place * self._cost, self._client)

    def _between(self, position: int, place: int) -> Micros:
        """The same where others are held back: how many of them come first depends on how long it takes.

        The later a position is served, the more of them are, too; so the delay grows step by step until it suffices.
        """
        known, delay = self._floor
        delay = delay if known <= position else 0
        counted: dict[int, tuple[int, int, list[int]]] = {}
        for _ in range(OVERTAKING_ROUNDS):
            served = [part.count(delay) for part in self._group.held]
            beside = [
                min(sum([min(waiting, position) for waiting in part]), most)
                for part, most in zip(self._held_beside, served, strict=True)
            ]
            at = place + sum(beside)
            if at not in counted:
                counted[at] = self._apart(at)
            everyone, free, held = counted[at]
            rows = zip(held, served, beside, strict=True)
            some = free + sum([min(number, max(0, most - own)) for number, most, own in rows])
            later = self._served(at, at + min(everyone, some))
            if later <= delay:
                break
            delay = later
        self._floor = position, delay
        return delay

    def _apart(self, place: int) -> tuple[int, int, list[int]]:
        """Requests of other clients before a place: all, those that nothing holds back, and the others by part."""
        group = self._group
        held = [
            self._before(part.flows, place) - min(place, known)
            for part, known in zip(group.held, self._held_known, strict=True)
        ]
        own = min(place, self._known - sum(self._held_known))
        free = self._before(group.free, place) - own if group.free else 0
        return self._before(group.rivals, place) - min(place, self._known), free, held


class Estimator:
    """Estimates for the queues of one replica, from one snapshot; what queues have in common is counted once."""

    def __init__(self, snapshot: Snapshot, revision: Revision) -> None:
        self._snapshot, self._revision = snapshot, revision
        self._flows: dict[Flow, WaitingFlow] = {}
        for flow in snapshot.flows:  # two revisions' flows may be the same to this one
            name = Flow(flow.client, DemandClass(flow.limits, flow.pinned))
            same = self._flows.get(name)
            both = same and flow._replace(waiting=flow.waiting + same.waiting, queues=flow.queues + same.queues)
            self._flows[name] = both or flow
        self._clients = {flow.client: flow for flow in snapshot.flows}
        self._last = snapshot.flows[-1].tag if snapshot.flows else 0
        self._pinned = {(limit, quota): returns for limit, quota, returns in snapshot.pinned}
        self._calendars: dict[tuple[int, str | None], _Calendar] = {}
        self._by_class: dict[DemandClass, list[WaitingFlow]] = {}
        for name, flow in self._flows.items():
            self._by_class.setdefault(name.demand_class, []).append(flow)
        self._groups: dict[DemandClass, list[_Group]] = {}
        self._competitions: dict[frozenset[DemandClass], Competition] = {}
        self._unlisted: dict[tuple[DemandClass, int, int], EstimatedWaits] = {}
        self._made = 0

    def estimate(self, flow: Flow, own: int, weight: int = 1) -> EstimatedWaits | None:
        """Estimate a queue in which `own` requests wait, and positions behind it; `None` when the snapshot cannot tell.

        `weight` is its client's, which counts only where the snapshot lists no flow of that client.
        """
        limits, pinned = flow.demand_class
        if not limits:
            return EstimatedWaits((0,))
        if not self._revision.quotas or (pinned is not None and pinned not in self._revision.quotas):
            return EstimatedWaits()
        if pinned is not None and any((limit, pinned) not in self._pinned for limit in limits):
            return None
        if not min([self._calendar(limit, pinned).tokens for limit in limits]):
            return EstimatedWaits()
        if flow.client in self._clients:
            return self._sample(flow, own, weight)
        alike = flow.demand_class, own, weight
        if alike not in self._unlisted:
            self._unlisted[alike] = self._sample(flow, own, weight)
        return self._unlisted[alike]

    def _sample(self, name: Flow, own: int, weight: int) -> EstimatedWaits:
        flow = self._flows.get(name) or self._assume(name, own, weight)
        total, queues = max(own, flow.waiting), flow.queues
        waiting = self._snapshot.others - (0 if name in self._flows else own)
        others = Others(waiting, self._snapshot.others_weight, self._last)
        groups, quotas = self._group(name.demand_class), len(self._revision.quotas)
        claims = [_Claim(flow, group, others, quotas) for group in groups]
        calendars = [calendar for group in groups for calendar in group.calendars]
        tokens = max(calendars, key=lambda calendar: calendar.period / calendar.tokens).tokens  # of the slowest

        def at(position: int) -> Micros:
            place = _place(position, own, total, queues)
            return claims[0].at(place) if len(claims) == 1 else max([claim.at(place) for claim in claims])

        detail = SPARE_POSITIONS + own if self._made < DETAILED else 1 + min(own, SPARE_POSITIONS)
        soon = list(accumulate([at(position) for position in range(min(MAX_EXACT_ESTIMATES, detail))], max))
        end, stride = own + NEWCOMER_POSITIONS, tokens * -(-NEWCOMER_POSITIONS // tokens)
        far = [end + (stride << 3 * number) for number in range(FAR_SAMPLES)]
        later = {len(soon) - 1: soon[-1], end: at(end)}
        _refine(later, at, min(MAX_SAMPLED_ESTIMATES - FAR_SAMPLES - 1, detail))
        del later[len(soon) - 1]
        positions = [*sorted(later), *far]
        self._made += len(soon) + len(positions)
        waits = accumulate([later[position] if position in later else at(position) for position in positions], max)
        return EstimatedWaits(tuple(soon), tuple(zip(positions, waits, strict=True)))

    def _assume(self, name: Flow, own: int, weight: int) -> WaitingFlow:
        known = self._clients.get(name.client)
        tag = self._last if self._snapshot.others else 0
        tag, cost = (known.tag, known.cost) if known else (tag, UNIT // weight)
        return WaitingFlow(name.client, *name.demand_class, tag, cost, own, 1 if own else 0)

    def _calendar(self, limit: int, quota: str | None) -> _Calendar:
        if (limit, quota) not in self._calendars:
            returns = self._snapshot.limits[limit] if quota is None else self._pinned[limit, quota]
            window = self._revision.limits[limit].window
            self._calendars[limit, quota] = _Calendar(returns, window, self._snapshot.service)
        return self._calendars[limit, quota]

    def _group(self, demanded: DemandClass) -> list[_Group]:
        """The limits of a class, together where the same flows compete: such as one per second and one per day."""
        if demanded not in self._groups:
            alike: dict[frozenset[DemandClass], list[_Calendar]] = {}
            for limit in demanded.limits:
                under = frozenset([other for other in self._by_class if limit in other.limits])
                alike.setdefault(under, []).append(self._calendar(limit, demanded.pinned))
            self._groups[demanded] = [self._rivals(demanded, under, calendars) for under, calendars in alike.items()]
        return self._groups[demanded]

    def _rivals(self, own: DemandClass, under: frozenset[DemandClass], calendars: list[_Calendar]) -> _Group:
        if own.pinned is not None:
            pinned, rest = [frozenset([one for one in under if one.pinned == to]) for to in (own.pinned, None)]
            return _Group(calendars, self._compete(pinned), self._compete(rest))
        held: dict[frozenset[int], set[DemandClass]] = {}
        for other in under:
            limits = frozenset(other.limits) - frozenset(own.limits)
            if limits and other.pinned is None:
                held.setdefault(limits, set()).add(other)
        if not held:
            return _Group(calendars, self._compete(under))
        parts = [
            _Held(self._compete(frozenset(classes)), [self._calendar(limit, None) for limit in sorted(limits)])
            for limits, classes in held.items()
        ]
        free = under.difference(*held.values())
        return _Group(calendars, self._compete(under), None, self._compete(free), tuple(parts))

    def _compete(self, classes: frozenset[DemandClass]) -> Competition:
        if classes not in self._competitions:
            self._competitions[classes] = Competition([flow for one in classes for flow in self._by_class[one]])
        return self._competitions[classes]


def _place(position: int, own: int, total: int, queues: int) -> int:
    """Where in its flow a position of a replica's queue stands; the queues are served in rotation, one request each.

    `own` and `total`: the requests in this queue and in all; a new queue stands last in the rotation. Others may be
    shorter than this one, and how unequal they are is not known: they are taken to be used up no earlier than it is.
    """
    if position < own:
        return position + min(position * (queues - 1), position * (total - own) // own)
    return position + min(position * (queues - 1) if own else (position + 1) * queues, total - own)


def _refine(samples: dict[int, Micros], at: Callable[[int], Micros], budget: int) -> None:
    """Add samples where neighbours lie furthest apart in time: tokens used together return together."""
    low, high = samples
    gaps = [(samples[low] - samples[high], low, high)]
    for _ in range(budget):
        gap, low, high = heappop(gaps)
        if -gap <= SAMPLE_DISTANCE:
            break
        middle = (low + high) // 2
        samples[middle] = at(middle)
        for early, late in ((low, middle), (middle, high)):
            heappush(gaps, (samples[early] - samples[late] if late - early > 1 else 0, early, late))
