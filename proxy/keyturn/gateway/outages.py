"""What becomes of a request when the upstream, or the way to it, is out of order.

What certainly was not processed (no connection) is tried again whatever its method; what may have been (a connection
that broke, no head in time, 502, 503, 504) only if its method is idempotent. Each further try takes from the retry
budget, waits a pause drawn by chance, at least as long as the upstream asked for, and has to begin before the deadline.

Failures in a row open breakers, of a client's route, of a client or of the pool: then nothing of that scope is sent but
a probe now and then.
"""

import asyncio
from contextlib import suppress
from dataclasses import replace

from keyturn.core.breaker import Blocked, Failure, Scope
from keyturn.core.errors import Broken, Outage, TimedOut, Unreachable, UpstreamError
from keyturn.core.events import BreakerMoved
from keyturn.core.model import SECOND, Micros
from keyturn.core.recent import RecentCauses
from keyturn.core.retries import pause
from keyturn.core.translate import whole_seconds
from keyturn.gateway.context import Means, Outcome, PoolState, RequestContext, Respond, Retry
from keyturn.gateway.sending import UpstreamResponse
from keyturn.scheduler import Lease

TRIAL: Micros = 2 * SECOND
"""How long a request waits for what a probe tells: an upstream that is well has answered by then."""


class ProbeInFlight(Exception):
    """The upstream is being tried by another request; what that tells is to be waited for."""


class Outages:
    """The gateway's ways with outages."""

    def __init__(self, means: Means) -> None:
        self._means = means
        self._causes = RecentCauses()

    # The breakers

    async def check(self, state: PoolState, context: RequestContext) -> None:
        """See that the request may go out although breakers are open; a probe's outcome is waited for, for a moment.

        Raises:
            Outage: it may not; with the time of the next probe.
        """
        source, began = context.source, self._means.clock()
        now, last = began, min(context.ticket.deadline, began + TRIAL)
        try:
            while (blocked := state.breakers.blocked(source, now)) is not None:
                outcome = state.outcomes.get(blocked.scope)
                if not blocked.probing or outcome is None or now >= last:
                    raise outage(blocked)
                with suppress(TimeoutError):
                    async with asyncio.timeout((last - now) / SECOND):
                        await outcome.wait()
                now = self._means.clock()
        finally:
            context.log.queued += self._means.clock() - began

    def enter(self, state: PoolState, context: RequestContext) -> None:
        """The request is about to be sent.

        Raises:
            OnTrial: another has just gone out as the probe.
            Outage: as `check`.
        """
        if state.breakers.idle:
            return
        source, now = context.source, self._means.clock()
        blocked = state.breakers.blocked(source, now)
        if blocked is not None:
            raise ProbeInFlight if blocked.probing else outage(blocked)
        probes = state.breakers.enter(source, now)
        if probes:
            context.probes = (state, probes)
            for probe in probes:
                state.outcomes.setdefault(probe.breaker.scope, asyncio.Event())

    def leave(self, context: RequestContext) -> None:
        """The request is over, whether its outcome was told or not."""
        if context.probes is not None:
            state, probes = context.probes
            for probe in probes:
                probe.breaker.leave(probe)
            self._told(state, context, [])

    def answered(self, state: PoolState, context: RequestContext) -> None:
        """The upstream is alive."""
        if state.breakers.idle:
            return
        closed = state.breakers.succeeded(context.source, self._means.clock())
        self._told(state, context, closed)
        for scope in closed:
            self._moved(BreakerMoved(state.name, scope, opened=False))

    def _told(self, state: PoolState, context: RequestContext, closed: list[Scope]) -> None:
        """Let those go on who wait for what this request tells."""
        probes = context.probes[1] if context.probes is not None else ()
        context.probes = None
        for scope in (*closed, *[probe.breaker.scope for probe in probes if not probe.breaker.probing]):
            outcome = state.outcomes.pop(scope, None)
            if outcome is not None:
                outcome.set()

    def _count(self, state: PoolState, context: RequestContext, failure: Failure) -> None:
        probes = context.probes[1] if context.probes is not None else ()
        now, chance = self._means.clock(), self._means.chance()
        opened = state.breakers.failed(context.source, now, chance, failure, probes)
        self._told(state, context, [])
        for snapshot in opened:
            wait = snapshot.until - now
            self._moved(BreakerMoved(state.name, snapshot.scope, opened=True, wait=wait, cause=snapshot.cause))

    def _moved(self, event: BreakerMoved) -> None:
        """Tell it; of a client, which may make its breakers open and close, once only."""
        if event.scope.client:
            what = (event.pool, event.scope, event.opened)
            event = replace(event, is_new=self._causes.is_new(what, self._means.clock()))
        self._means.observer.observe(event)

    def erred(self, state: PoolState, context: RequestContext) -> None:
        """A 500 or the like: one request that the API cannot cope with, told from an outage by other routes that err.

        Else whoever repeats such a request would shut everybody out.
        """
        self._count(state, context, Failure("errors of the API", "request"))

    # Failures

    def out_of_order(
        self, state: PoolState, context: RequestContext, lease: Lease, response: UpstreamResponse
    ) -> Outcome:
        """Settle the lease of a 502, 503 or 504; the request is tried again if it may be.

        Raises:
            Outage, Broken: it may not, and the upstream's answer broke off: with the time that its head told, or none.
        """
        lease.spent()
        wait, over_within = response.signals.wait, response.signals.over_within
        self._count(state, context, Failure(f"status {response.answer.status}", wait=wait, over_within=over_within))
        rest = self._pause(context, wait or 0) if context.repeatable else None
        if rest is not None:
            return Retry("outage", rest, response.hold())
        blocked = state.breakers.blocked(context.source, self._means.clock())
        waits = [told for told in (wait, blocked and blocked.wait) if told is not None]
        if response.whole:
            return Respond(response.answer, max(1, whole_seconds(max(waits))) if waits else None)
        raise (
            outage(Blocked(blocked.scope if blocked else Scope(), max(waits), False))
            if waits
            else Broken(f"The upstream broke its answer {response.answer.status} off.")
        )

    def failed(self, state: PoolState, context: RequestContext, lease: Lease, error: UpstreamError) -> Outcome:
        """Settle the lease of a try without an answer.

        Raises:
            UpstreamError: the request may not be tried again.
        """
        if error.written:
            lease.lost()
        else:
            lease.unsent()
        if isinstance(error, Broken) and error.stale and self._at_once(context):
            return Retry("broken")
        if not error.local:
            self._count(state, context, Failure(error.name, "route" if error.written else "connection"))
        rest = self._pause(context, 0) if _may_go_again(context, error) else None
        if rest is None:
            raise error
        match error:
            case Broken():
                return Retry("broken", rest)
            case TimedOut():
                return Retry("timed_out", rest)
            case _:
                return Retry("unreachable", rest)

    def _at_once(self, context: RequestContext) -> bool:
        """Whether a request that met a connection closed for being idle goes out over a new one, without any wait.

        That is no failure of the upstream's. Once for each request.
        """
        means = self._means
        if context.stale or not context.repeatable or context.failures + 1 >= means.retries.attempts:
            return False
        context.stale = means.budget.retry(context.ticket.client.name, means.clock())
        context.failures += context.stale
        return context.stale

    def _pause(self, context: RequestContext, least: Micros) -> Micros | None:
        """The pause before one more try; `None` when there is to be none."""
        means = self._means
        context.failures += 1
        now = means.clock()
        rest = least + pause(context.failures, means.chance())
        in_time = now + rest < context.ticket.deadline and context.failures < means.retries.attempts
        return rest if in_time and means.budget.retry(context.ticket.client.name, now) else None


def _may_go_again(context: RequestContext, error: UpstreamError) -> bool:
    if isinstance(error, Unreachable):
        return error.transient and context.replayable
    return context.repeatable


def outage(blocked: Blocked) -> Outage:
    """The refusal of a request while a breaker is open, with the time of the next probe."""
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
