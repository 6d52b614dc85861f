"""When waiting requests will be served, estimated from a snapshot of the store (design, "The estimator").

A request's rank under a limit is the number of requests that are served before it (`core.competition`). Its estimated
wait is the time at which that limit's token of this rank is expected, the latest over all its limits.

1. Start tags are per client: a client's flows under one limit are one series of starts. They are taken to alternate.
2. A replica knows how many requests of a flow wait in its own queue, and the snapshot how many wait in all queues of
   the flow, which are served in rotation.
3. A token that waits for nobody is used again and again, each time a service time and a window later.
4. A flow pinned to a quota competes for that quota's tokens with the other flows pinned to it, and with an equal part
   of the flows that are not pinned.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator
from heapq import heappop, heappush
from itertools import accumulate

from keyturn.core.competition import Competition, Others
from keyturn.core.exchange import DemandClass, EstimatedWaits, Flow
from keyturn.core.flows import UNIT
from keyturn.core.messages import LimitReturns, Revision, Snapshot, WaitingFlow
from keyturn.core.model import MILLISECOND, Micros

SOON, LATER = 32, 48
"""Estimates of a queue, at the most: of its first positions one by one, and samples beyond."""

SPARE = 3
"""Positions behind a short queue that are estimated one by one."""

BEYOND = 64
"""Positions behind the queue that are sampled densely, for newcomers."""

FAR = 4
"""Samples behind those, each about eight times as far away as the one before."""

DETAILED = 1_500
"""Estimates made from one snapshot before further queues are sampled more coarsely."""

CLOSE: Micros = 50 * MILLISECOND
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

    def at(self, rank: int) -> Micros:
        """The delay until the token of that rank is expected; only where there are any."""
        base, number, spans, counts = self._stages[bisect_right(self._bases, rank) - 1]
        periods, inside = divmod(rank - base, counts[-1])
        index = bisect_right(counts, inside)
        late, early, tokens = spans[index]
        left = counts[index] - inside - 1
        return (number + periods) * self.period + late - (late - early) * left // tokens


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


class _Claim:
    """A flow under limits for which the same flows compete: its positions ranked, and the ranks turned into delays."""

    def __init__(
        self, lane: Flow, rivals: Competition, unpinned: Competition | None, calendars: list[_Calendar]
    ) -> None:
        self.calendars = calendars
        self._client = lane.client
        self._rivals, self._unpinned = rivals, unpinned
        flows = rivals.clients.get(lane.client, [])
        self._known = sum([flow.waiting for flow in flows])
        self._beside = [flow.waiting for flow in flows if (flow.limits, flow.pinned) != lane.demand_class]

    def at(self, position: int, flow: WaitingFlow, others: Others, quotas: int) -> Micros:
        """The delay until a position of the flow is served."""
        place = position + sum([min(waiting, position) for waiting in self._beside])
        start = flow.tag + place * flow.cost
        rank = self._rivals.before(start, self._client) + max(0, place - self._known)
        if self._unpinned is None:
            rank += others.before(start)
        else:
            rank += (self._unpinned.before(start, self._client) + others.before(start)) // quotas
        return max([calendar.at(rank) for calendar in self.calendars])


_Group = tuple[Competition, Competition | None, list[_Calendar]]
"""Limits for which the same flows compete; for a pinned flow those pinned alike and, apart, those not pinned."""


class Estimator:
    """Estimates for the queues of one replica, from one snapshot; what queues have in common is counted once.

    `replicas`: how many share the pool, and so the most among which a flow's tokens go in rotation.
    """

    def __init__(self, snapshot: Snapshot, revision: Revision, replicas: int) -> None:
        self._snapshot, self._revision = snapshot, revision
        self._replicas = max(1, replicas)
        self._flows: dict[Flow, WaitingFlow] = {}
        for flow in snapshot.flows:  # two revisions' flows may be the same to this one
            lane = Flow(flow.client, DemandClass(flow.limits, flow.pinned))
            same = self._flows.get(lane)
            self._flows[lane] = flow._replace(waiting=flow.waiting + same.waiting) if same else flow
        self._clients = {flow.client: flow for flow in snapshot.flows}
        self._last = snapshot.flows[-1].tag if snapshot.flows else 0
        self._pinned = {(limit, quota): returns for limit, quota, returns in snapshot.pinned}
        self._calendars: dict[tuple[int, str | None], _Calendar] = {}
        self._of_kind: dict[DemandClass, list[WaitingFlow]] = {}
        for lane, flow in self._flows.items():
            self._of_kind.setdefault(lane.demand_class, []).append(flow)
        self._groups: dict[DemandClass, list[_Group]] = {}
        self._competitions: dict[frozenset[DemandClass], Competition] = {}
        self._unlisted: dict[tuple[DemandClass, int, int], EstimatedWaits] = {}
        self._made = 0

    def turns(self, lane: Flow, own: int, weight: int = 1) -> EstimatedWaits | None:
        """Estimate a queue in which `own` requests wait, and positions behind it; `None` when the snapshot cannot tell.

        `weight` is its client's, which counts only where the snapshot lists no flow of that client.
        """
        limits, pinned = lane.demand_class
        if not limits:
            return EstimatedWaits((0,))
        if not self._revision.quotas or (pinned is not None and pinned not in self._revision.quotas):
            return EstimatedWaits()
        if pinned is not None and any((limit, pinned) not in self._pinned for limit in limits):
            return None
        if not min([self._calendar(limit, pinned).tokens for limit in limits]):
            return EstimatedWaits()
        if lane.client in self._clients:
            return self._sample(lane, own, weight)
        alike = lane.demand_class, own, weight
        if alike not in self._unlisted:
            self._unlisted[alike] = self._sample(lane, own, weight)
        return self._unlisted[alike]

    def _sample(self, lane: Flow, own: int, weight: int) -> EstimatedWaits:
        flow = self._flows.get(lane) or self._assume(lane, own, weight)
        total = max(own, flow.waiting)
        waiting = self._snapshot.others - (0 if lane in self._flows else own)
        others = Others(waiting, self._snapshot.others_weight, self._last)
        claims, quotas = [_Claim(lane, *group) for group in self._group(lane.demand_class)], len(self._revision.quotas)
        calendars = [calendar for claim in claims for calendar in claim.calendars]
        tokens = max(calendars, key=lambda calendar: calendar.period / calendar.tokens).tokens  # of the slowest

        def at(position: int) -> Micros:
            place = _place(position, own, total, self._replicas)
            return max([claim.at(place, flow, others, quotas) for claim in claims])

        detail = SPARE + own if self._made < DETAILED else 1 + min(own, SPARE)
        soon = list(accumulate([at(position) for position in range(min(SOON, detail))], max))
        end, stride = own + BEYOND, tokens * -(-BEYOND // tokens)
        far = [end + (stride << 3 * number) for number in range(FAR)]
        later = {len(soon) - 1: soon[-1], end: at(end)}
        _refine(later, at, min(LATER - FAR - 1, detail))
        del later[len(soon) - 1]
        positions = [*sorted(later), *far]
        self._made += len(soon) + len(positions)
        waits = accumulate([later[position] if position in later else at(position) for position in positions], max)
        return EstimatedWaits(tuple(soon), tuple(zip(positions, waits, strict=True)))

    def _assume(self, lane: Flow, own: int, weight: int) -> WaitingFlow:
        known = self._clients.get(lane.client)
        tag = self._last if self._snapshot.others else 0
        tag, cost = (known.tag, known.cost) if known else (tag, UNIT // weight)
        return WaitingFlow(lane.client, *lane.demand_class, tag, cost, own)

    def _calendar(self, limit: int, quota: str | None) -> _Calendar:
        if (limit, quota) not in self._calendars:
            returns = self._snapshot.limits[limit] if quota is None else self._pinned[limit, quota]
            window = self._revision.limits[limit].window
            self._calendars[limit, quota] = _Calendar(returns, window, self._snapshot.service)
        return self._calendars[limit, quota]

    def _group(self, kind: DemandClass) -> list[_Group]:
        """The limits of a kind, together where the same flows compete: such as one per second and one per day."""
        if kind not in self._groups:
            alike: dict[tuple[frozenset[DemandClass], ...], list[_Calendar]] = {}
            for limit in kind.limits:
                under = [other for other in self._of_kind if limit in other.limits]
                parts: tuple[frozenset[DemandClass], ...] = (frozenset(under),)
                if kind.pinned is not None:
                    parts = tuple([frozenset([one for one in under if one.pinned == to]) for to in (kind.pinned, None)])
                alike.setdefault(parts, []).append(self._calendar(limit, kind.pinned))
            self._groups[kind] = [
                (self._compete(rivals), self._compete(unpinned[0]) if unpinned else None, calendars)
                for (rivals, *unpinned), calendars in alike.items()
            ]
        return self._groups[kind]

    def _compete(self, kinds: frozenset[DemandClass]) -> Competition:
        if kinds not in self._competitions:
            self._competitions[kinds] = Competition([flow for kind in kinds for flow in self._of_kind[kind]])
        return self._competitions[kinds]


def _place(position: int, own: int, total: int, replicas: int) -> int:
    """Where in its flow a position of a replica's queue stands; the replicas are served in rotation."""
    if position < own:
        return min(position * total // own, position * replicas)
    return min((position + 1) * replicas - 1, total + position - own)


def _refine(samples: dict[int, Micros], at: Callable[[int], Micros], budget: int) -> None:
    """Add samples where neighbours lie furthest apart in time: tokens used together return together."""
    low, high = samples
    gaps = [(samples[low] - samples[high], low, high)]
    for _ in range(budget):
        gap, low, high = heappop(gaps)
        if -gap <= CLOSE:
            break
        middle = (low + high) // 2
        samples[middle] = at(middle)
        for early, late in ((low, middle), (middle, high)):
            heappush(gaps, (samples[early] - samples[late] if late - early > 1 else 0, early, late))
