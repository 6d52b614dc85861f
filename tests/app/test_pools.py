import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from keyturn import config
from keyturn.app.parts import link_to_store
from keyturn.app.pools import Pools, Stations
from keyturn.core.errors import ShuttingDown, TooMany, Unauthenticated
from keyturn.core.events import StoreChanged
from keyturn.core.exchange import DemandClass
from keyturn.core.model import SECOND, Client
from keyturn.scheduler import Moved, Ticket

from tests.process import KEYS, until, write
from tests.rooms import Recorder
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
    stations = Stations(settings, None, "r", clock=micros, observer=Recorder())
    return Pools(stations, settings.pools_of_model())


def ticket() -> Ticket:
    """Of somebody who has time."""
    return Ticket(Client("a"), DemandClass((0,)), micros() + 300 * SECOND)


def test_each_pool_is_at_work(tmp_path: Path) -> None:
    """With its own buckets, its own waiting room; a pool without a key is named."""

    @virtual
    async def scenario() -> None:
        it = pools(tmp_path)
        await it.start()
        assert list(it.schedulers) == ["default", "other"]
        assert it.without_keys == ["other"]
        with await it.schedulers["default"].lease(ticket()) as lease:
            lease.spent()
            looks = [await station.store.look() for station in it.stations()]
            assert [[look.at_hand for look in pool] for pool in looks] == [[0], []]
        with pytest.raises(TooMany):
            await it.schedulers["default"].lease(Ticket(Client("a"), DemandClass((0,)), micros()))
        assert it.shared() == []
        serving = [it.can_serve]
        it.schedulers["default"].health.pause("a", micros())
        assert [*serving, it.can_serve] == [True, False]
        await it.stop()

    scenario()


def test_who_waits_is_refused_in_all_of_them(tmp_path: Path) -> None:
    """And counted until then."""

    @virtual
    async def scenario() -> None:
        it = pools(tmp_path)
        await it.start()
        scheduler = it.schedulers["default"]
        (await scheduler.lease(ticket())).close()
        waiting = task_of(scheduler.lease(ticket()))
        await asyncio.sleep(1)
        assert it.waiting == 1
        it.refuse_all()
        with pytest.raises(ShuttingDown):
            await waiting
        assert it.waiting == 0
        await it.stop()

    scenario()


def test_the_failure_of_one_is_a_failure(tmp_path: Path) -> None:
    """Whose exchange breaks down ends the process: nobody of that pool would be served again."""

    @virtual
    async def scenario() -> None:
        it = pools(tmp_path)

        async def broken(*_: object) -> None:
            raise ZeroDivisionError

        scheduler = it.schedulers["default"]
        scheduler._store.exchange = broken  # type: ignore[method-assign, assignment]  # a store with a bug
        await it.start()
        waiting = task_of(scheduler.lease(ticket()))
        with pytest.raises(ZeroDivisionError):
            await it.failure()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await it.stop()

    scenario()


def test_pools_come_and_go(tmp_path: Path) -> None:
    """Who waits in one that is taken out goes where its client belongs; one that comes back knows what was spent."""

    @virtual
    async def scenario() -> None:
        it = pools(tmp_path)
        await it.start()
        first = it.schedulers["default"].pool
        (await it.schedulers["default"].lease(ticket())).close()
        waiting, gone = task_of(it.schedulers["default"].lease(ticket())), ticket()
        leaving = task_of(it.schedulers["default"].lease(replace(gone, client=Client("b"))))
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
        assert len(it.stations()) == 1
        assert await it.prepare([first, spare]) == {}
        clients = {"a": Client("a"), "b": Client("b", pool="spare")}
        it.adopt([first, spare], clients, max_waiting=9, fresh={})
        with pytest.raises(TooMany):
            await it.schedulers["default"].lease(Ticket(Client("a"), DemandClass((0,)), micros()))
        (await it.schedulers["spare"].lease(Ticket(clients["b"], DemandClass((0,)), micros()))).close()
        await it.stop()

    scenario()


def test_a_pool_that_is_away_says_nothing(tmp_path: Path) -> None:
    """Whoever shares the store need not hear of it."""

    @virtual
    async def scenario() -> None:
        it = pools(tmp_path)
        await it.start()
        scheduler, spare = it.schedulers["default"], replace(it.schedulers["default"].pool, name="spare")
        lease = await scheduler.lease(ticket())
        exchanges: list[int] = []
        exchange = scheduler._store.exchange

        async def counted(*args: Any) -> Any:
            exchanges.append(micros())
            return await exchange(*args)

        scheduler._store.exchange = counted  # type: ignore[method-assign, assignment]  # it counts
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
    it = Pools(Stations(settings, link, "r", clock=micros, observer=recorder), settings.pools_of_model())
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
