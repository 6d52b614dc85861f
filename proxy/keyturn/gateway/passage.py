"""One request on its way: what it has met, and the lease that it holds."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from keyturn.bodies import Bodies, ReplayBody
from keyturn.core.breaker import Trial
from keyturn.core.breakers import Source
from keyturn.core.events import Journal
from keyturn.core.exchange import DemandClass
from keyturn.core.http import Answer, Body, Request
from keyturn.core.model import Client, Micros, Pool
from keyturn.core.narrows import Narrows
from keyturn.core.retries import IDEMPOTENT
from keyturn.core.signals import Route
from keyturn.gateway.desk import Desk
from keyturn.scheduler import Lease, Ticket, quota_of


@dataclass(slots=True)
class Passage:
    """One request on its way through the gateway."""

    request: Request
    journal: Journal
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
    narrow: tuple[Narrows, str] | None = None
    """The quota on which it takes one of the places of a narrower limit."""
    trials: tuple[Desk, tuple[Trial, ...]] | None = None
    """Where breakers wait for its outcome."""
    reopens: Desk | None = None
    """The pool, closed by 429s, whose trial it is."""
    held: Answer | None = None
    """An upstream's refusal that it met: its answer, should no turn come in time."""

    @classmethod
    def of(
        cls, request: Request, journal: Journal, pool: Pool, now: Micros, sending: Callable[[], None] | None = None
    ) -> "Passage":
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
        return cls(request, journal, None, ticket, sending or (lambda: None))

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
            self.journal.queued += kept.waited
            self.journal.reading += now - began - kept.waited
        self.ticket = replace(self.ticket, deadline=now + self.request.wait - kept.waited)

    def move(self, client: Client) -> None:
        """Its client uses another pool now: it goes there, with the deadline that it has."""
        self.ticket = replace(self.ticket, client=client)
        self.back = True
        self.journal.pool = client.pool

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
