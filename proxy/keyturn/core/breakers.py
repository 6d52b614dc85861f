"""The breakers of one pool: its own, one for each client that fails, and one for each route of a client that fails.

A failure counts in all three, a request needs all three to let it through, and an answer closes all three.

1.  No route weighs more than half of a client's row; no client, and no route whoever asks for it, more than half of the
    pool's. So the pool's breaker opens when several clients fail on several routes and nothing is answered in between.
2.  What failed before anything was sent (no connection, TLS) is no matter of the request: it counts for the pool only,
    and in full. An error such as a 500 may be the fault of one request: it does not count against its route.
3.  When a breaker closes, those of the narrower scopes within it may be tried at once.
4.  Who fails takes no room from others: a client's routes are bounded by themselves.
"""

from collections.abc import Hashable, Iterator
from typing import NamedTuple

from keyturn.core.breaker import Breaker, BreakerView, Failure, Scope, Trial
from keyturn.core.model import SECOND, Micros
from keyturn.core.signals import Route

MAX_CLIENTS = 1024
MAX_ROUTES = 16
"""Clients of a pool, and routes of each, that have breakers; beyond, the one that failed longest ago loses its own."""

KEEP: Micros = 900 * SECOND
"""How long a client's breakers are kept after its last failure."""


class Source(NamedTuple):
    """Whose request it is, and its route."""

    client: str
    route: Route


class Shut(NamedTuple):
    """A scope is left alone: for how long, and whether a trial is in flight."""

    scope: Scope
    wait: Micros
    trying: bool


class _Client:
    """The breakers of one client that fails: of all that it asks for, and of some routes."""

    __slots__ = ("at", "breaker", "routes")

    def __init__(self, name: str) -> None:
        self.breaker = Breaker(Scope(name))
        self.routes: dict[Route, Breaker] = {}
        self.at: Micros = 0
        """When it failed last."""

    def route(self, route: Route) -> Breaker:
        """The breaker of a route that fails now; the one that failed longest ago makes room for it."""
        breaker = self.routes.pop(route, None) or Breaker(Scope(self.breaker.scope.client, route))
        self.routes[route] = breaker
        if len(self.routes) > MAX_ROUTES:
            del self.routes[next(iter(self.routes))]
        return breaker

    def hasten(self, now: Micros) -> None:
        for breaker in (self.breaker, *self.routes.values()):
            breaker.hasten(now)


class Breakers:
    """All of one pool: its own, and those of clients that fail."""

    def __init__(self) -> None:
        self.pool = Breaker(Scope())
        self._clients: dict[str, _Client] = {}
        """The one that failed longest ago first."""

    @property
    def idle(self) -> bool:
        """Whether nothing fails: the usual case."""
        return not self._clients and self.pool.idle

    def _of(self, source: Source) -> Iterator[tuple[Breaker, Hashable]]:
        """The breakers that a request has to pass, and the part that it is in each."""
        yield self.pool, source.client
        client = self._clients.get(source.client)
        if client is not None:
            yield client.breaker, source.route
            if source.route in client.routes:
                yield client.routes[source.route], None

    def shut(self, source: Source, now: Micros) -> Shut | None:
        """What keeps a request back now; of several, one of which no trial is in flight, and the longest."""
        found: Shut | None = None
        for breaker, part in self._of(source):
            wait = breaker.wait(now, part)
            if wait is not None:
                shut = Shut(breaker.scope, wait, breaker.trying)
                if found is None or (not shut.trying, shut.wait) > (not found.trying, found.wait):
                    found = shut
        return found

    def enter(self, source: Source, now: Micros) -> tuple[Trial, ...]:
        """A request that nothing keeps back is about to be sent; returns what it is the trial of."""
        return tuple([trial for breaker, part in self._of(source) if (trial := breaker.enter(now, part))])

    def succeeded(self, source: Source, now: Micros) -> list[Scope]:
        """The upstream answered; returns what that closes."""
        closed = [breaker.scope for breaker, _ in self._of(source) if breaker.succeeded()]
        if self.pool.scope in closed:
            for each in self._clients.values():
                each.hasten(now)
        client = self._clients.get(source.client)
        if client is not None:
            client.routes.pop(source.route, None)
            if client.breaker.scope in closed:
                client.hasten(now)
            if not client.routes:
                del self._clients[source.client]
        self._forget(now)
        return closed

    def failed(
        self, source: Source, now: Micros, chance: float, failure: Failure, trials: tuple[Trial, ...] = ()
    ) -> list[BreakerView]:
        """A request failed; returns what that opens. `trials`: what it was the trial of; `chance`: from 0 to 1."""
        counting: list[tuple[Breaker, tuple[Hashable, ...]]] = [(self.pool, ())]
        if failure.blame != "way":
            client = self._failing(source.client, now)
            counting = [(self.pool, source), (client.breaker, (source.route,))]
            if failure.blame == "route" or any(trial.breaker.scope.route is not None for trial in trials):
                counting.append((client.route(source.route), ()))
        opened = [breaker for breaker, whose in counting if breaker.failed(now, chance, failure, *whose, trials=trials)]
        for trial in trials:
            trial.breaker.leave(trial)
        return [view for breaker in opened if (view := breaker.view())]

    def _failing(self, name: str, now: Micros) -> _Client:
        """The breakers of a client that fails now; the one that failed longest ago makes room."""
        client = self._clients.pop(name) if name in self._clients else _Client(name)
        self._clients[name] = client
        client.at = now
        self._forget(now)
        return client

    def _forget(self, now: Micros) -> None:
        while self._clients:
            name, oldest = next(iter(self._clients.items()))
            if len(self._clients) <= MAX_CLIENTS and now < oldest.at + KEEP:
                return
            del self._clients[name]

    def wait(self, source: Source, now: Micros) -> Micros | None:
        """How long a request is refused; `None` when it may go on its way."""
        shut = self.shut(source, now)
        return shut.wait if shut else None

    def views(self, now: Micros) -> list[BreakerView]:
        """Views of the open breakers."""
        clients = [client for client in self._clients.values() if now < client.at + KEEP]
        narrower = [breaker for client in clients for breaker in (client.breaker, *client.routes.values())]
        return [view for breaker in (self.pool, *narrower) if (view := breaker.view())]
