"""Limits that are not configured but showed: on one route of one quota, by a 429 that named none of the pool's limits.

The upstream says until when a route is closed, and often how many requests its limit has (`size`) and in what time.
From then on so many requests are let through in such a time, one at a time when no size was told: a crowd that waits
for the end of one refusal must not run into the next. A plan's quota that is used up has no size: its quotas are
avoided, and asked again every `RECHECK`; when no other is left, requests go and hear it from the upstream itself.

This is a guess of one replica, kept for `KEEP` after the last refusal; a limit in the configuration is exact.
Instants are in microseconds of one clock that never goes back.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from keyturn.core.model import MILLISECOND, SECOND, Micros
from keyturn.core.signals import Route

KEEP: Micros = 900 * SECOND
RECHECK: Micros = 300 * SECOND
UNTOLD: Micros = 10 * SECOND
"""How long a route is closed when the upstream does not say."""

MOST = 256
"""Routes that are kept; beyond, the one that was refused longest ago is forgotten."""

GUARD: Micros = 100 * MILLISECOND
BUSY: Micros = SECOND // 4
"""After what time to look again while all that may be under way is."""


@dataclass(slots=True)
class _Narrow:
    """One route of one quota."""

    size: int
    """0: a plan's quota."""
    window: Micros
    closed: Micros
    """Until when."""
    out: int = 0
    cooling: deque[Micros] = field(default_factory=deque)
    """When requests that were counted are so no longer."""

    def free(self, now: Micros) -> Micros:
        """From when one more request may go."""
        while self.cooling and self.cooling[0] <= now:
            self.cooling.popleft()
        if now < self.closed or not self.size:
            return max(now, self.closed)
        if self.out + len(self.cooling) < self.size:
            return now
        return self.cooling[0] if self.cooling else now + BUSY


class Way(NamedTuple):
    """Where a request of a route may go: any quota, one, or none until later."""

    quota: str | None = None
    later: Micros | None = None


class Narrows:
    """What showed in one pool."""

    def __init__(self) -> None:
        self._known: dict[Route, dict[str, _Narrow]] = {}
        self._turn = 0

    def __len__(self) -> int:
        return len(self._known)

    def way(self, route: Route, quotas: Sequence[str], now: Micros) -> Way:
        """Where a request may go now, among these quotas; a quota that is named is to be taken up (`took`)."""
        narrows = self._of(route, now)
        if narrows.keys().isdisjoint(quotas):
            return Way()
        free = {quota: narrows[quota].free(now) if quota in narrows else now for quota in quotas}
        ready = [quota for quota in quotas if free[quota] <= now]
        if ready:
            self._turn += 1
            return Way(ready[self._turn % len(ready)])
        waits = [free[quota] for quota in quotas if narrows[quota].size]
        return Way(later=min(waits)) if waits else Way()

    def took(self, route: Route, quota: str) -> bool:
        """A request goes there; whether it has to be told how that ended (`ended`)."""
        narrow = self._known.get(route, {}).get(quota)
        if narrow is not None:
            narrow.out += 1
        return narrow is not None

    def ended(self, route: Route, quota: str, now: Micros, *, counted: bool) -> None:
        """A request that was taken up is over; whether the upstream may have counted it."""
        narrow = self._known.get(route, {}).get(quota)
        if narrow is not None:
            narrow.out = max(0, narrow.out - 1)
            if counted:
                narrow.cooling.append(now + narrow.window + GUARD)

    def refused(
        self, route: Route, quota: str, now: Micros, wait: Micros | None, size: int | None, window: Micros | None
    ) -> Micros:
        """A 429 closed the route on the quota; returns until when."""
        told = UNTOLD if wait is None else wait
        narrow = self._keep(route).get(quota) or _Narrow(1, 0, now)
        narrow.size = max(1, size or 1)
        narrow.window = window or max(SECOND, told)
        narrow.closed = max(narrow.closed, now + told + GUARD)
        self._known[route][quota] = narrow
        return narrow.closed

    def _keep(self, route: Route) -> dict[str, _Narrow]:
        """A route's quotas, as of the route that was refused last."""
        narrows = self._known[route] = self._known.pop(route, {})
        if len(self._known) > MOST:
            del self._known[next(iter(self._known))]
        return narrows

    def used_up(self, route: Route, quota: str, now: Micros, wait: Micros | None) -> None:
        """A plan's quota is used up, as far as this route goes."""
        closed = now + min(RECHECK, RECHECK if wait is None else wait)
        self._keep(route)[quota] = _Narrow(0, 0, closed)

    def _of(self, route: Route, now: Micros) -> dict[str, _Narrow]:
        """What is still known of a route."""
        narrows = self._known.get(route, {})
        over = [
            quota
            for quota, narrow in narrows.items()
            if narrow.closed + (KEEP if narrow.size else 0) <= now and not narrow.out
        ]
        for quota in over:
            del narrows[quota]
        if over and not narrows:
            del self._known[route]
        return narrows
