"""The tokens of every limit on every quota of a pool: at hand, in use, or cooling.

Laws kept here (numbers of the design):

1.  Never over. A token once taken returns one (stretched) window after the moment at which the upstream had surely
    counted its request. If request j reuses the token of i, j was sent at least W after i was counted, so any interval
    of length W at the upstream holds at most L counted requests, whatever the network did.
2.  Settled once. A lease's entry leaves `_out` at its first settlement; a repeated or late one finds none and changes
    nothing. Who never settles loses its leases when it is known to be gone (`lapse`), never earlier.
9.  Headers only take tokens away: `park` closes buckets, nothing opens them early.

Every bucket holds `at hand + in use + cooling = requests` at any time. Each step is O(log n) in the number of quotas
and of tokens, times the limits of the pool, and never scans the keys. Instants are integers in microseconds of the
store's one clock, which the caller supplies (law 7).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from proxy.core.exchange import USE_BY, Kind, Settlement, Spent, Throttled, Unsent
from proxy.core.model import SECOND, Micros, Pool
from proxy.core.sortedset import SortedSet
from proxy.core.values import value_object

UNLIMITED = 1_000_000_000
"""Tokens at hand of a kind that falls under no limit."""

TRIP_START: Micros = SECOND // 4
"""What a trip to the upstream is taken for before the first one was measured."""


@dataclass(slots=True)
class Quota:
    """What the upstream counts against: tokens at hand by limit, and when it was last drawn on."""

    hand: list[int]
    used: int = 0


@value_object
class Out:
    """A lease that is not settled."""

    quota: str
    limits: tuple[int, ...]
    granted: Micros
    replica: str
    client: str


@dataclass(slots=True)
class Spending:
    """Who spent a token that cools, and under how many limits it still does."""

    quota: str
    limits: int


@dataclass(slots=True)
class Calendar:
    """One limit over all quotas: when tokens return."""

    size: int
    window: Micros
    cooling: SortedSet[int, Micros] = field(default_factory=SortedSet)
    """Leases by the instant at which their token returns: known, what grants go by."""
    in_use: dict[int, Micros] = field(default_factory=dict)
    """Leases by the instant of their grant, which is also their order here: what turns go by."""
    parked: SortedSet[str, Micros] = field(default_factory=SortedSet)
    """Quotas that the upstream closed, by the instant at which they open."""
    hand: int = 0
    """Tokens at hand over all quotas."""


class Buckets:
    """The tokens of one pool. Nothing here knows who waits; see `core.line` and `core.ledger`."""

    def __init__(self, pool: Pool, settle_bound: Micros) -> None:
        self._bound = USE_BY + settle_bound
        self.calendars = [Calendar(limit.requests, pool.stretched(limit)) for limit in pool.limits]
        self.quotas = {name: Quota([limit.requests for limit in pool.limits]) for name in pool.quotas}
        for calendar in self.calendars:
            calendar.hand = calendar.size * len(self.quotas)
        self._rankings: dict[tuple[int, ...], SortedSet[str, tuple[int, int]]] = {}
        self._out: dict[int, Out] = {}
        self._out_by_replica: dict[str, set[int]] = {}
        self._spent: dict[int, Spending] = {}
        self._uses = 0
        self.trip: Micros = TRIP_START

    # Who can serve

    def open(self, quota: str, limit: int) -> int:
        """Tokens at hand in one bucket; none while it is parked."""
        return 0 if quota in self.calendars[limit].parked else self.quotas[quota].hand[limit]

    def open_for(self, quota: str, limits: tuple[int, ...]) -> int:
        """How many requests that fall under all these limits the quota could serve at once."""
        return min([self.open(quota, limit) for limit in limits], default=UNLIMITED)

    def best(self, kind: Kind) -> str | None:
        """The quota to serve this kind: the one with most tokens at hand, among equals the one used longest ago."""
        if kind.pinned is not None:
            return kind.pinned if kind.pinned in self.quotas and self.open_for(kind.pinned, kind.limits) else None
        if len(self.quotas) == 1:
            only = next(iter(self.quotas))
            return only if self.open_for(only, kind.limits) > 0 else None
        found = self._ranking(kind.limits).first()
        return found[1] if found and found[0][0] < 0 else None

    def _ranking(self, limits: tuple[int, ...]) -> SortedSet[str, tuple[int, int]]:
        ranking = self._rankings.get(limits)
        if ranking is None:
            ranking = self._rankings[limits] = SortedSet()
            for name, quota in self.quotas.items():
                ranking.put(name, (-self.open_for(name, limits), quota.used))
        return ranking

    def _rank(self, name: str, changed: Iterable[int]) -> None:
        used = self.quotas[name].used
        for limits, ranking in self._rankings.items():
            if not limits or any(limit in limits for limit in changed):
                ranking.put(name, (-self.open_for(name, limits), used))

    # Taking and giving back

    def take(self, lease: int, out: Out) -> None:
        """Put one token of each limit in use under a lease."""
        self._uses += 1
        self.quotas[out.quota].used = self._uses
        self._out[lease] = out
        self._out_by_replica.setdefault(out.replica, set()).add(lease)
        for limit in out.limits:
            self.calendars[limit].in_use[lease] = out.granted
        self.move(out.quota, out.limits, -1)

    def move(self, quota: str, limits: tuple[int, ...], tokens: int) -> None:
        """Add tokens at hand to each limit's bucket, or take them (negative)."""
        hand = self.quotas[quota].hand
        for limit in limits:
            hand[limit] += tokens
            self.calendars[limit].hand += tokens
        self._rank(quota, limits)

    def settle(self, now: Micros, settlement: Settlement) -> Out | None:
        """End a lease; returns its entry, or `None` when it has been settled before (law 2)."""
        out = self._forget(settlement.lease)
        if out is None:
            return None
        match settlement:
            case Unsent():
                self.move(out.quota, out.limits, +1)
            case Spent(lease, age):
                self._cool(lease, out, now - age)
                self._learn_trip(now - age - out.granted)
            case Throttled(lease, age, park, limits):
                self._cool(lease, out, now - age)
                self.park(out.quota, limits, now + park)
        return out

    def _forget(self, lease: int) -> Out | None:
        out = self._out.pop(lease, None)
        if out is None:
            return None
        held = self._out_by_replica[out.replica]
        held.discard(lease)
        if not held:
            del self._out_by_replica[out.replica]
        for limit in out.limits:
            del self.calendars[limit].in_use[lease]
        return out

    def _cool(self, lease: int, out: Out, counted: Micros) -> None:
        if not out.limits or out.quota not in self.quotas:
            return
        self._spent[lease] = Spending(out.quota, len(out.limits))
        for limit in out.limits:
            calendar = self.calendars[limit]
            calendar.cooling.put(lease, counted + calendar.window)

    def _learn_trip(self, sample: Micros) -> None:
        self.trip += (max(0, min(sample, self._bound)) - self.trip) // 8

    def park(self, quota: str, limits: Iterable[int], until: Micros) -> None:
        """Close the buckets of a quota until the upstream's own time; a later time that stands already is kept."""
        for limit in limits:
            parked = self.calendars[limit].parked
            if until > (parked.score(quota) or 0):
                parked.put(quota, until)
                self._rank(quota, (limit,))

    def lapse(self, replica: str, word: Micros) -> None:
        """End the leases of a replica that was last heard at `word`: spent, at the latest that they can have been."""
        for lease in sorted(self._out_by_replica.get(replica, ())):
            out = self._forget(lease)
            if out is not None:
                self._cool(lease, out, word + self._bound)

    def silent_until(self, word: Micros) -> Micros:
        """Until when a replica last heard at `word` may be alive with its leases."""
        return word + self._bound

    def holds(self, replica: str) -> bool:
        """Whether a replica has leases out."""
        return replica in self._out_by_replica

    # Time

    def mature(self, now: Micros) -> None:
        """Bring back what has cooled, and open what is no longer parked."""
        for limit, calendar in enumerate(self.calendars):
            returned: dict[str, int] = {}
            while (first := calendar.cooling.first()) and first[0] <= now:
                quota = self._returned(calendar.cooling.pop_first()[1])
                returned[quota] = returned.get(quota, 0) + 1
            for quota, tokens in returned.items():
                self.move(quota, (limit,), tokens)
            while (opening := calendar.parked.first()) and opening[0] <= now:
                self._rank(calendar.parked.pop_first()[1], (limit,))

    def _returned(self, lease: int) -> str:
        """One token of a lease has cooled; the quota that it belongs to."""
        spending = self._spent[lease]
        spending.limits -= 1
        if not spending.limits:
            del self._spent[lease]
        return spending.quota

    def returns(self, limit: int, now: Micros) -> Iterator[tuple[Micros, str]]:
        """When tokens of a limit are expected at hand again, and on which quota, soonest first.

        A token in use is expected one window after its request is expected to be counted; that has not happened yet,
        so it is not before now.
        """
        calendar = self.calendars[limit]
        for instant, lease in calendar.cooling:
            yield instant, self._spent[lease].quota
        for lease, granted in calendar.in_use.items():
            yield max(granted + self.trip, now) + calendar.window, self._out[lease].quota

    def nth_return(self, limit: int, position: int, now: Micros) -> Micros:
        """When the token for that many-th request from now (from 0) is expected, over all quotas.

        Beyond the tokens that there are, each comes round again a window and a trip later.
        """
        calendar = self.calendars[limit]
        cooling, in_use = len(calendar.cooling), len(calendar.in_use)
        hand = max(0, calendar.hand)
        rounds, rank = divmod(position, max(1, hand + cooling + in_use))
        if rank < hand:
            instant = now
        elif rank < hand + cooling:
            instant = max(now, calendar.cooling.at(rank - hand)[0])
        elif in_use:
            granted = next(islice(calendar.in_use.values(), rank - hand - cooling, None))
            instant = max(now, granted + self.trip) + calendar.window
        else:
            instant = now
        return instant + rounds * (calendar.window + self.trip)
