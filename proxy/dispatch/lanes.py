"""One lane's requests in order: by urgency, then by arrival; what comes back stands first (law 5)."""

import asyncio
import sys
from bisect import bisect_left, insort
from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from heapq import heappop, heappush

from proxy.core.exchange import Lane, Turns
from proxy.core.model import Micros
from proxy.core.promises import Crowd
from proxy.dispatch.lease import Lease
from proxy.dispatch.tickets import Ticket


@dataclass(slots=True, eq=False)
class Waiter:
    """One request in its lane."""

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
    returned: bool = False
    """Whether it was refused before, and has come back when it was told to."""
    timer: asyncio.TimerHandle | None = None

    def leave(self) -> None:
        """It waits no longer."""
        self.queue = None
        if self.timer:
            self.timer.cancel()


@dataclass(slots=True)
class Queue:
    """One lane's requests in order, and when their turns come by the last exchange."""

    lane: Lane
    waiters: list[Waiter] = field(default_factory=list)
    fresh: dict[Waiter, None] = field(default_factory=dict)
    """Those whose turn has not been looked at yet."""
    turns: Turns = field(default_factory=Turns)
    told: Micros = 0
    """When `turns` were told."""
    reviewed: Micros = 0
    asked: int = sys.maxsize
    """For how many of them the store was asked last."""
    starved: bool = False
    """Whether it granted fewer."""
    crowd: Crowd = field(default_factory=Crowd)

    def add(self, waiter: Waiter) -> None:
        """Put it in its place."""
        insort(self.waiters, waiter, key=_order)
        self.fresh[waiter] = None
        waiter.queue, waiter.asked = self, False

    def position(self, waiter: Waiter) -> int:
        """How many stand before it."""
        return bisect_left(self.waiters, waiter.order, key=_order)

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
        self.busy: dict[Lane, Queue] = {}
        """Those in which somebody waits."""
        self.waiting: dict[str, int] = {}
        """How many wait, by client; clients that have waited before stand there with 0."""
        self.weights: dict[str, int] = {}
        self.total = 0
        self._queues: dict[Lane, Queue] = {}
        self._heavy: dict[str, int] = {}
        """The weights of the clients that wait; the proxy itself has none."""
        self._weight = 0
        """Their sum."""
        self._crowds: dict[str, Micros] = {}
        """Clients of which some were refused, and until when the last of those are to come back."""
        self._over: list[tuple[Micros, str]] = []
        """When it is to be seen whether a crowd is over; a heap."""
        self._absent = 0
        """The weights of clients that do not wait, and of which some are to come back."""

    def __iter__(self) -> Iterator[Waiter]:
        return iter([waiter for queue in self.busy.values() for waiter in queue.waiters])

    def queue(self, lane: Lane) -> Queue:
        """A lane, whether anybody waits in it or not."""
        queue = self._queues.get(lane)
        if queue is None:
            queue = self._queues[lane] = Queue(lane)
        return queue

    def know(self, lane: Lane, ticket: Ticket, now: Micros) -> None:
        """Somebody came who need not wait."""
        client, queue = ticket.client, self._queues.get(lane)
        if queue and queue.crowd.awaits:
            queue.crowd.come(ticket.caller, now)
        self.waiting.setdefault(client.name, 0)
        self.weights[client.name] = client.weight

    def meet(self, waiter: Waiter) -> Queue:
        """Somebody has come to this lane, maybe as it was told."""
        client = waiter.ticket.client
        self.weights[client.name] = client.weight
        queue = self.queue(Lane(client.name, waiter.ticket.kind))
        if queue.crowd.awaits:
            waiter.returned = queue.crowd.come(waiter.ticket.caller, waiter.arrived)
        return queue

    def seat(self, waiter: Waiter) -> None:
        """Put it in its place in the lane that its ticket says."""
        client = waiter.ticket.client
        queue = self.queue(Lane(client.name, waiter.ticket.kind))
        queue.add(waiter)
        self.busy[queue.lane] = queue
        self.weights[client.name] = client.weight
        self._count(client.name, +1)
        if not waiter.ticket.own and client.name not in self._heavy:
            self._heavy[client.name] = client.weight
            self._weight += client.weight
            self._absent -= client.weight if client.name in self._crowds else 0

    def remove(self, waiter: Waiter) -> None:
        """Take it out, if it still waits."""
        queue = waiter.queue
        if queue is None:
            return
        queue.remove(waiter)
        self._count(queue.lane.client, -1)
        if not queue.waiters:
            del self.busy[queue.lane]

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
        self.total = self._weight = self._absent = 0
        self._heavy.clear()
        self._crowds.clear()
        self._over.clear()
        return waiters

    def part(self, client: str) -> tuple[int, int]:
        """A client's weight, and that of all who wait, with its own whether it waits or not."""
        own = self.weights.get(client, 1)
        return own, self._weight + (0 if client in self._heavy else own)

    def expect(self, ticket: Ticket, until: Micros) -> None:
        """Whoever has this ticket was refused, and is to come back then."""
        client = ticket.client
        if ticket.own:
            return
        self.weights[client.name] = client.weight
        if client.name not in self._crowds:
            heappush(self._over, (until, client.name))
            self._absent += 0 if client.name in self._heavy else client.weight
        self._crowds[client.name] = max(until, self._crowds.get(client.name, 0))

    def contended(self, client: str, now: Micros) -> tuple[int, int]:
        """A client's weight, and that of all who wait or are to come back, with its own."""
        while self._over and self._over[0][0] <= now:
            name = heappop(self._over)[1]
            if self._crowds[name] > now:
                heappush(self._over, (self._crowds[name], name))
            else:
                del self._crowds[name]
                self._absent -= 0 if name in self._heavy else self.weights[name]
        own, of_all = self.part(client)
        counted = client in self._crowds and client not in self._heavy
        return own, of_all + self._absent - (own if counted else 0)

    def _count(self, client: str, change: int) -> None:
        waiting = self.waiting[client] = self.waiting.get(client, 0) + change
        self.total += change
        if not waiting:
            weight = self._heavy.pop(client, 0)
            self._weight -= weight
            self._absent += weight if client in self._crowds else 0


def _order(waiter: Waiter) -> tuple[int, int, int]:
    return waiter.order
