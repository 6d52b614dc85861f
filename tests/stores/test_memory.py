import asyncio

from keyturn.core.exchange import ExchangeResult, FlowDemand, Settlement, Spent, Unsent
from keyturn.core.model import SECOND, Micros, Pool
from keyturn.stores.memory import Memory, MemoryStore

from tests.core.worlds import BOUND, flow, known, limit, pool
from tests.stores.conformance import StoreConformance


class ClockedMemory:
    """A memory that several replicas share, on a clock that the test moves."""

    def __init__(self, pool_: Pool) -> None:
        self.now: Micros = 1_000 * SECOND
        self.memory = Memory(lambda: self.now)
        self._pool = pool_
        self._stores: dict[str, MemoryStore] = {}
        known(self.memory.state, self.store("r").revision)

    def store(self, replica: str) -> MemoryStore:
        if replica not in self._stores:
            self._stores[replica] = MemoryStore(self.memory, self._pool, replica=replica, settle_bound=BOUND)
        return self._stores[replica]

    async def exchange(
        self, replica: str, settlements: tuple[Settlement, ...], demands: tuple[FlowDemand, ...]
    ) -> ExchangeResult:
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


def test_a_replica_is_woken_when_its_token_comes_early() -> None:
    """Unsent tokens are reserved for the next flow, and its replica is woken at once."""

    async def scenario() -> None:
        store = ClockedMemory(pool(1, limit(1)))
        calls: list[Micros] = []
        store.store("far").listen(calls.append)
        (grant,) = (await store.exchange("near", (), (FlowDemand(flow(), 1, 1),))).grants
        await store.exchange("far", (), (FlowDemand(flow("b"), 1, 1),))
        await store.exchange("near", (Unsent(grant.lease),), ())
        assert calls == [0]

    asyncio.run(scenario())


def test_a_replica_is_told_when_its_token_returns() -> None:
    """A replica is told once when its token returns earlier than it was told."""

    async def scenario() -> None:
        store = ClockedMemory(pool(1, limit(1, SECOND)))
        calls: list[Micros] = []
        store.store("far").listen(calls.append)
        (grant,) = (await store.exchange("near", (), (FlowDemand(flow(), 1, 1),))).grants
        await store.exchange("far", (), (FlowDemand(flow("b"), 1, 1),))
        window = store.store("near").revision.limits[0].window
        for _ in range(2):
            await store.exchange("near", (Spent(grant.lease, SECOND // 4),), ())
            assert calls == [window - SECOND // 4]

    asyncio.run(scenario())


def test_a_request_is_granted_without_an_exchange_while_nobody_waits() -> None:
    """The fast path grants a lease that this replica holds, unless something waits."""

    async def scenario() -> None:
        store = ClockedMemory(pool(1, limit(2)))
        near = store.store("r")
        assert near.try_grant(flow(), 1) is None, "it has not spoken yet"
        await store.exchange("r", (), ())
        grant = near.try_grant(flow(), 1)
        assert grant is not None
        assert (grant.flow, grant.quota) == (flow(), "k0")
        assert [row.lease for row in near.session.held.report(store.now)] == [grant.lease]
        assert len((await store.exchange("r", (), (FlowDemand(flow(), 1, 2),))).grants) == 1
        assert near.try_grant(flow("b"), 1) is None
        assert len((await store.exchange("r", (Unsent(grant.lease),), (FlowDemand(flow(), 1, 1),))).grants) == 1

    asyncio.run(scenario())


def test_a_view_includes_tokens_that_returned_by_now() -> None:
    """A view includes tokens that returned since the last exchange."""

    async def scenario() -> None:
        store = ClockedMemory(pool(2, limit(3, SECOND)))
        (grant,) = (await store.exchange("r", (), (FlowDemand(flow(), 1, 1),))).grants
        near = store.store("r")
        assert [(one.quota, one.available, one.in_use) for one in await near.buckets()] == [
            ("k0", 2, 1),
            ("k1", 3, 0),
        ]
        await store.exchange("r", (Spent(grant.lease, 0),), ())
        assert [len(one.cooling) for one in await near.buckets()] == [1, 0]
        store.pass_(2 * SECOND)
        assert [one.available for one in await near.buckets()] == [3, 3]

    asyncio.run(scenario())
