"""The exchange of a scheduler with its store: settlements and demands out, grants and estimates in.

One exchange is in progress at a time; what arrives meanwhile goes with the next. Between reading and writing this
module's state nothing is awaited.
"""

from collections.abc import Callable, Iterable

from keyturn.core.errors import StoreLost, TooMany
from keyturn.core.events import Exchanged, ForeignSpent, Observer
from keyturn.core.exchange import HEARTBEAT, LEASE_LIFETIME, ExchangeResult, LeaseGrant, PoolStore
from keyturn.core.model import SECOND, Micros, Pool
from keyturn.scheduler.admission import Deadlines, QueueBounds, too_late
from keyturn.scheduler.availability import AvailabilityCache
from keyturn.scheduler.batching import FEW_IN_FLIGHT, FLUSH, SettlementBatching, WakeUpTimer
from keyturn.scheduler.concurrency import ConcurrencyLimit, SlotShares
from keyturn.scheduler.key_rotation import NO_KEY, KeyRotation
from keyturn.scheduler.lease import Lease, OutstandingLeases
from keyturn.scheduler.queues import Queues
from keyturn.scheduler.waiter import Waiter

FORESIGHT_WAITING = 100
"""With fewer requests waiting every newcomer takes part in an exchange, which is quick then and estimates exactly."""

FORESIGHT_MARGIN: Micros = SECOND
"""Margin of an estimate beyond a newcomer's deadline that permits a refusal without an exchange."""

RETRY_LOST: Micros = SECOND // 2
"""How long after a lost exchange the next is tried."""


class ExchangeLoop:
    """Exchanges with the store of one pool, hands grants over, and reports how leases ended."""

    def __init__(
        self,
        store: PoolStore,
        keys: KeyRotation,
        queues: Queues,
        bounds: QueueBounds,
        availability: AvailabilityCache,
        limit: ConcurrencyLimit,
        *,
        settle_bound: Micros,
        clock: Callable[[], Micros],
        observer: Observer,
    ) -> None:
        self.timer = WakeUpTimer()
        self.leases = OutstandingLeases(clock, settle_bound, self._settled, self._ended)
        self.slots = SlotShares(limit, queues, self.timer.fire, clock)
        self._store = store
        self._keys = keys
        self._queues = queues
        self._bounds = bounds
        self._availability = availability
        self._deadlines = Deadlines(clock, bounds, queues.refuse, self.flush, self.slots.refusal)
        self._batching = SettlementBatching(keys.pool)
        self._clock = clock
        self._observer = observer
        self._edition = 0
        """How often the pool was adopted anew: grants that were demanded in an earlier edition are of no use."""

    # Requests and leases

    def try_lease(self, waiter: Waiter, now: Micros) -> Lease | None:
        """Grant a lease without an exchange, if the store can; only while nothing waits and tokens are plentiful."""
        grant = self._store.try_grant(waiter.flow, waiter.client.weight)
        if grant is None:
            return None
        self._availability.take(waiter.flow.demand_class.limits)
        self._queues.note(waiter.client)
        self._batching.arrived(now)
        self.timer.ensure_within(HEARTBEAT)
        return self._lease(grant, waiter, now, now + LEASE_LIFETIME)

    def enqueue(self, waiter: Waiter) -> None:
        """Let a request wait for a grant, until its deadline."""
        self._queues.add(waiter)
        self._deadlines.watch(waiter)
        self._batching.arrived(waiter.arrived)
        left = self._availability.is_left(waiter.flow.demand_class.limits)
        self.timer.fire(len(self.leases.in_use) if left else FEW_IN_FLIGHT)

    def foresee(self, waiter: Waiter, now: Micros) -> TooMany | None:
        """Refuse a newcomer of a crowd without an exchange, if a recent snapshot tells that it comes in vain."""
        if self._queues.total < FORESIGHT_WAITING:
            return None
        queue, client = self._queues.get(waiter.flow), waiter.client
        if self._availability.doubted or not self.slots.suffice(queue, client):
            return None
        found = self._store.estimate(waiter.flow, len(queue.waiters) + 1 + queue.backoff.places(now), client.weight)
        if found is None:
            return None
        estimates, age = found
        if queue.estimated < now - age:
            queue.take_estimates(estimates, now - age)
        position = queue.position(waiter)
        wait = queue.estimate(position, now)
        if wait is None or now + wait <= waiter.deadline + FORESIGHT_MARGIN:
            return None
        return too_late(self._bounds.told(queue, position, now))

    def flush(self) -> None:
        """Exchange soon, since something changed that hands nothing to anybody."""
        self.timer.fire_within(FLUSH)

    def adopt(self, pool: Pool) -> None:
        """Use other limits: grants that are on their way are of no use, and all demands are stated anew."""
        self._edition += 1
        self._availability.forget()
        self._batching.adopt(pool)
        self.slots.demand_all()

    def _lease(self, grant: LeaseGrant, waiter: Waiter | None, now: Micros, use_by: Micros) -> Lease | None:
        """Make the lease of a request; when nothing waits any more, or no key is left, the grant goes back."""
        key = self._keys.pick(grant.quota, waiter) if waiter is not None else None
        lease = Lease(self.leases, self._keys.pool, grant, key or NO_KEY, now, use_by)
        if key is None:
            lease.unsent()
            return None
        self.leases.add(lease)
        self.slots.take(lease.client, now)
        return lease

    def _settled(self, lease: Lease) -> None:
        """Report how a lease ended with the next exchange; at once if something that waits may profit."""
        usual = lease.counted is not None and not lease.closed and not lease.probe
        if usual and not self._availability.contradicted_by(lease.observed, len(self._keys.serving.quotas)):
            self.timer.fire_within(self._batching.delay(self._clock(), waiting=self._queues.total > 0))
            return
        self._availability.doubted = True
        if not self._queues.total:
            self.flush()
        elif lease.counted is not None:
            self.timer.fire()
        else:
            self.timer.fire_now()

    def _ended(self, lease: Lease) -> None:
        self.slots.release(lease.client, lease.granted, self._clock())

    # The exchange

    async def run(self) -> None:
        """Exchange for ever, whenever the timer fires."""
        while True:
            await self.timer.wait()
            await self.exchange()

    async def exchange(self) -> None:
        """Exchange once. A store that is lost is tried again later."""
        asked = self._clock()
        settled = self.leases.take_settled()
        newcomers = self._queues.announce()
        demands, whole = self.slots.demands(self._keys.may_serve)
        edition, pool = self._edition, self._keys.pool
        settlements = tuple([lease.settlement(asked, pool) for lease in settled])
        try:
            result = await self._store.exchange(settlements, demands, partial=not whole)
        except BaseException as problem:
            self.slots.answered(())
            self.leases.not_reported(settled)
            if not isinstance(problem, StoreLost):
                raise
            self._store_lost(problem)
            self._reject_surplus(newcomers)
            return
        self.slots.answered(result.grants)
        if edition == self._edition:
            self._receive(result, asked)
            self._reject_surplus(newcomers)
            self.slots.go_on()
        else:
            self._return_all(result.grants, pool)

    def _receive(self, result: ExchangeResult, asked: Micros) -> None:
        now = self._clock()
        granted = len(result.grants) + self._availability.update(result.available, now)
        self._deadlines.store_answered(now)
        for grant in result.grants:
            self._deliver(grant, now, asked + LEASE_LIFETIME)
        for flow, estimates in result.estimates.items():
            queue = self._queues.get(flow)
            queue.take_estimates(estimates, now)
            self._deadlines.judge(queue, now)
        self._deadlines.pass_over(self.slots.undemanded(), now)
        if result.again is not None and (self._keys.pool.keys or self.leases.unsettled or self._queues.total):
            self.timer.wake(result.again)  # one without keys and leases in which nothing waits shares nothing
        elif self.leases.unsettled:
            self.timer.fire_within(HEARTBEAT)
        pool = self._keys.pool
        self._observer.observe(Exchanged(pool.name, (now - asked) / SECOND, granted))
        for quota, tokens in result.foreign:
            self._observer.observe(ForeignSpent(pool.name, pool.label(quota), tokens))

    def _deliver(self, grant: LeaseGrant, now: Micros, use_by: Micros) -> None:
        """Give a lease to the head of its queue."""
        queue = self._queues.get(grant.flow)
        waiter = queue.next()
        lease = self._lease(grant, waiter, now, use_by)
        if waiter is not None and lease is not None:
            self._queues.serve(waiter)
            waiter.future.set_result(lease)
        else:
            self._queues.changed[queue] = None

    def _return_all(self, grants: Iterable[LeaseGrant], pool: Pool) -> None:
        """Return grants that were demanded under other limits; they are demanded anew."""
        for grant in grants:
            Lease(self.leases, pool, grant, NO_KEY, 0, 0).unsent()
        self.timer.fire()

    def _store_lost(self, lost: StoreLost) -> None:
        """Refuse what waits if the loss says when to come back; else it waits for the store."""
        if lost.retry_after is None:
            self._deadlines.store_lost(self._queues.busy.values())
        else:
            for waiter in self._queues:
                self._queues.refuse(waiter, lost)
        self.timer.fire_within(RETRY_LOST)

    def _reject_surplus(self, newcomers: list[Waiter]) -> None:
        """Refuse newcomers that would have to wait beyond the bounds."""
        for waiter, refusal in self._bounds.surplus(newcomers, self._clock()):
            self._queues.refuse(waiter, refusal)
            self.flush()
