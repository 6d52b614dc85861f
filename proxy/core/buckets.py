"""The tokens of every limit on every quota of a pool: at hand, in use, or cooling.

Laws kept here (numbers of the design):

1.  Never over. A token once taken returns one (stretched) window after the moment at which the upstream had surely
    counted its request. If request j reuses the token of i, j was sent at least W after i was counted, so any interval
    of length W at the upstream holds at most L counted requests, whatever the network did.
2.  Settled once. A lease's entry leaves `_out` at its first settlement; a repeated or late one finds none and changes
    nothing. Who never settles loses its leases when it is known to be gone (`lapse`), never earlier.
8.  Suspicion. A bucket that is not known (`warm`) lets one request through, its probe, and opens when that is settled
    (or after all that a request may take), less what the answer said is spent, or what replicas told that they hold.
    What the upstream refused is known no more.
9.  Headers only take tokens away: `park` closes buckets, `_learn` takes what others spent; nothing opens them early.

What is counted is what is taken (in use and cooling), by quota and limit; how many are at hand follows from the terms
of whoever asks. So keys may come and go and limits change, and nothing that was spent is forgotten. Each step is
O(log n) in the number of quotas and of tokens, times the limits of the pool, and never scans the keys. Instants are
integers in microseconds of the store's one clock, which the caller supplies (law 7).

`stores/exchange.lua` follows this text; a member of a sorted set is therefore a string, `lease@quota`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from proxy.core.calendars import Calendar, quota_of
from proxy.core.exchange import Seen, Settlement, Spent, Throttled, Unsent
from proxy.core.letters import Held, LimitTerms, Need, Terms
from proxy.core.model import SECOND, Micros
from proxy.core.sortedset import SortedSet
from proxy.core.views import Heirs, Out, Place, View, places, scope, span

UNLIMITED = 1_000_000
"""Tokens at hand for a need that falls under no limit; more than any limit has."""

TRIP_START: Micros = SECOND // 4
"""What a trip to the upstream is taken for before the first one was measured."""

MATURE = 2_000
"""Tokens of one limit that return in one exchange at the most; what is left returns with the next."""

STRANGER = "~"
"""Begins the names of tokens that somebody else has spent."""


class Buckets:
    """The tokens of one pool. Nothing here knows who waits; see `core.line` and `core.ledger`."""

    def __init__(self) -> None:
        self.views: dict[str, View] = {}
        self.calendars: dict[str, Calendar] = {}
        self.trip: Micros = TRIP_START
        self.bound: Micros = 0
        """How long after its last word a silent replica's requests may still be counted."""
        self._out: dict[str, Out] = {}
        self._out_by_replica: dict[str, set[str]] = {}
        self._used: dict[str, int] = {}
        self._uses = 0
        self._strangers = 0
        self.foreign: dict[str, int] = {}
        """Tokens that somebody else turned out to have spent in this exchange, by quota."""

    # Terms

    def limits(self, terms: str) -> tuple[str, ...]:
        """The ids of the limits of some terms, in the order of the configuration."""
        return tuple([limit.id for limit in self.views[terms].terms.limits])

    def learn(self, terms: Terms) -> None:
        """Look at the pool by these terms from now on, beside those that others still use."""
        view = View.of(terms)
        self.bound = max(self.bound, terms.bound)
        for limit in terms.limits:
            self.calendars.setdefault(limit.id, Calendar())
        self._inherit(view)
        self.views[terms.name] = view

    def _inherit(self, view: View) -> None:
        """What is out counts by terms that are new, too: under limits of the same scope, wherever its keys belong."""
        heirs = Heirs(self.views.values(), view)
        for limit in view.terms.limits:
            for kin in sorted(self.calendars):
                if scope(kin) == scope(limit.id) and (kin != limit.id or heirs.gone):
                    self._copy(kin, limit, heirs)
        for lease, out in self._out.items():
            self._extend(lease, out, out.inherited(view, heirs))

    def _copy(self, kin: str, limit: LimitTerms, heirs: Heirs) -> None:
        """Count what one limit has out under another one of its scope, or on other quotas under itself."""
        source, target, other = self.calendars[kin], self.calendars[limit.id], kin != limit.id
        later = limit.window - span(kin) if other else 0
        touched: dict[str, None] = {}
        for returns, member in list(source.cooling):
            lease, _, quota = member.partition("@")
            for heir in heirs.of(quota, itself=other):
                instant = returns + (max(0, later) if lease.startswith(STRANGER) else later)
                self._cool_token(limit.id, f"{lease}@{heir}", heir, instant)
                touched[heir] = None
        for heir in touched:
            self._rank(heir, (limit.id,))
        for until, quota in list(source.parked):
            for heir in heirs.of(quota, itself=other):
                self.park(heir, (limit.id,), until)
        warm = {heir for quota in source.warm for heir in heirs.of(quota, itself=other)}
        cold = {heir for quota, gone in heirs.gone.items() if quota not in source.warm for heir in gone}
        if span(kin) >= span(limit.id):
            target.warm |= warm - cold
        if not other:
            target.warm -= cold

    def _extend(self, lease: str, out: Out, places: Sequence[Place]) -> None:
        """A lease that is out counts in more buckets."""
        if places:
            self._out[lease] = replace(out, places=(*out.places, *places))
        for place in places:
            self.calendars[place.limit].use(lease, place.quota, out.granted)
            self._rank(place.quota, (place.limit,))

    def unlearn(self, name: str) -> None:
        """Nobody uses these terms any more. What was spent under them stays until it has cooled."""
        gone = self.views.pop(name)
        for quota in gone.quotas.difference(*(view.quotas for view in self.views.values())):
            self._used.pop(quota, None)
            for limit in gone.limits:
                self.calendars[limit].warm.discard(quota)
        for limit in gone.limits:
            self._forget_limit(limit)

    def tidy(self, terms: str) -> None:
        """Drop the limits that nobody's terms name, once nothing of them is taken; `terms` are somebody's."""
        known = self.views[terms].limits
        for limit in [limit for limit in self.calendars if limit not in known]:
            self._forget_limit(limit)

    def _forget_limit(self, limit: str) -> None:
        calendar = self.calendars[limit]
        if not calendar.taken and not any(limit in view.limits for view in self.views.values()):
            del self.calendars[limit]

    def chill(self) -> None:
        """Nothing is known for sure any more: every bucket needs a probe (law 8)."""
        for calendar in self.calendars.values():
            calendar.warm.clear()
        for view in self.views.values():
            view.rankings.clear()

    # Who can serve

    def open_for(self, terms: str, quota: str, limits: tuple[str, ...]) -> int:
        """How many requests that fall under all these limits the quota could serve at once: none while one is closed.

        A bucket that is not known is closed by its first grant, the probe, so it counts as what it seems to hold.
        """
        own, least = self.views[terms].limits, UNLIMITED
        for limit in limits:
            calendar = self.calendars[limit]
            if calendar.closed(quota):
                return 0
            least = min(least, own[limit].requests - calendar.taken.get(quota, 0))
        return max(0, least)

    def best(self, need: Need) -> str | None:
        """The quota to serve a need: the one with most tokens at hand, among equals the one used longest ago."""
        view = self.views[need.terms]
        if need.pinned is not None:  # in the terms or not: a replica also asks after a key that it does not use now
            return need.pinned if self.open_for(need.terms, need.pinned, need.limits) else None
        if len(view.quotas) == 1:
            (only,) = view.quotas
            return only if self.open_for(need.terms, only, need.limits) else None
        found = self._ranking(view, need.limits).first()
        return found[1] if found and found[0][0] < 0 else None

    def _ranking(self, view: View, limits: tuple[str, ...]) -> SortedSet[str, tuple[int, int]]:
        ranking = view.rankings.get(limits)
        if ranking is None:
            ranking = view.rankings[limits] = SortedSet()
            for quota in view.terms.quotas:
                ranking.put(quota, (-self.open_for(view.terms.name, quota, limits), self._used.get(quota, 0)))
        return ranking

    def _rank(self, quota: str, changed: Iterable[str]) -> None:
        used = self._used.get(quota, 0)
        for name, view in self.views.items():
            for limits, ranking in view.rankings.items() if quota in view.quotas else ():
                if not limits or not set(limits).isdisjoint(changed):
                    ranking.put(quota, (-self.open_for(name, quota, limits), used))

    # Taking and giving back

    def take(self, lease: str, need: Need, quota: str, *, now: Micros, replica: str, client: str) -> bool:
        """Put one token of each limit in use under a lease; says whether it probes buckets that are not known."""
        self._uses += 1
        self._used[quota] = self._uses
        view = self.views[need.terms]
        probes = tuple([limit for limit in need.limits if quota not in self.calendars[limit].warm])
        for limit in probes:
            self.calendars[limit].probing.put(quota, now)
        own = len(self.views) == 1
        found = view.own_places(quota, need.limits) if own else self._places(view, quota, view.windows(need.limits))
        out = Out(quota, found, now, replica, client, probes)
        self._put_out(lease, out)
        self._rank(quota, need.limits)
        if not own:
            self._rank_places(out)
        return bool(probes)

    def _places(self, view: View, quota: str, windows: Iterable[tuple[str, Micros]]) -> tuple[Place, ...]:
        """Where a lease counts that was granted by these terms, or by some that its replica went by before."""
        if len(self.views) == 1 and all(limit in view.limits for limit, _ in windows):
            return tuple([Place(limit, window, quota) for limit, window in windows])
        return places(self.views.values(), quota, view.keys(quota), windows)

    def _put_out(self, lease: str, out: Out) -> None:
        self._out[lease] = out
        self._out_by_replica.setdefault(out.replica, set()).add(lease)
        for limit, _, quota in out.places:
            self.calendars[limit].use(lease, quota, out.granted)

    def _rank_places(self, out: Out) -> None:
        for quota in {out.quota, *[place.quota for place in out.places]}:
            self._rank(quota, [place.limit for place in out.places if place.quota == quota])

    def lend(self, quota: str, limits: tuple[str, ...], now: Micros | None) -> None:
        """Set a token of each limit aside for a replica that has yet to fetch it; `None`: no longer."""
        for limit in limits:
            self.calendars[limit].lend(quota, now)
        self._rank(quota, limits)

    def settle(self, now: Micros, settlement: Settlement, limits: tuple[str, ...], terms: str) -> Out | None:
        """End a lease; returns its entry, or `None` when it has been settled before (law 2).

        `limits` and `terms` are those of the replica that settles; its indices of limits refer to them.
        """
        out = self._forget(settlement.lease)
        if out is None:
            return None
        if not isinstance(settlement, Unsent):
            self._cool(settlement.lease, out, now - settlement.age)
            self._trip(now - settlement.age - out.granted)
        if isinstance(settlement, Throttled):
            closed = out.refused([limits[index] for index in settlement.limits], limits)
            for place in closed:
                self.park(place.quota, (place.limit,), now + settlement.park)
            self._open(out, known=True)
            for place in closed:
                self._doubt(place)
        elif out.probes:
            self._open(out, known=not isinstance(settlement, Unsent))
        if isinstance(settlement, Spent):
            for seen in settlement.seen:
                self._learn(now, out.quota, limits[seen.limit], seen, terms)
        if out.probes or not isinstance(settlement, Spent):  # else as many are at hand as before
            self._rank_places(out)
        return out

    def _forget(self, lease: str) -> Out | None:
        out = self._out.pop(lease, None)
        if out is None:
            return None
        held = self._out_by_replica[out.replica]
        held.discard(lease)
        if not held:
            del self._out_by_replica[out.replica]
        for place in out.places:
            calendar = self.calendars[place.limit]
            calendar.in_use.remove(f"{lease}@{place.quota}")
            calendar.take(place.quota, -1)
        return out

    def _cool(self, lease: str, out: Out, counted: Micros) -> None:
        back = [p for p in out.places if self._cool_token(p.limit, f"{lease}@{p.quota}", p.quota, counted + p.window)]
        for place in back:  # only now, for a quota ranks by its tokens of all limits
            self._rank(place.quota, (place.limit,))

    def _cool_token(self, limit: str, member: str, quota: str, returns: Micros) -> bool:
        """Says whether it cools already, by a replica's word: what was in use besides is back."""
        calendar = self.calendars[limit]
        known = calendar.cooling.score(member)
        if known is None:
            calendar.take(quota, +1)
        if known is None or returns > known:
            calendar.cooling.put(member, returns)
        return known is not None

    def _trip(self, sample: Micros) -> None:
        self.trip += (max(0, min(sample, self.bound)) - self.trip) // 8

    def _open(self, out: Out, *, known: bool) -> None:
        """The probe of some buckets is over: they are known now, unless it was never sent."""
        for limit in out.probes:
            calendar = self.calendars[limit]
            calendar.probing.remove(out.quota)
            if known:
                calendar.warm.add(out.quota)

    def _doubt(self, place: Place) -> None:
        """A refusal shows that this bucket holds less than is known: it opens for a probe, and by what that tells."""
        self.calendars[place.limit].warm.discard(place.quota)

    def _learn(self, now: Micros, quota: str, limit: str, seen: Seen, terms: str) -> None:
        """Take out what an answer showed to be spent beyond what is known to be out, until its reset (law 9)."""
        spent = self.views[terms].limits[limit].requests - seen.remaining
        more = spent - self.calendars[limit].taken.get(quota, 0)
        for _ in range(more):
            self._strangers += 1
            self._cool_token(limit, f"{STRANGER}{self._strangers}@{quota}", quota, now + seen.reset)
        if more > 0:
            self.foreign[quota] = self.foreign.get(quota, 0) + more
            self._rank(quota, (limit,))

    def park(self, quota: str, limits: Iterable[str], until: Micros) -> None:
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
                self._cool(lease, out, word + self.bound)
                self._open(out, known=True)
                self._rank_places(out)

    def restore(self, now: Micros, replica: str, held: Iterable[Held], terms: str) -> None:
        """Take a replica's word for all that it has out; of what it does not name, nothing is (law 8).

        `terms` are those that it goes by now.
        """
        named = set()
        for row in held:
            named.add(row.lease)
            for limit, _ in row.windows:
                self.calendars.setdefault(limit, Calendar())
            places_ = self._places(self.views[terms], row.quota, row.windows)
            out = Out(row.quota, places_, now - row.granted, replica, row.client)
            if row.counted is not None:
                known = self._forget(row.lease)
                if known:
                    self._open(known, known=False)
                    self._rank_places(known)
                self._cool(row.lease, out, now - row.counted)
                self._rank_places(out)
            elif row.lease not in self._out:
                self._put_out(row.lease, out)
                self._rank_places(out)
        for lease in sorted(self._out_by_replica.get(replica, set()) - named):
            self.settle(now, Unsent(lease), (), "")

    def holds(self, replica: str) -> bool:
        """Whether a replica has leases out."""
        return replica in self._out_by_replica

    # Time

    def mature(self, now: Micros) -> bool:
        """Bring back what has cooled, and open what is closed no longer; says whether some is left to bring back."""
        left = False
        for limit, calendar in sorted(self.calendars.items()):
            returned: dict[str, int] = {}
            for _ in range(MATURE):
                first = calendar.cooling.first()
                if not first or first[0] > now:
                    break
                quota = quota_of(calendar.cooling.pop_first()[1])
                returned[quota] = returned.get(quota, 0) + 1
            else:
                left = True
            for quota, tokens in returned.items():
                calendar.take(quota, -tokens)
                self._rank(quota, (limit,))
            while (opening := calendar.parked.first()) and opening[0] <= now:
                self._rank(calendar.parked.pop_first()[1], (limit,))
            while (probed := calendar.probing.first()) and probed[0] + self.bound <= now:
                quota = calendar.probing.pop_first()[1]
                calendar.warm.add(quota)
                self._rank(quota, (limit,))
        return left

    def size(self, terms: str, limit: str) -> int:
        """Tokens of a limit over all quotas of the terms."""
        view = self.views[terms]
        return view.limits[limit].requests * len(view.quotas)

    def at_hand(self, terms: str, limit: str) -> int:
        """Tokens of a limit that are neither in use nor cooling, over all quotas."""
        calendar = self.calendars[limit]
        return max(0, self.size(terms, limit) - len(calendar.cooling) - len(calendar.in_use))

    def nth_return(self, terms: str, limit: str, position: int, now: Micros) -> Micros:
        """When the token for that many-th request from now (from 0) is expected, over all quotas.

        Beyond the tokens that there are, each comes round again a window and a trip later.
        """
        calendar = self.calendars[limit]
        window = self.views[terms].limits[limit].window
        return calendar.nth_return(position, now, hand=self.at_hand(terms, limit), window=window, trip=self.trip)
