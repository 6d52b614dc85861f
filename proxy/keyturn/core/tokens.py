"""The tokens of every limit on every quota of a pool: available, in use, or cooling down.

Laws kept here (numbers of the design):

1.  Never over. A token once taken returns one (stretched) window after the moment at which the upstream had surely
    counted its request. If request j reuses the token of i, j was sent at least W after i was counted, so any interval
    of length W at the upstream holds at most L counted requests, whatever the network did.
2.  Settled once. A lease's record leaves `leases` at its first settlement; a repeated or late one finds none and
    changes nothing. A replica that never settles loses its leases when it is known to be gone (`lapse`), never earlier.
8.  Suspicion. A bucket that is not `known` lets one request through, its probe, and opens when that is settled (or
    takes so long that it is surely counted), less what the answer said is spent. So does one that the upstream refused,
    and one whose tokens return from requests that were never answered, unless another request of its quota was answered
    since.
9.  Headers only take tokens away: `close` shuts buckets, `_learn` takes what others spent; nothing opens them early.

`core.closed_buckets` keeps which buckets are closed.

A bucket is (limit, quota). Taken tokens are counted; the available ones follow from the revision of whoever
asks. Keys may come and go and limits change, and nothing that was spent is forgotten. Every step is O(log n) in the
number of quotas and tokens, times the limits of a pool. Instants are microseconds of the store's one clock (law 7).

`stores/lua/tokens.lua` says the same in Lua: members of sorted sets are therefore strings, and scores one number.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from keyturn.core.closed_buckets import Bucket, ClosedBuckets
from keyturn.core.exchange import ObservedLimit, Settlement, Spent, Throttled, Unsent
from keyturn.core.messages import HeldLease
from keyturn.core.model import SECOND, Micros
from keyturn.core.revisions import RevisionView
from keyturn.core.sortedset import SortedSet

UNLIMITED = 1_000_000
"""Tokens available to requests that fall under no limit; more than any limit has."""

USES = 1 << 32
"""Uses of quotas are counted up to this, and start over: a ranking's score holds them below the available tokens."""

SERVICE_START: Micros = SECOND // 4
"""Service time assumed before the first one was measured."""

REPLENISHED = 1_000
"""Tokens of one limit that return in one exchange at the most; what is left returns with the next."""

STRANGER, UNANSWERED = "~", "!"
"""Begin the names of tokens that somebody else has spent, and of those whose requests were never answered."""

Key = TypeVar("Key")


@dataclass(slots=True)
class OpenLease:
    """A lease that is not settled: one token of each of `windows`' limits on its quota is in use."""

    quota: str
    windows: tuple[tuple[str, Micros], ...]
    granted: Micros
    replica: str
    client: str
    probes: tuple[str, ...] = ()
    """The limits whose buckets become known when it is settled."""


class TokenBuckets:
    """The tokens of one pool. Nothing here knows who waits; see `core.flows` and `core.state`."""

    def __init__(self) -> None:
        self.taken: dict[Bucket, int] = {}
        """Tokens in use and cooling; no entry for 0."""
        self.total: dict[str, int] = {}
        """The same over all quotas, by limit."""
        self.returns: dict[str, SortedSet[str, Micros]] = {}
        """`lease@quota` by the instant at which its token returns, by limit: what cools."""
        self.shut = ClosedBuckets()
        """The closed buckets, whatever is available in them."""
        self.leases: dict[str, OpenLease] = {}
        self.rankings: dict[tuple[str, tuple[int, ...]], tuple[RevisionView, SortedSet[str, int]]] = {}
        """The quotas of a revision that can serve each set of limits, best first."""
        self.service: Micros = SERVICE_START
        """The usual time from a grant to the counting of its request."""
        self.foreign: dict[str, int] = {}
        """Tokens that somebody else turned out to have spent in this exchange, by quota."""
        self.touched: dict[str, None] = {}
        """Quotas of which something changed in this exchange."""
        self.used: dict[str, tuple[int, Micros]] = {}
        """Number and instant of the last use, by quota."""
        self._leases_of: dict[str, dict[str, None]] = {}
        self._uses = 0
        self._strangers = 0
        self._unanswered: set[str] = set()
        """Quotas of which the last request that ended had no answer."""

    # Availability

    def available(
        self,
        view: RevisionView,
        limits: tuple[int, ...],
        quota: str,
        *,
        at: Micros = 0,
        returned: Mapping[Bucket, int] | None = None,
    ) -> int:
        """How many requests under all these limits the quota could serve at once.

        A bucket that is not known counts as what it seems to hold: its first grant, the probe, closes it.

        Args:
            view: the revision of those who ask.
            limits: indices of its limits.
            quota: which.
            at: an instant to come, at which some of what is closed now will be open.
            returned: the tokens of each bucket that will have returned by then.
        """
        if self.shut.rests(quota, at):
            return 0
        least = UNLIMITED
        for index in limits:
            limit = view.limits[index]
            bucket = (limit.id, quota)
            if self.shut.is_closed(bucket, at):
                return 0
            least = min(least, limit.requests - self.taken.get(bucket, 0) + (returned or {}).get(bucket, 0))
        return max(0, least)

    def best(self, view: RevisionView, limits: tuple[int, ...], pinned: str | None) -> str | None:
        """The quota to serve a demand class: the one with most tokens available, of equals the one used longest ago."""
        if pinned is not None:  # in the revision or not: a replica also asks for a key that it does not use now
            return pinned if self.available(view, limits, pinned) else None
        first = self._ranking(view, limits).first()
        return first[1] if first and first[0] < 0 else None

    def _ranking(self, view: RevisionView, limits: tuple[int, ...]) -> SortedSet[str, int]:
        found = self.rankings.get((view.name, limits))
        if found is None:
            found = self.rankings[view.name, limits] = (view, SortedSet())
            for quota in view.revision.quotas:
                found[1].put(quota, self.rank(view, limits, quota))
        return found[1]

    def rank(self, view: RevisionView, limits: tuple[int, ...], quota: str) -> int:
        """The score of a quota in a ranking: most tokens available first, then the one used longest ago."""
        return self.used.get(quota, (0, 0))[0] - USES * self.available(view, limits, quota)

    def _changed(self, quota: str) -> None:
        """Rank a quota anew wherever it is ranked."""
        self.touched[quota] = None
        for (_, limits), (view, ranking) in self.rankings.items():
            if quota in ranking:
                ranking.put(quota, self.rank(view, limits, quota))

    def forget_revision(self, name: str) -> None:
        """No replica uses this revision any more; what was spent under it stays until it has cooled."""
        self.rankings = {ranked: ranking for ranked, ranking in self.rankings.items() if ranked[0] != name}

    # Taking and settling

    def take(
        self,
        lease: str,
        view: RevisionView,
        limits: tuple[int, ...],
        quota: str,
        *,
        now: Micros,
        replica: str,
        client: str,
    ) -> bool:
        """Put one token of each limit in use under a lease; says whether it probes buckets that are not known."""
        windows = tuple([(view.limits[index].id, view.limits[index].window) for index in limits])
        probes = tuple([limit for limit, _ in windows if (limit, quota) not in self.shut.known])
        for limit in probes:
            self.shut.probe((limit, quota), lease, now + view.revision.bound)
        self._uses = (self._uses + 1) % USES
        self.used[quota] = (self._uses, now)
        self._open(lease, OpenLease(quota, windows, now, replica, client, probes))
        for other, rest in view.rivals.get(quota, ()):
            self.rest(other, now + rest)
        self._changed(quota)
        return bool(probes)

    def _open(self, lease: str, record: OpenLease) -> None:
        self.leases[lease] = record
        self._leases_of.setdefault(record.replica, {})[lease] = None
        for limit, _ in record.windows:
            self._count(limit, record.quota, +1)

    def _count(self, limit: str, quota: str, tokens: int) -> None:
        _add(self.taken, (limit, quota), tokens)
        _add(self.total, limit, tokens)

    def settle(self, now: Micros, settlement: Settlement, view: RevisionView) -> OpenLease | None:
        """End a lease; returns its record, or `None` when it was settled before (law 2).

        `view` is the revision of the replica that settles: its indices of limits refer to it.
        """
        if isinstance(settlement, Unsent):
            return self.give_back(settlement.lease)
        record = self._close(settlement.lease)
        if record is None:
            return None
        answered = not isinstance(settlement, Spent) or settlement.answered
        self._cool(settlement.lease, record, now - settlement.age, answered=answered)
        self._end_probes(settlement.lease, record, known=True)
        self._measure(now - settlement.age - record.granted)
        if isinstance(settlement, Throttled):
            for index in settlement.limits:
                self.close((view.limits[index].id, record.quota), now + settlement.closed_for)
        else:
            for seen in settlement.observed:
                self._learn(now, record.quota, view, seen)
        self._changed(record.quota)
        return record

    def _close(self, lease: str) -> OpenLease | None:
        record = self.leases.pop(lease, None)
        if record is not None:
            held = self._leases_of[record.replica]
            del held[lease]
            if not held:
                del self._leases_of[record.replica]
        return record

    def _cool(self, lease: str, record: OpenLease, counted: Micros, *, answered: bool) -> None:
        if answered:
            self._unanswered.discard(record.quota)
        else:
            self._unanswered.add(record.quota)
        mark = "" if answered else UNANSWERED
        for limit, window in record.windows:
            self._returns(limit).put(f"{mark}{lease}@{record.quota}", counted + window)

    def _returns(self, limit: str) -> SortedSet[str, Micros]:
        found = self.returns.get(limit)
        if found is None:
            found = self.returns[limit] = SortedSet()
        return found

    def _end_probes(self, lease: str, record: OpenLease, *, known: bool) -> None:
        self.shut.end_probes(lease, [(limit, record.quota) for limit in record.probes], known=known)

    def _measure(self, service: Micros) -> None:
        self.service += (max(0, min(service, 60 * SECOND)) - self.service) // 8

    def _learn(self, now: Micros, quota: str, view: RevisionView, seen: ObservedLimit) -> None:
        """Take out what an answer showed to be spent beyond what is known to be taken, until its reset (law 9)."""
        limit = view.limits[seen.limit]
        more = limit.requests - seen.remaining - self.taken.get((limit.id, quota), 0)
        for _ in range(more):
            self._strangers += 1
            self._returns(limit.id).put(f"{STRANGER}{self._strangers}@{quota}", now + seen.reset)
            self._count(limit.id, quota, +1)
        if more > 0:
            self.foreign[quota] = self.foreign.get(quota, 0) + more

    def close(self, bucket: Bucket, until: Micros) -> None:
        """Close a bucket, see `ClosedBuckets.close`."""
        self.shut.close(bucket, until)
        self._changed(bucket[1])

    def rest(self, quota: str, until: Micros) -> None:
        """Close a whole quota, since one of its keys was used under another."""
        if not self.shut.rests(quota, until - 1):
            self.shut.resting.put(quota, until)
            self._changed(quota)

    # What happens without a settlement

    def replenish(self, now: Micros) -> bool:
        """Bring back what has cooled, and open what is closed no longer; says whether some is left to bring back."""
        left = False
        changed: dict[str, None] = {}
        for limit in sorted(self.returns):
            cooling = self.returns[limit]
            number = 0
            while (first := cooling.first()) and first[0] <= now:
                if number == REPLENISHED:
                    left = True
                    break
                number += 1
                member = cooling.pop_first()[1]
                quota = quota_of(member)
                self._count(limit, quota, -1)
                if member.startswith(UNANSWERED) and quota in self._unanswered:
                    self.shut.known.discard((limit, quota))
                changed[quota] = None
            if not cooling:
                del self.returns[limit]
        changed |= dict.fromkeys(self.shut.reopened(now))
        for quota in changed:
            self._changed(quota)
        return left

    def lapse(self, replica: str, counted: Micros) -> None:
        """End the leases of a replica that is gone: spent, and counted at the latest that they can have been."""
        for lease in sorted(self._leases_of.get(replica, ())):
            record = self._close(lease)
            if record is not None:
                self._cool(lease, record, counted, answered=True)
                self._end_probes(lease, record, known=True)
                self._changed(record.quota)

    def restore(self, now: Micros, replica: str, held: Iterable[HeldLease]) -> None:
        """Take a replica's word for all that it has out; of what it does not name, nothing is (law 8)."""
        named = set()
        for row in held:
            named.add(row.lease)
            if row.counted is not None:
                self.give_back(row.lease)
                for limit, window in row.windows:
                    self._restore_cooling(limit, row, now - row.counted + window)
            elif row.lease not in self.leases:
                for limit, _ in row.windows:
                    if self._returns(limit).remove(self._member(limit, row)):
                        self._count(limit, row.quota, -1)
                self._open(row.lease, OpenLease(row.quota, row.windows, now - row.granted, replica, row.client))
            self._changed(row.quota)
        for lease in sorted(self._leases_of.get(replica, {}).keys() - named):
            self.give_back(lease)

    def _restore_cooling(self, limit: str, row: HeldLease, until: Micros) -> None:
        cooling, member = self._returns(limit), self._member(limit, row)
        if member not in cooling:
            self._count(limit, row.quota, +1)
        cooling.put(member, max(until, cooling.score(member) or 0))

    def _member(self, limit: str, row: HeldLease) -> str:
        """The name under which a token of a lease cools, or will."""
        unanswered = f"{UNANSWERED}{row.lease}@{row.quota}"
        return unanswered if unanswered in self._returns(limit) else f"{row.lease}@{row.quota}"

    def give_back(self, lease: str) -> OpenLease | None:
        """End a lease of which nothing was sent; returns its record, or `None` when it was settled before."""
        record = self._close(lease)
        if record is not None:
            self._end_probes(lease, record, known=False)
            for limit, _ in record.windows:
                self._count(limit, record.quota, -1)
            self._changed(record.quota)
        return record

    def doubt(self) -> None:
        """Nothing is known for sure any more: every bucket opens by a probe (law 8)."""
        self.shut.known.clear()

    def holds(self, replica: str) -> bool:
        """Whether a replica has leases that are not settled."""
        return replica in self._leases_of


def _add(counts: dict[Key, int], key: Key, number: int) -> None:
    left = counts.get(key, 0) + number
    if left:
        counts[key] = left
    else:
        counts.pop(key, None)


def quota_of(member: str) -> str:
    """The quota in a member `lease@quota`."""
    return member.partition("@")[2]
