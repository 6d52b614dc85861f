import asyncio

from proxy.core.exchange import Demand, Exchange, Settlement, Spent, Unsent
from proxy.core.model import SECOND, Micros, Pool
from proxy.stores.memory import Memory, MemoryStore
from tests.core.worlds import BOUND, known, lane, limit, pool
from tests.stores.conformance import StoreConformance


class ClockedMemory(Memory):
    """A memory that several replicas share, on a clock that the test moves."""

    def __init__(self, pool_: Pool) -> None:
        self.now: Micros = 1_000 * SECOND
        super().__init__(lambda: self.now)
        self._pool = pool_
        self._stores: dict[str, MemoryStore] = {}
        known(self.ledger, self.store("r").terms)

    def store(self, replica: str) -> MemoryStore:
        if replica not in self._stores:
            self._stores[replica] = MemoryStore(self, self._pool, replica=replica, settle_bound=BOUND)
        return self._stores[replica]

    async def exchange(
        self, replica: str, settlements: tuple[Settlement, ...], demands: tuple[Demand, ...]
    ) -> Exchange:
        return await self.store(replica).exchange(settlements, demands)

    def adopt(self, replica: str, pool_: Pool) -> None:
        self.store(replica).adopt(pool_)

    def pass_(self, duration: Micros) -> None:
        self.now += duration

    async def close(self) -> None:
        pass


class TestMemoryStore(StoreConformance):
    """The memory store passes the suite of stores."""

    async def open(self, pool_: Pool) -> ClockedMemory:
        return ClockedMemory(pool_)


def test_a_replica_is_woken_when_its_turn_comes_early() -> None:
    """Tokens that come back unsent are left for who is next, and that one is called."""

    async def scenario() -> None:
        store = ClockedMemory(pool(1, limit(1)))
        calls: list[str] = []
        store.store("far").listen(lambda: calls.append("far"))
        (grant,) = (await store.exchange("near", (), (Demand(lane(), 1, 1),))).grants
        await store.exchange("far", (), (Demand(lane("b"), 1, 1),))
        await store.exchange("near", (Unsent(grant.lease),), ())
        assert calls == ["far"]

    asyncio.run(scenario())


def test_levels_tell_what_has_returned_by_now() -> None:
    """A gauge does not wait for the next exchange; a parked bucket shows nothing."""

    async def scenario() -> None:
        store = ClockedMemory(pool(2, limit(3, SECOND)))
        await store.exchange("r", (), (Demand(lane(), 1, 1),))
        assert sorted(store.store("r").levels()) == [("k0", 0, 2), ("k1", 0, 3)]

    asyncio.run(scenario())


def test_a_look_tells_what_has_returned_by_now() -> None:
    """A page does not wait for the next exchange."""

    async def scenario() -> None:
        store = ClockedMemory(pool(2, limit(3, SECOND)))
        (grant,) = (await store.exchange("r", (), (Demand(lane(), 1, 1),))).grants
        near = store.store("r")
        assert [(one.quota, one.at_hand, one.in_use) for one in await near.look()] == [("k0", 2, 1), ("k1", 3, 0)]
        await store.exchange("r", (Spent(grant.lease, 0),), ())
        assert [len(one.cooling) for one in await near.look()] == [1, 0]
        store.pass_(2 * SECOND)
        assert [one.at_hand for one in await near.look()] == [3, 3]

    asyncio.run(scenario())
