"""When the next exchange with the store is due: at once, or within a time, whichever comes first.

Exchanges begin at least `BATCHING` apart, so that under load many requests share one; after a pause the first begins at
once, and so does that of a request for which there is a token, while few others are in flight that it could share with.
Nor does a token wait that comes back unused while requests wait: during an outage each of them gets a lease and gives
it back, one after another.
"""

import asyncio

from keyturn.core.model import MILLISECOND, SECOND, Micros

BATCHING: Micros = 12 * MILLISECOND
"""Least time from one exchange to the next; a quarter of what a token may idle (law 3)."""

FEW = 4
"""Requests in flight from which on the next one may wait for others."""


class Alarm:
    """Goes off once for all that asked since it was last heard."""

    def __init__(self) -> None:
        self._due = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._at = 0.0
        """When the timer fires; kept here since uvloop's handle of a timer that is due at once cannot tell."""
        self._next = 0.0
        """When it may go off again, unless it is hurried."""

    def hurry(self) -> None:
        """Go off now, however recently it did; whoever is ready to run does so before."""
        self._next = 0.0
        self.within(0)

    def ring(self, in_flight: int = FEW) -> None:
        """Go off as soon as it may; now with few requests in flight."""
        if in_flight < FEW:
            self._next = 0.0
        self.within(0)

    def wake(self, delay: Micros) -> None:
        """Go off after `delay` as the store asks; however recently it did where a token is there already."""
        if delay <= MILLISECOND:
            self._next = 0.0
        self.within(delay)

    def within(self, delay: Micros) -> None:
        """Go off after `delay` at the latest, or as soon as it may."""
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

    def sooner_or_later(self, delay: Micros) -> None:
        """Go off after `delay`, unless it does at some time anyway."""
        if self._timer is None:
            self.within(delay)

    async def heard(self) -> None:
        """Wait until it goes off."""
        await self._due.wait()
        self._next = asyncio.get_running_loop().time() + BATCHING / SECOND
        self._due.clear()
        self.stop()

    def stop(self) -> None:
        """Forget what was asked for a later time."""
        if self._timer:
            self._timer.cancel()
            self._timer = None
