"""The gateway's state: of the process, of a pool and of one request; and the verdicts on a try."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from keyturn.bodies import Bodies, ReplayBody
from keyturn.core.breaker import Breakers, Probe, Scope, Source
from keyturn.core.events import Observer, RequestLog, RetryReason
from keyturn.core.exchange import DemandClass
from keyturn.core.http import Answer, Body, Request
from keyturn.core.inferred_limits import LimitInference, RouteLimits
from keyturn.core.model import Client, Micros, Pool
from keyturn.core.retries import IDEMPOTENT_METHODS, RetryBudget
from keyturn.core.signals import Route
from keyturn.core.throttles import Throttles
from keyturn.core.values import value_object
from keyturn.scheduler import Lease, Scheduler, Waiter, quota_of


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Tries per request, the first one counted, and retries per request over the last ten seconds."""

    attempts: int = 3
    budget: float = 0.2


@dataclass(slots=True)
class Environment:
    """Common to all policies: clocks (monotonic and epoch), random numbers from 0 to 1, retries, the observer."""

    clock: Callable[[], Micros]
    wall: Callable[[], Micros]
    chance: Callable[[], float]
    retries: RetryPolicy
    budget: RetryBudget
    observer: Observer


@dataclass(slots=True, eq=False, repr=False)
class PoolState:
    """One pool: its scheduler, and what the upstream's answers have told."""

    scheduler: Scheduler
    breakers: Breakers = field(default_factory=Breakers)
    probe_outcomes: dict[Scope, asyncio.Event] = field(default_factory=dict)
    """For each probe in flight: set when it has ended, whatever its outcome."""
    throttles: Throttles = field(default_factory=Throttles)
    reopening: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the probe of a pool that 429s have closed has ended, whatever its outcome, and then replaced."""
    inference: LimitInference = field(default_factory=LimitInference)
    route_limits: RouteLimits = field(default_factory=RouteLimits)

    @property
    def name(self) -> str:
        """The pool's name."""
        return self.scheduler.pool.name

    @property
    def open(self) -> bool:
        """Whether neither breakers nor 429s hold requests back: the usual case."""
        return self.breakers.idle and not self.throttles.closed

    def __repr__(self) -> str:
        breakers = "idle" if self.breakers.idle else repr(self.breakers.pool)
        return (
            f"<PoolState {self.name}: breakers {breakers}, {self.throttles!r}, {len(self.route_limits)} limited routes>"
        )


@value_object
class Respond:
    """The caller gets this answer; `retry_after` in whole seconds replaces the upstream's waits."""

    answer: Answer
    retry_after: int | None = None
    estimate: bool = False
    """Whether a try would succeed as soon as another lease is granted: then `retry_after` is estimated anew."""


@value_object
class Retry:
    """The request is sent once more, under another lease, after a pause."""

    reason: RetryReason
    pause: Micros = 0
    held: Answer | None = None
    """The answer to the caller if no lease is granted in time."""


Verdict = Respond | Retry


class RequestContext:
    """One request in the gateway, and the block in which its answer is read.

    Its lease and its body end with the block, however it is left.
    """

    body: ReplayBody | None = None
    """The body as it can be sent; `None` before it is read."""
    answer: Answer | None = None
    lease: Lease | None = None
    """The lease that it holds; it is settled exactly once."""
    requeued: bool = False
    """Whether it goes to the head of its flow."""
    held: Answer | None = None
    """A refusal of the upstream's: its answer if no lease is granted in time."""
    failures: int = 0
    """Tries that failed by the upstream's fault."""
    used_up_plans: int = 0
    """Quotas of plans that it met used up."""
    unverified_keys: int = 0
    """Keys that it left before their health check was over."""
    needs_new_connection: bool = False
    """Whether it met a kept connection that had been closed."""
    probes: tuple[Probe, ...] = ()
    """The probes of breakers that it is."""
    reopens: bool = False
    """Whether it is the probe of a pool that 429s have closed."""
    route_limit: tuple[RouteLimits, str] | None = None
    """The quota on which it counts against a route limit."""

    def __init__(
        self,
        state: PoolState,
        request: Request,
        log: RequestLog,
        waiter: Waiter,
        *,
        respond: Callable[["RequestContext"], Coroutine[Any, Any, Answer]] | None = None,
        sending: Callable[[], None] | None = None,
    ) -> None:
        """`respond` finds the answer of the block; `sending` is called each time just before the request is sent."""
        self.state = state
        self.request = request
        self.log = log
        self.waiter = waiter
        self.sending = sending
        self._respond = respond

    def __aenter__(self) -> Coroutine[Any, Any, Answer]:
        assert self._respond is not None
        return self._respond(self)

    async def __aexit__(self, *_: object) -> None:
        if self.answer is not None:
            self.answer.body.abort()
        self.end()

    def __repr__(self) -> str:
        request = f"{self.request.id} {self.request.method} {self.request.path} of {self.waiter.client.name}"
        return f"<RequestContext {request}: {self.log.tries} tries, {self.lease or 'no lease'}>"

    async def read_ahead(self, body: Body, bodies: Bodies) -> None:
        """Read the body, so that no lease is held meanwhile; then the time to wait begins.

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
        self.waiter.deadline = now + self.request.wait - kept.waited

    def move(self, client: Client, state: PoolState) -> None:
        """Go on in another pool, with the deadline that it has: its client uses that one now."""
        self.waiter.client = client
        self.state = state
        self.requeued = True
        self.log.pool = client.pool

    def end(self) -> None:
        """Let go of the lease, and of what is kept of the body."""
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
        """Method and path pattern, by which an upstream would limit requests together."""
        return Route.of(self.request.method, self.request.path)

    @property
    def source(self) -> Source:
        """The client and route that its failures count for."""
        return Source(self.waiter.client.name, self.route)

    @property
    def replayable(self) -> bool:
        """Whether its body can be sent once more."""
        return self.body is None or self.body.replayable

    @property
    def repeatable(self) -> bool:
        """Whether it may be sent once more although it may have been processed."""
        return self.request.method in IDEMPOTENT_METHODS and self.replayable


def waiter_of(request: Request, pool: Pool, now: Micros) -> Waiter:
    """Make the entry by which the scheduler queues a request.

    Raises:
        BadRequest: it names a key that the pool does not have.
    """
    pinned = None if request.pinned is None else quota_of(request.pinned, pool)
    return Waiter(
        request.client,
        DemandClass(pool.limits_on(request.method, request.path), pinned),
        now + request.wait,
        request.urgency,
        request.pinned,
        request.method,
        request.path,
    )
