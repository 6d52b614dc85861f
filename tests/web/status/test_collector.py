import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from keyturn.core.breaker import BreakerSnapshot, Scope
from keyturn.core.bucket_snapshots import BucketSnapshot, QueueSnapshot
from keyturn.core.events import Reloaded, RequestLog, StoreChanged, UpstreamThrottled
from keyturn.core.exchange import DemandClass
from keyturn.core.health import KeySnapshot
from keyturn.core.inferred_limits import HigherLimit
from keyturn.core.levels import BreakerLevel, BucketLevel
from keyturn.core.model import SECOND, Client
from keyturn.core.recent import Count
from keyturn.core.signals import Route
from keyturn.scheduler import Scheduler, Waiter
from keyturn.telemetry.observer import History
from keyturn.web.status.collector import StatusCollector, StatusSources, bucket_levels, clients, keys, quotas
from keyturn.web.status.replica_status import (
    BucketStatus,
    ClientStatus,
    KeyStatus,
    OutageStatus,
    ProcessStatus,
    QueueStatus,
    QuotaStatus,
    ReloadStatus,
    Returning,
    StoreStatus,
)

from tests.core.worlds import limit, pool
from tests.schedulers import WatchedStore, running_scheduler
from tests.virtual import micros, task_of, virtual

POOL = pool(2, limit(60), limit(10, 10 * SECOND, "GET /collections"))
LOOKS = (
    BucketSnapshot("k1", 0, 57, 1, (SECOND, 2 * SECOND)),
    BucketSnapshot("k1", 1, 10, 0, ()),
)


def test_gauges_name_limits_and_their_sizes() -> None:
    """As the configuration does."""
    assert list(bucket_levels(POOL, LOOKS)) == [
        BucketLevel("default", "k1", "60/60s", 57, 60),
        BucketLevel("default", "k1", "10/10s", 10, 10),
    ]


def test_quotas_stand_in_the_order_of_the_configuration() -> None:
    """One of which nothing is known, since no key in use counts against it, is there without tokens."""
    wide, narrow = (POOL.stretched(limit) for limit in POOL.limits)
    assert list(quotas(POOL, LOOKS)) == [
        QuotaStatus("k0", []),
        QuotaStatus(
            "k1",
            [
                BucketStatus("60/60s", 60, wide, 57, 1, (Returning(2 * SECOND, 2),)),
                BucketStatus("10/10s", 10, narrow, 10, 0),
            ],
        ),
    ]


def test_keys_are_told_in_epoch_time() -> None:
    """Their own clock is monotonic and means nothing to a reader."""
    snapshots = [KeySnapshot("k0", "k0", "ready", 5), KeySnapshot("k1", "k1", "parked", 7, "429", 9, 812)]
    assert list(keys(snapshots, 1_000)) == [
        KeyStatus("k0", "k0", "ready", 1_005),
        KeyStatus("k1", "k1", "parked", 1_007, "429", 1_009, 812),
    ]


def test_each_client_has_its_queues_and_its_leases() -> None:
    """A client that has never called is listed, too; queues of other clients are not counted."""
    lanes = [
        QueueSnapshot("ci", (0, 1), None, 3, SECOND, None),
        QueueSnapshot("ci", (0,), "k1", 1, SECOND, 2 * SECOND),
        QueueSnapshot("somebody", (0,), None, 9, SECOND, 0),
    ]
    found = list(clients(POOL, [Client("ci", weight=3), Client("idle")], lanes, {"ci": Count(900, 12)}))
    assert found == [
        ClientStatus(
            "ci",
            3,
            12,
            [
                QueueStatus(["60/60s", "10/10s"], 3, SECOND, None, None),
                QueueStatus(["60/60s"], 1, SECOND, 2 * SECOND, "k1"),
            ],
        ),
        ClientStatus("idle", 1, 0, []),
    ]


EPOCH = 1_790_000_000 * SECOND


def wall() -> int:
    """Epoch time, by the virtual clock."""
    return EPOCH + micros()


@dataclass
class Watched:
    """A store that counts how often it is looked at."""

    store: WatchedStore
    replicas: int = 3
    degraded: float = 1.5
    reads: int = 0

    async def buckets(self) -> Sequence[BucketSnapshot]:
        self.reads += 1
        await asyncio.sleep(0)
        return await self.store.buckets()


@dataclass
class Place:
    """A pool at work, and its collector."""

    scheduler: Scheduler
    store: Watched
    breakers: list[BreakerSnapshot] = field(default_factory=list)
    higher: list[HigherLimit] = field(default_factory=list)
    history: History = field(default_factory=lambda: History(micros, wall))
    collector: StatusCollector = field(init=False)

    def __post_init__(self) -> None:
        clients = (Client("a", weight=2), Client("b"), Client("elsewhere", pool="other"))
        process = ProcessStatus("r-1", "0.1.0", "3.11.9", EPOCH)
        sources = StatusSources(
            lambda: [self],
            lambda: clients,
            lambda: process,
            lambda: 7,
            lambda: 9,
            lambda: (3, 256),
            lambda: 5,
            lambda _: self.breakers,
            lambda: [("file", 9)],
            lambda _: self.higher,
            self.history,
            "redis",
            "share",
        )
        self.collector = StatusCollector(sources, clock=micros, wall=wall)


@asynccontextmanager
async def place() -> AsyncIterator[Place]:
    """A pool of two keys with one token each."""
    async with running_scheduler(pool(2, limit(1))) as it:
        yield Place(it.scheduler, Watched(it.store))


@virtual
async def test_everything_is_seen_at_once() -> None:
    """Keys, tokens, clients and queues, the process and its store, of one moment."""
    async with place() as it:
        for _ in range(2):
            with await it.scheduler.lease(request()) as lease:
                lease.spent()
        waiting = task_of(it.scheduler.lease(request()))
        await asyncio.sleep(5)
        seen = await it.collector.snapshot()
        assert seen.at == wall()
        assert seen.process.replica == "r-1"
        assert seen.store == StoreStatus("redis", up=True, since=it.history.store_since, replicas=3, on_loss="share")
        (shown,) = seen.pools
        assert [(key.name, key.state) for key in shown.keys] == [("k0", "ready"), ("k1", "ready")]
        assert [bucket.available for quota in shown.quotas for bucket in quota.buckets] == [0, 0]
        assert [(client.name, client.granted, len(client.queues)) for client in shown.clients] == [
            ("a", 2, 1),
            ("b", 0, 0),
        ]
        assert shown.in_flight == 0
        waiting.cancel()


@virtual
async def test_what_the_telemetry_has_heard_is_shown() -> None:
    """Refusals, 429s, the last reload, a store that is lost."""
    async with place() as it:
        for event in (
            RequestLog(pool="default", outcome="refused", reason="deadline"),
            UpstreamThrottled("default", "k0", "k0", "window", SECOND),
            Reloaded(ok=False, reasons=("clients[2].weight: y", "pools: x")),
            StoreChanged("default", up=False, cause="no answer", on_loss="share"),
        ):
            it.history.observe(event)
        seen = await it.collector.snapshot()
        assert (seen.pools[0].refused, seen.pools[0].throttled) == (Count(1, 1), Count(1, 1))
        assert seen.refused == {"deadline": Count(1, 1)}
        assert seen.reload == ReloadStatus(wall(), ok=False, reason="clients[2].weight: y; pools: x")
        assert (seen.store.up, seen.store.cause) == (False, "no answer")
        levels = await it.collector.levels()
        assert (levels.store_up, levels.degraded, levels.connections, levels.buffered) == (False, 1.5, 7, 9)
        assert levels.log_lines_dropped == 5


@virtual
async def test_breakers_are_shown_by_their_scope() -> None:
    """Breakers of the pool and of one client are shown; a probe that was due is due now."""
    async with place() as it:
        await asyncio.sleep(9)
        route = Route.of("POST", "/x/1")
        it.breakers = [
            BreakerSnapshot(Scope(), micros() - SECOND, "503", micros() + SECOND),
            BreakerSnapshot(Scope("a"), micros() - SECOND, "504", micros() + 2 * SECOND),
            BreakerSnapshot(Scope("a", route), micros() - 2 * SECOND, "504", micros() - SECOND),
        ]
        (shown,) = (await it.collector.snapshot()).pools
        assert shown.outage == OutageStatus(wall() - SECOND, "503", wall() + SECOND)
        assert shown.failing == [
            OutageStatus(wall() - SECOND, "504", wall() + 2 * SECOND, "a"),
            OutageStatus(wall() - 2 * SECOND, "504", wall(), "a", "POST /x/{}"),
        ]
        it.breakers = it.breakers[:2]
        levels = (await it.collector.levels()).breakers
        assert levels == [BreakerLevel("default", *one) for one in (("pool", 1), ("client", 1), ("route", 0))]


@virtual
async def test_a_limit_that_is_higher_upstream_is_shown() -> None:
    """On the page and as a gauge."""
    async with place() as it:
        it.higher = [HigherLimit(0, "1/60s", 1, 300)]
        (shown,) = (await it.collector.snapshot()).pools
        assert shown.higher == it.higher
        assert (await it.collector.levels()).higher == [("default", it.higher[0])]


@virtual
async def test_a_paused_key_is_shown_with_its_moment() -> None:
    """In epoch time, and as a gauge."""
    async with place() as it:
        await asyncio.sleep(7)
        it.scheduler.health.pause("k1", micros())
        it.scheduler.apply_health()
        await asyncio.sleep(7)
        seen = await it.collector.snapshot()
        assert [(key.state, key.since) for key in seen.pools[0].keys][1] == ("paused", wall() - 7 * SECOND)
        assert [key.state for _, key in (await it.collector.levels()).keys] == ["ready", "paused"]


@virtual
async def test_many_who_watch_cost_one_look() -> None:
    """The store is asked anew after half a second only, also when they ask at the same time."""
    async with place() as it:
        await asyncio.gather(*(it.collector.snapshot() for _ in range(5)), it.collector.levels())
        await asyncio.sleep(0.4)
        await it.collector.snapshot()
        assert it.store.reads == 1
        await asyncio.sleep(0.2)
        await it.collector.levels()
        assert it.store.reads == 2


def request() -> Waiter:
    """A request of client a, with time to wait."""
    return Waiter(Client("a", weight=2), DemandClass((0,)), micros() + 300 * SECOND)


@virtual
async def test_other_limits_are_looked_at_anew() -> None:
    """Observations of earlier limits are not shown for the present ones, even if they change meanwhile."""
    async with place() as it:
        await it.collector.levels()
        it.scheduler.adopt(pool(2, limit(5), limit(7, SECOND)), {}, max_waiting=1)
        looking = task_of(it.collector.levels())
        await asyncio.sleep(0)
        it.scheduler.adopt(pool(1, limit(9)), {}, max_waiting=1)
        levels = await looking
        assert [(level.quota, level.available, level.size) for level in levels.buckets] == [("k0", 9, 9)]
        assert it.store.reads == 3
