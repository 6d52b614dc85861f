"""Slots: how many requests may be in flight at once, of one client and in all.

1.  A request takes a slot from the grant of its lease to the end of its answer's body. A client has `max_in_flight` of
    them; all schedulers of the process share `upstream.max_connections`.
2.  Tokens are demanded within the free slots, so no token is held for a request that has no connection to go out on.
3.  A queue that was granted less than it demanded lacks tokens: it goes on waiting for them, and takes no slot from
    others.
4.  Where slots are scarcer than tokens, the queues of one scheduler get them by start-time fair queueing over the
    weights of their clients, and the schedulers in rotation.
"""

import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from heapq import heapify, heappop, heapreplace

from keyturn.core.errors import TooMany
from keyturn.core.exchange import FlowDemand, LeaseGrant
from keyturn.core.model import Client, Micros
from keyturn.scheduler.admission import all_connections_in_use, too_many_in_flight
from keyturn.scheduler.queues import Queues
from keyturn.scheduler.waiter import Queue, Waiter

_SMOOTHING = 8
"""The usual time in flight is a mean of about so many."""


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
        self.usual += (now - since - self.usual) // (_SMOOTHING if self.usual else 1)

    def wait(self, before: int, most: int, now: Micros) -> Micros:
        """When one behind so many others is expected to get one of `most` slots.

        Requests that have lasted longer than usual are expected to last as long again.
        """
        age = now - self.begun // self.number if self.number else 0
        return max(self.usual, age) * (before // most + 1)


class ConcurrencyLimit:
    """The slots of one process."""

    def __init__(self, most: int = sys.maxsize) -> None:
        self.most = most
        self._all = _InFlight()
        self._of: dict[str, _InFlight] = {}
        """Slots in use, by client."""
        self._claimed = 0
        """Slots for which tokens are being demanded at this moment."""
        self._wanted: dict[Callable[[], None], None] = {}
        """How the schedulers are woken that could use a slot, in order of their turns."""

    @property
    def free(self) -> int:
        """Slots neither taken nor claimed; negative when more leases were granted."""
        return self.most - self._all.number - self._claimed

    def left(self, client: Client) -> int:
        """How many of its own slots a client has left, whether there are as many in all or not."""
        if client.max_in_flight is None:
            return sys.maxsize
        flights = self._of.get(client.name)
        return max(0, client.max_in_flight - flights.number) if flights else client.max_in_flight

    def take(self, client: str, now: Micros) -> None:
        """Take a slot for a request that got its lease."""
        self._all.enter(now)
        own = self._of.get(client)
        if own is None:
            own = self._of[client] = _InFlight()
        own.enter(now)

    def release(self, client: str, since: Micros, now: Micros) -> None:
        """Release the slot of a request that got its lease then."""
        self._all.leave(since, now)
        self._of[client].leave(since, now)
        if self._wanted:
            self.pass_on()

    def claim(self, number: int) -> None:
        """Claim slots for which tokens are being demanded; a negative number gives them back."""
        self._claimed += number

    def want(self, wake: Callable[[], None]) -> None:
        """Have a scheduler woken when there is a slot, behind those that want one already."""
        self._wanted[wake] = None

    def pass_on(self) -> None:
        """Wake the next scheduler that wants a slot, if there is one."""
        if self._wanted and self.free > 0:
            wake = next(iter(self._wanted))
            del self._wanted[wake]
            wake()

    def refusal(self, waiter: Waiter, waiting: int, now: Micros) -> TooMany | None:
        """The refusal of a request that waits for a slot at its deadline; `waiting`: how many do in its scheduler."""
        client, queue = waiter.client, waiter.queue
        if not self.left(client):
            most = client.max_in_flight or 1
            before = queue.position(waiter) if queue else 0
            return too_many_in_flight(client.name, most, self._of[client.name].wait(before, most, now))
        if self.free <= 0:
            return all_connections_in_use(self.most, self._all.wait(waiting - 1, self.most, now))
        return None

    def __repr__(self) -> str:
        return f"<ConcurrencyLimit {self._all.number} of {self.most} in flight, {self._claimed} claimed>"


def _busy_for(queue: Queue) -> tuple[bool, int]:
    """The order in which queues are demanded for: as they began to wait, and those that do no more."""
    return not queue.waiters, queue.began


class SlotShares:
    """How the queues of one scheduler share the free slots; `wake` has it demand tokens.

    While slots suffice for everything that waits, an exchange looks at the queues that have changed only.
    """

    def __init__(
        self, limit: ConcurrencyLimit, queues: Queues, wake: Callable[[], None], clock: Callable[[], Micros]
    ) -> None:
        self._limit = limit
        self._queues = queues
        self._wake = wake
        self._clock = clock
        self._tags: dict[str, float] = {}
        """Start tags of clients, while slots are scarce."""
        self._time = 0.0
        """Virtual time: the lowest tag of a client that waits."""
        self._short: list[Queue] = []
        """The queues that could not demand all that waited in them at the last exchange."""
        self._scarce = False
        """Whether some of those lack slots that no client's own limit keeps from them."""
        self._whole = True
        """Whether the next exchange has to demand for all queues."""
        self._claimed = 0
        self._capped: set[str] = set()
        """Clients that wait for a slot of their own."""

    def admits(self, client: Client) -> bool:
        """Whether there is a slot for a request that comes now."""
        limit = self._limit
        return limit.free > 0 and (client.max_in_flight is None or limit.left(client) > 0)

    def suffice(self, queue: Queue, client: Client) -> bool:
        """Whether one more request of a queue could be demanded for, so that it waits for a token only."""
        waiting = len(queue.waiters)
        return not self._scarce and self._limit.free > waiting and self._limit.left(client) > waiting

    # Demanding tokens

    def demand_all(self) -> None:
        """Have the next exchange look at all queues."""
        self._whole = True

    def demands(self, may_be_served: Callable[[Queue], bool]) -> tuple[tuple[FlowDemand, ...], bool]:
        """Demands of queues that may be served, claiming their slots; and whether that is all that waits.

        Otherwise queues that are not named wait as before, less what was granted.
        """
        queues, free = self._queues, max(0, self._limit.free)
        whole = self._whole or self._scarce or not self._suffices(free)
        changed, queues.changed, self._whole = queues.changed, {}, False
        chosen = sorted((dict.fromkeys(queues.busy.values()) if whole else queues.capped) | changed, key=_busy_for)
        before = [queue.demanded for queue in chosen]
        able = [queue for queue in chosen if queue.waiters and may_be_served(queue)]
        for queue in set(chosen).difference(able):
            queue.demanded = 0
        self._share(able, free)
        weights = queues.weights
        demands = [
            FlowDemand(queue.flow, weights[queue.flow.client], queue.demanded)
            for queue, known in zip(chosen, before, strict=True)
            if (queue.demanded if whole else queue in changed or queue.demanded != known)
        ]
        return tuple(demands), whole

    def _suffices(self, free: int) -> bool:
        """Whether every queue may demand all that waits in it."""
        queues = self._queues
        if queues.total <= free:
            return True
        newcomers = sum([len(queue.waiters) for queue in queues.changed if not queue.demanded])
        return newcomers <= free and max([len(queue.waiters) for queue in queues.busy.values()]) <= free

    def _share(self, queues: Collection[Queue], free: int) -> None:
        """Decide for how many requests each queue demands tokens."""
        own: dict[str, int] = {}
        ready: dict[str, list[Queue]] = {}
        wanted: dict[str, int] = {}
        for queue in queues:
            client = queue.flow.client
            if client not in own:
                own[client] = self._limit.left(queue.waiters[0].client)
            left = min(own[client], free)
            if queue.demanded:
                queue.demanded = min(len(queue.waiters), left)
            else:
                ready.setdefault(client, []).append(queue)
                wanted[client] = min(left, wanted.get(client, 0) + len(queue.waiters))
        self._claim(ready, self._divide(free, wanted))
        self._short = [queue for queue in queues if queue.demanded < len(queue.waiters)]
        short = {queue.flow.client for queue in self._short}
        self._capped = {client for client in short if own[client] <= free}
        self._scarce = len(self._capped) < len(short)
        if self._scarce:
            self._limit.want(self._wake)

    def _divide(self, free: int, wanted: Mapping[str, int]) -> Mapping[str, int]:
        """How many slots each client gets that is ready to use some."""
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
                heapreplace(heap, (tag + 1 / self._queues.weights[client], client))
            else:
                heappop(heap)
        return found

    def _claim(self, ready: Mapping[str, list[Queue]], slots: Mapping[str, int]) -> None:
        """Share the slots of each client among its queues: requests that came first are first."""
        self._claimed = sum(slots.values())
        self._limit.claim(self._claimed)
        for client, queues in ready.items():
            left = slots[client]
            if len(queues) == 1:
                queues[0].demanded = left
                continue
            first = sorted([(waiter.order, place) for place, one in enumerate(queues) for waiter in one.waiters[:left]])
            number = Counter([place for _, place in first[:left]])
            for place, queue in enumerate(queues):
                queue.demanded = number[place]

    def answered(self, grants: Iterable[LeaseGrant]) -> None:
        """Note the store's answer, or its loss (no grants): the slots are free again until leases take them."""
        self._limit.claim(-self._claimed)
        self._claimed = 0
        for grant in grants:
            queue = self._queues.get(grant.flow)
            queue.demanded = max(0, queue.demanded - 1)

    def undemanded(self) -> list[Queue]:
        """The queues for which nothing could be demanded at the last exchange."""
        return [queue for queue in self._short if not queue.demanded]

    def go_on(self) -> None:
        """Demand at once for queues that were left short, if there is a slot for them after all; else pass it on."""
        if self._limit.free > 0 and any(map(self._lacks_slots_only, self._short)):
            self._wake()
        else:
            self._limit.pass_on()

    def _lacks_slots_only(self, queue: Queue) -> bool:
        return bool(queue.waiters) and not queue.demanded and self._limit.left(queue.waiters[0].client) > 0

    # Leases

    def take(self, client: str, now: Micros) -> None:
        """Take a slot for a request that got its lease."""
        self._limit.take(client, now)
        if client in self._tags:
            self._tags[client] += 1 / self._queues.weights[client]

    def release(self, client: str, since: Micros, now: Micros) -> None:
        """Release the slot of a request that got its lease then."""
        self._limit.release(client, since, now)
        if client in self._capped:
            self._capped.discard(client)
            self._wake()

    def refusal(self, waiter: Waiter) -> TooMany | None:
        """The refusal of a request at its deadline, if it waited for a slot."""
        return self._limit.refusal(waiter, self._queues.total, self._clock())
