"""A pool as it is shown: from what its waiting room and its store let see."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from keyturn.core.breaker import BreakerSnapshot
from keyturn.core.health import KeySnapshot
from keyturn.core.levels import BucketLevel
from keyturn.core.looks import BucketLook, LaneLook
from keyturn.core.model import Client, Micros, Pool
from keyturn.core.recent import ZERO_COUNT, Count
from keyturn.web.status.model import (
    BucketStatus,
    ClientStatus,
    KeyStatus,
    OutageStatus,
    QueueStatus,
    QuotaStatus,
    calendar,
)

MAX_FAILING = 20
"""Clients and routes that are shown as failing; the metric has their number."""


def bucket_levels(pool: Pool, buckets: Iterable[BucketLook]) -> Iterator[BucketLevel]:
    """The gauges of a pool's buckets."""
    for bucket in buckets:
        limit = pool.limits[bucket.limit]
        yield BucketLevel(pool.name, pool.label(bucket.quota), limit.name, bucket.at_hand, limit.requests)


def quotas(pool: Pool, buckets: Iterable[BucketLook]) -> Iterator[QuotaStatus]:
    """The quotas in the order of the configuration; those that no key in use counts against have no tokens to show."""
    found: dict[str, list[BucketLook]] = {}
    for bucket in buckets:
        found.setdefault(bucket.quota, []).append(bucket)
    for quota in pool.quotas:
        yield QuotaStatus(pool.label(quota), [_bucket(pool, bucket) for bucket in found.get(quota, ())])


def _bucket(pool: Pool, bucket: BucketLook) -> BucketStatus:
    limit = pool.limits[bucket.limit]
    window = pool.stretched(limit)
    cooling = calendar(bucket.cooling, window)
    return BucketStatus(limit.name, limit.requests, window, bucket.at_hand, bucket.in_use, cooling)


def keys(looks: Iterable[KeySnapshot], epoch: Micros) -> Iterator[KeyStatus]:
    """The keys; `epoch` is when their clock was 0."""
    for key in looks:
        until = None if key.until is None else epoch + key.until
        yield KeyStatus(key.name, key.quota, key.state, epoch + key.since, key.reason, until, key.month_left)


def outages(
    views: Iterable[BreakerSnapshot], now: Micros, epoch: Micros
) -> tuple[OutageStatus | None, list[OutageStatus]]:
    """The pool's own outage, and those of clients and their routes; a time that has passed is now."""
    pool: OutageStatus | None = None
    failing = []
    for scope, since, cause, until in views:
        route = "" if scope.route is None else str(scope.route)
        status = OutageStatus(epoch + since, cause, epoch + max(now, until), scope.client, route)
        if scope.client:
            failing.append(status)
        else:
            pool = status
    return pool, failing[-MAX_FAILING:]


def clients(
    pool: Pool, known: Iterable[Client], lanes: Sequence[LaneLook], granted: Mapping[str, Count]
) -> Iterator[ClientStatus]:
    """The clients of the configuration, each with what it got and its lanes."""
    by_client: dict[str, list[LaneLook]] = {}
    for lane in lanes:
        by_client.setdefault(lane.client, []).append(lane)
    for client in known:
        own = [_lane(pool, lane) for lane in by_client.get(client.name, ())]
        yield ClientStatus(client.name, client.weight, granted.get(client.name, ZERO_COUNT).minute, own)


def _lane(pool: Pool, lane: LaneLook) -> QueueStatus:
    names = [pool.limits[index].name for index in lane.limits]
    return QueueStatus(names, lane.waiting, lane.oldest, lane.turn, lane.pinned)
