"""One lane's requests in order: by urgency, then by arrival; what comes back stands first (law 5)."""

import asyncio
from bisect import bisect_left, insort
from dataclasses import dataclass, field

from proxy.core.exchange import Kind, Lane, Turns
from proxy.core.model import Client, Micros
from proxy.core.values import value_object
from proxy.dispatch.lease import Lease


@value_object
class Ticket:
    """What a request waits with."""

    client: Client
    kind: Kind
    deadline: Micros
    """The instant beyond which it does not wait."""
    urgency: int = 3
    pinned: str | None = None
    """The key that it insists on."""
    own: bool = False
    """Whether the proxy itself asks after that key, in whatever state it is."""


class Displaced(Exception):
    """A lane's quota is not used any more; its requests may wait in another lane."""


@dataclass(slots=True, eq=False)
class Waiter:
    """One request in its lane."""

    order: tuple[int, int, int]
    """Whether it comes for the first time, its urgency, its arrival."""
    ticket: Ticket
    future: "asyncio.Future[Lease]"
    arrived: Micros = 0
    asked: bool = False
    """Whether the store has been told of it."""
    timer: asyncio.TimerHandle | None = None


@dataclass(slots=True)
class Queue:
    """One lane's requests in order, and when their turns come by the last exchange."""

    lane: Lane
    waiters: list[Waiter] = field(default_factory=list)
    fresh: dict[Waiter, None] = field(default_factory=dict)
    """Those whose turn has not been looked at yet."""
    turns: Turns = field(default_factory=Turns)
    told: Micros = 0
    """When `turns` were told."""
    reviewed: Micros = 0

    def add(self, waiter: Waiter) -> None:
        """Put it in its place."""
        insort(self.waiters, waiter, key=_order)
        self.fresh[waiter] = None

    def position(self, waiter: Waiter) -> int:
        """How many stand before it."""
        return bisect_left(self.waiters, waiter.order, key=_order)

    def newcomers(self) -> list[Waiter]:
        """Those whose turn has not been looked at yet, in order."""
        return sorted(self.fresh, key=_order)

    def remove(self, waiter: Waiter) -> None:
        """Take it out."""
        del self.waiters[0 if self.waiters[0] is waiter else self.position(waiter)]
        self.fresh.pop(waiter, None)
        if waiter.timer:
            waiter.timer.cancel()

    def next(self) -> Waiter | None:
        """The first whose caller is still there; one that was cancelled in this tick removes itself."""
        for waiter in self.waiters:
            if not waiter.future.done():
                return waiter
        return None


def _order(waiter: Waiter) -> tuple[int, int, int]:
    return waiter.order
