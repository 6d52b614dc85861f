"""A replica's share of the limits while the shared store is lost: its part, less a reserve, evenly paced.

The share is the limit divided by the replicas that were seen of late. What this replica has spent itself is counted by
a ledger of its own. What the others had spent when the store was lost is not: they may go on with their shares, while
what they spent beyond them still counts. So for the first window a replica uses what returns to it, and of what was
at hand its part; the rest of its share is set aside as spent by them. Then all replicas have their shares, together
less than the limit. What else goes wrong (a replica that nobody had seen, a store that only some have lost) the pace
makes rare: `aiolimiter` with a capacity of 1 lets through at most one request more than its rate in any window (its
burst is capacity plus leak), for which the reserve has room.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping

from aiolimiter import AsyncLimiter

from proxy.core.exchange import Demand, Exchange, Lane, Settlement, Turns
from proxy.core.ledger import Ledger
from proxy.core.letters import Call, Held, LimitTerms, Terms
from proxy.core.looks import BucketLook, look
from proxy.core.model import MILLISECOND, SECOND, Micros

RESERVE = 0.1
"""The part of a share that is left to what is not known."""


class Share:
    """One loss of the store, from its begin to its end.

    `held` is what the replica has out; `hands` the tokens at hand over all quotas when it heard last, by limit, without
    an entry for what it never heard of; `age` for how long the store has been lost.
    """

    def __init__(
        self,
        terms: Terms,
        replica: str,
        replicas: int,
        held: tuple[Held, ...],
        hands: Mapping[str, int],
        age: Micros,
        clock: Callable[[], Micros],
    ) -> None:
        self._clock = clock
        self._ledger = Ledger(f"{replica}.")
        self._serial = 0
        self._paces = [_Pace(limit, len(terms.quotas), replicas, clock) for limit in terms.limits]
        limits = [
            LimitTerms(limit.id, pace.tokens, limit.window)
            for limit, pace in zip(terms.limits, self._paces, strict=True)
        ]
        self._terms = Terms(f"share-of-{terms.name}", terms.quotas, tuple(limits), terms.bound)
        self._held: tuple[Held, ...] | None = (*held, *_of_others(self._terms, replicas, held, hands, age))

    async def exchange(self, settlements: tuple[Settlement, ...], demands: tuple[Demand, ...]) -> Exchange:
        """See `core.exchange.Store`; grants one request at a time."""
        now = self._clock()
        due = {demand.lane: self._due(demand.lane, now) for demand in demands}
        offered = tuple(demand for demand in demands if due[demand.lane] <= now)
        self._serial += 1
        call = Call(
            "share",
            self._serial,
            self._serial - 1,
            self._ledger.era,
            0,
            1,
            self._terms.name,
            settlements,
            offered,
            held=self._held,
            spelled=self._terms,
        )
        self._held = None
        answer = self._ledger.exchange(now, "", call, most=1).exchange()
        for grant in answer.grants:
            for index in grant.lane.kind.limits:
                await self._paces[index].spend()
        turns = self._turns(now, demands, answer)
        first = min((lane_turns.at(0) or 0 for lane_turns in turns.values()), default=None)
        again = None if first is None else max(MILLISECOND, min(first, SECOND))
        return Exchange(answer.tick, answer.grants, turns, answer.budgets, again)

    def look(self) -> tuple[BucketLook, ...]:
        """The tokens of this replica's part."""
        return look(self._ledger.buckets, self._terms, self._clock())

    def _due(self, lane: Lane, now: Micros) -> Micros:
        return max([now, *(self._paces[index].due for index in lane.kind.limits)])

    def _turns(self, now: Micros, demands: tuple[Demand, ...], answer: Exchange) -> dict[Lane, Turns]:
        """One after another by the pace of the slowest limit, in proportion to weight."""
        granted = [grant.lane for grant in answer.grants]
        weights = sum(demand.weight for demand in demands)
        told: dict[Lane, Turns] = {}
        for demand in demands:
            left = demand.waiting - granted.count(demand.lane)
            if left <= 0:
                continue
            step = max([0, *(self._paces[index].interval for index in demand.lane.kind.limits)])
            foretold = answer.turns.get(demand.lane)
            first = max(self._due(demand.lane, now) - now, (foretold.at(0) or 0) if foretold else 0)
            last = first + (left - 1) * step * weights // demand.weight
            told[demand.lane] = Turns((first,), ((left - 1, last),) if left > 1 else ())
        return told


def _of_others(
    terms: Terms, replicas: int, held: tuple[Held, ...], hands: Mapping[str, int], age: Micros
) -> Iterator[Held]:
    """What others may have spent of a share, as if it were counted at the latest that it can be."""
    for limit in terms.limits:
        if limit.id not in hands:
            continue
        own = Counter(row.quota for row in held if _is_out(row, limit.id))
        part = int(hands[limit.id] * (1 - RESERVE) / replicas / len(terms.quotas))
        for quota in terms.quotas:
            for number in range(limit.requests - own[quota] - part):
                lease = f"others-{limit.id}-{number}"
                yield Held(lease, quota, "", ((limit.id, limit.window),), age, age - terms.bound)


def _is_out(row: Held, limit: str) -> bool:
    """Whether a lease's token of that limit has not returned: of a shorter window's it may have, of another's not."""
    window = dict(row.windows).get(limit)
    return window is not None and (row.counted is None or row.counted < window)


class _Pace:
    """One limit over all quotas: how many tokens of a quota are ours, and how far apart requests are sent."""

    def __init__(self, limit: LimitTerms, quotas: int, replicas: int, clock: Callable[[], Micros]) -> None:
        part = limit.requests * (1 - RESERVE) / replicas
        self.tokens = max(1, int(part))
        rate = part - 1 if part >= 2 else part  # noqa: PLR2004  # one is the burst of the limiter
        self.interval: Micros = max(1, int(limit.window / rate / max(1, quotas)))
        self.due: Micros = 0
        self._clock = clock
        self._limiter = AsyncLimiter(1, self.interval / SECOND)

    async def spend(self) -> None:
        """One request goes out."""
        await self._limiter.acquire()
        self.due = self._clock() + self.interval
