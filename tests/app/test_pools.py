import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from keyturn import config
from keyturn.app.pools import OperatorControls, PlacementSync, PoolFactory, Pools
from keyturn.app.resolved_config import link_to_store
from keyturn.core.errors import NoKey, ShuttingDown, StoreLost, TooMany, Unauthenticated
from keyturn.core.events import KeySwitched, StoreChanged
from keyturn.core.exchange import DemandClass
from keyturn.core.model import SECOND, Client, Key, Pool, Secret
from keyturn.core.placements import STOP, Placement, PlacementRevision
from keyturn.scheduler import Moved, Waiter
from keyturn.stores.memory import LocalPlacements
from keyturn.tasks import finish, spawn
from keyturn.telemetry import LogLevel

from tests.core.worlds import limit, pool
from tests.process import KEYS, until, write
from tests.schedulers import Recorder, RunningScheduler, running_scheduler
from tests.stores.servers import free_port
from tests.virtual import micros, task_of, virtual

TWO = {
    "default": {"keys": [{"name": "a", "secret": KEYS[0]}], "limits": [{"requests": 1, "window": "60s"}]},
    "other": {"keys_dir": "keys"},
}


def pools(folder: Path) -> Pools:
    """One pool with a key and one without."""
    (folder / "keys").mkdir()
    settings = config.load(write(folder, {"pools": TWO}), {})
    factory = PoolFactory(settings, None, "r", clock=micros, observer=Recorder())
    return Pools(factory, settings.pools_of_model())


def request(client: str = "a") -> Waiter:
    """A request with much time to wait."""
    return Waiter(Client(client), DemandClass((0,)), micros() + 300 * SECOND)


def test_each_pool_is_at_work(tmp_path: Path) -> None:
    """With its own buckets, its own waiting room; a pool without a key is named."""

    @virtual
    async def scenario() -> None:
        it = pools(tmp_path)
        await it.start()
        assert list(it.schedulers) == ["default", "other"]
        assert it.without_keys == ["other"]
        with await it.schedulers["default"].lease(request()) as lease:
            lease.spent()
            buckets = [await active.store.buckets() for active in it.active()]
            assert [[bucket.available for bucket in pool] for pool in buckets] == [[0], []]
        with pytest.raises(TooMany):
            await it.schedulers["default"].lease(Waiter(Client("a"), DemandClass((0,)), micros()))
        assert it.shared() == []
        serving = [it.can_serve]
        it.schedulers["default"].health.pause("a", micros())
        assert [*serving, it.can_serve] == [True, False]
        await it.stop()

    scenario()


def test_who_waits_is_refused_in_all_of_them(tmp_path: Path) -> None:
    """Waiting requests of every pool are refused, and counted until then."""

    @virtual
    async def scenario() -> None:
        it = pools(tmp_path)
        await it.start()
        scheduler = it.schedulers["default"]
        (await scheduler.lease(request())).close()
        waiting = task_of(scheduler.lease(request()))
        await asyncio.sleep(1)
        assert it.waiting == 1
        it.refuse_all()
        with pytest.raises(ShuttingDown):
            await waiting
        assert it.waiting == 0
        await it.stop()

    scenario()


def test_the_failure_of_one_is_a_failure(tmp_path: Path) -> None:
    """An exchange that breaks down ends the process, since no request of that pool would be served again."""

    @virtual
    async def scenario() -> None:
        it = pools(tmp_path)

        async def broken(*_: object, **__: object) -> None:
            raise ZeroDivisionError

        scheduler = it.schedulers["default"]
        scheduler._store.exchange = broken  # type: ignore[method-assign, assignment]  # a store with a bug
        await it.start()
        waiting = task_of(scheduler.lease(request()))
        with pytest.raises(ZeroDivisionError):
            await it.failure()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await it.stop()

    scenario()


def test_pools_come_and_go(tmp_path: Path) -> None:
    """Requests that wait in a removed pool move to their client's pool; a pool that returns knows what was spent."""

    @virtual
    async def scenario() -> None:
        it = pools(tmp_path)
        await it.start()
        first = it.schedulers["default"].pool
        (await it.schedulers["default"].lease(request())).close()
        waiting = task_of(it.schedulers["default"].lease(request()))
        leaving = task_of(it.schedulers["default"].lease(request("b")))
        await asyncio.sleep(1)
        spare = replace(first, name="spare")
        fresh = await it.prepare([spare])
        assert list(fresh) == ["spare"]
        it.adopt([spare], {"a": Client("a", pool="spare")}, max_waiting=9, fresh=fresh)
        with pytest.raises(Moved):
            await waiting
        with pytest.raises(Unauthenticated):
            await leaving
        assert list(it.schedulers) == ["spare"]
        assert len(it.active()) == 1
        assert await it.prepare([first, spare]) == {}
        clients = {"a": Client("a"), "b": Client("b", pool="spare")}
        it.adopt([first, spare], clients, max_waiting=9, fresh={})
        with pytest.raises(TooMany):
            await it.schedulers["default"].lease(Waiter(Client("a"), DemandClass((0,)), micros()))
        (await it.schedulers["spare"].lease(Waiter(clients["b"], DemandClass((0,)), micros()))).close()
        await it.stop()

    scenario()


def test_a_pool_that_is_away_says_nothing(tmp_path: Path) -> None:
    """Replicas that share the store need not be told."""

    @virtual
    async def scenario() -> None:
        it = pools(tmp_path)
        await it.start()
        scheduler, spare = it.schedulers["default"], replace(it.schedulers["default"].pool, name="spare")
        lease = await scheduler.lease(request())
        exchanges: list[int] = []
        exchange = scheduler._store.exchange

        async def counted(*args: Any, **more: Any) -> Any:
            exchanges.append(micros())
            return await exchange(*args, **more)

        scheduler._store.exchange = counted  # type: ignore[method-assign]  # it counts
        it.adopt([spare], {}, max_waiting=9, fresh=await it.prepare([spare]))
        await asyncio.sleep(60)
        during = len(exchanges)
        assert during > 10, "a lease is out"
        lease.close()
        await asyncio.sleep(60)
        after = len(exchanges)
        await asyncio.sleep(600)
        assert len(exchanges) == after
        await it.stop()

    scenario()


async def test_what_is_wrong_with_a_shared_store_is_told_at_the_start(tmp_path: Path) -> None:
    """Before any request comes; so is the replica known to the others."""
    (tmp_path / "keys").mkdir()
    url = f"redis://:wrong@127.0.0.1:{free_port()}"
    settings = config.load(write(tmp_path, {"pools": TWO, "store": {"url": url}}), {})
    link, recorder = link_to_store(settings), Recorder()
    assert link
    it = Pools(PoolFactory(settings, link, "r", clock=micros, observer=recorder), settings.pools_of_model())
    await it.start()

    def told() -> list[StoreChanged]:
        return [event for event in recorder.events if isinstance(event, StoreChanged)]

    await until(lambda: len(told()) == 2, "each pool tells")
    assert [(event.pool, event.up, "not reachable" in event.cause) for event in told()] == [
        ("default", False, True),
        ("other", False, True),
    ]
    assert all(store.lost for store in it.shared())
    await it.stop()
    await link.close()


KEY = Key.alone("k", Secret("x"))
HERE = Pool("default", (KEY,), (limit(1),))
ELSEWHERE = Pool("other", (KEY,), (limit(1),))
BOUND = 10 * SECOND
SPAN = HERE.stretched(HERE.limits[0]) + SECOND + BOUND


def placing(it: RunningScheduler, placements: Any) -> PlacementSync:
    """The placing of a process with one pool."""
    return PlacementSync(placements, {"default": it.scheduler}, BOUND, micros)


class _Lost:
    """Revisions in a store that does not answer."""

    async def name(self, placement: Placement) -> tuple[PlacementRevision, Sequence[PlacementRevision]]:
        raise StoreLost("gone")


@virtual
async def test_a_key_that_came_from_another_pool_rests_and_requests_wait() -> None:
    """Until what was sent with it there counts no longer; the status says why."""
    async with running_scheduler(HERE) as it:
        process, tasks = placing(it, LocalPlacements(micros)), set[asyncio.Task[Any]]()
        await process.prepare((replace_pool("default"), ELSEWHERE))
        moved = micros()
        process.apply(await process.prepare((HERE,)))
        spawn(process.run(), name="place keys", owner=tasks)
        waiting = task_of(it.scheduler.lease(it.request(wait=200 * SECOND)))
        await asyncio.sleep(1)
        (bucket_snapshots,) = it.scheduler.health.snapshots(micros())
        assert (bucket_snapshots.state, bucket_snapshots.until) == ("parked", moved + SPAN + STOP)
        assert bucket_snapshots.reason == "its requests in the pool other still count"
        with await waiting as lease:
            lease.spent()
        assert SPAN + STOP <= micros() - moved < SPAN + STOP + 3 * SECOND
        assert [bucket_snapshots.state for bucket_snapshots in it.scheduler.health.snapshots(micros())] == ["ready"]
        await finish(tasks)


def replace_pool(name: str) -> Pool:
    """A pool of that name with another key."""
    return Pool(name, (Key.alone("l", Secret("y")),), (limit(1),))


@virtual
async def test_without_the_store_no_key_rests() -> None:
    """A start does not wait for it, and what was known stays."""
    async with running_scheduler(HERE) as it:
        process, tasks = placing(it, _Lost()), set[asyncio.Task[Any]]()
        assert await process.prepare((HERE,)) == {}
        spawn(process.run(), name="place keys", owner=tasks)
        await asyncio.sleep(10)
        with await it.scheduler.lease(it.request()) as lease:
            lease.spent()
        await finish(tasks)


@virtual
async def test_what_was_heard_of_an_earlier_configuration_is_dropped() -> None:
    """It says nothing about the pools that were prepared meanwhile."""
    async with running_scheduler(HERE) as it:
        registry = LocalPlacements(micros)
        process = placing(it, _Slow(registry))
        late = task_of(process.prepare((ELSEWHERE,)))
        await asyncio.sleep(0)
        assert set(await process.prepare((HERE,))) == {KEY.identity}
        assert await late == {}


class _Slow:
    """Revisions that are told of a moment later, the first ones latest."""

    def __init__(self, registry: LocalPlacements) -> None:
        self.registry = registry
        self.pauses = iter((2, 1))

    async def name(self, placement: Placement) -> tuple[PlacementRevision, Sequence[PlacementRevision]]:
        told = await self.registry.name(placement)
        await asyncio.sleep(next(self.pauses))
        return told


def controls_of(it: RunningScheduler) -> OperatorControls:
    """Operator controls of a process with one pool."""
    return OperatorControls({"default": it.scheduler}, LogLevel("info"), it.recorder, micros)


@virtual
async def test_a_paused_key_is_not_leased_until_it_is_resumed() -> None:
    """Requests go out with the others, and wait for them; with the first word of the resumption they go on."""
    async with running_scheduler(pool(2, limit(1))) as it:
        controls = controls_of(it)
        assert controls.pause("default", "k0")
        with await it.scheduler.lease(it.request()) as lease:
            lease.spent()
            assert lease.key.name == "k1"
        waiting = task_of(it.scheduler.lease(it.request()))
        await asyncio.sleep(30)
        assert not waiting.done()
        resumed = micros()
        assert controls.resume("default", "k0")
        with await waiting as lease:
            lease.spent()
            assert (lease.key.name, micros()) == ("k0", resumed)
        switched = [event for event in it.recorder.events if isinstance(event, KeySwitched)]
        assert switched == [KeySwitched("default", "k0", paused=paused) for paused in (True, False)]


@virtual
async def test_with_all_keys_paused_nobody_is_kept_waiting() -> None:
    """Waiting and new requests are refused at once with 503 noKeyAvailable."""
    async with running_scheduler(pool(1, limit(1))) as it:
        with await it.scheduler.lease(it.request()) as lease:
            lease.spent()
        waiting = task_of(it.scheduler.lease(it.request()))
        controls_of(it).pause("default", "k0")
        for task in (waiting, it.scheduler.lease(it.request())):
            with pytest.raises(NoKey) as refused:
                await task
            assert (refused.value.status, refused.value.name) == (503, "noKeyAvailable")
            assert "paused" in refused.value.message


@virtual
async def test_what_is_not_there_is_not_switched() -> None:
    """Neither another pool nor another key."""
    async with running_scheduler(pool(1)) as it:
        controls = controls_of(it)
        for switch in (controls.pause, controls.resume):
            assert not switch("default", "k9")
            assert not switch("other", "k0")
        assert not controls.log("loud")
        assert it.recorder.events == []
