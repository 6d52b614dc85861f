"""Limits that answers tell and the configuration does not: other sizes of its limits, and limits of single routes.

`LimitInference` decides when a limit is believed to be lower or higher than configured. A lower one is obeyed, a higher
one only reported (law 9). An answer that names a smaller limit may speak of a narrower one, on its own endpoints only,
and headers may be wrong. So it is believed when `CONFIRMATIONS` more answers on that quota say the same, from another
route too, and none in between named the limit as configured or a larger one. Endpoints that are known to have a
narrower limit of their own (`NARROWER_ROUTES`) are no evidence. A larger limit is reported once as many answers in a
row, of whichever quota, name none as small as configured; of different sizes the smallest counts. A size that was ever
named for a longer window is not this limit's: near the end of that window its reset looks like one of a short window.

`RouteLimits` remembers limits of one route on one quota, after a 429 that named none of the pool's limits. The upstream
says until when the route is closed, and often how many requests its limit has (`size`) and in what time. From then on
that many requests are let through in that time, one at a time when no size is known: a crowd that waits for the end of
one refusal must not run into the next. A plan's quota that is used up has no size: it is avoided, and tried again every
`PLAN_RECHECK`; when no other is left, requests go out and get the upstream's own refusal. This is a guess of one
replica, kept for `ROUTE_LIMIT_KEPT` after the last refusal; a limit in the configuration is exact.

Instants are in microseconds of one clock that never goes back.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from keyturn.core.model import MILLISECOND, SECOND, Limit, Micros
from keyturn.core.signals import Route

CONFIRMATIONS = 2

NARROWER_ROUTES = frozenset(
    Route(method, first, segments)
    for method, first, segments in (
        ("GET", "collections", 1),
        ("GET", "workspaces", 1),
        ("GET", "workspaces", 2),
        ("PUT", "workspaces", 2),
        ("GET", "monitors", 1),
        ("POST", "monitors", 3),
        ("POST", "service-account-tokens", 1),
        ("POST", "import", 2),
    )
)
"""Endpoints that the Postman API documents to be limited more tightly."""

MAX_LONGER_SIZES = 16
"""Sizes of longer windows that are remembered."""

ROUTE_LIMIT_KEPT: Micros = 900 * SECOND
PLAN_RECHECK: Micros = 300 * SECOND
DEFAULT_WAIT: Micros = 10 * SECOND
"""How long a route is closed when the upstream does not say."""

MAX_LIMITED_ROUTES = 256
"""Routes that are kept; beyond, the one that was refused longest ago is forgotten."""

ROUTE_GUARD: Micros = 100 * MILLISECOND
BUSY_RECHECK: Micros = SECOND // 4
"""When to look again while as many requests are in flight as the limit has."""


@dataclass(slots=True)
class _Evidence:
    """Evidence in answers for one limit's size."""

    size: int
    answers: int = 0
    routes: set[Route] = field(default_factory=set)


class HigherLimit(NamedTuple):
    """A limit that the upstream reports to be higher than configured."""

    place: int
    """Its index among the pool's limits."""
    limit: str
    configured: int
    reported: int

    def setting(self, pool: str) -> str:
        """The setting that would raise it."""
        return f"pools.{pool}.limits[{self.place}].requests: {self.reported}"


class LimitInference:
    """Evidence in responses about the sizes of one pool's limits, by quota and limit."""

    def __init__(self) -> None:
        self._lower: dict[tuple[str, int], _Evidence] = {}
        self._lowered: set[int] = set()
        self._higher: dict[int, _Evidence] = {}
        """For each limit: the smallest size above the configured one, since an answer named a smaller size."""
        self._longer_sizes: set[int] = set()
        self._reported: set[int] = set()

    def agreed(self, quota: str, limits: Sequence[int]) -> None:
        """Note that an answer named limits as configured: a smaller size reported before was a narrower limit's."""
        if self._lower:
            for limit in limits:
                self._lower.pop((quota, limit), None)
        if self._higher:
            for limit in limits:
                self._higher.pop(limit, None)

    def told_lower(self, quota: str, limit: int, size: int, route: Route) -> bool:
        """Note that an answer named a limit smaller than configured; returns whether to believe that now."""
        self._higher.pop(limit, None)
        if route in NARROWER_ROUTES:
            return False
        evidence = self._lower.get((quota, limit))
        if evidence is None or size > evidence.size:
            evidence = self._lower[quota, limit] = _Evidence(size)
        elif size < evidence.size:
            return False
        evidence.answers += 1
        evidence.routes.add(route)
        if evidence.answers <= CONFIRMATIONS or len(evidence.routes) == 1:
            return False
        del self._lower[quota, limit]
        self._lowered.add(limit)
        return True

    def told_higher(self, limit: int | None, size: int) -> bool:
        """Note that an answer named a larger size for a limit; returns whether to report that now.

        `limit` is `None` when the size is that of another window.
        """
        if limit is None:
            if len(self._longer_sizes) < MAX_LONGER_SIZES:
                self._longer_sizes.add(size)
            for other in [one for one, evidence in self._higher.items() if evidence.size == size]:
                del self._higher[other]
            return False
        if size in self._longer_sizes or limit in self._lowered:
            return False
        evidence = self._higher.setdefault(limit, _Evidence(size))
        evidence.size = min(evidence.size, size)
        evidence.answers += 1
        if evidence.answers <= CONFIRMATIONS or limit in self._reported:
            return False
        self._reported.add(limit)
        return True

    def higher(self, limits: Sequence[Limit]) -> Iterator[HigherLimit]:
        """The limits of the pool that are known to be higher than configured."""
        for index, evidence in sorted(self._higher.items()):
            if evidence.answers > CONFIRMATIONS and index < len(limits) and evidence.size > limits[index].requests:
                yield HigherLimit(index, limits[index].name, limits[index].requests, evidence.size)


@dataclass(slots=True)
class _RouteLimit:
    """The limit of one route on one quota."""

    size: int
    """0: a plan's quota."""
    window: Micros
    closed: Micros
    """Until when."""
    in_flight: int = 0
    cooling: deque[Micros] = field(default_factory=deque)
    """When requests that were counted are counted no longer."""

    def available_at(self, now: Micros) -> Micros:
        """From when one more request may be sent."""
        while self.cooling and self.cooling[0] <= now:
            self.cooling.popleft()
        if now < self.closed or not self.size:
            return max(now, self.closed)
        if self.in_flight + len(self.cooling) < self.size:
            return now
        return self.cooling[0] if self.cooling else now + BUSY_RECHECK


class RouteChoice(NamedTuple):
    """Where a request of a route may go: to any quota, to one, or to none until later."""

    quota: str | None = None
    later: Micros | None = None


class RouteLimits:
    """The limits of single routes that showed in one pool."""

    def __init__(self) -> None:
        self._known: dict[Route, dict[str, _RouteLimit]] = {}
        self._rotation = 0

    def __len__(self) -> int:
        return len(self._known)

    def choose(self, route: Route, quotas: Sequence[str], now: Micros) -> RouteChoice:
        """Where a request may go now, among these quotas; `took` the quota that is named."""
        limits = self._of(route, now)
        if limits.keys().isdisjoint(quotas):
            return RouteChoice()
        at = {quota: limits[quota].available_at(now) if quota in limits else now for quota in quotas}
        ready = [quota for quota in quotas if at[quota] <= now]
        if ready:
            self._rotation += 1
            return RouteChoice(ready[self._rotation % len(ready)])
        waits = [at[quota] for quota in quotas if limits[quota].size]
        return RouteChoice(later=min(waits)) if waits else RouteChoice()

    def took(self, route: Route, quota: str) -> bool:
        """Note that a request goes there; returns whether its end has to be reported (`ended`)."""
        limit = self._known.get(route, {}).get(quota)
        if limit is not None:
            limit.in_flight += 1
        return limit is not None

    def ended(self, route: Route, quota: str, now: Micros, *, counted: bool) -> None:
        """Note that a request that was taken is over; `counted`: whether the upstream may have counted it."""
        limit = self._known.get(route, {}).get(quota)
        if limit is not None:
            limit.in_flight = max(0, limit.in_flight - 1)
            if counted:
                limit.cooling.append(now + limit.window + ROUTE_GUARD)

    def refused(
        self, route: Route, quota: str, now: Micros, wait: Micros | None, size: int | None, window: Micros | None
    ) -> Micros:
        """Note that a 429 closed the route on the quota; returns until when."""
        reported = DEFAULT_WAIT if wait is None else wait
        limit = self._keep(route).get(quota) or _RouteLimit(1, 0, now)
        limit.size = max(1, size or 1)
        limit.window = window or max(SECOND, reported)
        limit.closed = max(limit.closed, now + reported + ROUTE_GUARD)
        self._known[route][quota] = limit
        return limit.closed

    def _keep(self, route: Route) -> dict[str, _RouteLimit]:
        """A route's quotas, as of the route that was refused last."""
        limits = self._known[route] = self._known.pop(route, {})
        if len(self._known) > MAX_LIMITED_ROUTES:
            del self._known[next(iter(self._known))]
        return limits

    def used_up(self, route: Route, quota: str, now: Micros, wait: Micros | None) -> None:
        """Note that a plan's quota is used up, as far as this route goes."""
        closed = now + min(PLAN_RECHECK, PLAN_RECHECK if wait is None else wait)
        self._keep(route)[quota] = _RouteLimit(0, 0, closed)

    def _of(self, route: Route, now: Micros) -> dict[str, _RouteLimit]:
        """The limits still known of a route."""
        limits = self._known.get(route, {})
        over = [
            quota
            for quota, limit in limits.items()
            if limit.closed + (ROUTE_LIMIT_KEPT if limit.size else 0) <= now and not limit.in_flight
        ]
        for quota in over:
            del limits[quota]
        if over and not limits:
            del self._known[route]
        return limits
