"""How soon the store is told of what was spent, and of whoever left.

Of all settlements those of spent leases are the only ones that hand nothing to anybody: their tokens return a window
after their requests were counted, however late the store is told, if only it is before that. So while requests keep
coming, the next one takes them along, and a request costs one round trip instead of two. While somebody waits, the call
at its turn does. When no more come and nobody waits, they go by themselves within `FLUSH`, as all others always do.

What such a ride may cost is a replica's death with something untold: those tokens return later than they might have,
as those of any lease that it held do (law 2); never earlier, for nothing was told of them.
"""

from keyturn.core.exchange import HEARTBEAT
from keyturn.core.model import MILLISECOND, Micros, Pool

FLUSH: Micros = 20 * MILLISECOND
"""Settlements and departures reach the store within this time when nothing else calls."""

RIDE: Micros = HEARTBEAT
"""What was spent waits this long at the most for a request or a turn, or a quarter of the shortest window."""

_SMOOTH = 4
"""The usual time between two requests is the mean of about so many."""

_LATE = 4
"""Who has not come after so many times the usual time is not waited for: one in 50 comes after that, by chance."""


class Rides:
    """When requests came, and so whether the next one is worth waiting for."""

    def __init__(self, pool: Pool) -> None:
        self._longest = 0
        self._usual = 2 * RIDE
        self._last: Micros | None = None
        self.adopt(pool)

    def adopt(self, pool: Pool) -> None:
        """Go on with other limits."""
        self._longest = min([RIDE, *(limit.window // 4 for limit in pool.limits)])

    def came(self, now: Micros) -> None:
        """A request came."""
        gap = 2 * RIDE if self._last is None else min(now - self._last, 2 * RIDE)
        self._usual += (gap - self._usual) // _SMOOTH
        self._last = now

    def wait(self, now: Micros, *, waiting: bool) -> Micros:
        """How long what was spent waits for a call that takes it along; `waiting`: somebody waits for its turn."""
        if waiting:
            return self._longest
        if self._last is None or self._usual > self._longest:
            return FLUSH
        return max(FLUSH, min(self._longest, self._last + _LATE * self._usual - now))
