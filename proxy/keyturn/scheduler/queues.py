"""The queues of a scheduler, and the weights of the clients that wait in them."""

from collections.abc import Container, Iterable, Iterator

from keyturn.core.backoff import Pace
from keyturn.core.exchange import Flow
from keyturn.core.model import SECOND, Client, Micros
from keyturn.scheduler.waiter import INTERNAL, Queue, Waiter

RECOUNT: Micros = SECOND // 10
"""How often the clients whose refused requests are to come back are counted."""


class ClientWeights:
    """The weights of clients that wait, and of those whose refused requests are to come back."""

    def __init__(self) -> None:
        self._of: dict[str, int] = {}
        self._waiting: dict[str, int] = {}
        """The weights of the clients that wait; health checks have none."""
        self._sum = 0
        self._told: dict[str, Micros] = {}
        """Clients of which some were refused, and until when the last of those are to come back."""
        self._absent = 0
        """The weights of those of them that do not wait, as of the last count."""
        self._recount: Micros = 0

    def __getitem__(self, client: str) -> int:
        return self._of[client]

    def note(self, client: Client) -> None:
        """Note the weight of a client."""
        self._of[client.name] = client.weight

    def waits(self, client: Client) -> None:
        """A request of a client waits."""
        if client is not INTERNAL and client.name not in self._waiting:
            self._waiting[client.name] = client.weight
            self._sum += client.weight

    def left(self, client: str) -> None:
        """No request of a client waits any more."""
        self._sum -= self._waiting.pop(client, 0)

    def clear(self) -> None:
        """Nothing waits."""
        self._waiting.clear()
        self._sum = 0

    def share(self, client: str) -> tuple[int, int]:
        """A client's weight, and that of all that wait, with its own whether it waits or not."""
        own = self._of.get(client, 1)
        return own, self._sum + (0 if client in self._waiting else own)

    def refused(self, client: str, until: Micros) -> None:
        """A request of a client was told to come back at an instant."""
        self._told[client] = max(until, self._told.get(client, 0))

    def contention(self, client: str, now: Micros) -> tuple[int, int]:
        """A client's weight, and that of all that wait or are to come back, with its own."""
        if now >= self._recount:
            self._recount = now + RECOUNT
            self._told = {name: until for name, until in self._told.items() if until > now}
            self._absent = sum([self._of.get(name, 1) for name in self._told if name not in self._waiting])
        own, of_all = self.share(client)
        counted = client in self._told and client not in self._waiting
        return own, max(own, of_all + self._absent - (own if counted else 0))


class Queues:
    """All queues of a scheduler."""

    def __init__(self) -> None:
        self.busy: dict[Flow, Queue] = {}
        """Those in which something waits."""
        self.changed: dict[Queue, None] = {}
        """Those in which other requests wait than the store knows."""
        self.capped: dict[Queue, None] = {}
        """Those in which something waits of clients with a `max_in_flight`."""
        self.waiting: dict[str, int] = {}
        """How many wait, by client; clients that have waited before stand there with 0."""
        self.total = 0
        self.weights = ClientWeights()
        self._queues: dict[Flow, Queue] = {}
        self._begun = 0

    def __iter__(self) -> Iterator[Waiter]:
        return iter([waiter for queue in self.busy.values() for waiter in queue.waiters])

    def get(self, flow: Flow) -> Queue:
        """The queue of a flow, whether anything waits in it or not."""
        queue = self._queues.get(flow)
        if queue is None:
            queue = self._queues[flow] = Queue(flow)
        return queue

    def note(self, client: Client) -> None:
        """Note the client of a request that need not wait."""
        self.waiting.setdefault(client.name, 0)
        self.weights.note(client)

    def add(self, waiter: Waiter) -> None:
        """Let a request wait in the queue of its flow."""
        client = waiter.client
        queue = self.get(waiter.flow)
        if not queue.waiters:
            self._begun += 1
            queue.began = self._begun
        queue.add(waiter)
        self.busy[queue.flow] = queue
        self.changed[queue] = None
        if client.max_in_flight is not None:
            self.capped[queue] = None
        self.waiting[client.name] = self.waiting.get(client.name, 0) + 1
        self.total += 1
        self.weights.note(client)
        self.weights.waits(client)

    def serve(self, waiter: Waiter) -> None:
        """Take out a request that was granted a lease; the store knows that it waits no longer."""
        queue = waiter.queue
        if queue is not None:
            queue.served += 1
            self._remove(queue, waiter)

    def remove(self, waiter: Waiter) -> None:
        """Take out a request, if it still waits."""
        queue = waiter.queue
        if queue is not None:
            self.changed[queue] = None
            self._remove(queue, waiter)

    def _remove(self, queue: Queue, waiter: Waiter) -> None:
        queue.remove(waiter)
        name = queue.flow.client
        self.waiting[name] -= 1
        self.total -= 1
        if not self.waiting[name]:
            self.weights.left(name)
        if not queue.waiters:
            del self.busy[queue.flow]
            self.capped.pop(queue, None)

    def refuse(self, waiter: Waiter, problem: Exception) -> None:
        """Take out a request and raise a problem where it is waited for."""
        self.remove(waiter)
        waiter.fail(problem)

    def announce(self) -> list[Waiter]:
        """Note that the store is told of all that wait; returns those of which it is told for the first time."""
        unseen = []
        for queue in self.changed:
            for waiter in queue.unjudged:
                if not waiter.announced:
                    waiter.announced = True
                    if not waiter.seen:
                        waiter.seen = True
                        unseen.append(waiter)
        return unseen

    def clear(self, clients: Container[str]) -> list[Waiter]:
        """Take out everything, and forget all queues and all but these clients; returns what waited, in order."""
        waiters = list(self)
        for waiter in waiters:
            waiter.queue = None
        self.busy, self.changed, self.capped, self._queues = {}, {}, {}, {}
        self.waiting = {name: 0 for name in self.waiting if name in clients}
        self.total = 0
        self.weights.clear()
        return waiters

    def back_off(self, queue: Queue, position: int, now: Micros, paces: Iterable[Pace]) -> Micros:
        """Keep a place for a request refused at a position; returns after how long it is told to come back.

        Others were told to come back, too: a queue gets the part of its client's weight.
        """
        client = queue.flow.client
        own, of_all = self.weights.contention(client, now)
        places = queue.backoff.places(now) * of_all // own
        first, behind = queue.estimate(position, now), queue.latest(position + places, now)
        told = queue.backoff.keep(first or SECOND, behind or SECOND, now, [pace.part(own, of_all) for pace in paces])
        self.weights.refused(client, now + told)
        return told

    def __repr__(self) -> str:
        return f"<Queues {self.total} waiting in {len(self.busy)} queues, {len(self.changed)} changed>"
