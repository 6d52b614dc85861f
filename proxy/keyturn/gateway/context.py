"""The state of one pool and of one request in the gateway, and the verdicts on a try."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

from keyturn.bodies import Bodies, ReplayBody
from keyturn.core.breaker import Breakers, Probe, Scope, Source
from keyturn.core.events import Observer, RequestLog
from keyturn.core.exchange import DemandClass
from keyturn.core.http import Answer, Body, Request
from keyturn.core.inferred_limits import LimitInference, RouteLimits
from keyturn.core.model import Client, Micros, Pool
from keyturn.core.retries import IDEMPOTENT, RetryBudget
from keyturn.core.signals import Route
from keyturn.core.throttles import Throttles
from keyturn.core.values import value_object
from keyturn.scheduler import Lease, Scheduler, Ticket, quota_of


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often a request may be tried, first try counted, and the retries per request over the last ten seconds."""

    attempts: int = 3
    budget: float = 0.2


@dataclass(slots=True)
class Means:
    """What every room works with: clocks (monotonic and epoch), chance from 0 to 1, retries, an observer."""

    clock: Callable[[], Micros]
    wall: Callable[[], Micros]
    chance: Callable[[], float]
    retries: RetryPolicy
    budget: RetryBudget
    observer: Observer


@dataclass(slots=True)
class PoolState:
    """One pool: its waiting room, and what its answers have told."""

    scheduler: Scheduler
    breakers: Breakers = field(default_factory=Breakers)
    outcomes: dict[Scope, asyncio.Event] = field(default_factory=dict)
    """Of each probe that is in flight: set when it has ended, whatever it told."""
    route_limits: RouteLimits = field(default_factory=RouteLimits)
    inference: LimitInference = field(default_factory=LimitInference)
    throttles: Throttles = field(default_factory=Throttles)
    reopening: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the probe of a pool that 429s have closed has ended, whatever it told; then another takes its place."""

    @property
    def name(self) -> str:
        """The pool's."""
        return self.scheduler.pool.name


@value_object
class Respond:
    """The answer is the caller's; `retry_after` in whole seconds replaces the upstream's waits."""

    answer: Answer
    retry_after: int | None = None
    turn: bool = False
    """Whether a try would succeed as soon as its turn comes, on this quota or on another: then that is to be told."""


@value_object
class Retry:
    """The request goes out once more, under another lease, after a pause."""

    why: Literal["throttled", "unreachable", "broken", "timed_out", "outage", "dead_key", "late"]
    pause: Micros = 0
    held: Answer | None = None
    """What its caller gets should no turn come in time."""


Outcome = Respond | Retry


@dataclass(slots=True)
class RequestContext:
    """One request on its way through the gateway."""

    request: Request
    log: RequestLog
    body: ReplayBody | None
    """The body as it can be sent; `None` before it is read."""
    ticket: Ticket
    sending: Callable[[], None] = lambda: None
    """Called each time just before it goes out."""
    failures: int = 0
    """Tries that failed by the upstream's fault."""
    plans: int = 0
    """Plans' quotas that it met used up."""
    stale: bool = False
    """Whether it met a kept connection that had been closed; the next one is to be new."""
    doubts: int = 0
    """Keys that it left before it was known whether they are dead."""
    back: bool = False
    """Whether it has been at the head of its lane already."""
    lease: Lease | None = None
    """The lease in hand; it is ended exactly once."""
    route_limit: tuple[RouteLimits, str] | None = None
    """The quota on which it takes one of the places of a narrower limit."""
    probes: tuple[PoolState, tuple[Probe, ...]] | None = None
    """Where breakers wait for its outcome."""
    reopens: PoolState | None = None
    """The pool, closed by 429s, whose probe it is."""
    held: Answer | None = None
    """An upstream's refusal that it met: its answer, should no turn come in time."""

    @classmethod
    def of(
        cls, request: Request, log: RequestLog, pool: Pool, now: Micros, sending: Callable[[], None] | None = None
    ) -> "RequestContext":
        """A request as it comes.

        Raises:
            BadRequest: it names a key that the pool does not have.
        """
        demand_class = DemandClass(pool.limits_on(request.method, request.path))
        if request.pinned is not None:
            demand_class = DemandClass(demand_class.limits, quota_of(request.pinned, pool))
        ticket = Ticket(
            request.client,
            demand_class,
            now + request.wait,
            request.urgency,
            request.pinned,
            method=request.method,
            path=request.path,
        )
        return cls(request, log, None, ticket, sending or (lambda: None))

    async def read_ahead(self, body: Body, bodies: Bodies) -> None:
        """Read its body, so that it needs no lease for that; then its time to wait begins.

        Raises:
            TooMany: there is no room for the body.
            TooLarge, TooSlow, BadRequest, ConnectionError: from the body itself.
        """
        began = bodies.clock()
        self.body = kept = ReplayBody(body, self.request.client.name, bodies)
        try:
            await kept.read_ahead(self.request.wait)
        finally:
            now = bodies.clock()
            self.log.queued += kept.waited
            self.log.reading += now - began - kept.waited
        self.ticket = replace(self.ticket, deadline=now + self.request.wait - kept.waited)

    def move(self, client: Client) -> None:
        """Its client uses another pool now: it goes there, with the deadline that it has."""
        self.ticket = replace(self.ticket, client=client)
        self.back = True
        self.log.pool = client.pool

    def end(self) -> None:
        """It is over: let go of its lease, and of what is kept of its body."""
        self.end_lease()
        if self.body is not None:
            self.body.close()

    def end_lease(self) -> None:
        """Settle what is not settled, and let the lease go."""
        lease, self.lease = self.lease, None
        if lease is not None:
            lease.close()

    @property
    def route(self) -> Route:
        """What it has in common with requests that an upstream would limit together."""
        return Route.of(self.request.method, self.request.path)

    @property
    def source(self) -> Source:
        """What its failures are counted by."""
        return Source(self.ticket.client.name, self.route)

    @property
    def replayable(self) -> bool:
        """Whether its body can be sent once more."""
        return self.body is None or self.body.replayable

    @property
    def repeatable(self) -> bool:
        """Whether it may be sent once more although it may have been processed."""
        return self.request.method in IDEMPOTENT and self.replayable
