"""Policies for the upstream's refusals and failures: whether a request is sent again, and what is closed meanwhile.

`Throttling`, after a 429. It was not processed, so any request whose body can be sent again is.

    window    a limit of the configuration, or any of the request's: its bucket is closed in the store until the
              upstream's time, for all replicas
    endpoint  a narrower limit that is not configured: the route is held back on this quota (`core.inferred_limits`)
    plan      no waiting cures it: another plan's quota is tried, else the caller gets the upstream's own refusal

Several quotas that are refused at once are one cause (`core.throttles`): the pool is closed, its requests wait, and one
at a time is sent as a probe.

`Outages`, after a failure. What certainly was not processed (no connection) is tried again whatever its method; what
may have been (a connection that broke, no head in time, 502, 503, 504) only if its method is idempotent. Each retry
takes from the retry budget, waits a random pause, at least as long as the upstream asked for, and has to begin before
the deadline. Failures in a row open breakers (`core.breaker`): nothing of their scope is sent but a probe now and then.

Both have the same interface: `check` before a request waits for a lease, `enter` just before it is sent, `leave` when
the try is over.
"""

import asyncio
from contextlib import suppress
from dataclasses import replace

from keyturn.core.breaker import Blocked, Failure, Scope
from keyturn.core.errors import Broken, Outage, TimedOut, Unreachable, UpstreamError
from keyturn.core.events import BreakerChanged, PoolThrottled, UpstreamThrottled
from keyturn.core.inferred_limits import DEFAULT_WAIT, ROUTE_GUARD
from keyturn.core.model import SECOND, Micros, Pool
from keyturn.core.recent import RecentCauses
from keyturn.core.retries import retry_pause
from keyturn.core.signals import Throttle
from keyturn.core.throttles import PROBE_PATIENCE
from keyturn.core.translate import whole_seconds
from keyturn.gateway.context import Environment, PoolState, RequestContext, Respond, Retry, Verdict
from keyturn.gateway.sending import UpstreamResponse
from keyturn.scheduler import Lease
from keyturn.scheduler.admission import too_late

PROBE_WAIT: Micros = 2 * SECOND
"""How long a request waits for the outcome of a probe: an upstream that is well has answered by then."""


class ProbeInFlight(Exception):
    """Another request has just been sent as the probe; its outcome is to be waited for."""


class Throttling:
    """Policy for answers 429."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._causes = RecentCauses()

    async def check(self, context: RequestContext) -> None:
        """Wait until the pool is not closed, or may be probed.

        Raises:
            TooMany: not before the deadline.
        """
        state, deadline = context.state, context.waiter.deadline
        began = now = self._environment.clock()
        try:
            while (wait := state.throttles.wait(now, context.route)) is not None:
                if now + wait >= deadline:
                    raise too_late(wait)
                with suppress(TimeoutError):
                    async with asyncio.timeout((wait or min(PROBE_PATIENCE, deadline - now)) / SECOND):
                        await state.reopening.wait()
                now = self._environment.clock()
        finally:
            context.log.queued += self._environment.clock() - began

    def enter(self, context: RequestContext) -> None:
        """Note that the request is about to be sent.

        Raises:
            ProbeInFlight: the pool is closed, and the request is not the probe.
        """
        throttles = context.state.throttles
        if throttles.closed:
            now = self._environment.clock()
            if throttles.wait(now, context.route) is not None:
                raise ProbeInFlight
            context.reopens = throttles.enter(now)

    def leave(self, context: RequestContext) -> None:
        """End the request's probe: others need not wait for it."""
        if context.reopens:
            context.reopens = False
            context.state.throttles.leave()
            self._wake(context.state)

    def answered(self, context: RequestContext, lease: Lease) -> None:
        """Note that the upstream did not refuse a request."""
        throttles = context.state.throttles
        if throttles.idle:
            return
        if throttles.answered(lease.quota, self._environment.clock()):
            self._environment.observer.observe(PoolThrottled(lease.pool.name, 0, 0))
            self._wake(context.state)
        self.leave(context)

    def refused(self, context: RequestContext, lease: Lease, response: UpstreamResponse) -> Verdict:
        """Settle the lease of a 429; the request is sent again unless that cannot help.

        Raises:
            TooMany: it is not, and the upstream's answer broke off.
        """
        pool = lease.pool
        told = response.signals.throttle(lease.limits, pool.limits)
        wait = told.wait if told.wait is not None else _default_wait(told, pool)
        if told.kind != "plan":
            wait = context.state.throttles.at_least(lease.quota, self._environment.clock(), wait)
            self._close_pool(context, lease, named=any(not each.left for each in response.signals.allowances))
        self._report(context, lease, told, wait)
        known = wait + max(pool.guard, ROUTE_GUARD) if told.kind != "plan" else told.wait
        match told.kind:
            case "window":
                helps = bool(told.limits)
                self._close_buckets(context.state, lease, told, wait)
            case "endpoint":
                helps = True
                lease.spent()
                self._limit_route(context, lease, response, wait)
            case "plan":
                lease.spent()
                helps = self._avoid_plan(context, lease, told)
        if helps and context.replayable:
            return Retry("throttled", held=response.hold())
        if not response.whole:
            raise too_late(known or 0)
        return Respond(response.answer, max(1, whole_seconds(known)) if known is not None else None, helps)

    def _close_buckets(self, state: PoolState, lease: Lease, told: Throttle, wait: Micros) -> None:
        """Close the limits that are full, for all replicas."""
        pool = lease.pool
        if not told.limits:
            lease.spent()
            return
        closed = wait + pool.guard
        lease.throttled(closed, told.limits)
        now = self._environment.clock()
        names = ", ".join(pool.limits[index].name for index in told.limits)
        state.scheduler.health.parked(lease.quota, now, now + closed, f"the upstream answered 429 ({names})")

    def _limit_route(self, context: RequestContext, lease: Lease, response: UpstreamResponse, wait: Micros) -> None:
        """Hold the route back on this quota."""
        full = [allowance for allowance in response.signals.allowances if not allowance.left and allowance.size]
        tightest = min(full, key=lambda allowance: allowance.size or 0, default=None)
        size, window = (tightest.size, tightest.window) if tightest else (None, None)
        limits, now = context.state.route_limits, self._environment.clock()
        limits.refused(context.route, lease.quota, now, wait, size, window)

    def _avoid_plan(self, context: RequestContext, lease: Lease, told: Throttle) -> bool:
        """Leave out the quota of this plan; returns whether there may be one of another plan."""
        state, now = context.state, self._environment.clock()
        state.route_limits.used_up(context.route, lease.quota, now, told.wait)
        context.used_up_plans += 1
        if context.waiter.pinned is not None or context.used_up_plans >= self._environment.retries.attempts:
            return False
        return state.route_limits.choose(context.route, state.scheduler.quotas, now).quota is not None

    def _close_pool(self, context: RequestContext, lease: Lease, *, named: bool) -> None:
        """Close the pool if the refusals are not about one key."""
        state, now = context.state, self._environment.clock()
        quotas = len(state.scheduler.quotas)
        if state.throttles.refused(lease.quota, quotas, context.route, now, named=named, probe=context.reopens):
            wait = state.throttles.wait(now, context.route) or 0
            self._environment.observer.observe(PoolThrottled(state.name, state.throttles.together, wait))
        self.leave(context)

    @staticmethod
    def _wake(state: PoolState) -> None:
        """Let those look again that wait for a probe's outcome."""
        state.reopening.set()
        state.reopening = asyncio.Event()

    def _report(self, context: RequestContext, lease: Lease, told: Throttle, wait: Micros) -> None:
        pool = lease.pool
        what = told.limits if told.kind == "window" else context.route if told.kind == "endpoint" else ()
        is_new = self._causes.is_new((pool.name, lease.quota, told.kind, what), self._environment.clock())
        is_new = is_new and (told.kind == "plan" or not context.state.throttles.closed)
        limit = ", ".join(pool.limits[index].name for index in told.limits)
        self._environment.observer.observe(
            UpstreamThrottled(pool.name, lease.key.name, pool.label(lease.quota), told.kind, wait, limit, is_new)
        )


def _default_wait(told: Throttle, pool: Pool) -> Micros:
    """How long to wait when the upstream does not say."""
    if told.kind == "endpoint":
        return DEFAULT_WAIT
    return max((pool.limits[index].window for index in told.limits), default=SECOND)


class Outages:
    """Policy for failures: breakers, and retries within the budget."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._causes = RecentCauses()

    async def check(self, context: RequestContext) -> None:
        """Raise if a breaker blocks the request; wait for the outcome of a probe in flight, for `PROBE_WAIT`.

        Raises:
            Outage: a breaker blocks it; with the time of the next probe.
        """
        if context.state.breakers.idle:
            return
        state, source, began = context.state, context.source, self._environment.clock()
        now, last = began, min(context.waiter.deadline, began + PROBE_WAIT)
        try:
            while (blocked := state.breakers.blocked(source, now)) is not None:
                outcome = state.probe_outcomes.get(blocked.scope)
                if not blocked.probing or outcome is None or now >= last:
                    raise outage(blocked)
                with suppress(TimeoutError):
                    async with asyncio.timeout((last - now) / SECOND):
                        await outcome.wait()
                now = self._environment.clock()
        finally:
            context.log.queued += self._environment.clock() - began

    def enter(self, context: RequestContext) -> None:
        """Note that the request is about to be sent.

        Raises:
            ProbeInFlight: another has just been sent as the probe.
            Outage: as `check`.
        """
        state = context.state
        if state.breakers.idle:
            return
        source, now = context.source, self._environment.clock()
        blocked = state.breakers.blocked(source, now)
        if blocked is not None:
            raise ProbeInFlight if blocked.probing else outage(blocked)
        context.probes = state.breakers.enter(source, now)
        for probe in context.probes:
            state.probe_outcomes.setdefault(probe.breaker.scope, asyncio.Event())

    def leave(self, context: RequestContext) -> None:
        """End the request's probes, whatever their outcome."""
        for probe in context.probes:
            probe.breaker.leave(probe)
        self._wake(context, [])

    def answered(self, context: RequestContext) -> None:
        """Note that the upstream is alive."""
        state = context.state
        if state.breakers.idle:
            return
        closed = state.breakers.succeeded(context.source, self._environment.clock())
        self._wake(context, closed)
        for scope in closed:
            self._report(BreakerChanged(state.name, scope, opened=False))

    def erred(self, context: RequestContext) -> None:
        """Note a 500 or the like: other routes that fail, too, tell an outage from one request that the API rejects.

        Otherwise a client that repeats such a request would shut out all others.
        """
        self._count(context, Failure("errors of the API", "request"))

    def unavailable(self, context: RequestContext, lease: Lease, response: UpstreamResponse) -> Verdict:
        """Settle the lease of a 502, 503 or 504; the request is tried again if it may be.

        Raises:
            Outage, Broken: it may not, and the upstream's answer broke off: with the time that its head told, or none.
        """
        lease.spent()
        answer, wait = response.answer, response.signals.wait
        over_within = response.signals.over_within
        self._count(context, Failure(f"status {answer.status}", wait=wait, over_within=over_within))
        rest = self._pause(context, wait or 0) if context.repeatable else None
        if rest is not None:
            return Retry("outage", rest, response.hold())
        blocked = context.state.breakers.blocked(context.source, self._environment.clock())
        waits = [told for told in (wait, blocked and blocked.wait) if told is not None]
        if response.whole:
            return Respond(answer, max(1, whole_seconds(max(waits))) if waits else None)
        if waits:
            raise outage(Blocked(blocked.scope if blocked else Scope(), max(waits), False))
        raise Broken(f"The upstream broke its answer {answer.status} off. Find out whether it was processed.")

    def failed(self, context: RequestContext, lease: Lease, error: UpstreamError) -> Retry:
        """Settle the lease of a try without an answer.

        Raises:
            UpstreamError: the request may not be tried again.
        """
        if error.written:
            lease.lost()
        else:
            lease.unsent()
        if isinstance(error, Broken) and error.stale and self._replace_connection(context):
            return Retry("broken")
        if not error.local:
            self._count(context, Failure(error.name, "route" if error.written else "connection"))
        rest = self._pause(context, 0) if _may_be_sent_again(context, error) else None
        if rest is None:
            raise error
        match error:
            case Broken():
                return Retry("broken", rest)
            case TimedOut():
                return Retry("timed_out", rest)
            case _:
                return Retry("unreachable", rest)

    def _count(self, context: RequestContext, failure: Failure) -> None:
        state, now = context.state, self._environment.clock()
        opened = state.breakers.failed(context.source, now, self._environment.chance(), failure, context.probes)
        self._wake(context, [])
        for breaker in opened:
            wait = breaker.until - now
            self._report(BreakerChanged(state.name, breaker.scope, opened=True, wait=wait, cause=breaker.cause))

    @staticmethod
    def _wake(context: RequestContext, closed: list[Scope]) -> None:
        """Let those go on that wait for the outcome of this request."""
        probes, context.probes = context.probes, ()
        for scope in (*closed, *[probe.breaker.scope for probe in probes if not probe.breaker.probing]):
            outcome = context.state.probe_outcomes.pop(scope, None)
            if outcome is not None:
                outcome.set()

    def _report(self, event: BreakerChanged) -> None:
        """Report a breaker; a client's, which it may make open and close at will, once only."""
        if event.scope.client:
            what = (event.pool, event.scope, event.opened)
            event = replace(event, is_new=self._causes.is_new(what, self._environment.clock()))
        self._environment.observer.observe(event)

    def _replace_connection(self, context: RequestContext) -> bool:
        """Whether a request that met a connection closed for being idle is sent over a new one at once.

        That is no failure of the upstream's. Once for each request.
        """
        environment = self._environment
        stale, attempts = context.needs_new_connection, environment.retries.attempts
        if stale or not context.repeatable or context.failures + 1 >= attempts:
            return False
        permitted = environment.budget.retry(context.waiter.client.name, environment.clock())
        context.needs_new_connection = permitted
        context.failures += permitted
        return permitted

    def _pause(self, context: RequestContext, least: Micros) -> Micros | None:
        """The pause before one more try; `None` when there is to be none."""
        environment = self._environment
        context.failures += 1
        now = environment.clock()
        rest = least + retry_pause(context.failures, environment.chance())
        in_time = now + rest < context.waiter.deadline and context.failures < environment.retries.attempts
        return rest if in_time and environment.budget.retry(context.waiter.client.name, now) else None


def _may_be_sent_again(context: RequestContext, error: UpstreamError) -> bool:
    if isinstance(error, Unreachable):
        return error.transient and context.replayable
    return context.repeatable


def outage(blocked: Blocked) -> Outage:
    """The refusal of a request that a breaker blocks, with the time of the next probe."""
    seconds = max(1, whole_seconds(blocked.wait))
    match blocked.scope.kind:
        case "pool":
            whose = ""
        case "client":
            whose = " for this client"
        case "route":
            whose = f" for {blocked.scope.route} of this client"
    text = f"The upstream is out of order{whose} and is tried again in {seconds} s. Come back then."
    return Outage(text, retry_after=seconds)
