"""A replica's share of the limits while the shared store is lost, less a reserve, evenly paced.

The share is the limit divided by the number of replicas seen recently. During the first window one of several replicas
uses only its own returning tokens, up to its share, since tokens that others had spent still count; then it uses all of
its share. All replicas together stay below the limit if each knows their number and all have lost the store. Otherwise
the pace makes it rare that a limit is exceeded: `aiolimiter` with a capacity of 1 permits at most one request more than
its rate in any window (its burst is capacity plus leak), and the reserve covers that request.

A limit of fewer requests than there are replicas cannot be divided: requests under it wait for the store.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace

from aiolimiter import AsyncLimiter

from keyturn.core.bucket_snapshots import BucketSnapshot, bucket_snapshots
from keyturn.core.exchange import DemandClass, EstimatedWaits, ExchangeResult, Flow, FlowDemand, LeaseGrant, Settlement
from keyturn.core.messages import ExchangeRequest, HeldLease, LimitReturns, Revision, RevisionLimit
from keyturn.core.model import MILLISECOND, SECOND, Micros
from keyturn.core.snapshots import snapshot
from keyturn.core.state import SharedState

RESERVE = 10
"""One in so many tokens of a limit is left to what is not known."""


class Share:
    """One loss of the store, from its begin to its end.

    Args:
        revision: the pool as it is configured.
        replica: the name of this one.
        replicas: how many share the pool.
        held: what this replica has out.
        age: for how long the store has been lost.
        clock: the replica's own.
        heard: whether the store ever answered; else each bucket is opened by a probe (law 8).
    """

    def __init__(
        self,
        revision: Revision,
        *,
        replica: str,
        replicas: int,
        held: tuple[HeldLease, ...],
        age: Micros,
        clock: Callable[[], Micros],
        heard: bool = True,
    ) -> None:
        self._clock = clock
        self._replica = replica
        self._state = SharedState(f"{replica}.")
        self._serial = 0
        limits = tuple([replace(limit, requests=_part(limit.requests, replicas)) for limit in revision.limits])
        self._revision = replace(revision, name=f"share-of-{revision.name}", limits=limits, keys=())
        paces = zip(revision.limits, limits, strict=True)
        self._paces = [_Pace(limit, own, len(revision.quotas), replicas, clock) for limit, own in paces]
        others = _of_others(self._revision, held, age) if replicas > 1 else ()
        self._say(clock(), (), (), 0, (*held, *others))
        for limit in limits if heard else ():  # every other token of the share is there
            self._state.tokens.shut.known.update((limit.id, quota) for quota in self._revision.quotas)

    def _say(
        self,
        now: Micros,
        settlements: tuple[Settlement, ...],
        demands: tuple[FlowDemand, ...],
        most: int,
        held: tuple[HeldLease, ...] | None = None,
    ) -> ExchangeResult:
        self._serial += 1
        request = ExchangeRequest(
            self._replica,
            self._serial,
            self._serial - 1,
            self._state.epoch,
            0,
            1,
            self._revision.name,
            settlements,
            demands,
            full=True,
            held=held,
            spelled=self._revision,
        )
        told = self._state.exchange(now, "", request, most=most)
        return ExchangeResult(told.version, told.grants, {}, told.available, told.again, 1, told.foreign)

    async def exchange(self, settlements: tuple[Settlement, ...], demands: tuple[FlowDemand, ...]) -> ExchangeResult:
        """See `core.exchange.PoolStore`; grants one request at a time."""
        now = self._clock()
        due = tuple([one for one in demands if self._due(one.flow) <= now])
        answer = self._say(
            now, settlements, due or demands, 1 if due else 0
        )  # flows keep their turns while none is due
        for grant in answer.grants:
            for index in grant.flow.demand_class.limits:
                await self._paces[index].spend()
        left = _left(demands, answer.grants)
        again = self._again(now, left, answer.again)
        return replace(answer, estimates=self._estimates(now, left), again=again)

    def _again(self, now: Micros, left: list[FlowDemand], again: Micros | None) -> Micros | None:
        """When to call again: when the pace lets the next request go, or when the state has a token for one that may.

        `again`: what the state says of the requests that the pace has let go.
        """
        dues = [self._due(demand.flow) - now for demand in left]
        waits = [due for due in dues if due > 0]
        if again is not None and len(waits) < len(dues):
            waits.append(again)
        return max(MILLISECOND, min([SECOND, *waits])) if left else None

    def buckets(self) -> tuple[BucketSnapshot, ...]:
        """The tokens of this replica's share."""
        return bucket_snapshots(self._state, self._revision, self._clock())

    def _due(self, flow: Flow) -> Micros:
        """When the pace lets a request of a flow go."""
        return max([0, *(self._paces[index].due for index in flow.demand_class.limits)])

    def _estimates(self, now: Micros, left: list[FlowDemand]) -> dict[Flow, EstimatedWaits]:
        """One after another by the pace of the slowest limit, in proportion to weight."""
        weights = sum([demand.weight for demand in left])
        waits = self._waits(now, {demand.flow.demand_class for demand in left})
        told: dict[Flow, EstimatedWaits] = {}
        for demand in left:
            flow, waiting, wait = demand.flow, demand.waiting, waits[demand.flow.demand_class]
            if wait is None:
                told[flow] = EstimatedWaits()
                continue
            first = max(self._due(flow) - now, wait)
            interval = max([0, *(self._paces[index].interval for index in flow.demand_class.limits)])
            last = first + (waiting - 1) * interval * weights // demand.weight
            told[flow] = EstimatedWaits((first,), ((waiting - 1, last),) if waiting > 1 else ())
        return told

    def _waits(self, now: Micros, kinds: set[DemandClass]) -> dict[DemandClass, Micros | None]:
        """When the next tokens for requests of these kinds are expected; `None`: never."""
        pins = {(index, kind.pinned) for kind in kinds for index in kind.limits if kind.pinned is not None}
        view = snapshot(self._state, now, self._revision.name, pins)
        pinned = {(index, quota): returns for index, quota, returns in view.pinned}
        waits: dict[DemandClass, Micros | None] = {}
        for kind in kinds:
            firsts: list[Micros | None] = [0] if kind.pinned or self._revision.quotas else [None]
            for index in kind.limits:
                returns = view.limits[index] if kind.pinned is None else pinned[index, kind.pinned]
                firsts.append(_first(returns, self._revision.limits[index]))
            known = [first for first in firsts if first is not None]
            waits[kind] = max(known) if len(known) == len(firsts) else None
        return waits


def _first(returns: LimitReturns, limit: RevisionLimit) -> Micros | None:
    """When the next token of a limit is expected; a limit that cannot be divided has none."""
    if not limit.requests:
        return None
    if returns.available:
        return 0
    if returns.next:
        return returns.next[0]
    return limit.window if returns.in_use else None


def _left(demands: tuple[FlowDemand, ...], grants: tuple[LeaseGrant, ...]) -> list[FlowDemand]:
    """The demands that still wait after these grants."""
    granted = Counter([grant.flow for grant in grants])
    rest = [demand._replace(waiting=demand.waiting - granted[demand.flow]) for demand in demands]
    return [demand for demand in rest if demand.waiting > 0]


def _part(requests: int, replicas: int) -> int:
    """The tokens of each quota that are this replica's; none where there are fewer than replicas."""
    return 0 if requests < replicas else max(1, requests * (RESERVE - 1) // (RESERVE * replicas))


def _of_others(revision: Revision, held: tuple[HeldLease, ...], age: Micros) -> Iterator[HeldLease]:
    """Tokens of a share that others may have spent, assumed to be counted at the latest possible time."""
    for limit in revision.limits:
        own = Counter(row.quota for row in held if _is_out(row, limit.id))
        for quota in revision.quotas:
            for number in range(limit.requests - own[quota]):
                lease = f"others-{limit.id}-{number}"
                yield HeldLease(lease, quota, "", ((limit.id, limit.window),), age, age - revision.bound)


def _is_out(row: HeldLease, limit: str) -> bool:
    """Whether a lease's token of that limit has not returned: of a shorter window's it may have, of another's not."""
    window = dict(row.windows).get(limit)
    return window is not None and (row.counted is None or row.counted < window)


class _Pace:
    """One limit over all quotas: how far apart requests are sent."""

    def __init__(
        self, limit: RevisionLimit, own: RevisionLimit, quotas: int, replicas: int, clock: Callable[[], Micros]
    ) -> None:
        share = limit.requests * (1 - 1 / RESERVE) / replicas
        rate = share - 1 if share >= 2 else share  # noqa: PLR2004  # one is the burst of the limiter
        self.interval: Micros = max(1, int(limit.window / rate / max(1, quotas))) if own.requests else limit.window
        self.due: Micros = 0
        self._clock = clock
        self._limiter = AsyncLimiter(1, self.interval / SECOND)

    async def spend(self) -> None:
        """One request goes out."""
        await self._limiter.acquire()
        self.due = self._clock() + self.interval
