"""The waiting room: requests wait in lanes for a lease, and leases end here.

Laws kept here: 2 (a lease is settled exactly once: it is a context manager), 3 (what the store grants is handed over
in the same step), 5 (within a lane by urgency, then by arrival; what comes back goes to the head), 6 (whose turn cannot
come before its deadline is refused at once, none waits past it, who leaves is gone at once), 10 (a lease not used
within `USE_BY` is not fresh).

One exchange with the store is under way at a time; what arrives meanwhile goes with the next. Between reading and
writing this module's state nothing is awaited.
"""

import asyncio
from collections.abc import Callable, Iterator
from itertools import count, cycle
from typing import Any

from proxy.core.errors import NoKey, Refusal, ShuttingDown, StoreLost, TooMany
from proxy.core.events import Exchanged, ForeignSpent, LaneLevel, Observer
from proxy.core.exchange import PULSE, USE_BY, Budget, Demand, Exchange, Grant, Lane, Store
from proxy.core.model import MILLISECOND, SECOND, Client, Key, Micros, Pool
from proxy.dispatch.lanes import Queue, Ticket, Waiter
from proxy.dispatch.lease import Ending, Lease
from proxy.tasks import finish, spawn

FLUSH: Micros = 20 * MILLISECOND
"""Settlements and departures reach the store within this time when nothing else calls."""

RIDE: Micros = PULSE
"""What was spent waits this long at the most for the next exchange, or a quarter of the shortest window: its tokens
return later than that, whoever waits for them."""

REVIEW: Micros = SECOND // 4
"""How often those who wait are measured against the newest turns."""

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
        self._keys: dict[str, Iterator[Key]] = {quota: cycle(keys) for quota, keys in pool.keys_of.items()}
        self._out: set[Lease] = set()
        self._unsettled: set[Lease] = set()
        self._ended: list[Ending] = []
        self._closed = False
        self._due = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        """When it fires; kept here since uvloop's handle of a timer that is due at once cannot tell."""
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
        if self._timer:
            self._timer.cancel()
        if self._ended:
            await self._exchange()

    def wake(self) -> None:
        """A turn has come earlier than the store told: exchange now."""
        self._due.set()

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
        """How many wait, by client; clients that have waited before are told with 0."""
        return [LaneLevel(self.pool.name, client, waiting) for client, waiting in self._waiting.items()]

    # Waiting

    async def lease(self, ticket: Ticket, *, front: bool = False) -> Lease:
        """Wait for the turn of a request; `front` puts one that comes back at the head of its lane.

        Raises:
            TooMany: its turn cannot come before the deadline, or the queue is full.
            NoKey: the pool has no key.
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
        if not self.pool.keys:
            raise NoKey(f"The pool {self.pool.name} has no key. Add one to the configuration.")
        if not front:
            self._check_room(queue, ticket.client)
        order = (not front, ticket.urgency, next(self._arrivals))
        waiter = Waiter(order, ticket, asyncio.get_running_loop().create_future())
        queue.add(waiter)
        self._busy[queue.lane] = queue
        self._count(client_name := ticket.client.name, +1)
        self._weights[client_name] = ticket.client.weight
        self._due.set()
        return waiter

    def _check_room(self, queue: Queue, client: Client) -> None:
        waiting = self._waiting.get(client.name, 0)
        bound = client.max_waiting if client.max_waiting is not None else self._max_waiting
        if waiting < bound and self._total < self._max_waiting:
            return
        delay = queue.turns.at(len(queue.waiters))
        raise TooMany(
            f"{waiting} requests of {client.name} wait already. Send fewer at once, or come back later.",
            reason="queue_full",
            retry_after=_whole_seconds(delay if delay is not None else SECOND),
        )

    def _left(self, queue: Queue, waiter: Waiter) -> None:
        """The caller went away: free its place, or give back the lease that it got in the same tick."""
        if waiter.future.done() and not waiter.future.cancelled():
            if not waiter.future.exception():
                lease = waiter.future.result()
                lease.unsent()
                self.ended(lease)
            return
        self._remove(queue, waiter)
        self._call_in(FLUSH)

    def _remove(self, queue: Queue, waiter: Waiter) -> None:
        queue.remove(waiter)
        self._count(queue.lane.client, -1)
        if not queue.waiters:
            del self._busy[queue.lane]

    def _count(self, client: str, change: int) -> None:
        self._waiting[client] = self._waiting.get(client, 0) + change
        self._total += change

    def _refuse(self, queue: Queue, waiter: Waiter, refusal: Refusal) -> None:
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
            self._call_in(self._ride)
        else:
            self._call_in(0 if self._total else FLUSH)

    def ended(self, lease: Lease) -> None:
        """The exchange that a lease was for is over."""
        self._out.discard(lease)

    # The exchange

    def _call_in(self, delay: Micros) -> None:
        """Exchange with the store at the latest after `delay`."""
        if self._due.is_set():
            return
        loop = asyncio.get_running_loop()
        when = loop.time() + delay / SECOND
        if self._timer:
            if self._timer_at <= when:
                return
            self._timer.cancel()
        self._timer_at = when
        self._timer = loop.call_at(when, self._due.set)

    async def _run(self) -> None:
        while True:
            await self._due.wait()
            self._due.clear()
            if self._timer:
                self._timer.cancel()
                self._timer = None
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
            self._wait_unjudged()
        else:
            for queue in list(self._busy.values()):
                for waiter in list(queue.waiters):
                    self._refuse(queue, waiter, lost)
        self._call_in(RETRY_LOST)

    def _demands(self) -> tuple[Demand, ...]:
        for queue in self._busy.values():
            for waiter in queue.fresh:
                waiter.asked = True
        return tuple(Demand(lane, self._weights[lane.client], len(queue.waiters)) for lane, queue in self._busy.items())

    def _apply(self, answer: Exchange, asked: Micros) -> None:
        self.budgets = answer.budgets
        for grant in answer.grants:
            self._hand_over(grant, asked + USE_BY)
        now = self.clock()
        for lane, turns in answer.turns.items():
            queue = self._queues[lane]
            queue.turns, queue.told = turns, now
            self._judge(queue, now)
        if answer.again is not None:
            self._call_in(answer.again)
        elif self._unsettled:
            self._call_in(PULSE)
        self._observer.observe(Exchanged(self.pool.name, (now - asked) / SECOND, len(answer.grants)))
        for quota, tokens in answer.foreign:
            self._observer.observe(ForeignSpent(self.pool.name, quota, tokens))

    def _hand_over(self, grant: Grant, use_by: Micros) -> None:
        """Give a lease to the head of its lane; when nobody waits there any more it goes back."""
        queue = self._queues[grant.lane]
        waiter = queue.next()
        lease = Lease(self, grant, self._key(grant.quota, waiter), use_by)
        if waiter is None:
            lease.unsent()
            return
        self._remove(queue, waiter)
        self._out.add(lease)
        self._unsettled.add(lease)
        waiter.future.set_result(lease)

    def _key(self, quota: str, waiter: Waiter | None) -> Key:
        pinned = self.pool.key(waiter.ticket.pinned) if waiter and waiter.ticket.pinned else None
        return pinned or next(self._keys[quota])

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
                self._refuse(queue, waiter, _too_late(queue.turns.at(position + refused) or turn))
                refused += 1
            elif waiter.timer is None:
                self._set_deadline(queue, waiter, now)
        if refused:
            self._call_in(FLUSH)

    def _wait_unjudged(self) -> None:
        """The store does not answer: whose turn is not known waits for it, but not past its deadline."""
        now = self.clock()
        for queue in self._busy.values():
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
        self._refuse(queue, waiter, _too_late(left))
        self._call_in(FLUSH)


def _too_late(turn: Micros) -> TooMany:
    seconds = _whole_seconds(turn)
    return TooMany(
        f"Every permitted request is taken until this one's turn in {seconds} s, which is beyond its deadline. "
        "Come back then, or allow more time with `Prefer: wait=SECONDS`.",
        reason="deadline",
        retry_after=seconds,
    )


def _whole_seconds(delay: Micros) -> int:
    """Seconds for `Retry-After`: whole, rounded up, at least one (RFC 9110, section 10.2.3)."""
    return max(1, -(-delay // SECOND))
