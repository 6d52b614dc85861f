"""Places in flight: how many requests may be at the upstream at once, of one client and in all.

1.  A request takes a place from the grant of its lease to the end of its answer's body. A client has `max_in_flight`
    of them; all waiting rooms of the process share `upstream.max_connections`.
2.  Tokens are asked for within the free places, so no token is held for a request that has no connection to go out on.
3.  A flow that got less than it asked for lacks tokens: it goes on asking for its turn, and takes no place from others.
4.  Where places are scarcer than tokens, the lanes of one room get them by start-time fair queueing over the weights of
    their clients, and the rooms in rotation.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from heapq import heapify, heappop, heapreplace

from keyturn.core.errors import TooMany
from keyturn.core.exchange import Flow, FlowDemand, LeaseGrant
from keyturn.core.model import Client, Micros
from keyturn.scheduler.lanes import Lanes, Queue, Waiter
from keyturn.scheduler.refusals import no_connection, too_many_in_flight

_SMOOTH = 8
"""The usual time in flight is the mean of about so many."""


class _InFlight:
    """Requests in flight, and how long they stay so."""

    __slots__ = ("begun", "number", "usual")

    def __init__(self) -> None:
        self.number = 0
        self.begun: Micros = 0
        """The sum of the instants at which they began."""
        self.usual: Micros = 0

    def enter(self, now: Micros) -> None:
        self.number += 1
        self.begun += now

    def leave(self, since: Micros, now: Micros) -> None:
        self.number -= 1
        self.begun -= since
        self.usual += (now - since - self.usual) // (_SMOOTH if self.usual else 1)

    def wait(self, before: int, most: int, now: Micros) -> Micros:
        """When one behind so many others is expected to get one of `most` places.

        Requests that have lasted longer than usual are expected to last as long again.
        """
        age = now - self.begun // self.number if self.number else 0
        return max(self.usual, age) * (before // most + 1)


class Capacity:
    """The places of one process."""

    def __init__(self, most: int = sys.maxsize) -> None:
        self.most = most
        self._all = _InFlight()
        self._of: dict[str, _InFlight] = {}
        """By client."""
        self._claimed = 0
        """Places for which tokens are being asked at this moment."""
        self._wanted: dict[Callable[[], None], None] = {}
        """How the rooms are woken that could use a place, in the order of their turns."""

    @property
    def free(self) -> int:
        """Places that nobody has, or asks tokens for; fewer than none when more leases were granted."""
        return self.most - self._all.number - self._claimed

    def left(self, client: Client) -> int:
        """How many of its own places a client has left, whether there are as many in all or not."""
        if client.max_in_flight is None:
            return sys.maxsize
        flights = self._of.get(client.name)
        return max(0, client.max_in_flight - flights.number) if flights else client.max_in_flight

    def enter(self, client: str, now: Micros) -> None:
        """A request has got its lease."""
        self._all.enter(now)
        self._of.setdefault(client, _InFlight()).enter(now)

    def leave(self, client: str, since: Micros, now: Micros) -> None:
        """A request that got its lease then is over."""
        self._all.leave(since, now)
        self._of[client].leave(since, now)
        self.pass_on()

    def claim(self, number: int) -> None:
        """Tokens are being asked for so many places; a negative number gives them back."""
        self._claimed += number

    def want(self, wake: Callable[[], None]) -> None:
        """Have a room woken when there is a place, behind those that want one already."""
        self._wanted[wake] = None

    def pass_on(self) -> None:
        """Wake the next room that wants a place, if there is one."""
        if self._wanted and self.free > 0:
            wake = next(iter(self._wanted))
            del self._wanted[wake]
            wake()

    def refusal(self, waiter: Waiter, waiting: int, now: Micros) -> TooMany | None:
        """What to tell a request whose time is over if it waits for a place; `waiting`: how many do in its room."""
        client, queue = waiter.ticket.client, waiter.queue
        if not self.left(client):
            most = client.max_in_flight or 1
            before = queue.position(waiter) if queue else 0
            return too_many_in_flight(client.name, most, self._of[client.name].wait(before, most, now))
        if self.free <= 0:
            return no_connection(self.most, self._all.wait(waiting - 1, self.most, now))
        return None


class Portions:
    """How the lanes of one room share the free places; `wake` has the room ask for tokens."""

    def __init__(self, capacity: Capacity, lanes: Lanes, wake: Callable[[], None], clock: Callable[[], Micros]) -> None:
        self._capacity = capacity
        self._lanes = lanes
        self._wake = wake
        self._clock = clock
        self._tags: dict[str, float] = {}
        """Start tags of clients, while places are scarce."""
        self._time = 0.0
        """Virtual time: the lowest tag of a client that waits."""
        self._asking: list[Queue] = []
        """The lanes of the exchange that is under way, or was last."""
        self._claimed = 0
        self._capped: set[str] = set()
        """Clients that wait for a place of their own."""

    def admits(self, client: Client) -> bool:
        """Whether there is a place for a request that comes now."""
        return self._capacity.free > 0 and self._capacity.left(client) > 0

    # Asking for tokens

    def demands(self, may_be_served: Callable[[Flow], bool]) -> tuple[FlowDemand, ...]:
        """For how many the store is asked in each of those lanes that may be served; claims their places."""
        self._asking = queues = [queue for flow, queue in self._lanes.busy.items() if may_be_served(flow)]
        free, weights = max(0, self._capacity.free), self._lanes.weights
        own: dict[str, int] = {}
        ready: dict[str, list[Queue]] = {}
        wanted: dict[str, int] = {}
        for queue in queues:
            client = queue.flow.client
            if client not in own:
                own[client] = self._capacity.left(queue.waiters[0].ticket.client)
            left = min(own[client], free)
            if queue.starved:
                queue.asked = min(len(queue.waiters), left)
            else:
                ready.setdefault(client, []).append(queue)
                wanted[client] = min(left, wanted.get(client, 0) + len(queue.waiters))
        self._claim(ready, self._divided(free, wanted))
        short = {queue.flow.client for queue in queues if queue.asked < len(queue.waiters)}
        self._capped = {client for client in short if own[client] <= free}
        if len(self._capped) < len(short):
            self._capacity.want(self._wake)
        return tuple(
            [FlowDemand(queue.flow, weights[queue.flow.client], queue.asked) for queue in queues if queue.asked]
        )

    def _divided(self, free: int, wanted: Mapping[str, int]) -> Mapping[str, int]:
        """How many places each client gets that is ready to use some."""
        if sum(wanted.values()) <= free:
            if free:
                self._tags.clear()
            return wanted
        tags = {client: max(self._time, self._tags.get(client, 0.0)) for client, number in wanted.items() if number}
        self._time = min(tags.values())
        self._tags |= tags
        heap = [(tag, client) for client, tag in tags.items()]
        heapify(heap)
        found: Counter[str] = Counter()
        for _ in range(free):
            tag, client = heap[0]
            found[client] += 1
            if found[client] < wanted[client]:
                heapreplace(heap, (tag + 1 / self._lanes.weights[client], client))
            else:
                heappop(heap)
        return found

    def _claim(self, ready: Mapping[str, list[Queue]], places: Mapping[str, int]) -> None:
        """Share the places of each client among its lanes: requests that came first are first."""
        self._claimed = sum(places.values())
        self._capacity.claim(self._claimed)
        for client, queues in ready.items():
            left = places[client]
            if len(queues) == 1:
                queues[0].asked = left
                continue
            first = sorted([(waiter.order, place) for place, one in enumerate(queues) for waiter in one.waiters[:left]])
            number = Counter([place for _, place in first[:left]])
            for place, queue in enumerate(queues):
                queue.asked = number[place]

    def told(self, grants: Iterable[LeaseGrant]) -> None:
        """The store has answered, or not (no grants): the places are free again until leases take them."""
        self._capacity.claim(-self._claimed)
        self._claimed = 0
        granted = Counter([grant.flow for grant in grants])
        for queue in self._asking:
            queue.starved = granted[queue.flow] < queue.asked

    def left_out(self) -> list[Queue]:
        """The lanes for which nothing was asked."""
        return [queue for queue in self._asking if not queue.asked]

    def go_on(self) -> None:
        """Ask at once for lanes that were left out, if there is a place for them after all; else pass it on."""
        if self._capacity.free > 0 and any(map(self._could_be_asked, self._asking)):
            self._wake()
        else:
            self._capacity.pass_on()

    def _could_be_asked(self, queue: Queue) -> bool:
        lacks_places = not queue.starved and queue.asked < len(queue.waiters)
        return lacks_places and self._capacity.left(queue.waiters[0].ticket.client) > 0

    # Leases

    def handed(self, client: str, now: Micros) -> None:
        """A request has got its lease."""
        self._capacity.enter(client, now)
        if client in self._tags:
            self._tags[client] += 1 / self._lanes.weights[client]

    def ended(self, client: str, since: Micros, now: Micros) -> None:
        """A request that got its lease then is over."""
        self._capacity.leave(client, since, now)
        if client in self._capped:
            self._capped.discard(client)
            self._wake()

    def refusal(self, waiter: Waiter) -> TooMany | None:
        """What to tell a request whose time is over, if it was a place that it waited for."""
        return self._capacity.refusal(waiter, self._lanes.total, self._clock())
