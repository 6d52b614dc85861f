"""What 429s in a row tell of a pool: of one quota that does not keep its word, and of several that are refused at once.

1.  A quota that is refused again whenever it opens is closed for longer each time, whatever the upstream says.
2.  When all quotas are refused within `MOMENTS`, or `TOGETHER` of them by answers that name no limit that is used up,
    and none is answered in between, that is one cause and no matter of the keys: a limit of this address, or of an
    account that they share. The pool is closed. One request at a time is the trial, after 1, 2, 4, ... up to `SLOWEST`;
    an answer opens the pool.
3.  A route that has not been refused need not wait for the time of the trial: should it be a limit of some endpoints
    after all, the others go on. `EARLY` such trials are made, and do not prolong it.
4.  A pool that is closed again within `RELAPSE` goes on with the interval of before.

Instants are in microseconds of one clock that never goes back.
"""

from keyturn.core.breaker import BreakerView, Scope
from keyturn.core.model import MILLISECOND, SECOND, Micros
from keyturn.core.signals import Route

DOUBLINGS = 5
"""How often the least wait of a quota that is refused again and again is doubled: 0, 1, 3, 7, 15, 31 s."""

SETTLING: Micros = 100 * MILLISECOND
"""Requests that were in flight when a quota was to open, and are refused, count once."""

FEWEST, TOGETHER = 2, 3
EARLY = 8
MAX_ROUTES = 64
MOMENTS: Micros = 5 * SECOND
SLOWEST: Micros = 32 * SECOND
RELAPSE: Micros = 60 * SECOND
PATIENCE: Micros = 30 * SECOND
"""A trial of which nothing is heard for so long makes room for another."""


class Throttles:
    """The 429s of one pool."""

    def __init__(self) -> None:
        self._rows: dict[str, tuple[int, Micros]] = {}
        """By quota: how often in a row it was refused after it had been closed, and until when it is closed now."""
        self._lately: dict[str, tuple[Micros, bool]] = {}
        """When each quota was refused last, since anything was answered, and whether by a limit of its own."""
        self._routes: set[Route] = set()
        """The routes that were refused since."""
        self._until: Micros | None = None
        """While the pool is closed: when the next trial may be made."""
        self._doublings = 0
        self._opened: Micros = -RELAPSE
        self._trial: Micros | None = None
        """When the trial that is in flight began."""
        self._is_early = False
        """Whether that was before its time."""
        self._early = 0
        self._since: Micros = 0

    @property
    def closed(self) -> bool:
        """Whether nothing but a trial is sent."""
        return self._until is not None

    @property
    def idle(self) -> bool:
        """Whether nothing has been refused since the last answer."""
        return not self._rows and not self._lately and self._until is None

    @property
    def together(self) -> int:
        """How many quotas were refused of late."""
        return len(self._lately)

    def at_least(self, quota: str, now: Micros, wait: Micros) -> Micros:
        """What a quota is closed for: longer than it was told to be, if that has not helped time and again.

        Requests that were in flight together are refused together, and count once.
        """
        row, until = self._rows.get(quota, (-1, now))
        row += now >= until
        wait = max(wait, ((1 << min(row, DOUBLINGS)) - 1) * SECOND)
        self._rows[quota] = (row, max(until, now + wait + SETTLING))
        return wait

    def refused(
        self, quota: str, of: int, route: Route, now: Micros, *, named: bool = False, trial: bool = False
    ) -> bool:
        """A quota, one of so many, was refused; whether that closes the pool. `named`: by a limit that is used up."""
        if len(self._routes) < MAX_ROUTES:
            self._routes.add(route)
        self._lately = {each: known for each, known in self._lately.items() if now < known[0] + MOMENTS or self.closed}
        self._lately[quota] = (now, named)
        if self._until is not None:
            if trial and not self._is_early:
                self._doublings += 1
                self._until = now + self._interval()
            self._trial = None if trial else self._trial
            return False
        unnamed = sum(not named for _, named in self._lately.values())
        if len(self._lately) < max(of, FEWEST) and unnamed < TOGETHER:
            return False
        self._doublings = self._doublings + 1 if now < self._opened + RELAPSE else 0
        self._until, self._since = now + self._interval(), now
        return True

    def _interval(self) -> Micros:
        return min(SLOWEST, SECOND << min(self._doublings, DOUBLINGS))

    def answered(self, quota: str, now: Micros) -> bool:
        """A request was not refused; whether that opens the pool."""
        self._rows.pop(quota, None)
        self._lately.clear()
        self._routes.clear()
        self._early = 0
        if self._until is None:
            return False
        self._until, self._trial, self._opened = None, None, now
        return True

    def view(self) -> BreakerView | None:
        """How it stands, if the pool is closed."""
        if self._until is None:
            return None
        return BreakerView(Scope(), self._since, f"429 for {len(self._lately)} keys at once", self._until)

    def _is_fresh(self, route: Route) -> bool:
        return route not in self._routes and self._early < EARLY

    def wait(self, now: Micros, route: Route) -> Micros | None:
        """How long nothing is sent, 0 while it depends on the trial in flight; `None` when one request may be."""
        if self._until is None:
            return None
        if self._trial is not None and now < self._trial + PATIENCE:
            return 0
        return self._until - now if now < self._until and not self._is_fresh(route) else None

    def enter(self, now: Micros) -> bool:
        """A request that need not wait is about to be sent; whether it is the trial."""
        if self._until is None:
            return False
        self._is_early = now < self._until
        self._early += self._is_early
        self._trial = now
        return True

    def leave(self) -> None:
        """The trial ended without telling anything."""
        self._trial = None
