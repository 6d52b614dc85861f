"""What becomes of a 429: what is full is closed, and the request tries elsewhere or waits.

    window    a limit of the configuration, or any of the request's: its bucket is parked in the store until the
              upstream's time, for all replicas
    endpoint  a narrower limit that is not configured: the route is held back on this quota (`core.narrows`)
    plan      no waiting cures it: another plan's quota is tried, else the caller hears the upstream itself

A 429 was not processed, so any request whose body can be sent again is.

Several quotas that are refused at once are one cause (`core.throttles`): the pool is closed, its requests wait, and one
at a time is sent as a trial.
"""

import asyncio
from contextlib import suppress

from keyturn.core.causes import Causes
from keyturn.core.events import ThrottledTogether, UpstreamThrottled
from keyturn.core.model import SECOND, Micros, Pool
from keyturn.core.narrows import GUARD, UNTOLD
from keyturn.core.signals import Throttle
from keyturn.core.throttles import PATIENCE
from keyturn.core.translate import whole_seconds
from keyturn.gateway.desk import Again, Desk, Means, Outcome, Relay
from keyturn.gateway.passage import Passage
from keyturn.gateway.sending import Heard
from keyturn.scheduler import Lease
from keyturn.scheduler.refusals import too_late


class Throttling:
    """The gateway's ways with answers 429."""

    def __init__(self, means: Means) -> None:
        self._means = means
        self._causes = Causes()

    def refused(self, desk: Desk, passage: Passage, lease: Lease, heard: Heard) -> Outcome:
        """Settle the lease of a 429; the request goes on unless that cannot help.

        Raises:
            TooMany: it does not, and the upstream's answer broke off.
        """
        pool = lease.pool
        told = heard.signals.throttle(lease.limits, pool.limits)
        wait = told.wait if told.wait is not None else _window(told, pool)
        if told.kind != "plan":
            wait = desk.throttles.at_least(lease.quota, self._means.clock(), wait)
            self._together(desk, passage, lease, named=any(not each.left for each in heard.signals.allowances))
        self._tell(desk, passage, lease, told, wait)
        known = wait + max(pool.guard, GUARD) if told.kind != "plan" else told.wait
        match told.kind:
            case "window":
                helps = bool(told.limits)
                self._park(desk, lease, told, wait)
            case "endpoint":
                helps = True
                lease.spent()
                self._hold(desk, passage, lease, heard, wait)
            case "plan":
                lease.spent()
                helps = self._avoid(desk, passage, lease, told)
        if helps and passage.replayable:
            return Again("throttled", held=heard.hold())
        if not heard.whole:
            raise too_late(known or 0)
        return Relay(heard.answer, max(1, whole_seconds(known)) if known is not None else None, turn=helps)

    def _park(self, desk: Desk, lease: Lease, told: Throttle, wait: Micros) -> None:
        """Close what is full, for all replicas."""
        pool = lease.pool
        if not told.limits:
            lease.spent()
            return
        park = wait + pool.guard
        lease.throttled(park, told.limits)
        now = self._means.clock()
        names = ", ".join(pool.limits[index].name for index in told.limits)
        desk.scheduler.health.parked(lease.quota, now, now + park, f"the upstream answered 429 ({names})")

    def _hold(self, desk: Desk, passage: Passage, lease: Lease, heard: Heard, wait: Micros) -> None:
        """Hold the route back on this quota."""
        full = [allowance for allowance in heard.signals.allowances if not allowance.left and allowance.size]
        tightest = min(full, key=lambda allowance: allowance.size or 0, default=None)
        size, window = (tightest.size, tightest.window) if tightest else (None, None)
        desk.narrows.refused(passage.route, lease.quota, self._means.clock(), wait, size, window)

    # Several quotas at once

    def _together(self, desk: Desk, passage: Passage, lease: Lease, *, named: bool) -> None:
        """Close the pool if this is not about one key."""
        now, quotas, trial = self._means.clock(), len(desk.scheduler.quotas), passage.reopens is desk
        if desk.throttles.refused(lease.quota, quotas, passage.route, now, named=named, trial=trial):
            wait = desk.throttles.wait(now, passage.route) or 0
            self._means.observer.observe(ThrottledTogether(desk.name, desk.throttles.together, wait))
        self.leave(passage)

    async def check(self, desk: Desk, passage: Passage) -> None:
        """Wait until the pool is not closed, or may be tried.

        Raises:
            TooMany: not before the deadline.
        """
        began = now = self._means.clock()
        deadline = passage.ticket.deadline
        try:
            while (wait := desk.throttles.wait(now, passage.route)) is not None:
                if now + wait >= deadline:
                    raise too_late(wait)
                with suppress(TimeoutError):
                    async with asyncio.timeout((wait or min(PATIENCE, deadline - now)) / SECOND):
                        await desk.reopening.wait()
                now = self._means.clock()
        finally:
            passage.journal.queued += self._means.clock() - began

    def enter(self, desk: Desk, passage: Passage) -> bool:
        """Whether the request may be sent: the pool is not closed, or it is the trial."""
        now = self._means.clock()
        if desk.throttles.wait(now, passage.route) is not None:
            return False
        if desk.throttles.enter(now):
            passage.reopens = desk
        return True

    def leave(self, passage: Passage) -> None:
        """The request is over, or has been told of: others need not wait for it."""
        desk, passage.reopens = passage.reopens, None
        if desk is not None:
            desk.throttles.leave()
            self._told(desk)

    def answered(self, desk: Desk, passage: Passage, lease: Lease) -> None:
        """The upstream did not refuse a request."""
        if desk.throttles.answered(lease.quota, self._means.clock()):
            self._means.observer.observe(ThrottledTogether(lease.pool.name, 0, 0))
            self._told(desk)
        self.leave(passage)

    @staticmethod
    def _told(desk: Desk) -> None:
        """Let those look again who wait for a trial's outcome."""
        desk.reopening.set()
        desk.reopening = asyncio.Event()

    def _avoid(self, desk: Desk, passage: Passage, lease: Lease, told: Throttle) -> bool:
        """Leave out the quota of this plan; whether there may be one of another plan."""
        now = self._means.clock()
        desk.narrows.used_up(passage.route, lease.quota, now, told.wait)
        passage.plans += 1
        if passage.ticket.pinned is not None or passage.plans >= self._means.retries.attempts:
            return False
        return desk.narrows.way(passage.route, desk.scheduler.quotas, now).quota is not None

    def _tell(self, desk: Desk, passage: Passage, lease: Lease, told: Throttle, wait: Micros) -> None:
        pool = lease.pool
        what = told.limits if told.kind == "window" else passage.route if told.kind == "endpoint" else ()
        news = self._causes.news((pool.name, lease.quota, told.kind, what), self._means.clock())
        news = news and (told.kind == "plan" or not desk.throttles.closed)
        limit = ", ".join(pool.limits[index].name for index in told.limits)
        self._means.observer.observe(
            UpstreamThrottled(pool.name, lease.key.name, pool.label(lease.quota), told.kind, wait, limit, news)
        )


def _window(told: Throttle, pool: Pool) -> Micros:
    """How long to wait when the upstream does not say."""
    if told.kind == "endpoint":
        return UNTOLD
    return max((pool.limits[index].window for index in told.limits), default=SECOND)
