"""A waiting room on virtual time over a real memory store, and recorders of what goes through it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from proxy.core.events import Event
from proxy.core.exchange import Demand, Exchange, Kind, Settlement
from proxy.core.model import SECOND, Client, Micros, Pool
from proxy.dispatch import Dispatch, Ticket
from proxy.stores.memory import MemoryStore
from tests.core.worlds import BOUND, check_conservation
from tests.virtual import micros


@dataclass
class Recorder:
    """An observer that keeps everything."""

    events: list[Event] = field(default_factory=list)

    def observe(self, event: Event) -> None:
        self.events.append(event)


class WatchedStore(MemoryStore):
    """The memory store, remembering grants and settlements."""

    def __init__(self, pool: Pool) -> None:
        super().__init__(pool, settle_bound=BOUND, clock=micros)
        self.granted: list[int] = []
        self.settled: list[Settlement] = []

    async def exchange(
        self, replica: str, settlements: tuple[Settlement, ...], demands: tuple[Demand, ...]
    ) -> Exchange:
        answer = await super().exchange(replica, settlements, demands)
        self.settled += settlements
        self.granted += [grant.lease for grant in answer.grants]
        return answer


@dataclass
class Room:
    """One waiting room and its store."""

    dispatch: Dispatch
    store: WatchedStore
    recorder: Recorder

    def ticket(self, client: str = "a", *, wait: Micros = 300 * SECOND, urgency: int = 3, weight: int = 1) -> Ticket:
        return Ticket(Client(client, weight=weight), Kind((0,)), micros() + wait, urgency)

    async def settled(self) -> None:
        """Let everything that is due now happen, settlements included."""
        await asyncio.sleep(0.05)

    def check_empty(self) -> None:
        """Nobody waits, no lease is out, and every token is accounted for."""
        assert self.dispatch.waiting == 0
        assert self.dispatch.in_flight == 0
        assert not self.store.ledger.buckets._out
        check_conservation(self.store.ledger)
        assert sorted(self.store.granted) == sorted(settlement.lease for settlement in self.store.settled)


@asynccontextmanager
async def room(pool: Pool, *, max_waiting: int = 10_000) -> AsyncIterator[Room]:
    """A waiting room that is started and stopped."""
    store, recorder = WatchedStore(pool), Recorder()
    dispatch = Dispatch(
        pool, store, replica="r", settle_bound=BOUND, max_waiting=max_waiting, clock=micros, observer=recorder
    )
    store.listen("r", dispatch.wake)
    await dispatch.start()
    try:
        yield Room(dispatch, store, recorder)
    finally:
        await dispatch.stop()
