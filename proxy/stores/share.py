"""A replica's share of the limits while the shared store is lost: its part, less a reserve, evenly paced.

The share is the limit divided by the replicas that were seen of late. What this replica has spent itself is counted by
a ledger of its own. What the others had spent when the store was lost is not: they may go on with their shares, while
what they spent beyond them still counts. So for the first window a replica uses what returns to it, and of what was
at hand its part (`core.parts`); the rest of its share is set aside as spent by them. Then all replicas have their
shares, together less than the limit. What else goes wrong (a replica that nobody had seen, a store that only some have
lost) the pace makes rare: `aiolimiter` with a capacity of 1 lets through at most one request more than its rate in any
window (its burst is capacity plus leak), for which the reserve has room.

A limit of fewer requests than there are replicas cannot be divided by number. Under such limits a replica sends in its
slots of a timetable that all of them know (`core.timetable`), by the store's clock as it was heard last.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

from aiolimiter import AsyncLimiter

from proxy.core.exchange import Budget, Demand, Exchange, Grant, Kind, Lane, Settlement, Turns
from proxy.core.ledger import Ledger
from proxy.core.letters import Call, Held, LimitTerms, Terms
from proxy.core.looks import BucketLook, look
from proxy.core.model import MILLISECOND, SECOND, Micros
from proxy.core.parts import RESERVE, part
from proxy.core.timetable import LATE, Slot, Timetable
from proxy.core.values import value_object


@value_object
class Known:
    """What a replica knows when it goes on without the store.

    `rank` and `replicas`: how many come before it by name, and how many they are. `held`: what it has out itself.
    `hands`: the tokens at hand over all quotas when it heard last, by limit, without an entry for what it never heard
    of. `age`: for how long the store has been lost. `ahead`: by how much the store's clock was ahead of its own.
    """

    replica: str
    rank: int
    replicas: int
    held: tuple[Held, ...]
    hands: Mapping[str, int]
    age: Micros
    ahead: Micros


class Share:
    """One loss of the store, from its begin to its end."""

    def __init__(self, terms: Terms, known: Known, clock: Callable[[], Micros]) -> None:
        self._clock = clock
        self._ledger = Ledger(f"{known.replica}.")
        self._serial = 0
        few = [limit for limit in terms.limits if _is_too_few(limit, known.replicas)]
        self._slots = _Slots(few, terms, known) if few else None
        self._paces = [
            None if limit in few else _Pace(limit, len(terms.quotas), known.replicas, clock) for limit in terms.limits
        ]
        limits = [
            LimitTerms(limit.id, pace.tokens if pace else limit.requests, limit.window)
            for limit, pace in zip(terms.limits, self._paces, strict=True)
        ]
        self._terms = Terms(f"share-of-{terms.name}", terms.quotas, tuple(limits), terms.bound)
        self._served: Lane | None = None
        """The lane of the last grant; a client's lane that insists on a quota and one that does not take turns."""
        self._held: tuple[Held, ...] | None = (*known.held, *_of_others(self._terms, known))

    async def exchange(self, settlements: tuple[Settlement, ...], demands: tuple[Demand, ...]) -> Exchange:
        """See `core.exchange.Store`; grants one request at a time."""
        now = self._clock()
        offers = self._offers(now, demands)
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
            tuple(replace(offer.demand, lane=lane) for lane, offer in offers.items()),
            held=self._held,
            spelled=self._terms,
        )
        self._held = None
        answer = self._ledger.exchange(now, "", call, most=1).exchange()
        granted = tuple(replace(grant, lane=offers[grant.lane].demand.lane) for grant in answer.grants)
        if self._slots:  # those in which nothing turned out to be at hand are gone, too
            self._slots.spend([offers[grant.lane] for grant in answer.grants] or offers.values())
        for grant in granted:
            self._served = grant.lane
            if not self._needs_slot(grant.lane):
                await self._spend(grant)
        foretold = {offers[lane].demand.lane: turns for lane, turns in answer.turns.items()}
        turns = self._turns(now, demands, granted, foretold, answer.budgets)
        first = min((lane_turns.at(0) or 0 for lane_turns in turns.values()), default=None)
        again = None if first is None else max(MILLISECOND, min(first, SECOND))
        return Exchange(answer.tick, granted, turns, answer.budgets, again)

    def look(self) -> tuple[BucketLook, ...]:
        """The tokens of this replica's part."""
        return look(self._ledger.buckets, self._terms, self._clock())

    def _offers(self, now: Micros, demands: tuple[Demand, ...]) -> dict[Lane, "_Offer"]:
        """The demands that may be served now, by the lane as which each is offered: a slot is for one quota."""
        offers: dict[Lane, _Offer] = {}
        for demand in demands:
            if self._due(demand.lane, now) > now:
                continue
            slot = self._slot(demand.lane, now)  # None too for a key that is in no timetable: it is out of use
            if slot is None:
                offers[demand.lane] = _Offer(demand, None)
            elif self._slots and self._slots.is_open(slot, now):
                lane = Lane(demand.lane.client, Kind(demand.lane.kind.limits, slot.quota))
                if lane not in offers or offers[lane].demand.lane == self._served:
                    offers[lane] = _Offer(demand, slot)
        return offers

    async def _spend(self, grant: Grant) -> None:
        for index in grant.lane.kind.limits:
            if pace := self._paces[index]:
                await pace.spend()

    def _needs_slot(self, lane: Lane) -> bool:
        """Whether slots are its pace: those of the limits that can be divided are rarely due just then."""
        return self._slots is not None and self._slots.cover(self._names(lane))

    def _due(self, lane: Lane, now: Micros) -> Micros:
        if self._needs_slot(lane):
            return now
        return max([now, *(pace.due for index in lane.kind.limits if (pace := self._paces[index]))])

    def _slot(self, lane: Lane, earliest: Micros) -> Slot | None:
        """The slot that a lane has to wait for; `None`: it needs none."""
        return self._slots.next(self._names(lane), lane.kind.pinned, earliest) if self._slots else None

    def _names(self, lane: Lane) -> tuple[str, ...]:
        return tuple([self._terms.limits[index].id for index in lane.kind.limits])

    def _turns(
        self,
        now: Micros,
        demands: tuple[Demand, ...],
        grants: tuple[Grant, ...],
        foretold: Mapping[Lane, Turns],
        budgets: tuple[Budget, ...],
    ) -> dict[Lane, Turns]:
        """One after another by the pace of the slowest limit, in proportion to weight."""
        granted = [grant.lane for grant in grants]
        weights = sum(demand.weight for demand in demands)
        told: dict[Lane, Turns] = {}
        for demand in demands:
            lane, left = demand.lane, demand.waiting - granted.count(demand.lane)
            if left <= 0:
                continue
            first = max(self._due(lane, now) - now, (foretold[lane].at(0) or 0) if lane in foretold else 0)
            if self._slots and self._needs_slot(lane):
                first = max([first, *(budgets[i].returns for i in lane.kind.limits if not budgets[i].at_hand)])
                slot = self._slot(lane, now + first)
                first = max(first, slot.begin - self._slots.ahead - now) if slot else first
            last = first + (left - 1) * self._interval(lane) * weights // demand.weight
            told[lane] = Turns((first,), ((left - 1, last),) if left > 1 else ())
        return told

    def _interval(self, lane: Lane) -> Micros:
        if self._slots and self._needs_slot(lane):
            return self._slots.interval(self._names(lane), lane.kind.pinned)
        return max([0, *(pace.interval for index in lane.kind.limits if (pace := self._paces[index]))])


def _is_too_few(limit: LimitTerms, replicas: int) -> bool:
    """Whether a limit cannot be divided by so many replicas."""
    return replicas > 1 and part(limit.requests, replicas, 1) == 0


def _of_others(terms: Terms, known: Known) -> Iterator[Held]:
    """What others may have spent of a share, as if it were counted at the latest that it can be."""
    for limit in terms.limits:
        if limit.id not in known.hands:
            continue
        own = Counter(row.quota for row in known.held if _is_out(row, limit.id))
        of_hand = part(known.hands[limit.id], known.replicas, len(terms.quotas))
        for quota in terms.quotas:
            for number in range(limit.requests - own[quota] - of_hand):
                lease = f"others-{limit.id}-{number}"
                yield Held(lease, quota, "", ((limit.id, limit.window),), known.age, known.age - terms.bound)


def _is_out(row: Held, limit: str) -> bool:
    """Whether a lease's token of that limit has not returned: of a shorter window's it may have, of another's not."""
    window = dict(row.windows).get(limit)
    return window is not None and (row.counted is None or row.counted < window)


class _Pace:
    """One limit over all quotas: how many tokens of a quota are ours, and how far apart requests are sent."""

    def __init__(self, limit: LimitTerms, quotas: int, replicas: int, clock: Callable[[], Micros]) -> None:
        share = limit.requests * (1 - 1 / RESERVE) / replicas
        self.tokens = max(1, part(limit.requests, replicas, 1))
        rate = share - 1 if share >= 2 else share  # noqa: PLR2004  # one is the burst of the limiter
        self.interval: Micros = max(1, int(limit.window / rate / max(1, quotas)))
        self.due: Micros = 0
        self._clock = clock
        self._limiter = AsyncLimiter(1, self.interval / SECOND)

    async def spend(self) -> None:
        """One request goes out."""
        await self._limiter.acquire()
        self.due = self._clock() + self.interval


class _Offer(NamedTuple):
    """A demand that may be served now, in a slot if it needs one."""

    demand: Demand
    slot: Slot | None


class _Slots:
    """The slots of a replica for the limits that cannot be divided; each is used once at the most."""

    def __init__(self, limits: list[LimitTerms], terms: Terms, known: Known) -> None:
        self.ahead = known.ahead
        """How far the clock of the slots is ahead of the replica's own."""
        self._timetable = Timetable(limits, terms.quotas, rank=known.rank, replicas=known.replicas, bound=terms.bound)
        self._gone: Micros = 0
        """The begin of the last slot that is used up."""

    def cover(self, limits: tuple[str, ...]) -> bool:
        """Whether requests that fall under these limits need a slot."""
        return any(self._timetable.covers(limit) for limit in limits)

    def next(self, limits: tuple[str, ...], pinned: str | None, earliest: Micros) -> Slot | None:
        """The first slot that may be used at that instant or later; `None`: none is needed, or there is none."""
        if not self.cover(limits):
            return None
        return self._timetable.next(limits, pinned, max(self._gone + 1, earliest + self.ahead - LATE))

    def interval(self, limits: tuple[str, ...], pinned: str | None) -> Micros:
        """The mean time between two slots."""
        return self._timetable.interval(limits, pinned)

    def is_open(self, slot: Slot, now: Micros) -> bool:
        """Whether a slot has begun."""
        return slot.begin <= now + self.ahead

    def spend(self, offers: Iterable[_Offer]) -> None:
        """These are over."""
        self._gone = max([self._gone, *(offer.slot.begin for offer in offers if offer.slot)])
