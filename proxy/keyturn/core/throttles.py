"""The 429s of a pool: when a quota is closed for longer than it was told to be, and when the whole pool is closed.

1.  A quota that is refused again whenever it opens is closed for longer each time, whatever the upstream says.
2.  When all quotas are refused within `REFUSALS_WITHIN`, or `MIN_UNNAMED_REFUSALS` of them by answers that name no
    used-up limit, and none is answered in between, that is one cause and not the keys': a limit of this address, or
    of an account that they share. The pool is closed. One request at a time is the probe, after 1, 2, 4, ... s up
    to `MAX_PROBE_INTERVAL`; an answer opens the pool.
3.  A route that has not been refused need not wait for the time of the probe: should it be a limit of some endpoints
    after all, the others go on. `MAX_EARLY_PROBES` such probes are sent, and do not prolong it.
4.  A pool that is closed again within `RELAPSE` goes on with the interval of before.

Instants are in microseconds of one clock that never goes back.
"""

from keyturn.core.breaker import BreakerSnapshot, Scope
from keyturn.core.model import MILLISECOND, SECOND, Micros
from keyturn.core.signals import Route

MAX_DOUBLINGS = 5
"""How often the least wait of a quota that is refused again and again is doubled: 0, 1, 3, 7, 15, 31 s."""

SETTLING: Micros = 100 * MILLISECOND
"""Requests that were in flight when a quota was to open, and are refused, count once."""

MIN_REFUSALS, MIN_UNNAMED_REFUSALS = 2, 3
MAX_EARLY_PROBES = 8
MAX_REFUSED_ROUTES = 64
REFUSALS_WITHIN: Micros = 5 * SECOND
MAX_PROBE_INTERVAL: Micros = 32 * SECOND
RELAPSE: Micros = 60 * SECOND
PROBE_PATIENCE: Micros = 30 * SECOND
"""A probe without an outcome for this long makes room for another."""


class Throttles:
    """The 429s of one pool."""

    def __init__(self) -> None:
        self._streaks: dict[str, tuple[int, Micros]] = {}
        """For each quota: how often in a row it was refused after being closed, and until when it is closed now."""
        self._refused: dict[str, tuple[Micros, bool]] = {}
        """Each quota's last refusal since anything was answered, and whether a limit of its own was named."""
        self._routes: set[Route] = set()
        """The routes that were refused since."""
        self._until: Micros | None = None
        """While the pool is closed: when the next probe is due."""
        self._doublings = 0
        self._opened: Micros = -RELAPSE
        self._probe: Micros | None = None
        """When the probe in flight was sent."""
        self._probe_is_early = False
        self._early_probes = 0
        self._since: Micros = 0

    def __repr__(self) -> str:
        state = "open" if self._until is None else f"closed until {self._until}"
        return f"<Throttles: {state}, {len(self._refused)} quotas refused>"

    @property
    def closed(self) -> bool:
        """Whether nothing but a probe is sent."""
        return self._until is not None

    @property
    def idle(self) -> bool:
        """Whether nothing has been refused since the last answer."""
        return not self._streaks and not self._refused and self._until is None

    @property
    def together(self) -> int:
        """How many quotas were refused of late."""
        return len(self._refused)

    def at_least(self, quota: str, now: Micros, wait: Micros) -> Micros:
        """How long to close a quota: longer than told, if that has not helped time and again.

        Requests that were in flight together are refused together, and count once.
        """
        streak, until = self._streaks.get(quota, (-1, now))
        streak += now >= until
        wait = max(wait, ((1 << min(streak, MAX_DOUBLINGS)) - 1) * SECOND)
        self._streaks[quota] = (streak, max(until, now + wait + SETTLING))
        return wait

    def refused(
        self, quota: str, of: int, route: Route, now: Micros, *, named: bool = False, probe: bool = False
    ) -> bool:
        """Note that one of `of` quotas was refused; returns whether that closes the pool.

        Args:
            quota: the one that was refused.
            of: how many quotas there are.
            route: of the request.
            now: when.
            named: whether the answer names a limit that is used up.
            probe: whether the request was the probe.
        """
        if len(self._routes) < MAX_REFUSED_ROUTES:
            self._routes.add(route)
        self._refused = {
            each: known for each, known in self._refused.items() if now < known[0] + REFUSALS_WITHIN or self.closed
        }
        self._refused[quota] = (now, named)
        if self._until is not None:
            if probe and not self._probe_is_early:
                self._doublings += 1
                self._until = now + self._interval()
            self._probe = None if probe else self._probe
            return False
        unnamed = sum(not named for _, named in self._refused.values())
        if len(self._refused) < max(of, MIN_REFUSALS) and unnamed < MIN_UNNAMED_REFUSALS:
            return False
        self._doublings = self._doublings + 1 if now < self._opened + RELAPSE else 0
        self._until, self._since = now + self._interval(), now
        return True

    def _interval(self) -> Micros:
        return min(MAX_PROBE_INTERVAL, SECOND << min(self._doublings, MAX_DOUBLINGS))

    def answered(self, quota: str, now: Micros) -> bool:
        """Note that a request was not refused; returns whether that opens the pool."""
        self._streaks.pop(quota, None)
        self._refused.clear()
        self._routes.clear()
        self._early_probes = 0
        if self._until is None:
            return False
        self._until, self._probe, self._opened = None, None, now
        return True

    def snapshot(self) -> BreakerSnapshot | None:
        """Its state, if the pool is closed."""
        if self._until is None:
            return None
        return BreakerSnapshot(Scope(), self._since, f"429 for {len(self._refused)} keys at once", self._until)

    def _is_fresh(self, route: Route) -> bool:
        return route not in self._routes and self._early_probes < MAX_EARLY_PROBES

    def wait(self, now: Micros, route: Route) -> Micros | None:
        """How long nothing is sent, 0 while that depends on the probe in flight; `None` when one request may be."""
        if self._until is None:
            return None
        if self._probe is not None and now < self._probe + PROBE_PATIENCE:
            return 0
        return self._until - now if now < self._until and not self._is_fresh(route) else None

    def enter(self, now: Micros) -> bool:
        """Note that a request that need not wait is about to be sent; returns whether it is the probe."""
        if self._until is None:
            return False
        self._probe_is_early = now < self._until
        self._early_probes += self._probe_is_early
        self._probe = now
        return True

    def leave(self) -> None:
        """End a probe without an outcome."""
        self._probe = None
