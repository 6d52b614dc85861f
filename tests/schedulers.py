"""A scheduler on virtual time over a real memory store, and recorders of what goes through it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from keyturn.core.budgets import budget
from keyturn.core.events import Event
from keyturn.core.exchange import DemandClass, ExchangeResult, Flow, FlowDemand, LeaseGrant, Settlement
from keyturn.core.model import SECOND, Client, Micros, Pool
from keyturn.core.state import SharedState
from keyturn.scheduler import ConcurrencyLimit, Scheduler, Waiter
from keyturn.scheduler.batching import MAX_SETTLEMENT_DELAY
from keyturn.stores.memory import Memory, MemoryStore

from tests.core.worlds import BOUND, check_conservation, known
from tests.virtual import micros


@dataclass
class Recorder:
    """An observer that keeps everything."""

    events: list[Event] = field(default_factory=list)

    def observe(self, event: Event) -> None:
        self.events.append(event)


class WatchedStore(MemoryStore):
    """A replica's way to a memory that is sure of its buckets, remembering grants and settlements."""

    def __init__(self, pool: Pool, memory: Memory | None = None, replica: str = "r") -> None:
        self.memory = memory or Memory(micros)
        super().__init__(self.memory, pool, replica=replica, settle_bound=BOUND)
        if memory is None:
            known(self.memory.state, self.revision)
        self.granted: list[str] = []
        self.settled: list[Settlement] = []

    @property
    def state(self) -> SharedState:
        return self.memory.state

    @property
    def available(self) -> int:
        """Tokens of the first limit, over all quotas."""
        view = self.state.revisions.views[self.revision.name]
        return budget(self.state.tokens, view, 0, micros()).available

    def try_grant(self, flow: Flow, weight: int) -> LeaseGrant | None:
        grant = super().try_grant(flow, weight)
        self.granted += [grant.lease] if grant else []
        return grant

    async def exchange(
        self, settlements: tuple[Settlement, ...], demands: tuple[FlowDemand, ...], *, partial: bool = False
    ) -> ExchangeResult:
        answer = await super().exchange(settlements, demands, partial=partial)
        self.settled += settlements
        self.granted += [grant.lease for grant in answer.grants]
        return answer


def waiting(client: Client, number: int, deadline: Micros = 0, urgency: int = 3, *, back: bool = False) -> Waiter:
    """A request that came as the one of this number, outside of any queue; the loop runs."""
    waiter = Waiter(client, DemandClass((0,)), deadline, urgency)
    waiter.order, waiter.arrived, waiter.seen = (not back, urgency, number), micros(), False
    waiter.future = asyncio.get_running_loop().create_future()
    return waiter


@dataclass
class RunningScheduler:
    """One scheduler and its store."""

    scheduler: Scheduler
    store: WatchedStore
    recorder: Recorder

    def request(
        self,
        client: str = "a",
        *,
        wait: Micros = 300 * SECOND,
        urgency: int = 3,
        weight: int = 1,
        max_in_flight: int | None = None,
        max_waiting: int | None = None,
    ) -> Waiter:
        """A request of a client under the first limit."""
        caller = Client(client, weight=weight, max_in_flight=max_in_flight, max_waiting=max_waiting)
        return Waiter(caller, DemandClass((0,)), micros() + wait, urgency)

    async def settled(self) -> None:
        """Let everything that is due now happen, settlements included."""
        await asyncio.sleep(MAX_SETTLEMENT_DELAY / SECOND + 0.05)

    def check_empty(self) -> None:
        """Nobody waits, no lease is out, and every token is accounted for."""
        assert self.scheduler.waiting == 0
        assert self.scheduler.in_flight == 0
        assert not self.store.state.tokens.leases
        check_conservation(self.store.state)
        assert sorted(self.store.granted) == sorted(settlement.lease for settlement in self.store.settled)


@asynccontextmanager
async def running_scheduler(
    pool: Pool,
    *,
    max_waiting: int = 10_000,
    memory: Memory | None = None,
    replica: str = "r",
    limit: ConcurrencyLimit | None = None,
) -> AsyncIterator[RunningScheduler]:
    """A scheduler that is started and stopped."""
    store, recorder = WatchedStore(pool, memory, replica), Recorder()
    scheduler = Scheduler(
        pool,
        store,
        settle_bound=BOUND,
        max_waiting=max_waiting,
        clock=micros,
        observer=recorder,
        limit=limit,
    )
    store.listen(scheduler.wake)
    await scheduler.start()
    try:
        yield RunningScheduler(scheduler, store, recorder)
    finally:
        await scheduler.stop()
