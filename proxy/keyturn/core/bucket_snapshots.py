"""Snapshots of a pool's buckets and queues, for metrics and the status page.

No decision depends on them. Times are delays or ages at the time of the snapshot, in microseconds; limits are indices
into the pool's.
"""

from collections.abc import Iterable, Iterator

from keyturn.core.messages import Revision, RevisionLimit
from keyturn.core.model import Micros
from keyturn.core.sortedset import SortedSet
from keyturn.core.state import SharedState
from keyturn.core.tokens import quota_of
from keyturn.core.values import value_object


@value_object
class BucketSnapshot:
    """The tokens of one limit of one quota: available, in use, and of each that cools the delay until its return.

    While the upstream has closed a bucket, what would be available cools until it opens.
    """

    quota: str
    limit: int
    available: int
    in_use: int
    cooling: tuple[Micros, ...]


@value_object
class QueueSnapshot:
    """The requests of one client and demand class that wait, and when the first is expected to be served, if ever."""

    client: str
    limits: tuple[int, ...]
    pinned: str | None
    waiting: int
    oldest: Micros
    estimated_wait: Micros | None


@value_object
class LimitUsage:
    """Taken tokens of one limit by quota, the delays until they return, and until closed buckets open."""

    taken: tuple[tuple[str, int], ...] = ()
    cooling: tuple[tuple[Micros, str], ...] = ()
    closed: tuple[tuple[Micros, str], ...] = ()


def bucket_snapshots(state: SharedState, revision: Revision, time: Micros) -> tuple[BucketSnapshot, ...]:
    """Every bucket of a revision, when the store's clock shows `time`; O(tokens), so for people and scrapers only."""
    now = state.time(time)
    return buckets_of(revision, [_taken(state, limit, revision.quotas, now) for limit in revision.limits])


def _taken(state: SharedState, limit: RevisionLimit, quotas: Iterable[str], now: Micros) -> LimitUsage:
    tokens = state.tokens
    cooling = tokens.returns.get(limit.id) or SortedSet[str, Micros]()
    return LimitUsage(
        tuple([(quota, tokens.taken.get((limit.id, quota), 0)) for quota in quotas]),
        tuple([(instant - now, quota_of(member)) for instant, member in cooling]),
        (
            *[(until - now, quota) for until, (closed, quota) in tokens.shut.closed if closed == limit.id],
            *[(until - now, quota) for until, quota in tokens.shut.resting],
        ),
    )


def buckets_of(revision: Revision, rows: Iterable[LimitUsage]) -> tuple[BucketSnapshot, ...]:
    """Every bucket of a revision, by what is taken of each of its limits."""
    pairs = zip(revision.limits, rows, strict=True)
    return tuple([bucket for index, (limit, row) in enumerate(pairs) for bucket in _limit(index, limit, row)])


def _limit(index: int, limit: RevisionLimit, row: LimitUsage) -> Iterator[BucketSnapshot]:
    closed = {quota: delay for delay, quota in sorted(row.closed) if delay > 0}  # the last to open decides
    cooling: dict[str, list[Micros]] = {}
    returned: dict[str, int] = {}
    for delay, quota in row.cooling:
        if delay > 0:
            cooling.setdefault(quota, []).append(delay)
        else:
            returned[quota] = returned.get(quota, 0) + 1
    for quota, taken in row.taken:
        returns = cooling.get(quota, [])
        out = max(0, taken - returned.get(quota, 0))
        in_use = max(0, out - len(returns))
        available = max(0, limit.requests - out)
        if quota in closed:
            yield BucketSnapshot(quota, index, 0, in_use, tuple(sorted([*returns, *[closed[quota]] * available])))
        else:
            yield BucketSnapshot(quota, index, available, in_use, tuple(returns))
