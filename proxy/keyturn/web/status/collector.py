"""Collect the state of the replica: the gauges of a scrape, and the status that the page shows."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Protocol, get_args

from keyturn.core.breaker import BreakerSnapshot, ScopeKind
from keyturn.core.bucket_snapshots import BucketSnapshot, QueueSnapshot
from keyturn.core.health import KeySnapshot
from keyturn.core.inferred_limits import HigherLimit
from keyturn.core.levels import BreakerLevel, BucketLevel, Levels
from keyturn.core.model import SECOND, Client, Micros, Pool
from keyturn.core.recent import ZERO_COUNT, Count
from keyturn.scheduler import Scheduler
from keyturn.tasks import in_steps
from keyturn.telemetry.observer import History
from keyturn.web.status.replica_status import (
    BucketStatus,
    ClientStatus,
    FailureStatus,
    KeyStatus,
    OutageStatus,
    PoolStatus,
    ProcessStatus,
    QueueStatus,
    QuotaStatus,
    ReloadStatus,
    ReplicaStatus,
    StoreStatus,
    calendar,
)

MAX_FAILING = 20
"""Clients and routes that are shown as failing; the metric has their number."""


def bucket_levels(pool: Pool, buckets: Iterable[BucketSnapshot]) -> Iterator[BucketLevel]:
    """The gauges of a pool's buckets."""
    for bucket in buckets:
        limit = pool.limits[bucket.limit]
        yield BucketLevel(pool.name, pool.label(bucket.quota), limit.name, bucket.available, limit.requests)


def quotas(pool: Pool, buckets: Iterable[BucketSnapshot]) -> Iterator[QuotaStatus]:
    """The quotas in the order of the configuration; those that no key in use counts against have no tokens to show."""
    found: dict[str, list[BucketSnapshot]] = {}
    for bucket in buckets:
        found.setdefault(bucket.quota, []).append(bucket)
    for quota in pool.quotas:
        yield QuotaStatus(pool.label(quota), [_bucket(pool, bucket) for bucket in found.get(quota, ())])


def _bucket(pool: Pool, bucket: BucketSnapshot) -> BucketStatus:
    limit = pool.limits[bucket.limit]
    window = pool.stretched(limit)
    cooling = calendar(bucket.cooling, window)
    return BucketStatus(limit.name, limit.requests, window, bucket.available, bucket.in_use, cooling)


def keys(snapshots: Iterable[KeySnapshot], epoch: Micros) -> Iterator[KeyStatus]:
    """The keys; `epoch` is when their clock was 0."""
    for key in snapshots:
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
    pool: Pool, known: Iterable[Client], queues: Sequence[QueueSnapshot], granted: Mapping[str, Count]
) -> Iterator[ClientStatus]:
    """The clients of the configuration, each with its leases of the last minute and its queues."""
    by_client: dict[str, list[QueueSnapshot]] = {}
    for queue in queues:
        by_client.setdefault(queue.client, []).append(queue)
    for client in known:
        own = [_queue(pool, queue) for queue in by_client.get(client.name, ())]
        yield ClientStatus(client.name, client.weight, granted.get(client.name, ZERO_COUNT).minute, own)


def _queue(pool: Pool, queue: QueueSnapshot) -> QueueStatus:
    names = [pool.limits[index].name for index in queue.limits]
    return QueueStatus(names, queue.waiting, queue.oldest, queue.estimated_wait, queue.pinned)


MAX_AGE: Micros = SECOND // 2
"""Buckets are read from the stores again after this time, however many clients watch."""

BucketsByPool = Mapping[str, Sequence[BucketSnapshot]]


class BucketSource(Protocol):
    """Where a pool's tokens are."""

    @property
    def replicas(self) -> int:
        """How many share it, this one counted."""

    @property
    def degraded(self) -> float:
        """Seconds without it, so far."""

    async def buckets(self) -> Sequence[BucketSnapshot]:
        """Every bucket."""


class ObservedPool(Protocol):
    """A pool in use."""

    @property
    def scheduler(self) -> Scheduler:
        """Its scheduler."""

    @property
    def store(self) -> BucketSource:
        """Its tokens."""


@dataclass(frozen=True, slots=True)
class StatusSources:
    """Whom to ask: the pools at work, the callers of the configuration, the process, what the telemetry has heard.

    `kind` is that of the store, and `on_loss` what happens while it is lost; empty when it cannot be.
    """

    active: Callable[[], Iterable[ObservedPool]]
    clients: Callable[[], Iterable[Client]]
    process: Callable[[], ProcessStatus]
    connections: Callable[[], int]
    """Open on the data listeners."""
    buffered: Callable[[], int]
    """Bytes that requests hold on their way in."""
    upstream: Callable[[], tuple[int, int]]
    """Connections to the upstream in use, and as many as there may be."""
    log_lines_dropped: Callable[[], int]
    breakers: Callable[[str], Sequence[BreakerSnapshot]]
    """Those that are open, by the name of the pool; the pool's own first."""
    bodies: Callable[[], Sequence[tuple[str, int]]]
    """Where bodies of requests are kept, and the bytes that they take there."""
    higher: Callable[[str], Sequence[HigherLimit]]
    """Limits of which the upstream permits more than is configured, by the name of the pool."""
    history: History
    kind: str
    on_loss: str


class StatusCollector:
    """Collects gauges and status on demand. `clock` is monotonic, `wall` epoch, both in microseconds."""

    def __init__(self, sources: StatusSources, *, clock: Callable[[], Micros], wall: Callable[[], Micros]) -> None:
        self._sources = sources
        self._clock = clock
        self._wall = wall
        self._seen: BucketsByPool = {}
        self._seen_at: Micros = 0
        self._seen_of: list[Pool] | None = None
        """The pools at that time: snapshots name limits by their index."""
        self._reading = asyncio.Lock()

    async def levels(self) -> Levels:
        """Collect the gauges."""
        active, seen = await self._read()
        now = self._clock()
        schedulers = [one.scheduler for one in active]
        in_use, limit = self._sources.upstream()
        buckets = [bucket_levels(scheduler.pool, seen.get(scheduler.pool.name, ())) for scheduler in schedulers]
        keys = [(scheduler.pool.name, scheduler.health.snapshots(now)) for scheduler in schedulers]
        return Levels(
            clients=[level for scheduler in schedulers for level in scheduler.view.levels()],
            in_flight=[(scheduler.pool.name, scheduler.in_flight) for scheduler in schedulers],
            connections=self._sources.connections(),
            buffered=self._sources.buffered(),
            breakers=[level for scheduler in schedulers for level in self._breakers(scheduler.pool.name)],
            bodies=self._sources.bodies(),
            upstream_connections=in_use,
            upstream_connections_limit=limit,
            store_up=not self._sources.history.lost,
            degraded=max((one.store.degraded for one in active), default=0.0),
            higher=[
                (scheduler.pool.name, one)
                for scheduler in schedulers
                for one in self._sources.higher(scheduler.pool.name)
            ],
            log_lines_dropped=self._sources.log_lines_dropped(),
            buckets=await in_steps(chain.from_iterable(buckets)),
            keys=await in_steps((pool, key) for pool, snapshots in keys for key in snapshots),
        )

    def _breakers(self, pool: str) -> list[BreakerLevel]:
        number = Counter(view.scope.kind for view in self._sources.breakers(pool))
        return [BreakerLevel(pool, kind, number[kind]) for kind in get_args(ScopeKind)]

    async def snapshot(self) -> ReplicaStatus:
        """Collect the status; with thousands of keys its parts are some milliseconds apart."""
        active, seen = await self._read()
        now, wall = self._clock(), self._wall()
        history = self._sources.history
        return ReplicaStatus(
            wall,
            self._sources.process(),
            self._store(active),
            [await self._pool(one.scheduler, seen, now, wall - now) for one in active],
            None if (last := history.reload) is None else ReloadStatus(last.at, last.ok, "; ".join(last.reasons)),
            history.reasons(),
        )

    async def _read(self) -> tuple[list[ObservedPool], BucketsByPool]:
        async with self._reading:
            while True:
                active = list(self._sources.active())
                pools = [one.scheduler.pool for one in active]
                if self._seen_of == pools and self._clock() - self._seen_at < MAX_AGE:
                    return active, self._seen
                self._seen = {one.scheduler.pool.name: await one.store.buckets() for one in active}
                self._seen_at, self._seen_of = self._clock(), pools

    def _store(self, active: Sequence[ObservedPool]) -> StoreStatus:
        history = self._sources.history
        return StoreStatus(
            self._sources.kind,
            up=not history.lost,
            since=history.store_since,
            replicas=max((one.store.replicas for one in active), default=1),
            cause=history.cause,
            on_loss=self._sources.on_loss,
        )

    async def _pool(self, scheduler: Scheduler, seen: BucketsByPool, now: Micros, epoch: Micros) -> PoolStatus:
        pool, history = scheduler.pool, self._sources.history
        known = [client for client in self._sources.clients() if client.pool == pool.name]
        shown_clients = clients(pool, known, scheduler.view.queues(), scheduler.view.granted.counts(now))
        return PoolStatus(
            pool.name,
            await in_steps(keys(scheduler.health.snapshots(now), epoch)),
            await in_steps(quotas(pool, seen.get(pool.name, ()))),
            await in_steps(shown_clients),
            scheduler.in_flight,
            history.refused().get(pool.name, ZERO_COUNT),
            history.throttled().get(pool.name, ZERO_COUNT),
            history.failed().get(pool.name, ZERO_COUNT),
            None if (last := history.failure(pool.name)) is None else FailureStatus(last.at, last.cause),
            *outages(self._sources.breakers(pool.name), now, epoch),
            self._sources.higher(pool.name),
        )
