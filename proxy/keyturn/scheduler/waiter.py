"""A request as the scheduler sees it, and the queue of its flow, in order of urgency and arrival (law 5)."""

import asyncio
from bisect import bisect_left, insort
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, field

from keyturn.core.backoff import Backoff
from keyturn.core.errors import BadRequest, Unauthenticated
from keyturn.core.exchange import DemandClass, EstimatedWaits, Flow
from keyturn.core.model import Client, Micros, Pool
from keyturn.scheduler.lease import Lease

INTERNAL = Client("(keyturn)")
"""The client of the proxy's own requests, which no client of the configuration can be named as."""


class Moved(Exception):
    """A request waits in the wrong scheduler: its client uses another pool now."""

    def __init__(self, client: Client) -> None:
        super().__init__(client.name)
        self.client = client


class Displaced(Exception):
    """The quota that a flow insists on is not used any more; its requests may wait in another flow."""


class Waiter:
    """A request as the scheduler sees it, from its arrival to its lease; a retry waits again as the same one."""

    __slots__ = (
        "announced",
        "arrived",
        "client",
        "deadline",
        "flow",
        "future",
        "method",
        "order",
        "path",
        "pinned",
        "queue",
        "seen",
        "timer",
        "urgency",
    )

    future: "asyncio.Future[Lease]"
    """Its outcome, while it waits."""
    arrived: Micros
    order: tuple[bool, int, int]
    """Whether it comes for the first time, its urgency, its arrival: the order of a queue."""
    announced: bool
    """Whether the store has been told that it waits in this queue."""
    seen: bool
    """Whether the store has ever been told of it."""

    def __init__(
        self,
        client: Client,
        demand_class: DemandClass,
        deadline: Micros,
        urgency: int = 3,
        pinned: str | None = None,
        method: str = "",
        path: str | None = None,
    ) -> None:
        """Describe a request.

        Args:
            client: whose it is; `INTERNAL` of a health check, which may use a key in whatever state it is.
            demand_class: what it needs.
            deadline: the instant beyond which it does not wait.
            urgency: its order within its client (RFC 9218), 0 first.
            pinned: the name of the key that it insists on.
            method: as in the request.
            path: in its normal form; with the method it decides the limits, should they change.
        """
        self.client = client
        self.flow = Flow(client.name, demand_class)
        self.deadline = deadline
        self.urgency = urgency
        self.pinned = pinned
        self.method = method
        self.path = path
        self.queue: Queue | None = None
        self.timer: asyncio.TimerHandle | None = None

    @property
    def internal(self) -> bool:
        """Whether it is a request of the proxy itself."""
        return self.client is INTERNAL

    @property
    def waits(self) -> bool:
        """Whether it is in a queue and its caller is still there."""
        return self.queue is not None and not self.future.done()

    def update(self, pool: Pool, clients: Mapping[str, Client]) -> None:
        """Take up what its client, its limits and its quota are by another configuration.

        Raises:
            Unauthenticated: its client is not known any more.
            Moved: its client uses another pool now.
            BadRequest: the key that it insists on is gone.
            Displaced: the quota that its flow insists on is gone.
        """
        if not self.internal:
            client = clients.get(self.client.name)
            if client is None:
                raise Unauthenticated(f"The client {self.client.name} is not known to this proxy any more.")
            if client.pool != pool.name:
                raise Moved(client)
            self.client = client
        demand_class = DemandClass(pool.limits_on(self.method, self.path), self._quota(pool))
        self.flow = Flow(self.client.name, demand_class)

    def _quota(self, pool: Pool) -> str | None:
        if self.pinned is not None:
            return quota_of(self.pinned, pool)
        quota = self.flow.demand_class.pinned
        if quota is not None and quota not in pool.keys_of:
            raise Displaced
        return quota

    def on_quota(self, quota: str) -> "Waiter":
        """Return a copy that insists on a quota."""
        other = copy(self)
        other.flow = Flow(self.client.name, DemandClass(self.flow.demand_class.limits, quota))
        return other

    def leave(self) -> None:
        """Note that it waits no longer."""
        self.queue = None
        if self.timer:
            self.timer.cancel()
            self.timer = None

    def fail(self, problem: Exception) -> None:
        """Raise a problem where it is waited for, unless its caller is gone."""
        if not self.future.done():
            self.future.set_exception(problem)

    def __repr__(self) -> str:
        where = "waiting" if self.queue is not None else "not waiting"
        return f"<Waiter of {self.client.name}, urgency {self.urgency}, deadline {self.deadline}, {where}>"


def quota_of(pinned: str, pool: Pool) -> str:
    """Return the quota of the key of that name.

    Raises:
        BadRequest: there is none.
    """
    key = pool.key(pinned)
    if key is None:
        raise BadRequest(f"No key of the pool {pool.name} has the name that `Keyturn-Key` asks for.")
    return key.quota


def _order(waiter: Waiter) -> tuple[bool, int, int]:
    return waiter.order


@dataclass(slots=True, eq=False, repr=False)
class Queue:
    """The requests of one flow that wait in this replica, in order, and their estimated waits."""

    flow: Flow
    waiters: list[Waiter] = field(default_factory=list)
    unjudged: dict[Waiter, None] = field(default_factory=dict)
    """Those whose estimate has not been held against their deadline yet."""
    began: int = 0
    """A number that tells which of two queues has been busy for longer."""
    demanded: int = 0
    """How many the store knows to wait."""
    estimates: EstimatedWaits = field(default_factory=EstimatedWaits)
    estimated: Micros = 0
    """When the estimates were made."""
    served: int = 0
    """How many were served since then: those behind them have moved up."""
    reviewed: Micros = 0
    """When all were last held against their deadlines."""
    backoff: Backoff = field(default_factory=Backoff)

    def add(self, waiter: Waiter) -> None:
        """Insert a request at its place."""
        insort(self.waiters, waiter, key=_order)
        self.unjudged[waiter] = None
        waiter.queue, waiter.announced = self, False

    def position(self, waiter: Waiter) -> int:
        """How many wait before it; `order` decides, whether it waits or not."""
        return bisect_left(self.waiters, waiter.order, key=_order)

    def take_estimates(self, estimates: EstimatedWaits, now: Micros) -> None:
        """Replace the estimates by those made now."""
        self.estimates, self.estimated, self.served = estimates, now, 0

    def estimate(self, position: int, now: Micros) -> Micros | None:
        """The estimated wait at a position; `None` when no token is expected."""
        return self._aged(self.estimates.at(position + self.served), now)

    def latest(self, position: int, now: Micros) -> Micros | None:
        """Upper end of the same, for a caller that is told to come back then and does not wait."""
        return self._aged(self.estimates.latest(position + self.served), now)

    def _aged(self, wait: Micros | None, now: Micros) -> Micros | None:
        return None if wait is None else max(0, wait - (now - self.estimated))

    def newcomers(self) -> list[Waiter]:
        """Those whose estimate has not been looked at yet, in order."""
        return sorted(self.unjudged, key=_order)

    def remove(self, waiter: Waiter) -> None:
        """Take a request out."""
        del self.waiters[0 if self.waiters[0] is waiter else self.position(waiter)]
        self.unjudged.pop(waiter, None)
        waiter.leave()

    def next(self) -> Waiter | None:
        """The first whose caller is still there; one that was cancelled in this tick removes itself."""
        for waiter in self.waiters:
            if not waiter.future.done():
                return waiter
        return None

    def __repr__(self) -> str:
        limits, pinned = self.flow.demand_class
        where = f" on {pinned}" if pinned else ""
        return f"<Queue of {self.flow.client}, limits {limits}{where}: {len(self.waiters)} waiting>"
