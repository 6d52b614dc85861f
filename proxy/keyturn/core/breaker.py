"""Circuit breakers: when to stop sending to an upstream that is failing, and when to probe it again.

    closed ──a streak of failures, for `STREAK_DURATION`──▶ open ──the interval is over──▶ probing ──success──▶ closed
                                                             ▲                               │
                                                             └──failure, interval doubled────┘

`Breaker` is the state machine of one scope: a route of a client, a client, or the pool. `Breakers` holds those of a
pool; a failure counts in all three scopes, a request has to pass all three, and an answer closes all three.

1.  A streak is `STREAK_FAILURES` long. In a client's breaker no route weighs more than half a streak; in the pool's no
    client does, nor any route. So one client or one route cannot shut out the others.
2.  While a breaker is open, requests of its scope are refused and told when the next probe is due. A probe is one
    request; others that arrive while it is in flight wait a moment for its outcome. A probe without an outcome for
    `PROBE_PATIENCE` makes room for another.
3.  Probes take turns: after a failed one, the same client (in a client's breaker: the same route) is `PROBE_TURN` later
    than the others. One that has not failed yet waits neither for the interval nor for another's probe;
    `MAX_EARLY_PROBES` such probes are sent in an outage, one by each, and their failures do not prolong it.
4.  Any answer that is no failure, a refusal too, is proof of life: it ends the streak and closes what is open. When a
    breaker closes, those of the narrower scopes within it may be probed at once.
5.  The upstream's own words count: told when to come again, or how long an outage usually lasts, fewer failures open
    the breaker; no probe is sent before the one, and they are spread over the other. Nothing that it says keeps a
    breaker open for more than `MAX_OPEN` at a time.
6.  What failed before anything was sent (no connection, TLS) is not the request's doing: it counts in full, for the
    pool only. An error such as a 500 may be the fault of one request: it does not count against its route.
7.  A failing client takes no room from others: its routes are bounded by themselves.

Instants are in microseconds of one clock that never goes back; `chance` is a random number from 0 to 1.
"""

from collections.abc import Collection, Hashable, Iterator
from typing import Literal, NamedTuple

from keyturn.core.model import SECOND, Micros
from keyturn.core.signals import Route
from keyturn.core.values import value_object

STREAK_FAILURES = 8
STREAK_FAILURES_TOLD = 3
"""Failures in a streak when the upstream itself says that it is unavailable."""

STREAK_WEIGHT = STREAK_FAILURES * STREAK_FAILURES_TOLD
"""A failure weighs `STREAK_FAILURES_TOLD`, one that the upstream explains `STREAK_FAILURES`."""

HALF_STREAK = STREAK_WEIGHT // 2
STREAK_DURATION: Micros = SECOND
"""Requests that fail together, when a server restarts, are one failure: a streak lasts at least this long."""

FIRST_INTERVAL: Micros = SECOND
MAX_INTERVAL: Micros = 30 * SECOND
"""Between two probes, when the upstream says nothing."""

MAX_OPEN: Micros = 300 * SECOND
PROBE_PATIENCE: Micros = 30 * SECOND
PROBE_TURN: Micros = 2 * SECOND
"""Callers are told whole seconds: for this long, those that have not had a probe yet go first."""

MAX_EARLY_PROBES = 8
INTERVAL_JITTER = 0.2
"""Part of an interval that is added at random, so that replicas do not probe all at once."""

MAX_PARTS = 64
"""Clients (or routes) whose failures and probes a breaker remembers."""

MAX_CLIENTS = 1024
MAX_ROUTES = 16
"""Clients of a pool, and routes of each, with breakers; beyond, the one that failed longest ago loses its own."""

CLIENT_KEPT: Micros = 900 * SECOND
"""How long a client's breakers are kept after its last failure."""


ScopeKind = Literal["pool", "client", "route"]


class Scope(NamedTuple):
    """Scope of a breaker: the pool, a client of it, or one route of a client."""

    client: str = ""
    route: Route | None = None

    @property
    def kind(self) -> ScopeKind:
        """The kind of scope: `pool`, `client` or `route`."""
        return "pool" if not self.client else "client" if self.route is None else "route"


@value_object
class Failure:
    """A failed request: the cause in words, what may be to blame, and what the upstream said of its outage."""

    cause: str
    blame: Literal["connection", "route", "request"] = "route"
    wait: Micros | None = None
    over_within: Micros | None = None

    @property
    def weight(self) -> int:
        """How much it adds to a streak."""
        return STREAK_FAILURES_TOLD if self.wait is None and self.over_within is None else STREAK_FAILURES


class BreakerSnapshot(NamedTuple):
    """An open breaker: since when, why, and when it is probed again (instants of the one clock)."""

    scope: Scope
    since: Micros
    cause: str
    until: Micros


class Probe(NamedTuple):
    """A request whose outcome a breaker waits for; `early`: sent before the interval was over."""

    breaker: "Breaker"
    since: Micros
    early: bool


class Breaker:
    """The breaker of one scope. A *part* is a client, in a client's breaker a route: what takes turns in probes."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self._weight = 0
        """Weight of the streak."""
        self._shares: dict[Hashable, int] = {}
        """The weight that each client and each route accounts for."""
        self._connection_weight = 0
        """The weight that no request can have caused."""
        self._began: Micros = 0
        """The first failure of the streak."""
        self._since: Micros = 0
        self._cause = ""
        self._until: Micros | None = None
        """When the next probe is due; `None` while closed."""
        self._failed_probes = 0
        self._early_probes = 0
        self._probe: Probe | None = None
        """The last one, while in flight."""
        self._failing: set[Hashable] = set()
        self._tried: set[Hashable] = set()
        """Parts that have had their turn in this round of probes."""

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"open until {self._until}{' probing' if self.probing else ''}"
        scope = "pool" if not self.scope.client else " ".join(str(part) for part in self.scope if part)
        return f"<Breaker {scope}: {state}, streak {self._weight}/{STREAK_WEIGHT}>"

    @property
    def closed(self) -> bool:
        """Whether every request passes."""
        return self._until is None

    @property
    def idle(self) -> bool:
        """Whether it is closed and nothing has failed since the last answer."""
        return self._until is None and not self._failing

    @property
    def probing(self) -> bool:
        """Whether a probe without an outcome is in flight."""
        return self._probe is not None

    def snapshot(self) -> BreakerSnapshot | None:
        """Its state, if it is open."""
        return None if self._until is None else BreakerSnapshot(self.scope, self._since, self._cause, self._until)

    def wait(self, now: Micros, part: Hashable = None) -> Micros | None:
        """How long a request that arrives now is refused; `None` when it passes."""
        if self._until is None or self._is_fresh(part):
            return None
        due = self._until + PROBE_TURN * (part in self._tried and len(self._failing) > 1)
        if self._probe is not None and now < self._probe.since + PROBE_PATIENCE:
            return max(due - now, SECOND)
        return due - now if now < due else None

    def _is_fresh(self, part: Hashable) -> bool:
        """Whether this part may be probed at once, since the failures of others say little about it."""
        if part in self._failing or self._early_probes >= MAX_EARLY_PROBES:
            return False
        return self._connection_weight < HALF_STREAK

    def enter(self, now: Micros, part: Hashable = None) -> Probe | None:
        """Note that a request that passes is about to be sent; returns the probe that it is, if it is one."""
        if self._until is None:
            return None
        fresh = self._is_fresh(part)
        early = fresh and (now < self._until or self._probe is not None)
        if fresh:
            self._failing.add(part)
            self._early_probes += 1
        if part in self._tried or len(self._tried) >= MAX_PARTS:
            self._tried.clear()
        self._tried.add(part)
        self._probe = Probe(self, now, early)
        return self._probe

    def leave(self, probe: Probe) -> None:
        """End a probe without an outcome: its caller left, or it was not sent."""
        if self._probe is probe:
            self._probe = None

    def succeeded(self) -> bool:
        """Note that the upstream answered; returns whether that closes the breaker."""
        closes = self._until is not None
        self._weight = self._connection_weight = self._failed_probes = self._early_probes = 0
        self._until = self._probe = None
        for memory in (self._shares, self._failing, self._tried):
            memory.clear()
        return closes

    def probe_now(self, now: Micros) -> None:
        """Permit the next probe at once: the wider scope works again."""
        if self._until is not None:
            self._until, self._failed_probes = min(self._until, now), 0

    def failed(
        self, now: Micros, chance: float, failure: Failure, *whose: Hashable, probes: Collection[Probe | None]
    ) -> bool:
        """Note that a request failed; returns whether that opens the breaker.

        Args:
            now: when.
            chance: from 0 to 1.
            failure: how.
            whose: its part, and what else must not weigh too much; nothing if no request can have caused the failure.
            probes: what it is the probe of.
        """
        if len(self._failing) < MAX_PARTS:
            self._failing.add(whose[0] if whose else None)
        if self._until is not None:
            self._fail_again(now, chance, failure, self._probe if self._probe in probes else None)
            return False
        if not self._weight:
            self._began = now
        if self._weight < STREAK_WEIGHT:
            self._add(failure.weight, whose)
        if self._weight < STREAK_WEIGHT or now < self._began + STREAK_DURATION:
            return False
        self._since, self._cause = now, failure.cause
        self._until = now + self._interval(chance, failure)
        return True

    def _add(self, weight: int, whose: tuple[Hashable, ...]) -> None:
        counts = min([weight, *[HALF_STREAK - self._shares.get(each, 0) for each in whose]])
        self._weight += counts
        self._connection_weight += 0 if whose else counts
        for each in whose:
            self._shares[each] = self._shares.get(each, 0) + counts

    def _fail_again(self, now: Micros, chance: float, failure: Failure, probe: Probe | None) -> None:
        assert self._until is not None
        counts = probe is not None and not probe.early
        self._failed_probes += counts
        if counts or failure.wait is not None:
            self._until = max(self._until, now + self._interval(chance, failure))
        if probe is not None:
            self._probe, self._cause = None, failure.cause
            if failure.blame != "connection":
                self._connection_weight = 0

    def _interval(self, chance: float, failure: Failure) -> Micros:
        """Until the next probe; some ten probes are spread over the usual length of an outage."""
        first, longest = FIRST_INTERVAL, MAX_INTERVAL
        if failure.over_within is not None:
            first, longest = max(first, failure.over_within // 20), max(longest, failure.over_within // 5)
        interval = min(longest, first << min(self._failed_probes, 20))
        return min(MAX_OPEN, max(interval + int(interval * INTERVAL_JITTER * chance), failure.wait or 0))


class Source(NamedTuple):
    """The client and the route of a request."""

    client: str
    route: Route


class Blocked(NamedTuple):
    """An open breaker in a request's way: its scope, the time until a probe, and whether one is in flight."""

    scope: Scope
    wait: Micros
    probing: bool


class _Client:
    """The breakers of one failing client: of everything that it asks for, and of single routes."""

    __slots__ = ("at", "breaker", "routes")

    def __init__(self, name: str) -> None:
        self.breaker = Breaker(Scope(name))
        self.routes: dict[Route, Breaker] = {}
        self.at: Micros = 0
        """Its last failure."""

    def route(self, route: Route) -> Breaker:
        """The breaker of a route that fails now; the one that failed longest ago makes room for it."""
        breaker = self.routes.pop(route, None) or Breaker(Scope(self.breaker.scope.client, route))
        self.routes[route] = breaker
        if len(self.routes) > MAX_ROUTES:
            del self.routes[next(iter(self.routes))]
        return breaker

    def probe_now(self, now: Micros) -> None:
        for breaker in (self.breaker, *self.routes.values()):
            breaker.probe_now(now)


class Breakers:
    """The breakers of one pool: its own, and those of failing clients and their routes."""

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

    def blocked(self, source: Source, now: Micros) -> Blocked | None:
        """The breaker that blocks a request now; of several, one without a probe in flight, then the longest."""
        found: Blocked | None = None
        for breaker, part in self._of(source):
            wait = breaker.wait(now, part)
            if wait is not None:
                blocked = Blocked(breaker.scope, wait, breaker.probing)
                if found is None or (not blocked.probing, blocked.wait) > (not found.probing, found.wait):
                    found = blocked
        return found

    def enter(self, source: Source, now: Micros) -> tuple[Probe, ...]:
        """Note that a request that nothing blocks is about to be sent; returns the probes that it is."""
        return tuple([probe for breaker, part in self._of(source) if (probe := breaker.enter(now, part))])

    def succeeded(self, source: Source, now: Micros) -> list[Scope]:
        """Note that the upstream answered; returns what that closes."""
        closed = [breaker.scope for breaker, _ in self._of(source) if breaker.succeeded()]
        if self.pool.scope in closed:
            for each in self._clients.values():
                each.probe_now(now)
        client = self._clients.get(source.client)
        if client is not None:
            client.routes.pop(source.route, None)
            if client.breaker.scope in closed:
                client.probe_now(now)
            if not client.routes:
                del self._clients[source.client]
        self._forget(now)
        return closed

    def failed(
        self, source: Source, now: Micros, chance: float, failure: Failure, probes: tuple[Probe, ...] = ()
    ) -> list[BreakerSnapshot]:
        """Note that a request failed; returns what that opens. `probes`: those that it was; `chance`: from 0 to 1."""
        counting: list[tuple[Breaker, tuple[Hashable, ...]]] = [(self.pool, ())]
        if failure.blame != "connection":
            client = self._failing(source.client, now)
            counting = [(self.pool, source), (client.breaker, (source.route,))]
            if failure.blame == "route" or any(probe.breaker.scope.route is not None for probe in probes):
                counting.append((client.route(source.route), ()))
        opened = [breaker for breaker, whose in counting if breaker.failed(now, chance, failure, *whose, probes=probes)]
        for probe in probes:
            probe.breaker.leave(probe)
        return [snapshot for breaker in opened if (snapshot := breaker.snapshot())]

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
            if len(self._clients) <= MAX_CLIENTS and now < oldest.at + CLIENT_KEPT:
                return
            del self._clients[name]

    def snapshots(self, now: Micros) -> list[BreakerSnapshot]:
        """The open breakers."""
        clients = [client for client in self._clients.values() if now < client.at + CLIENT_KEPT]
        narrower = [breaker for client in clients for breaker in (client.breaker, *client.routes.values())]
        return [snapshot for breaker in (self.pool, *narrower) if (snapshot := breaker.snapshot())]
