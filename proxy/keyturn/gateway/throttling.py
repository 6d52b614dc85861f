"""What becomes of a 429: what is full is closed, and the request tries elsewhere or waits.

    window    a limit of the configuration, or any of the request's: its bucket is parked in the store until the
              upstream's time, for all replicas
    endpoint  a narrower limit that is not configured: the route is held back on this quota (`core.inferred_limits`)
    plan      no waiting cures it: another plan's quota is tried, else the caller hears the upstream itself

A 429 was not processed, so any request whose body can be sent again is.

Several quotas that are refused at once are one cause (`core.throttles`): the pool is closed, its requests wait, and one
at a time is sent as a probe.
"""

import asyncio
from contextlib import suppress

from keyturn.core.events import ThrottledTogether, UpstreamThrottled
from keyturn.core.inferred_limits import DEFAULT_WAIT, ROUTE_GUARD
from keyturn.core.model import SECOND, Micros, Pool
from keyturn.core.recent import RecentCauses
from keyturn.core.signals import Throttle
from keyturn.core.throttles import PROBE_PATIENCE
from keyturn.core.translate import whole_seconds
from keyturn.gateway.context import Means, Outcome, PoolState, RequestContext, Respond, Retry
from keyturn.gateway.sending import UpstreamResponse
from keyturn.scheduler import Lease
from keyturn.scheduler.refusals import too_late


class Throttling:
    """The gateway's ways with answers 429."""

    def __init__(self, means: Means) -> None:
        self._means = means
        self._causes = RecentCauses()

    def refused(self, state: PoolState, context: RequestContext, lease: Lease, response: UpstreamResponse) -> Outcome:
        """Settle the lease of a 429; the request goes on unless that cannot help.

        Raises:
            TooMany: it does not, and the upstream's answer broke off.
        """
        pool = lease.pool
        told = response.signals.throttle(lease.limits, pool.limits)
        wait = told.wait if told.wait is not None else _window(told, pool)
        if told.kind != "plan":
            wait = state.throttles.at_least(lease.quota, self._means.clock(), wait)
            self._together(state, context, lease, named=any(not each.left for each in response.signals.allowances))
        self._tell(state, context, lease, told, wait)
        known = wait + max(pool.guard, ROUTE_GUARD) if told.kind != "plan" else told.wait
        match told.kind:
            case "window":
                helps = bool(told.limits)
                self._park(state, lease, told, wait)
            case "endpoint":
                helps = True
                lease.spent()
                self._hold(state, context, lease, response, wait)
            case "plan":
                lease.spent()
                helps = self._avoid(state, context, lease, told)
        if helps and context.replayable:
            return Retry("throttled", held=response.hold())
        if not response.whole:
            raise too_late(known or 0)
        return Respond(response.answer, max(1, whole_seconds(known)) if known is not None else None, turn=helps)

    def _park(self, state: PoolState, lease: Lease, told: Throttle, wait: Micros) -> None:
        """Close what is full, for all replicas."""
        pool = lease.pool
        if not told.limits:
            lease.spent()
            return
        park = wait + pool.guard
        lease.throttled(park, told.limits)
        now = self._means.clock()
        names = ", ".join(pool.limits[index].name for index in told.limits)
        state.scheduler.health.parked(lease.quota, now, now + park, f"the upstream answered 429 ({names})")

    def _hold(
        self, state: PoolState, context: RequestContext, lease: Lease, response: UpstreamResponse, wait: Micros
    ) -> None:
        """Hold the route back on this quota."""
        full = [allowance for allowance in response.signals.allowances if not allowance.left and allowance.size]
        tightest = min(full, key=lambda allowance: allowance.size or 0, default=None)
        size, window = (tightest.size, tightest.window) if tightest else (None, None)
        state.route_limits.refused(context.route, lease.quota, self._means.clock(), wait, size, window)

    # Several quotas at once

    def _together(self, state: PoolState, context: RequestContext, lease: Lease, *, named: bool) -> None:
        """Close the pool if this is not about one key."""
        now, quotas, probe = self._means.clock(), len(state.scheduler.quotas), context.reopens is state
        if state.throttles.refused(lease.quota, quotas, context.route, now, named=named, probe=probe):
            wait = state.throttles.wait(now, context.route) or 0
            self._means.observer.observe(ThrottledTogether(state.name, state.throttles.together, wait))
        self.leave(context)

    async def check(self, state: PoolState, context: RequestContext) -> None:
        """Wait until the pool is not closed, or may be tried.

        Raises:
            TooMany: not before the deadline.
        """
        began = now = self._means.clock()
        deadline = context.ticket.deadline
        try:
            while (wait := state.throttles.wait(now, context.route)) is not None:
                if now + wait >= deadline:
                    raise too_late(wait)
                with suppress(TimeoutError):
                    async with asyncio.timeout((wait or min(PROBE_PATIENCE, deadline - now)) / SECOND):
                        await state.reopening.wait()
                now = self._means.clock()
        finally:
            context.log.queued += self._means.clock() - began

    def enter(self, state: PoolState, context: RequestContext) -> bool:
        """Whether the request may be sent: the pool is not closed, or it is the probe."""
        now = self._means.clock()
        if state.throttles.wait(now, context.route) is not None:
            return False
        if state.throttles.enter(now):
            context.reopens = state
        return True

    def leave(self, context: RequestContext) -> None:
        """The request is over, or has been told of: others need not wait for it."""
        state, context.reopens = context.reopens, None
        if state is not None:
            state.throttles.leave()
            self._told(state)

    def answered(self, state: PoolState, context: RequestContext, lease: Lease) -> None:
        """The upstream did not refuse a request."""
        if state.throttles.answered(lease.quota, self._means.clock()):
            self._means.observer.observe(ThrottledTogether(lease.pool.name, 0, 0))
            self._told(state)
        self.leave(context)

    @staticmethod
    def _told(state: PoolState) -> None:
        """Let those look again who wait for a probe's outcome."""
        state.reopening.set()
        state.reopening = asyncio.Event()

    def _avoid(self, state: PoolState, context: RequestContext, lease: Lease, told: Throttle) -> bool:
        """Leave out the quota of this plan; whether there may be one of another plan."""
        now = self._means.clock()
        state.route_limits.used_up(context.route, lease.quota, now, told.wait)
        context.plans += 1
        if context.ticket.pinned is not None or context.plans >= self._means.retries.attempts:
            return False
        return state.route_limits.choose(context.route, state.scheduler.quotas, now).quota is not None

    def _tell(self, state: PoolState, context: RequestContext, lease: Lease, told: Throttle, wait: Micros) -> None:
        pool = lease.pool
        what = told.limits if told.kind == "window" else context.route if told.kind == "endpoint" else ()
        is_new = self._causes.is_new((pool.name, lease.quota, told.kind, what), self._means.clock())
        is_new = is_new and (told.kind == "plan" or not state.throttles.closed)
        limit = ", ".join(pool.limits[index].name for index in told.limits)
        self._means.observer.observe(
            UpstreamThrottled(pool.name, lease.key.name, pool.label(lease.quota), told.kind, wait, limit, is_new)
        )


def _window(told: Throttle, pool: Pool) -> Micros:
    """How long to wait when the upstream does not say."""
    if told.kind == "endpoint":
        return DEFAULT_WAIT
    return max((pool.limits[index].window for index in told.limits), default=SECOND)
