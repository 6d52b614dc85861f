"""When the next exchange with the store is due: at once, or within a time, whichever comes first."""

import asyncio

from proxy.core.model import SECOND, Micros


class Alarm:
    """Goes off once for all that asked since it was last heard."""

    def __init__(self) -> None:
        self._due = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._at = 0.0
        """When the timer fires; kept here since uvloop's handle of a timer that is due at once cannot tell."""

    def ring(self) -> None:
        """Go off now."""
        self._due.set()

    def within(self, delay: Micros) -> None:
        """Go off after `delay` at the latest."""
        if self._due.is_set():
            return
        loop = asyncio.get_running_loop()
        when = loop.time() + delay / SECOND
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
        self._due.clear()
        self.stop()

    def stop(self) -> None:
        """Forget what was asked for a later time."""
        if self._timer:
            self._timer.cancel()
            self._timer = None
