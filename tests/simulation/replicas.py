"""A replica of the simulation: the real gateway, scheduler and shared store in a process of its own."""

import asyncio
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from keyturn.core.errors import Refusal, TooMany
from keyturn.core.events import Event, Observer, RequestLog, StoreChanged
from keyturn.core.exchange import DemandClass, EstimatedWaits, ExchangeResult, Flow
from keyturn.core.http import Answer, Request
from keyturn.core.messages import RevisionClass
from keyturn.core.model import MILLISECOND, SECOND, Client, Micros, Pool
from keyturn.core.signals import TOO_MANY_REQUESTS
from keyturn.gateway import Gateway, RetryPolicy
from keyturn.scheduler import Lease, Scheduler, Waiter
from keyturn.scheduler.waiter import Queue
from keyturn.stores.memory import MemoryStore

from tests.core.worlds import BOUND
from tests.simulation.judges import Estimate, Turn
from tests.simulation.processes import Process
from tests.simulation.server import Account
from tests.simulation.upstream import OPENS, Api, Way

Told = Callable[[str, int], object]
"""Called with the outcome of a request (a status, the name of a refusal, `gone`, `cut`) and its `Retry-After`."""

Shop = Callable[[Process, Observer], MemoryStore | Account]
"""The source of a replica's store."""

UNAVAILABLE = 503

MANY = 100_000
"""More requests than ever wait."""

AT_ONCE: Micros = 100 * MILLISECOND
"""A refusal comes within this time, or the request has waited."""

TOLERANCE: Micros = 2 * MILLISECOND
"""Beyond a deadline, for timers go off a moment later than they are set for."""


@dataclass(eq=False, slots=True)
class Waiting:
    """A waiting request in its flow."""

    order: tuple[bool, int, int]
    since: Micros
    """True time."""
    waiter: Waiter
    estimate: Estimate | None = None
    """Estimated instant of service, by its first estimate, or by a later one that is checked."""


@dataclass
class Findings:
    """Violations by replicas, and how requests ended."""

    breaches: list[str] = field(default_factory=list)
    asked: int = 0
    """Requests of callers; each ends with one outcome."""
    outcomes: Counter[str] = field(default_factory=Counter)
    longest_hopeless: Micros = 0
    """Longest wait of a refused request whose own queue made it hopeless."""
    events: Counter[str] = field(default_factory=Counter)
    refused: list[Turn] = field(default_factory=list)
    """Requests that were refused because they could not be served in time."""
    served: list[Turn] = field(default_factory=list)
    """Requests that got a lease the first time that they waited."""
    estimates: list[Estimate] = field(default_factory=list)
    """Estimated waits of served requests when they came."""


class Room(Scheduler):
    """The scheduler, observed: the order of each queue (law 5), and that each lease is settled once (law 2)."""

    def __init__(
        self, process: Process, findings: Findings, pool: Pool, store: MemoryStore | Account, observer: Observer
    ) -> None:
        super().__init__(pool, store, settle_bound=BOUND, max_waiting=MANY, clock=process.micros, observer=observer)
        self.rows: dict[Flow, list[Waiting]] = {}
        """Waiting requests by flow, in the order in which they are to be served."""
        self.kinds: dict[DemandClass, dict[Waiting, None]] = {}
        """Waiting requests by demand class, the oldest first."""
        self.handed: Counter[str] = Counter()
        """Number of settlements of each lease."""
        self._process = process
        self._findings = findings
        self._numbers = 0
        self._new: dict[Waiting, None] = {}
        """Requests without an estimate yet."""
        receive, settled = self._loop._receive, self._loop.leases.settled

        def watch_estimates(result: ExchangeResult, asked: Micros) -> None:
            receive(result, asked)
            self._note_estimates(result)

        def watch_settlement(lease: Lease) -> None:
            self.handed[lease.id] += 1
            settled(lease)

        self._loop._receive = watch_estimates  # type: ignore[method-assign]
        self._loop.leases.settled = watch_settlement  # type: ignore[method-assign]

    async def lease(self, waiter: Waiter, *, front: bool = False) -> Lease:
        self._numbers += 1
        flow = waiter.flow
        row = self.rows.setdefault(flow, [])
        own = Waiting((not front, waiter.urgency, self._numbers), self._process.universe.now, waiter)
        hopeless = self._is_hopeless(waiter, ahead=bisect_left(row, own.order, key=_order))
        insort(row, own, key=_order)
        alike = self.kinds.setdefault(flow.demand_class, {})
        alike[own] = None
        self._new[own] = None
        try:
            lease = await super().lease(waiter, front=front)
        except TooMany as refusal:
            if refusal.reason == "deadline":
                self._findings.refused.append(self._turn(waiter, own))
            waited = self._process.universe.now - own.since
            if hopeless and self._process.thawed <= own.since:
                self._findings.longest_hopeless = max(self._findings.longest_hopeless, waited)
            raise
        finally:
            self._new.pop(own, None)
            ahead = row[: bisect_left(row, own.order, key=_order)]
            del row[len(ahead)]
            del alike[own]
            if not row:
                del self.rows[flow]
            if not alike:
                del self.kinds[flow.demand_class]
            self._check_deadline(waiter, own)
        self.handed.setdefault(lease.id, 0)
        now = self._process.universe.now
        if any(other.since < now for other in ahead):
            self._findings.breaches.append(f"law 5: in {flow} a request was served before its turn")
        if not front:
            self._findings.served.append(self._turn(waiter, own))
        if own.estimate:
            self._findings.estimates.append(own.estimate._replace(served=now))
        return lease

    def _note_estimates(self, result: ExchangeResult) -> None:
        for own in list(self._new):
            queue = own.waiter.queue
            if queue is None:
                del self._new[own]
            elif own.waiter.announced and queue.flow in result.estimates:
                del self._new[own]
                self._estimate(own, queue, judged=False)

    def estimate_all(self) -> None:
        """Record estimates of all waiting requests, to be checked: no unforeseeable event follows."""
        for row in self.rows.values():
            for own in row:
                if own.waiter.queue and own.waiter.queue.estimates != EstimatedWaits():
                    self._estimate(own, own.waiter.queue, judged=True)

    def _estimate(self, own: Waiting, queue: Queue, *, judged: bool) -> None:
        if (wait := queue.estimate(queue.position(own.waiter), self.clock())) is not None:
            client, now = own.waiter.client, self._process.universe.now
            own.estimate = Estimate(queue.flow.demand_class, client.name, client.weight, now, wait, 0, judged)

    def _turn(self, waiter: Waiter, own: Waiting) -> Turn:
        now = self._process.universe.now
        left = waiter.deadline - self._process.micros()
        limits = tuple(self.pool.limits[index] for index in waiter.flow.demand_class.limits)
        who = (self._process.name, waiter.client.name, waiter.urgency, waiter.flow.demand_class.pinned, limits)
        return Turn(who, own.since, now, now + left)

    def _is_hopeless(self, waiter: Waiter, ahead: int) -> bool:
        """Return whether earlier requests of its queue need all tokens until its deadline."""
        wait = waiter.deadline - self._process.micros()
        limits = [self.pool.limits[index] for index in waiter.flow.demand_class.limits]
        most = [limit.requests * len(self.pool.quotas) * (wait // limit.window + 1) for limit in limits]
        return ahead >= min(most, default=ahead + 1)

    def _check_deadline(self, waiter: Waiter, own: Waiting) -> None:
        waited = self._process.universe.now - own.since
        late = self._process.micros() - waiter.deadline
        bears = AT_ONCE if late >= waited else 0  # it came back with no time left, after a try that took so long
        if late > TOLERANCE and waited > bears and self._process.thawed <= own.since and not self._process.dead:
            self._findings.breaches.append(f"law 6: waited until {late / SECOND:.3f} s after its deadline")


class Replica:
    """One replica and its callers."""

    def __init__(self, process: Process, shop: Shop, api: Api, pool: Pool, findings: Findings) -> None:
        self.process = process
        self.name = process.name
        self.alone = len(pool.quotas) == 1
        """Whether no other quota can serve when one is exhausted."""
        self.findings = findings
        self.able_since: Micros = process.universe.now
        """Since when it knows the store; true time."""
        self.retiring = False
        self.store = shop(process, self)
        self.room = Room(process, findings, pool, self.store, self)
        skew = (hash_of(process.name) % 10_001 - 5_000) * MILLISECOND
        self.gateway = Gateway(
            {pool.name: self.room},
            Way(api, process),
            retries=RetryPolicy(),
            observer=self,
            clock=process.micros,
            wall=lambda: process.universe.now + skew,
        )
        self._callers: dict[Told, None] = {}
        process.on_death.append(self._cut)
        process.start(self._start)

    async def _start(self) -> None:
        self.store.listen(self.room.wake)
        await self.room.start()
        await self.room.failure()
        self.findings.breaches.append(f"{self.name}: the exchange ended")

    def observe(self, event: Event) -> None:
        """Record an event."""
        self.findings.events[type(event).__name__] += 1
        if isinstance(event, StoreChanged):
            self.able_since = self.process.universe.now

    @property
    def able(self) -> bool:
        """Return whether it could use a token of the shared store."""
        lost = isinstance(self.store, Account) and self.store.lost
        return not (lost or self.process.dead or self.process.frozen or self.retiring)

    def waiting(self) -> Iterator[tuple[RevisionClass, Micros]]:
        """Return the waiting demand classes, and since when the replica could use a token for them."""
        revision = self.store.revision
        adopted = self.store.since if isinstance(self.store, Account) else 0
        earliest = max(self.able_since, self.process.thawed, adopted)
        for kind, row in self.room.kinds.items():
            if all(index < len(revision.limits) for index in kind.limits):
                yield RevisionClass(revision.name, kind.limits, kind.pinned), max(next(iter(row)).since, earliest)

    # Callers

    def call(self, request: Request, told: Told, *, patience: float | None = None) -> None:
        """Send a caller's request, which is cancelled after so many seconds of patience."""
        if self.process.dead or self.retiring:
            self.process.universe.after(0, lambda: told("cut", 1))
            return
        self._callers[told] = None
        self.process.start(lambda: self._serve(request, told, patience))

    def _cut(self) -> None:
        for told in list(self._callers):
            told("cut", 1)
        self._callers.clear()

    async def _serve(self, request: Request, told: Told, patience: float | None) -> None:
        log = RequestLog()
        retry_after = 0
        try:
            async with asyncio.timeout(patience), self.gateway.handle(request, log) as answer:
                outcome, retry_after = str(answer.status), int(answer.header(b"retry-after") or 0)
                self._check_answer(answer)
                await answer.body.read()
        except TimeoutError:
            outcome = "gone"
        except Refusal as refusal:
            outcome, retry_after = refusal.name, refusal.retry_after or 0
            if refusal.status in (TOO_MANY_REQUESTS, UNAVAILABLE) and not retry_after:
                self.findings.breaches.append(f"a refusal does not say when to come back: {refusal!r}")
        if told in self._callers:
            del self._callers[told]
            told(outcome, retry_after)

    def _check_answer(self, answer: Answer) -> None:
        """Check that an upstream's 429 that is passed on says when to come back, and not too early."""
        if answer.status != TOO_MANY_REQUESTS:
            return
        wait = int(answer.header(b"retry-after") or 0) * SECOND
        if wait == 0:
            self.findings.breaches.append("a 429 that was handed on does not say when to come back")
        elif self.alone and self.process.universe.now + wait < int(answer.header(OPENS) or 0):
            self.findings.breaches.append(f"a 429 that was handed on says to come back too early, after {wait} us")

    # Its end, and its configuration

    def adopt(self, pool: Pool, clients: Mapping[str, Client]) -> None:
        """Adopt a changed configuration."""
        self.process.call_soon(lambda: self.room.adopt(pool, clients, max_waiting=MANY))

    async def retire(self) -> None:
        """Drain, as on SIGTERM: refuse waiting requests, finish those in flight, report."""
        self.retiring = True
        self.room.close()
        while self.room.in_flight:
            await asyncio.sleep(0.1)
        await self.gateway.stop()
        await self.room.stop()
        if isinstance(self.store, Account):
            await self.store.close()


def hash_of(name: str) -> int:
    """Return a number from a name, the same in every run."""
    return sum(ord(letter) * 31**place for place, letter in enumerate(name[:8]))


def _order(one: Waiting) -> tuple[bool, int, int]:
    return one.order
