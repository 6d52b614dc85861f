"""The one look at everything that is at work here: for the gauges of a scrape, and for whoever watches the status.

It remembers next to nothing: what there is to see is told by the waiting rooms, their stores, and what the telemetry
has heard. A store is asked at most twice a second, however many watch.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Protocol, get_args

from keyturn.core.breaker import BreakerSnapshot, ScopeKind
from keyturn.core.inferred_limits import HigherLimit
from keyturn.core.levels import BreakerLevel, KeyLevel, Levels
from keyturn.core.looks import BucketLook
from keyturn.core.model import SECOND, Client, Micros, Pool
from keyturn.core.recent import ZERO_COUNT
from keyturn.scheduler import Scheduler
from keyturn.tasks import in_steps
from keyturn.telemetry.observer import History
from keyturn.web.status.model import FailureStatus, PoolStatus, ProcessStatus, ReloadStatus, Snapshot, StoreStatus
from keyturn.web.status.pools import bucket_levels, clients, keys, outages, quotas

FRESH: Micros = SECOND // 2
"""What was seen of the stores is told again within this time."""

Looks = Mapping[str, Sequence[BucketLook]]


class BucketSource(Protocol):
    """Where a pool's tokens are."""

    @property
    def replicas(self) -> int:
        """How many share it, this one counted."""

    @property
    def degraded(self) -> float:
        """Seconds without it, so far."""

    async def look(self) -> Sequence[BucketLook]:
        """Every bucket."""


class ObservedPool(Protocol):
    """A pool at work."""

    @property
    def scheduler(self) -> Scheduler:
        """Its waiting room."""

    @property
    def store(self) -> BucketSource:
        """Its tokens."""


@dataclass(frozen=True, slots=True)
class Sources:
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


class Glance:
    """Looks when it is asked. `clock` is monotonic, `wall` epoch, both in microseconds."""

    def __init__(self, sources: Sources, *, clock: Callable[[], Micros], wall: Callable[[], Micros]) -> None:
        self._sources = sources
        self._clock = clock
        self._wall = wall
        self._seen: Looks = {}
        self._seen_at: Micros = 0
        self._seen_of: list[Pool] | None = None
        """The pools as they were then: looks tell of limits by their place."""
        self._looking = asyncio.Lock()

    async def levels(self) -> Levels:
        """The gauges of this moment."""
        active, seen = await self._look()
        now = self._clock()
        rooms = [one.scheduler for one in active]
        in_use, limit = self._sources.upstream()
        buckets = [bucket_levels(room.pool, seen.get(room.pool.name, ())) for room in rooms]
        keys = [(room.pool.name, room.health.snapshots(now)) for room in rooms]
        return Levels(
            lanes=[level for room in rooms for level in room.view.levels()],
            in_flight=[(room.pool.name, room.in_flight) for room in rooms],
            connections=self._sources.connections(),
            buffered=self._sources.buffered(),
            breakers=[level for room in rooms for level in self._breakers(room.pool.name)],
            bodies=self._sources.bodies(),
            upstream_connections=in_use,
            upstream_connections_limit=limit,
            store_up=not self._sources.history.lost,
            degraded=max((one.store.degraded for one in active), default=0.0),
            higher=[(room.pool.name, one) for room in rooms for one in self._sources.higher(room.pool.name)],
            log_lines_dropped=self._sources.log_lines_dropped(),
            buckets=await in_steps(chain.from_iterable(buckets)),
            keys=await in_steps(KeyLevel(pool, look) for pool, looks in keys for look in looks),
        )

    def _breakers(self, pool: str) -> list[BreakerLevel]:
        number = Counter(view.scope.kind for view in self._sources.breakers(pool))
        return [BreakerLevel(pool, kind, number[kind]) for kind in get_args(ScopeKind)]

    async def snapshot(self) -> Snapshot:
        """Everything that the status shows; of a few milliseconds where there are thousands of keys."""
        active, seen = await self._look()
        now, wall = self._clock(), self._wall()
        history = self._sources.history
        return Snapshot(
            wall,
            self._sources.process(),
            self._store(active),
            [await self._pool(one.scheduler, seen, now, wall - now) for one in active],
            None if (last := history.reload) is None else ReloadStatus(last.at, last.ok, "; ".join(last.reasons)),
            history.reasons(),
        )

    async def _look(self) -> tuple[list[ObservedPool], Looks]:
        async with self._looking:
            while True:
                active = list(self._sources.active())
                pools = [one.scheduler.pool for one in active]
                if self._seen_of == pools and self._clock() - self._seen_at < FRESH:
                    return active, self._seen
                self._seen = {one.scheduler.pool.name: await one.store.look() for one in active}
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

    async def _pool(self, room: Scheduler, seen: Looks, now: Micros, epoch: Micros) -> PoolStatus:
        pool, history = room.pool, self._sources.history
        known = [client for client in self._sources.clients() if client.pool == pool.name]
        shown_clients = clients(pool, known, room.view.queues(), room.view.granted.counts(now))
        return PoolStatus(
            pool.name,
            await in_steps(keys(room.health.snapshots(now), epoch)),
            await in_steps(quotas(pool, seen.get(pool.name, ()))),
            await in_steps(shown_clients),
            room.in_flight,
            history.refused().get(pool.name, ZERO_COUNT),
            history.throttled().get(pool.name, ZERO_COUNT),
            history.failed().get(pool.name, ZERO_COUNT),
            None if (last := history.failure(pool.name)) is None else FailureStatus(last.at, last.cause),
            *outages(self._sources.breakers(pool.name), now, epoch),
            self._sources.higher(pool.name),
        )
