"""The scheduler of one pool in this replica: requests wait in its queues for a lease.

Laws kept here: 2 (a lease is settled exactly once: it is a context manager), 3 (grants are handed over at once), 5 (a
queue is ordered by urgency, then by arrival; retries go to the head), 6 (a request that cannot be served in time is
refused at once, none waits past its deadline, a caller that left is gone at once), 10 (`LEASE_LIFETIME`).
"""

import asyncio
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any

from keyturn.core.errors import Refusal, ShuttingDown
from keyturn.core.events import Observer
from keyturn.core.exchange import PoolStore
from keyturn.core.health import KeyHealth
from keyturn.core.model import Client, Micros, Pool
from keyturn.scheduler.admission import QueueBounds
from keyturn.scheduler.availability import AvailabilityCache, SchedulerView
from keyturn.scheduler.concurrency import ConcurrencyLimit
from keyturn.scheduler.exchange_loop import ExchangeLoop
from keyturn.scheduler.key_rotation import KeyRotation
from keyturn.scheduler.lease import Lease
from keyturn.scheduler.queues import Queues
from keyturn.scheduler.waiter import Displaced, Moved, Waiter
from keyturn.tasks import finish, spawn


class Scheduler:
    """The scheduler of one pool; all schedulers of a process share one concurrency limit."""

    def __init__(
        self,
        pool: Pool,
        store: PoolStore,
        *,
        settle_bound: Micros,
        max_waiting: int,
        clock: Callable[[], Micros],
        observer: Observer,
        limit: ConcurrencyLimit | None = None,
    ) -> None:
        self.clock = clock
        self.health = KeyHealth(pool, clock())
        self._keys = KeyRotation(pool, self.health)
        self._queues = Queues()
        self._availability = AvailabilityCache()
        self._bounds = QueueBounds(self._queues, self._keys, max_waiting)
        self._loop = ExchangeLoop(
            store,
            self._keys,
            self._queues,
            self._bounds,
            self._availability,
            limit or ConcurrencyLimit(),
            settle_bound=settle_bound,
            clock=clock,
            observer=observer,
        )
        self.view = SchedulerView(self._keys, self._queues, self._availability, self._loop.leases, clock)
        self._store = store
        self._clients: Mapping[str, Client] | None = None
        """The clients known by now; `None` before anything was adopted."""
        self._arrivals = count()
        self._closed = False
        self._tasks: set[asyncio.Task[Any]] = set()

    async def start(self) -> None:
        """Begin to exchange with the store."""
        spawn(self._loop.run(), name=f"exchange {self.pool.name}", owner=self._tasks)

    async def failure(self) -> None:
        """Wait until the exchange with the store breaks down, which is a bug.

        Raises:
            Exception: what it broke down with. Without exchanges no request would ever be served again.
        """
        ended, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        ended.pop().result()

    def close(self) -> None:
        """Refuse all requests that wait and all that come: the process drains."""
        self._closed = True
        for waiter in self._queues:
            self._queues.refuse(waiter, ShuttingDown())

    async def stop(self) -> None:
        """Refuse all requests, report the last settlements, and end."""
        self.close()
        await finish(self._tasks)
        self._loop.timer.cancel()
        if self._loop.leases.unreported:
            await self._loop.exchange()

    def wake(self, delay: Micros = 0) -> None:
        """Exchange after this time: a token is available earlier than the store told."""
        self._loop.timer.wake(delay)

    @property
    def pool(self) -> Pool:
        """The pool by its configuration, and by the limits that turned out lower."""
        return self._keys.pool

    @property
    def quotas(self) -> tuple[str, ...]:
        """The quotas that serve now."""
        return self._keys.serving.quotas

    @property
    def in_flight(self) -> int:
        """How many leases are in use."""
        return len(self._loop.leases.in_use)

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return self._queues.total

    # Keys and limits

    def adopt(self, pool: Pool, clients: Mapping[str, Client], *, max_waiting: int) -> None:
        """Use another configuration: requests that wait keep their order, leases in use the key that they have.

        Requests that cannot be served by it are refused at once: their client or key is gone, or the pool has no key.

        Args:
            pool: the pool as it is now; without keys when it is to be closed.
            clients: all that are known, by name, made anew: by that, requests of before are told apart.
            max_waiting: requests that may wait.
        """
        self._clients = clients
        self._bounds.max_waiting = max_waiting
        self.health.adopt(pool, self.clock())
        self._keys.adopt(pool)
        self._loop.adopt(pool)
        self._store.adopt(self._keys.serving)
        own = {client.name for client in clients.values() if client.pool == pool.name}
        for waiter in self._queues.clear(own):
            try:
                waiter.update(pool, clients)
            except (Refusal, Moved, Displaced) as problem:
                waiter.leave()
                waiter.fail(problem)
            else:
                self._queues.add(waiter)
        self.apply_health()

    def apply_health(self) -> None:
        """Take up a change of the keys' health: requests that cannot be served any more are refused at once."""
        if self._keys.refresh():
            self._store.adopt(self._keys.serving)
        self._loop.slots.demand_all()
        now = self.clock()
        for queue in list(self._queues.busy.values()):
            displaced = not self._keys.may_serve(queue)
            for waiter in list(queue.waiters):
                refusal: Exception | None = self._keys.refusal(waiter, now)
                if refusal is None and displaced and waiter.pinned is None:
                    refusal = Displaced()
                if refusal is not None:
                    self._queues.refuse(waiter, refusal)
        self._loop.timer.fire()

    def lower_limit(self, limit: int, requests: int) -> None:
        """Take a limit for smaller than it is configured; never for larger (law 9)."""
        if requests < self.pool.limits[limit].requests:
            self._keys.adopt(self.pool.lowered(limit, requests))
            self._store.adopt(self._keys.serving)

    # Requests

    async def lease(self, waiter: Waiter, *, front: bool = False) -> Lease:
        """Wait for a lease; `front` puts a retry at the head of its queue.

        Raises:
            TooMany: it cannot be served before the deadline, or the queue is full.
            NoKey: no key can serve it.
            Displaced: the quota that its flow insists on is not used any more.
            Moved: its client uses another pool by now.
            Unauthenticated, BadRequest: its client, or the key that it insists on, is not there any more.
            ShuttingDown: the process drains.
        """
        now = self.clock()
        self._check(waiter, now, renew=front)
        waiter.order = (not front, waiter.urgency, next(self._arrivals))
        if not front:
            self._check_wait(waiter, now)
        waiter.arrived, waiter.seen = now, False
        waiter.future = asyncio.get_running_loop().create_future()
        self._loop.enqueue(waiter)
        try:
            return await waiter.future
        except asyncio.CancelledError:
            self._cancelled(waiter)
            raise

    def try_lease(self, waiter: Waiter) -> Lease | None:
        """Fast path: the lease of a request while nothing waits and tokens are plentiful; else `None`.

        Raises as `lease` does.
        """
        loop = self._loop
        if self._queues.total or not loop.slots.admits(waiter.client):
            return None
        now = self.clock()
        if not self._availability.is_plentiful(waiter.flow.demand_class.limits, now):
            return None
        self._check(waiter, now)
        return loop.try_lease(waiter, now)

    def admit(self, waiter: Waiter) -> None:
        """See that a request may wait, before its body is read; raises what `lease` would raise at once."""
        now = self.clock()
        self._check(waiter, now)
        waiter.order = (True, waiter.urgency, next(self._arrivals))
        self._check_wait(waiter, now)

    def _check(self, waiter: Waiter, now: Micros, *, renew: bool = False) -> None:
        """Bring a request up to the configuration of now, and see that a key may serve it."""
        if self._closed:
            raise ShuttingDown
        clients = self._clients
        if clients is not None and (renew or clients.get(waiter.client.name) is not waiter.client):
            waiter.update(self.pool, clients)
        if refusal := self._keys.refusal(waiter, now):
            raise refusal

    def _check_wait(self, waiter: Waiter, now: Micros) -> None:
        """See that a request may wait, as far as that is known without an exchange."""
        self._bounds.check(waiter, now)
        if refusal := self._loop.foresee(waiter, now):
            raise refusal

    def _cancelled(self, waiter: Waiter) -> None:
        """The caller went away: leave the queue, or return the lease that came in the same tick."""
        future = waiter.future
        if future.done() and not future.cancelled():
            if not future.exception():
                with future.result() as lease:
                    lease.unsent()
            return
        self._queues.remove(waiter)
        self._loop.flush()

    def __repr__(self) -> str:
        return f"<Scheduler of {self.pool.name}: {self.waiting} waiting, {self.in_flight} in flight>"
