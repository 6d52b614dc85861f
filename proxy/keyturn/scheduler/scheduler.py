"""The scheduler of one pool in this replica: requests wait in queues for a lease, and leases end here.

Laws kept here: 2 (a lease is settled exactly once: it is a context manager), 3 (grants are handed over at once), 5 (a
queue is ordered by urgency, then by arrival; retries go to the head), 6 (a request that cannot be served in time is
refused at once, none waits past its deadline, a caller that left is gone at once), 10 (`LEASE_LIFETIME`).

One exchange with the store is under way at a time; what arrives meanwhile goes with the next. While nothing waits and
tokens are plentiful no exchange is needed. Between reading and writing this module's state nothing is awaited.
"""

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from itertools import count
from typing import Any

from keyturn.core.errors import Refusal, ShuttingDown, StoreLost
from keyturn.core.events import Exchanged, ForeignSpent, Observer
from keyturn.core.exchange import HEARTBEAT, LEASE_LIFETIME, ExchangeResult, Flow, LeaseGrant, LimitTokens, PoolStore
from keyturn.core.health import KeyHealth
from keyturn.core.levels import LaneLevel
from keyturn.core.looks import LaneLook
from keyturn.core.model import SECOND, Client, Limit, Micros, Pool
from keyturn.scheduler.alarm import FEW, Alarm
from keyturn.scheduler.capacity import Capacity, Portions
from keyturn.scheduler.deadlines import Deadlines
from keyturn.scheduler.doors import check, surplus
from keyturn.scheduler.holdings import Holdings
from keyturn.scheduler.keys import NO_KEY, Keys
from keyturn.scheduler.lanes import Lanes, Waiter
from keyturn.scheduler.lease import Ending, Lease, surprising
from keyturn.scheduler.looks import lane_levels, lane_looks
from keyturn.scheduler.rides import FLUSH, Rides
from keyturn.scheduler.stock import Stock
from keyturn.scheduler.tickets import Displaced, Moved, Ticket
from keyturn.tasks import finish, spawn

OWN = Client("(keyturn)")
"""The client of the proxy's own requests, which no client of the configuration can be named as."""

RETRY_LOST: Micros = SECOND // 2
"""How long after a lost exchange the next is tried."""


class Scheduler:
    """The waiting room of one pool in this replica; all rooms of a process share one `capacity`."""

    def __init__(
        self,
        pool: Pool,
        store: PoolStore,
        *,
        settle_bound: Micros,
        max_waiting: int,
        clock: Callable[[], Micros],
        observer: Observer,
        capacity: Capacity | None = None,
    ) -> None:
        self.pool = pool
        self._edition = 0
        """How often the pool was adopted anew: grants that were asked for in an earlier edition are of no use."""
        self._clients: Mapping[str, Client] | None = None
        """Who is known by now; `None` before anything was adopted."""
        self.clock = clock
        self.settle_bound = settle_bound
        self._store = store
        self._stock = Stock()
        self._max_waiting = max_waiting
        self._observer = observer
        self._lanes = Lanes()
        self._arrivals = count()
        self._rides = Rides(pool)
        self.health = KeyHealth(pool, clock())
        self._keys = Keys(pool, self.health)
        self._alarm = Alarm()
        self._portions = Portions(capacity or Capacity(), self._lanes, self._alarm.ring, clock)
        self._holdings = Holdings(self._portions)
        self.granted = self._holdings.granted
        self._closed = False
        flush = partial(self._alarm.within, FLUSH)
        self._deadlines = Deadlines(clock, self._keys, self._lanes, self._refuse, flush, self._portions.refusal)
        self._tasks: set[asyncio.Task[Any]] = set()

    async def start(self) -> None:
        """Begin to exchange with the store."""
        spawn(self._run(), name=f"exchange {self.pool.name}", owner=self._tasks)

    async def failure(self) -> None:
        """Wait until the exchange with the store breaks down, which is a bug.

        Raises:
            Exception: what it broke down with. Without exchanges nobody would ever be served again.
        """
        ended, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        ended.pop().result()

    def refuse_all(self) -> None:
        """Refuse whoever waits and whoever comes: the process drains."""
        self._closed = True
        for waiter in self._lanes:
            self._refuse(waiter, ShuttingDown())

    async def stop(self) -> None:
        """Refuse whoever waits, report the last settlements, and end."""
        self.refuse_all()
        await finish(self._tasks)
        self._alarm.stop()
        if self._holdings.untold:
            await self._exchange()

    def wake(self, delay: Micros = 0) -> None:
        """Exchange after this time: a turn comes earlier than the store told."""
        self._alarm.wake(delay)

    # Keys and limits

    def adopt(self, pool: Pool, clients: Mapping[str, Client], *, max_waiting: int) -> None:
        """Go on with another configuration: what waits keeps its place, what is out the key that it has.

        Who cannot be served by it any more hears of it at once: its client or its key is gone, or the pool has no key.

        Args:
            pool: the pool as it is now; without keys when it is to be closed.
            clients: everybody who is known, by name, made anew: by that, tickets of before are known.
            max_waiting: requests that may wait.
        """
        self._edition += 1
        self._clients = clients
        self._max_waiting = max_waiting
        self._rides.adopt(pool)
        self.pool = pool
        self._stock.forget()
        self.health.adopt(pool, self.clock())
        self._keys.adopt(pool)
        self._store.adopt(self._keys.serving)
        self._seat_anew(clients)
        self.heed()

    def _seat_anew(self, clients: Mapping[str, Client]) -> None:
        """Put everybody who waits into the flow that is right by now, in the same order."""
        own = {client.name for client in clients.values() if client.pool == self.pool.name}
        for waiter in self._lanes.clear(own):
            try:
                waiter.ticket = waiter.ticket.renewed(self.pool, clients)
            except (Refusal, Moved, Displaced) as problem:
                waiter.leave()
                if not waiter.future.done():
                    waiter.future.set_exception(problem)
            else:
                self._lanes.seat(waiter)

    def heed(self) -> None:
        """The keys' health has changed: who cannot be served any more hears of it at once."""
        if self._keys.sort():
            self._store.adopt(self._keys.serving)
        now = self.clock()
        for flow, queue in list(self._lanes.busy.items()):
            displaced = Displaced() if not self._may_be_served(flow) else None
            for waiter in list(queue.waiters):
                refusal = self._keys.refusal(waiter.ticket, now) or (None if waiter.ticket.pinned else displaced)
                if refusal is not None:
                    self._refuse(waiter, refusal)
        self._alarm.ring()

    def lower(self, limit: int, requests: int) -> None:
        """Take a limit for smaller than it is configured; never for larger (law 9)."""
        if requests < self.pool.limits[limit].requests:
            self.pool = self.pool.lowered(limit, requests)
            self._keys.adopt(self.pool)
            self._store.adopt(self._keys.serving)

    # What others see

    @property
    def quotas(self) -> tuple[str, ...]:
        """The quotas that serve now."""
        return self._keys.serving.quotas

    @property
    def in_flight(self) -> int:
        """How many leases are in somebody's hands."""
        return len(self._holdings.out)

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return self._lanes.total

    def levels(self) -> list[LaneLevel]:
        """How many wait, by client, and what one more would wait; clients that have waited before are told with 0."""
        now = self.clock()
        clients = {name: waiting for name, waiting in self._lanes.waiting.items() if name != OWN.name}
        return list(lane_levels(self.pool, clients, self._lanes.busy, self._stock.next_token(self.pool, now), now))

    def lanes(self) -> list[LaneLook]:
        """Each flow in which somebody waits."""
        busy = [queue for flow, queue in self._lanes.busy.items() if flow.client != OWN.name]
        return list(lane_looks(busy, self.clock()))

    def standing(self, client: str, method: str, path: str | None) -> list[tuple[Limit, LimitTokens]]:
        """What is left for a client of the limits that a request falls under; nothing before the first exchange."""
        limits, part = self.pool.limits_on(method, path), self._lanes.part(client)
        return self._stock.standing(self.pool, limits, part, self.clock())

    # Waiting

    async def lease(self, ticket: Ticket, *, front: bool = False) -> Lease:
        """Wait for the turn of a request; `front` puts one that comes back at the head of its flow.

        Raises:
            TooMany: its turn cannot come before the deadline, or the queue is full.
            NoKey: no key can serve it.
            Displaced: the quota that its flow insists on is not used any more.
            Moved: its client uses another pool by now.
            Unauthenticated, BadRequest: its client, or the key that it insists on, is not there any more.
            ShuttingDown: the process drains.
        """
        now = self.clock()
        waiter = self._enter(self._admitted(ticket, now, front=front), now, front=front)
        try:
            return await waiter.future
        except asyncio.CancelledError:
            self._left(waiter)
            raise

    def _admitted(self, ticket: Ticket, now: Micros, *, front: bool) -> Ticket:
        """The ticket of a request that may wait, by the configuration of now."""
        if self._closed:
            raise ShuttingDown
        if self._clients is not None and (front or self._clients.get(ticket.client.name) is not ticket.client):
            ticket = ticket.renewed(self.pool, self._clients)
        if refusal := self._keys.refusal(ticket, now):
            raise refusal
        return ticket

    def admit(self, ticket: Ticket) -> None:
        """See that a request may wait, before its body is read; raises what `lease` would raise at once."""
        now = self.clock()
        check(self._lanes, self._admitted(ticket, now, front=False), now, self._max_waiting, self._keys)

    def try_lease(self, ticket: Ticket) -> Lease | None:
        """A lease for who need not wait, since nobody does and there is plenty, or `None`; raises what `lease` does."""
        if self._lanes.total or not self._portions.admits(ticket.client):
            return None
        now = self.clock()
        ticket = self._admitted(ticket, now, front=False)
        flow, limits = Flow(ticket.client.name, ticket.demand_class), ticket.demand_class.limits
        grant = self._store.try_grant(flow, ticket.client.weight) if self._stock.plenty(limits, now) else None
        if grant is None:
            return None
        self._stock.take(limits)
        self._lanes.know(ticket.client)
        self._rides.came(now)
        self._alarm.sooner_or_later(HEARTBEAT)
        return self._lease_of(grant, ticket, now, now + LEASE_LIFETIME)

    def _enter(self, ticket: Ticket, now: Micros, *, front: bool) -> Waiter:
        if not front:
            check(self._lanes, ticket, now, self._max_waiting, self._keys)
        order = (not front, ticket.urgency, next(self._arrivals))
        waiter = Waiter(order, ticket, asyncio.get_running_loop().create_future(), now)
        self._lanes.seat(waiter)
        self._deadlines.watch(waiter)
        self._rides.came(now)
        self._alarm.ring(self.in_flight if self._stock.holds(ticket.demand_class.limits) else FEW)
        return waiter

    def _left(self, waiter: Waiter) -> None:
        """The caller went away: free its place, or give back the lease that it got in the same tick."""
        if waiter.future.done() and not waiter.future.cancelled():
            if not waiter.future.exception():
                with waiter.future.result() as lease:
                    lease.unsent()
            return
        self._lanes.remove(waiter)
        self._alarm.within(FLUSH)

    def _refuse(self, waiter: Waiter, refusal: Refusal | Displaced) -> None:
        self._lanes.remove(waiter)
        if not waiter.future.done():
            waiter.future.set_exception(refusal)

    # Leases

    def settle(self, ending: Ending) -> None:
        """Take note of how a lease ended; the store is told with the next exchange, at once if somebody may profit."""
        self._holdings.settled(ending)
        counted, quotas = ending.counted, len(self.quotas)
        if counted and not (counted.limits or ending.lease.probe or surprising(counted, self._stock.budgets, quotas)):
            self._alarm.within(self._rides.wait(self.clock(), waiting=self._lanes.total > 0))
        else:
            self._stock.doubt()
            if not self._lanes.total:
                self._alarm.within(FLUSH)
            elif counted:
                self._alarm.ring()
            else:
                self._alarm.hurry()

    def ended(self, lease: Lease) -> None:
        """The exchange that a lease was for is over."""
        self._holdings.ended(lease, self.clock())

    # The exchange

    async def _run(self) -> None:
        while True:
            await self._alarm.heard()
            await self._exchange()

    async def _exchange(self) -> None:
        asked = self.clock()
        ended = self._holdings.to_tell()
        newcomers = self._lanes.introduce()
        demands, edition, pool = self._portions.demands(self._may_be_served), self._edition, self.pool
        try:
            answer = await self._store.exchange(tuple([one.settlement(asked, pool) for one in ended]), demands)
            self._portions.told(answer.grants)
        except BaseException as problem:
            self._portions.told(())
            self._holdings.not_told(ended)
            if not isinstance(problem, StoreLost):
                raise
            self._bear(problem)
            self._turn_away(newcomers)
            return
        if edition == self._edition:
            self._apply(answer, asked)
            self._turn_away(newcomers)
            self._portions.go_on()
        else:
            self._hand_back(answer, pool)

    def _hand_back(self, answer: ExchangeResult, pool: Pool) -> None:
        """Other limits may hold by now than when these leases were asked for: they go back, and are asked for anew."""
        for grant in answer.grants:
            Lease(self, pool, grant, NO_KEY, 0).unsent()
        self._alarm.ring()

    def _bear(self, lost: StoreLost) -> None:
        """The store does not answer: who waits is refused if the loss says when to come back, else waits for it."""
        if lost.retry_after is None:
            self._deadlines.bear(self._lanes.busy.values())
        else:
            for waiter in self._lanes:
                self._refuse(waiter, lost)
        self._alarm.within(RETRY_LOST)

    def _turn_away(self, newcomers: list[Waiter]) -> None:
        """Who has to wait, and may not because too many do."""
        for waiter, refusal in surplus(self._lanes, newcomers, self._max_waiting, self._keys, self.clock()):
            self._refuse(waiter, refusal)
            self._alarm.within(FLUSH)

    def _may_be_served(self, flow: Flow) -> bool:
        """Whether grants to a flow could be used: one that insists on a quota out of use waits without asking."""
        pinned = flow.demand_class.pinned
        return pinned is None or flow.client == OWN.name or pinned in self._keys.serving.keys_of

    def _apply(self, answer: ExchangeResult, asked: Micros) -> None:
        now = self.clock()
        granted = len(answer.grants) + self._stock.hear(answer.available, now)
        self._deadlines.heard(now)
        for grant in answer.grants:
            self._hand_over(grant, now, asked + LEASE_LIFETIME)
        for flow, turns in answer.estimates.items():
            queue = self._lanes.queue(flow)
            queue.turns, queue.told, queue.served = turns, now, 0
            self._deadlines.judge(queue, now)
        self._deadlines.pass_over(self._portions.left_out(), now)
        if answer.again is not None and self._has_to_say:
            self._alarm.wake(answer.again)
        elif self._holdings.unsettled:
            self._alarm.within(HEARTBEAT)
        self._observer.observe(Exchanged(self.pool.name, (now - asked) / SECOND, granted))
        for quota, tokens in answer.foreign:
            self._observer.observe(ForeignSpent(self.pool.name, self.pool.label(quota), tokens))

    @property
    def _has_to_say(self) -> bool:
        """Whether the store has to hear of this room again: one without keys, of which nothing is out, is no sharer."""
        return bool(self.pool.keys or self._holdings.unsettled or self._lanes.total)

    def _hand_over(self, grant: LeaseGrant, now: Micros, use_by: Micros) -> None:
        """Give a lease to the head of its flow."""
        waiter = self._lanes.queue(grant.flow).next()
        lease = self._lease_of(grant, waiter.ticket if waiter else None, now, use_by)
        if waiter and lease:
            self._lanes.serve(waiter)
            waiter.future.set_result(lease)

    def _lease_of(self, grant: LeaseGrant, ticket: Ticket | None, now: Micros, use_by: Micros) -> Lease | None:
        """A lease for whoever has this ticket; when nobody waits any more, or no key is left, the grant goes back."""
        key = self._keys.pick(grant.quota, ticket) if ticket is not None else None
        lease = Lease(self, self.pool, grant, key or NO_KEY, use_by)
        if key is None:
            lease.unsent()
            return None
        self._holdings.handed(lease, grant.flow.client, now)
        return lease
