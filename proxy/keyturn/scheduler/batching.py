"""When the next exchange with the store begins, and what is collected for it.

Exchanges begin at least `BATCHING` apart, so that under load many requests share one. After a pause the first begins at
once. So does that of a request for which a token is left while few others are in flight, since there is little to share
with; and that of a token that comes back unused while requests wait, as during an outage each of them gets a lease and
returns it, one after another.

Settlements of spent leases hand nothing to anybody: their tokens return a window after their requests were counted,
however late the store is told, if only it is before that. So while requests keep coming, the next one carries them, and
a request costs one round trip instead of two. All other settlements go within `FLUSH`. If a replica dies with spent
leases unreported, those tokens return later than they might have, as those of any lease that it held do (law 2), and
never earlier.
"""

import asyncio

from keyturn.core.exchange import HEARTBEAT
from keyturn.core.model import MILLISECOND, SECOND, Micros, Pool

BATCHING: Micros = 12 * MILLISECOND
"""Least time from one exchange to the next; a quarter of what a token may idle (law 3)."""

FEW_IN_FLIGHT = 4
"""Requests in flight from which on the next one may wait for others to share an exchange."""

FLUSH: Micros = 20 * MILLISECOND
"""Settlements and disconnects are reported within this time when nothing else calls."""

MAX_SETTLEMENT_DELAY: Micros = HEARTBEAT
"""Upper bound on the delay of a spent lease's settlement, besides a quarter of the shortest window."""

_SMOOTHING = 4
"""The usual interval between requests is a mean of about so many."""

_OVERDUE = 4
"""Intervals after which a request is not expected any more: one in 50 comes later, by chance."""


class WakeUpTimer:
    """Fires once for all that asked since it fired last."""

    def __init__(self) -> None:
        self._due = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._at = 0.0
        """When the timer fires; kept here since uvloop's handle of a timer that is due at once cannot tell."""
        self._next = 0.0
        """The earliest instant at which it may fire, unless that is overridden."""

    def fire_now(self) -> None:
        """Fire now, however recently it did; what is ready to run runs before."""
        self._next = 0.0
        self.fire_within(0)

    def fire(self, in_flight: int = FEW_IN_FLIGHT) -> None:
        """Fire as soon as it may; now with few requests in flight."""
        if in_flight < FEW_IN_FLIGHT:
            self._next = 0.0
        self.fire_within(0)

    def wake(self, delay: Micros) -> None:
        """Fire after `delay` as the store asks; however recently it did if a token is there already."""
        if delay <= MILLISECOND:
            self._next = 0.0
        self.fire_within(delay)

    def fire_within(self, delay: Micros) -> None:
        """Fire after `delay` at the latest, or as soon as it may."""
        if self._due.is_set():
            return
        loop = asyncio.get_running_loop()
        when = max(loop.time() + delay / SECOND, self._next)
        if self._timer:
            if self._at <= when:
                return
            self._timer.cancel()
        self._at = when
        self._timer = loop.call_at(when, self._due.set)

    def ensure_within(self, delay: Micros) -> None:
        """Fire after `delay`, unless it is set to fire at some time anyway."""
        if self._timer is None:
            self.fire_within(delay)

    async def wait(self) -> None:
        """Wait until it fires."""
        await self._due.wait()
        self._next = asyncio.get_running_loop().time() + BATCHING / SECOND
        self._due.clear()
        self.cancel()

    def cancel(self) -> None:
        """Forget what was asked for a later time."""
        if self._timer:
            self._timer.cancel()
            self._timer = None


class SettlementBatching:
    """How long settlements of spent leases wait for an exchange to share, by the rate at which requests come."""

    def __init__(self, pool: Pool) -> None:
        self._longest = 0
        self._interval = 2 * MAX_SETTLEMENT_DELAY
        self._last: Micros | None = None
        self.adopt(pool)

    def adopt(self, pool: Pool) -> None:
        """Use the windows of another configuration."""
        self._longest = min([MAX_SETTLEMENT_DELAY, *(limit.window // 4 for limit in pool.limits)])

    def arrived(self, now: Micros) -> None:
        """A request came."""
        most = 2 * MAX_SETTLEMENT_DELAY
        interval = most if self._last is None else min(now - self._last, most)
        self._interval += (interval - self._interval) // _SMOOTHING
        self._last = now

    def delay(self, now: Micros, *, waiting: bool) -> Micros:
        """How long a settlement may wait; `waiting`: requests wait, so an exchange comes when a token returns."""
        if waiting:
            return self._longest
        if self._last is None or self._interval > self._longest:
            return FLUSH
        return max(FLUSH, min(self._longest, self._last + _OVERDUE * self._interval - now))
