"""The waiting room: requests wait in lanes for a lease, and leases end here.

Laws kept here: 2 (a lease is settled exactly once: it is a context manager), 3 (what the store grants is handed over
in the same step), 5 (within a lane by urgency, then by arrival; what comes back goes to the head), 6 (whose turn cannot
come before its deadline is refused at once, none waits past it, who leaves is gone at once), 10 (a lease not used
within `USE_BY` is not fresh).

One exchange with the store is under way at a time; what arrives meanwhile goes with the next. Between reading and
writing this module's state nothing is awaited.
"""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import count
from typing import Any

from proxy.core.errors import Refusal, ShuttingDown, StoreLost
from proxy.core.events import Exchanged, ForeignSpent, LaneLevel, Observer
from proxy.core.exchange import PULSE, USE_BY, Budget, Demand, Exchange, Grant, Kind, Lane, Store
from proxy.core.health import Health
from proxy.core.looks import LaneLook
from proxy.core.model import MILLISECOND, SECOND, Client, Key, Micros, Pool, Secret
from proxy.core.recent import Recent
from proxy.dispatch.alarm import Alarm
from proxy.dispatch.keys import Keys
from proxy.dispatch.lanes import Displaced, Queue, Ticket, Waiter
from proxy.dispatch.lease import Ending, Lease
from proxy.dispatch.looks import general, lane_looks, new_turn, next_token
from proxy.dispatch.refusals import queue_full, too_late
from proxy.tasks import finish, spawn

FLUSH: Micros = 20 * MILLISECOND
"""Settlements and departures reach the store within this time when nothing else calls."""

RIDE: Micros = PULSE
"""What was spent waits this long at the most for the next exchange, or a quarter of the shortest window: its tokens
return later than that, whoever waits for them."""

REVIEW: Micros = SECOND // 4
"""How often those who wait are measured against the newest turns."""

OWN = Client("(keyturn)")
"""The client of the proxy's own requests, which no client of the configuration can be named as."""

_NO_KEY = Key("", Secret(""), "")
"""Of a lease that goes back as it comes."""

RETRY_LOST: Micros = SECOND // 2
"""How long after a lost exchange the next is tried."""


class Dispatch:
    """The waiting room of one pool in this replica."""

    def __init__(
        self,
        pool: Pool,
        store: Store,
        *,
        settle_bound: Micros,
        max_waiting: int,
        clock: Callable[[], Micros],
        observer: Observer,
    ) -> None:
        self.pool = pool
        self.clock = clock
        self.settle_bound = settle_bound
        self.budgets: tuple[Budget, ...] = ()
        self.granted = Recent()
        """Leases by client."""
        self._told: Micros = 0
        """When `budgets` were told."""
        self._store = store
        self._max_waiting = max_waiting
        self._observer = observer
        self._queues: dict[Lane, Queue] = {}
        self._busy: dict[Lane, Queue] = {}
        self._waiting: dict[str, int] = {}
        self._weights: dict[str, int] = {}
        self._total = 0
        self._arrivals = count()
        self._ride = min([RIDE, *(limit.window // 4 for limit in pool.limits)])
        self.health = Health(pool, clock())
        self._keys = Keys(pool, self.health)
        self._out: set[Lease] = set()
        self._unsettled: set[Lease] = set()
        self._ended: list[Ending] = []
        self._closed = False
        self._alarm = Alarm()
        self._tasks: set[asyncio.Task[Any]] = set()

    # Life

    async def start(self) -> None:
        """Begin to exchange with the store."""
        spawn(self._run(), name=f"exchange {self.pool.name}", owner=self._tasks)

    async def failure(self) -> None:
        """Wait until the exchange with the store breaks down, which is a bug.

        Raises:
            Exception: what it broke down with. Without exchanges nobody would ever be served again.
        """
        ended, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in ended:
            task.result()

    def refuse_all(self) -> None:
        """Refuse whoever waits and whoever comes: the process drains."""
        self._closed = True
        for queue in list(self._busy.values()):
            for waiter in list(queue.waiters):
                self._refuse(queue, waiter, ShuttingDown())

    async def stop(self) -> None:
        """Refuse whoever waits, report the last settlements, and end."""
        self.refuse_all()
        await finish(self._tasks)
        self._alarm.stop()
        if self._ended:
            await self._exchange()

    def wake(self) -> None:
        """A turn has come earlier than the store told: exchange now."""
        self._alarm.ring()

    # Keys and limits

    def heed(self) -> None:
        """The keys' health has changed: who cannot be served any more hears of it at once."""
        if self._keys.sort():
            self._store.adopt(self._keys.serving)
        now = self.clock()
        for lane, queue in list(self._busy.items()):
            displaced = Displaced() if not self._may_be_served(lane) else None
            for waiter in list(queue.waiters):
                refusal = self._keys.refusal(waiter.ticket, now) or (None if waiter.ticket.pinned else displaced)
                if refusal is not None:
                    self._refuse(queue, waiter, refusal)
        self._alarm.ring()

    def lower(self, limit: int, requests: int) -> None:
        """Take a limit for smaller than it is configured; never for larger (law 9)."""
        limits = list(self.pool.limits)
        if requests < limits[limit].requests:
            limits[limit] = replace(limits[limit], requests=requests)
            self.pool = replace(self.pool, limits=tuple(limits))
            self._keys.adopt(self.pool)
            self._store.adopt(self._keys.serving)

    # What others see

    @property
    def in_flight(self) -> int:
        """How many leases are in somebody's hands."""
        return len(self._out)

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return self._total

    def levels(self) -> list[LaneLevel]:
        """How many wait, by client, and what one more would wait; clients that have waited before are told with 0."""
        kind, now, name = Kind(general(self.pool)), self.clock(), self.pool.name
        token = next_token(self.pool, self.budgets, now - self._told)
        return [
            LaneLevel(name, client, waiting, new_turn(self._busy.get(Lane(client, kind)), token, now))
            for client, waiting in self._waiting.items()
            if client != OWN.name
        ]

    def lanes(self) -> list[LaneLook]:
        """Each lane in which somebody waits."""
        busy = [queue for lane, queue in self._busy.items() if lane.client != OWN.name]
        return list(lane_looks(busy, self.clock()))

    # Waiting

    async def lease(self, ticket: Ticket, *, front: bool = False) -> Lease:
        """Wait for the turn of a request; `front` puts one that comes back at the head of its lane.

        Raises:
            TooMany: its turn cannot come before the deadline, or the queue is full.
            NoKey: no key can serve it.
            Displaced: the quota that its lane insists on is not used any more.
            ShuttingDown: the process drains.
        """
        queue = self._queue(Lane(ticket.client.name, ticket.kind))
        waiter = self._enter(queue, ticket, front)
        try:
            return await waiter.future
        except asyncio.CancelledError:
            self._left(queue, waiter)
            raise

    def _queue(self, lane: Lane) -> Queue:
        queue = self._queues.get(lane)
        if queue is None:
            queue = self._queues[lane] = Queue(lane)
        return queue

    def _enter(self, queue: Queue, ticket: Ticket, front: bool) -> Waiter:
        if self._closed:
            raise ShuttingDown
        if refusal := self._keys.refusal(ticket, self.clock()):
            raise refusal
        if not front:
            self._check_room(queue, ticket.client)
        order = (not front, ticket.urgency, next(self._arrivals))
        waiter = Waiter(order, ticket, asyncio.get_running_loop().create_future(), self.clock())
        queue.add(waiter)
        self._busy[queue.lane] = queue
        self._count(client_name := ticket.client.name, +1)
        self._weights[client_name] = ticket.client.weight
        self._alarm.ring()
        return waiter

    def _check_room(self, queue: Queue, client: Client) -> None:
        waiting = self._waiting.get(client.name, 0)
        bound = client.max_waiting if client.max_waiting is not None else self._max_waiting
        if waiting < bound and self._total < self._max_waiting:
            return
        raise queue_full(client.name, waiting, queue.turns.at(len(queue.waiters)))

    def _left(self, queue: Queue, waiter: Waiter) -> None:
        """The caller went away: free its place, or give back the lease that it got in the same tick."""
        if waiter.future.done() and not waiter.future.cancelled():
            if not waiter.future.exception():
                lease = waiter.future.result()
                lease.unsent()
                self.ended(lease)
            return
        self._remove(queue, waiter)
        self._alarm.within(FLUSH)

    def _remove(self, queue: Queue, waiter: Waiter) -> None:
        queue.remove(waiter)
        self._count(queue.lane.client, -1)
        if not queue.waiters:
            del self._busy[queue.lane]

    def _count(self, client: str, change: int) -> None:
        self._waiting[client] = self._waiting.get(client, 0) + change
        self._total += change

    def _refuse(self, queue: Queue, waiter: Waiter, refusal: Refusal | Displaced) -> None:
        self._remove(queue, waiter)
        if not waiter.future.done():
            waiter.future.set_exception(refusal)

    # Leases

    def settle(self, ending: Ending) -> None:
        """Take note of how a lease ended; the store is told with the next exchange, at once if somebody may profit."""
        self._unsettled.discard(ending.lease)
        self._ended.append(ending)
        counted = ending.counted
        if counted and not counted.limits and not ending.lease.probe:
            self._alarm.within(self._ride)
        else:
            self._alarm.within(0 if self._total else FLUSH)

    def ended(self, lease: Lease) -> None:
        """The exchange that a lease was for is over."""
        self._out.discard(lease)

    # The exchange

    async def _run(self) -> None:
        while True:
            await self._alarm.heard()
            await self._exchange()

    async def _exchange(self) -> None:
        asked = self.clock()
        for lease in [lease for lease in self._unsettled if lease.overdue(asked)]:
            lease.lost()
        ended, self._ended = self._ended, []
        settlements = tuple(ending.settlement(asked) for ending in ended)
        demands = self._demands()
        try:
            answer = await self._store.exchange(settlements, demands)
        except BaseException as problem:
            self._ended[:0] = ended
            if not isinstance(problem, StoreLost):
                raise
            self._bear(problem)
            return
        self._apply(answer, asked)

    def _bear(self, lost: StoreLost) -> None:
        """The store does not answer: who waits is refused if the loss says when to come back, else waits for it."""
        if lost.retry_after is None:
            self._wait_unjudged(self._busy.values())
        else:
            for queue in list(self._busy.values()):
                for waiter in list(queue.waiters):
                    self._refuse(queue, waiter, lost)
        self._alarm.within(RETRY_LOST)

    def _demands(self) -> tuple[Demand, ...]:
        for queue in self._busy.values():
            for waiter in queue.fresh:
                waiter.asked = True
        return tuple(
            Demand(lane, self._weights[lane.client], len(queue.waiters))
            for lane, queue in self._busy.items()
            if self._may_be_served(lane)
        )

    def _may_be_served(self, lane: Lane) -> bool:
        """Whether grants to a lane could be used: one that insists on a quota out of use waits without asking."""
        pinned = lane.kind.pinned
        return pinned is None or lane.client == OWN.name or pinned in self._keys.serving.keys_of

    def _apply(self, answer: Exchange, asked: Micros) -> None:
        self.budgets = answer.budgets
        for grant in answer.grants:
            self._hand_over(grant, asked + USE_BY)
        self._told = now = self.clock()
        for lane, turns in answer.turns.items():
            queue = self._queues[lane]
            queue.turns, queue.told = turns, now
            self._judge(queue, now)
        if self._keys.serving is not self.pool:
            self._wait_unjudged([queue for lane, queue in self._busy.items() if not self._may_be_served(lane)])
        if answer.again is not None:
            self._alarm.within(answer.again)
        elif self._unsettled:
            self._alarm.within(PULSE)
        self._observer.observe(Exchanged(self.pool.name, (now - asked) / SECOND, len(answer.grants)))
        for quota, tokens in answer.foreign:
            self._observer.observe(ForeignSpent(self.pool.name, quota, tokens))

    def _hand_over(self, grant: Grant, use_by: Micros) -> None:
        """Give a lease to the head of its lane; when nobody waits there any more, or no key is left, it goes back."""
        queue = self._queues[grant.lane]
        waiter = queue.next()
        key = self._keys.pick(grant.quota, waiter.ticket) if waiter is not None else None
        lease = Lease(self, grant, key or _NO_KEY, use_by)
        if waiter is None or key is None:
            lease.unsent()
            return
        self._remove(queue, waiter)
        self._out.add(lease)
        self.granted.add(grant.lane.client, self.clock())
        self._unsettled.add(lease)
        waiter.future.set_result(lease)

    # Deadlines

    def _judge(self, queue: Queue, now: Micros) -> None:
        """Refuse at once whose turn cannot come in time (law 6).

        Positions among those who stay decide; the time told to whoever is refused counts those refused before it,
        for they will come back, too.
        """
        refused = 0
        for waiter in self._to_judge(queue, now):
            queue.fresh.pop(waiter, None)
            position = queue.position(waiter)
            turn = queue.turns.at(position)
            if turn is not None and now + turn > waiter.ticket.deadline:
                self._refuse(queue, waiter, too_late(queue.turns.at(position + refused) or turn))
                refused += 1
            elif waiter.timer is None:
                self._set_deadline(queue, waiter, now)
        if refused:
            self._alarm.within(FLUSH)

    def _wait_unjudged(self, queues: Iterable[Queue]) -> None:
        """Whose turn the store does not tell waits for it, but not past its deadline."""
        now = self.clock()
        for queue in queues:
            for waiter in queue.fresh:
                if waiter.timer is None:
                    self._set_deadline(queue, waiter, now)

    def _to_judge(self, queue: Queue, now: Micros) -> list[Waiter]:
        """Newcomers that the store knows of; every so often all, for turns get later when others come first."""
        if now - queue.reviewed >= REVIEW:
            queue.reviewed = now
            candidates = list(queue.waiters)
        else:
            candidates = queue.newcomers()
        return [waiter for waiter in candidates if waiter.asked and not waiter.future.done()]

    def _set_deadline(self, queue: Queue, waiter: Waiter, now: Micros) -> None:
        delay = max(0, waiter.ticket.deadline - now) / SECOND
        waiter.timer = asyncio.get_running_loop().call_later(delay, self._expire, queue, waiter)

    def _expire(self, queue: Queue, waiter: Waiter) -> None:
        if waiter.future.done():
            return
        turn = queue.turns.at(queue.position(waiter))
        left = max(0, (turn if turn is not None else SECOND) - (self.clock() - queue.told))
        self._refuse(queue, waiter, too_late(left))
        self._alarm.within(FLUSH)
