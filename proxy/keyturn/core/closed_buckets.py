"""Closed buckets: by the upstream, while a probe is in flight, or since a key was used under another quota.

Law 8: a bucket that is not `known` lets one request through, its probe, which closes it until the probe is settled or
takes so long that it is surely counted. Law 9: nothing here opens a bucket before its time.

`stores/lua/closed_buckets.lua` says the same in Lua.
"""

from collections.abc import Iterable, Iterator

from keyturn.core.model import Micros
from keyturn.core.revisions import RevisionView
from keyturn.core.sortedset import SortedSet

REOPENED = 100
"""Buckets and quotas that open in one exchange at the most."""

Bucket = tuple[str, str]
"""A limit's id and a quota."""


class ClosedBuckets:
    """The buckets of one pool that are not open, whatever tokens they have."""

    def __init__(self) -> None:
        self.known: set[Bucket] = set()
        self.probing: SortedSet[Bucket, Micros] = SortedSet()
        """Buckets that a probe is in flight for, by the instant at which they open whatever becomes of it."""
        self.probes: dict[Bucket, str] = {}
        """The lease that probes a bucket."""
        self.closed: SortedSet[Bucket, Micros] = SortedSet()
        """Buckets that the upstream closed, by the instant at which they open."""
        self.resting: SortedSet[str, Micros] = SortedSet()
        """Quotas of which a key was used under another quota, by the instant at which they open."""

    def rests(self, quota: str, at: Micros) -> bool:
        """Whether a whole quota rests at an instant."""
        return (self.resting.score(quota) or 0) > at

    def is_closed(self, bucket: Bucket, at: Micros) -> bool:
        """Whether a bucket is closed, or being probed, at an instant."""
        return max(self.probing.score(bucket) or 0, self.closed.score(bucket) or 0) > at

    def probe(self, bucket: Bucket, lease: str, until: Micros) -> None:
        """A lease probes a bucket."""
        self.probing.put(bucket, until)
        self.probes[bucket] = lease

    def end_probes(self, lease: str, buckets: Iterable[Bucket], *, known: bool) -> None:
        """A lease probes these buckets no longer; `known`: they open."""
        for bucket in buckets:
            if self.probes.get(bucket) == lease:
                del self.probes[bucket]
                self.probing.remove(bucket)
                if known:
                    self.known.add(bucket)

    def close(self, bucket: Bucket, until: Micros) -> None:
        """Close a bucket until the upstream's own time, or a later one that stands already; then it is not known.

        The answer to a probe that is in flight says nothing any more: the refusal is newer.
        """
        self.known.discard(bucket)
        if self.probing.remove(bucket):
            del self.probes[bucket]
        self.closed.put(bucket, max(until, self.closed.score(bucket) or 0))

    def reopened(self, now: Micros) -> Iterator[str]:
        """Open what is due; yields the quotas."""
        for _ in range(REOPENED):
            if (closed := self.closed.first()) and closed[0] <= now:
                yield self.closed.pop_first()[1][1]
            if (resting := self.resting.first()) and resting[0] <= now:
                yield self.resting.pop_first()[1]
            if (probing := self.probing.first()) and probing[0] <= now:
                bucket = self.probing.pop_first()[1]
                del self.probes[bucket]
                self.known.add(bucket)
                yield bucket[1]

    def quotas_under(self, view: RevisionView, limit: str) -> dict[str, Micros]:
        """Until when quotas of a revision are closed under a limit, or rest; of the first `REOPENED` that are."""
        buckets = [
            (quota, until) for _, (until, (of, quota)) in zip(range(REOPENED), self.closed, strict=False) if of == limit
        ]
        resting = [(quota, until) for _, (until, quota) in zip(range(REOPENED), self.resting, strict=False)]
        found: dict[str, Micros] = {}
        for quota, until in (*buckets, *resting):
            if quota in view.quotas:
                found[quota] = max(until, found.get(quota, 0))
        return found
