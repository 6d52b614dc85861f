"""One flow's requests in order: by urgency, then by arrival; what comes back stands first (law 5)."""

import asyncio
import sys
from bisect import bisect_left, insort
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field

from keyturn.core.backoff import Backoff, Pace
from keyturn.core.exchange import EstimatedWaits, Flow
from keyturn.core.model import SECOND, Client, Micros
from keyturn.scheduler.lease import Lease
from keyturn.scheduler.tickets import Ticket

RECOUNT: Micros = SECOND // 10
"""How often the clients whose refused requests are to come back are counted."""


@dataclass(slots=True, eq=False)
class Waiter:
    """One request in its flow."""

    order: tuple[int, int, int]
    """Whether it comes for the first time, its urgency, its arrival."""
    ticket: Ticket
    future: "asyncio.Future[Lease]"
    arrived: Micros = 0
    queue: "Queue | None" = None
    """Where it stands; `None` when it waits no longer."""
    asked: bool = False
    """Whether the store has been told that it stands there."""
    new: bool = True
    """Whether the store has never been told of it."""
    timer: asyncio.TimerHandle | None = None

    def leave(self) -> None:
        """It waits no longer."""
        self.queue = None
        if self.timer:
            self.timer.cancel()


@dataclass(slots=True)
class Queue:
    """One flow's requests in order, and when their turns come by the last exchange."""

    flow: Flow
    waiters: list[Waiter] = field(default_factory=list)
    fresh: dict[Waiter, None] = field(default_factory=dict)
    """Those whose turn has not been looked at yet."""
    turns: EstimatedWaits = field(default_factory=EstimatedWaits)
    told: Micros = 0
    """When `turns` were told."""
    served: int = 0
    """How many were served since: those who stand behind them have moved up."""
    reviewed: Micros = 0
    asked: int = sys.maxsize
    """For how many of them the store was asked last."""
    starved: bool = False
    """Whether it granted fewer."""
    backoff: Backoff = field(default_factory=Backoff)

    def add(self, waiter: Waiter) -> None:
        """Put it in its place."""
        insort(self.waiters, waiter, key=_order)
        self.fresh[waiter] = None
        waiter.queue, waiter.asked = self, False

    def position(self, waiter: Waiter) -> int:
        """How many stand before it."""
        return bisect_left(self.waiters, waiter.order, key=_order)

    def estimate(self, position: int, now: Micros) -> Micros | None:
        """The estimated wait of the request at a position; `None` when no token is expected."""
        return self._aged(self.turns.at(position + self.served), now)

    def latest(self, position: int, now: Micros) -> Micros | None:
        """The same at the latest, for a caller that is told to come back then and does not wait any longer."""
        return self._aged(self.turns.latest(position + self.served), now)

    def _aged(self, turn: Micros | None, now: Micros) -> Micros | None:
        return None if turn is None else max(0, turn - (now - self.told))

    def newcomers(self) -> list[Waiter]:
        """Those whose turn has not been looked at yet, in order."""
        return sorted(self.fresh, key=_order)

    def remove(self, waiter: Waiter) -> None:
        """Take it out."""
        del self.waiters[0 if self.waiters[0] is waiter else self.position(waiter)]
        self.fresh.pop(waiter, None)
        waiter.leave()

    def next(self) -> Waiter | None:
        """The first whose caller is still there; one that was cancelled in this tick removes itself."""
        for waiter in self.waiters:
            if not waiter.future.done():
                return waiter
        return None


class Lanes:
    """All lanes of a waiting room."""

    def __init__(self) -> None:
        self.busy: dict[Flow, Queue] = {}
        """Those in which somebody waits."""
        self.waiting: dict[str, int] = {}
        """How many wait, by client; clients that have waited before stand there with 0."""
        self.weights: dict[str, int] = {}
        self.total = 0
        self._queues: dict[Flow, Queue] = {}
        self._heavy: dict[str, int] = {}
        """The weights of the clients that wait; the proxy itself has none."""
        self._weight = 0
        """Their sum."""
        self._told: dict[str, Micros] = {}
        """Clients of which some were refused, and until when the last of those are to come back."""
        self._absent = 0
        """The weights of those of them that do not wait, as of the last count."""
        self._recount: Micros = 0
        """When they are to be counted anew."""

    def __iter__(self) -> Iterator[Waiter]:
        return iter([waiter for queue in self.busy.values() for waiter in queue.waiters])

    def queue(self, flow: Flow) -> Queue:
        """A flow, whether anybody waits in it or not."""
        queue = self._queues.get(flow)
        if queue is None:
            queue = self._queues[flow] = Queue(flow)
        return queue

    def know(self, client: Client) -> None:
        """Note the client of a request that need not wait."""
        self.waiting.setdefault(client.name, 0)
        self.weights[client.name] = client.weight

    def seat(self, waiter: Waiter) -> None:
        """Put it in its place in the flow that its ticket says."""
        client = waiter.ticket.client
        queue = self.queue(Flow(client.name, waiter.ticket.demand_class))
        queue.add(waiter)
        self.busy[queue.flow] = queue
        self.weights[client.name] = client.weight
        self._count(client.name, +1)
        if not waiter.ticket.own and client.name not in self._heavy:
            self._heavy[client.name] = client.weight
            self._weight += client.weight

    def serve(self, waiter: Waiter) -> None:
        """Take out one that waits, for its turn has come."""
        self.queue(Flow(waiter.ticket.client.name, waiter.ticket.demand_class)).served += 1
        self.remove(waiter)

    def remove(self, waiter: Waiter) -> None:
        """Take it out, if it still waits."""
        queue = waiter.queue
        if queue is None:
            return
        queue.remove(waiter)
        self._count(queue.flow.client, -1)
        if not queue.waiters:
            del self.busy[queue.flow]

    def introduce(self) -> list[Waiter]:
        """The store is told of all who wait; returns of whom for the first time."""
        fresh = [waiter for queue in self.busy.values() for waiter in queue.fresh]
        newcomers = [waiter for waiter in fresh if waiter.new]
        for waiter in fresh:
            waiter.asked, waiter.new = True, False
        return newcomers

    def clear(self, clients: Container[str]) -> list[Waiter]:
        """Let everybody stand up, and forget all lanes and all but these clients; returns who waited."""
        waiters = list(self)
        for waiter in waiters:
            waiter.queue = None
        self.busy, self._queues = {}, {}
        self.waiting = {name: 0 for name in self.waiting if name in clients}
        self.total = self._weight = 0
        self._heavy.clear()
        return waiters

    def back_off(self, queue: Queue, position: int, now: Micros, paces: Iterable[Pace]) -> Micros:
        """Keep a place for a request refused at this position; returns after how long it is told to come back.

        Others were told to come back, too: a queue gets the part of its client's weight.
        """
        own, of_all = self._contention(queue.flow.client, now)
        places = queue.backoff.places(now) * of_all // own
        first, behind = queue.estimate(position, now), queue.latest(position + places, now)
        told = queue.backoff.keep(first or SECOND, behind or SECOND, now, [pace.part(own, of_all) for pace in paces])
        client = queue.flow.client
        self._told[client] = max(now + told, self._told.get(client, 0))
        return told

    def _contention(self, client: str, now: Micros) -> tuple[int, int]:
        """A client's weight, and that of all that wait or are to come back, with its own."""
        if now >= self._recount:
            self._recount = now + RECOUNT
            self._told = {name: until for name, until in self._told.items() if until > now}
            self._absent = sum([self.weights.get(name, 1) for name in self._told if name not in self._heavy])
        own, of_all = self.part(client)
        counted = client in self._told and client not in self._heavy
        return own, max(own, of_all + self._absent - (own if counted else 0))

    def part(self, client: str) -> tuple[int, int]:
        """A client's weight, and that of all who wait, with its own whether it waits or not."""
        own = self.weights.get(client, 1)
        return own, self._weight + (0 if client in self._heavy else own)

    def _count(self, client: str, change: int) -> None:
        waiting = self.waiting[client] = self.waiting.get(client, 0) + change
        self.total += change
        if not waiting:
            self._weight -= self._heavy.pop(client, 0)


def _order(waiter: Waiter) -> tuple[int, int, int]:
    return waiter.order
