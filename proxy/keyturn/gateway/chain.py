"""The one chain of a request, from its caller's place in the queue to the upstream's answer.

    read     its body, to its end or as far as may be, before it waits (`bodies`)
    lease    waits in the scheduler, unless a breaker, a closed pool or a route limit holds it back
    send     with the lease's key (`sending`), if the lease is still fresh (law 10)
    judge    a 429 or a failure (`failures`), a key that is not accepted (`key_checks`), or an answer
    learn    what the answer says of limits (`limits`)
    settle   the lease, exactly once (law 2)
    dress    the answer for the caller (`core.translate`)

What certainly was not processed (no connection, a 429, a dead key) goes back to the head of its queue, and the caller
notices nothing but time. What may have been processed is sent again only if its method is idempotent, its body can be
replayed, and the retry budget allows it.
"""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from random import random

from keyturn.bodies import Bodies, BodySettings
from keyturn.core.breaker import BreakerSnapshot
from keyturn.core.errors import NoKey, Outage, Refusal, TooMany, UpstreamError
from keyturn.core.events import Observer, RequestLog, Retried, UpstreamAnswered
from keyturn.core.http import Answer, Body, Fields, Request, Whole
from keyturn.core.inferred_limits import HigherLimit, LimitInference
from keyturn.core.model import SECOND, Micros
from keyturn.core.retries import RetryBudget
from keyturn.core.signals import FORBIDDEN, OUTAGES, TOO_MANY_REQUESTS, UNAUTHORIZED
from keyturn.core.tracing import UNTRACED
from keyturn.core.translate import rates, to_caller
from keyturn.gateway.context import (
    Environment,
    PoolState,
    RequestContext,
    Respond,
    Retry,
    RetryPolicy,
    Verdict,
    waiter_of,
)
from keyturn.gateway.failures import Outages, ProbeInFlight, Throttling
from keyturn.gateway.key_checks import KeyChecks
from keyturn.gateway.limits import LimitPolicy, RoutePolicy
from keyturn.gateway.sending import Sender, StaleLease, UpstreamConnections, UpstreamResponse
from keyturn.scheduler import Displaced, Lease, Moved, Scheduler

SERVER_ERROR = 500
"""Statuses from here on are the upstream's own errors."""


class Gateway:
    """Carries requests of all pools."""

    def __init__(
        self,
        schedulers: Mapping[str, Scheduler],
        upstream: UpstreamConnections,
        *,
        retries: RetryPolicy,
        observer: Observer,
        clock: Callable[[], Micros],
        wall: Callable[[], Micros],
        chance: Callable[[], float] = random,
        bodies: Bodies | None = None,
    ) -> None:
        """Without `bodies`, they are kept in memory only."""
        environment = Environment(clock, wall, chance, retries, RetryBudget(retries.budget), observer)
        self._environment = environment
        self._schedulers = schedulers
        self._bodies = bodies or Bodies(BodySettings(), observer, clock)
        self._states: dict[str, PoolState] = {}
        self._sender = Sender(upstream, environment)
        self._throttling = Throttling(environment)
        self._outages = Outages(environment)
        self._limits = LimitPolicy(environment)
        self._routes = RoutePolicy(environment)
        self._key_checks = KeyChecks(self._sender, self._throttling, environment)

    async def stop(self) -> None:
        """End what is in flight besides the requests of callers."""
        await self._key_checks.stop()

    def adopt(self, retries: RetryPolicy) -> None:
        """Retry by this policy from now on; what was counted of the budget stays counted."""
        self._environment.retries = retries
        self._environment.budget.ratio = retries.budget
        for state in self._states.values():
            state.inference = LimitInference()  # limits may have other indices now

    def _state(self, scheduler: Scheduler) -> PoolState:
        """The state of a pool, made anew if the pool is new or was closed and opened again."""
        name = scheduler.pool.name
        state = self._states.get(name)
        if state is None or state.scheduler is not scheduler:
            state = self._states[name] = PoolState(scheduler)
            self._key_checks.attend(state)
        return state

    def outages(self, pool: str) -> list[BreakerSnapshot]:
        """The open breakers of a pool, its own first; a pool that 429s have closed is shown as one."""
        state = self._states.get(pool)
        if state is None:
            return []
        throttled = state.throttles.snapshot() if state.breakers.pool.closed else None
        return [*([throttled] if throttled else []), *state.breakers.snapshots(self._environment.clock())]

    def higher(self, pool: str) -> list[HigherLimit]:
        """The limits of a pool that the upstream tells to be higher than configured."""
        state = self._states.get(pool)
        return [] if state is None else list(state.inference.higher(state.scheduler.pool.limits))

    def rates(self, pool: str, client: str, method: str, path: str | None) -> Fields:
        """Rate fields for an answer that is not the upstream's: what is left of the request's limits."""
        scheduler = self._schedulers.get(pool)
        return rates(scheduler.view.limits_left(client, method, path), self._environment.wall()) if scheduler else ()

    # A request's way

    def handle(self, request: Request, log: RequestLog, *, sending: Callable[[], None] | None = None) -> RequestContext:
        """The block in which the answer is read; the lease ends with it.

        `sending` is called each time just before the request is sent.

        Raises:
            Refusal: the proxy answers itself.
        """
        scheduler = self._schedulers.get(request.client.pool)
        if scheduler is None:
            raise NoKey("The pool of this request was taken out just now. Send it again.", retry_after=1)
        state, now = self._state(scheduler), self._environment.clock()
        self._environment.budget.request(request.client.name, now)
        waiter = waiter_of(request, scheduler.pool, now)
        return RequestContext(state, request, log, waiter, respond=self._respond, sending=sending)

    async def _respond(self, context: RequestContext) -> Answer:
        try:
            if context.request.body is not None:
                await self._read_ahead(context, context.request.body)
            response = await self._exchange(context)
            context.answer = answer = self._dress(context, response)
        except BaseException:
            context.end()
            raise
        return answer

    async def _read_ahead(self, context: RequestContext, body: Body) -> None:
        """Read a request's body, unless the request would be refused at once behind it.

        Raises:
            Refusal: it would be, or the body is not as it has to be.
            ConnectionError: its caller broke off.
        """
        await self._outages.check(context)
        with suppress(Displaced, Moved):
            context.state.scheduler.admit(context.waiter)
        await context.read_ahead(body, self._bodies)

    async def _exchange(self, context: RequestContext) -> Respond:
        """Send under one lease after another until there is an answer; the context holds the lease of the last."""
        while True:
            tries = context.log.tries
            verdict: Verdict
            try:
                if not context.state.open:
                    await self._outages.check(context)
                    await self._throttling.check(context)
                lease = context.lease = self._lease_at_once(context) or await self._lease(context)
                verdict = await self._try(context, lease)
            except (Displaced, ProbeInFlight):
                context.end_lease()
                context.requeued = True
                continue
            except Moved as moved:
                self._leave(context, counted=False)
                context.move(moved.client, self._state(self._schedulers[moved.client.pool]))
                continue
            except (TooMany, Outage) as refusal:
                if context.held is None:
                    raise
                verdict = Respond(context.held, refusal.retry_after)
            finally:
                if context.probes or context.reopens or context.route_limit is not None:
                    self._leave(context, counted=context.log.tries > tries)
            if isinstance(verdict, Respond):
                return await self._estimate(context, verdict) if verdict.estimate else verdict
            context.end_lease()
            await self._retry(context, verdict)

    def _leave(self, context: RequestContext, *, counted: bool) -> None:
        """End a try for the policies that held it back or wait for its outcome."""
        if context.probes:
            self._outages.leave(context)
        if context.reopens:
            self._throttling.leave(context)
        if context.route_limit is not None:
            self._routes.leave(context, counted=counted)

    def _lease_at_once(self, context: RequestContext) -> Lease | None:
        """The lease of a request that need not wait."""
        if context.requeued or context.state.route_limits:
            return None
        lease = context.state.scheduler.try_lease(context.waiter)
        if lease is not None:
            log = context.log
            log.key = lease.key.name
            if log.trace is not UNTRACED:
                log.trace.wait_began()
                log.trace.wait_ended()
        return lease

    async def _lease(self, context: RequestContext) -> Lease:
        """Wait for a lease.

        Raises:
            Refusal, Displaced, Moved: as `Scheduler.lease`.
        """
        state, log, clock = context.state, context.log, self._environment.clock
        began = clock()
        log.trace.wait_began()
        try:
            waiter = await self._routes.choose(context) if state.route_limits else context.waiter
            lease = await state.scheduler.lease(waiter, front=context.requeued)
        finally:
            log.queued += clock() - began
            log.trace.wait_ended()
        log.key = lease.key.name
        return lease

    async def _try(self, context: RequestContext, lease: Lease) -> Verdict:
        """Send once under a lease.

        Raises:
            Outage, ProbeInFlight: nothing but a probe is sent, and this is none.
            UpstreamError: it failed, and the request may not be sent once more.
            NoKey: its key is dead, and the request cannot be sent once more.
        """
        try:
            if not context.state.open:
                self._throttling.enter(context)
                self._outages.enter(context)
            response = await self._sender.send(context, lease)
        except (Outage, ProbeInFlight):
            lease.unsent()
            raise
        except StaleLease:
            return Retry("late")
        except UpstreamError as error:
            self._environment.observer.observe(UpstreamAnswered(context.state.name, lease.key.name, 0))
            return self._outages.failed(context, lease, error)
        if response.answer.status in (UNAUTHORIZED, FORBIDDEN):
            self._throttling.answered(context, lease)
            self._outages.answered(context)
            self._limits.learn(context, lease, response.signals)
            return await self._key_checks.rejected(context, lease, response)
        return self._judge(context, lease, response)

    def _judge(self, context: RequestContext, lease: Lease, response: UpstreamResponse) -> Verdict:
        status = response.answer.status
        if status in OUTAGES:
            return self._outages.unavailable(context, lease, response)
        if status >= SERVER_ERROR:
            self._outages.erred(context)
            lease.spent()
            return Respond(response.answer)
        self._outages.answered(context)
        seen = self._limits.learn(context, lease, response.signals)
        if status == TOO_MANY_REQUESTS:
            return self._throttling.refused(context, lease, response)
        self._throttling.answered(context, lease)
        lease.spent(seen)
        return Respond(response.answer)

    async def _retry(self, context: RequestContext, retry: Retry) -> None:
        """Send the request to the head of its queue, after the pause."""
        context.requeued = True
        if retry.held is not None:
            context.held = retry.held
        context.log.retried += (retry.reason,)
        self._environment.observer.observe(Retried(context.state.name, retry.reason))
        if retry.pause:
            await asyncio.sleep(retry.pause / SECOND)

    async def _estimate(self, context: RequestContext, verdict: Respond) -> Respond:
        """A refusal of a request that is not sent again, with the time after which a try of its caller's succeeds.

        It asks for a lease as its caller would, with no time to wait, and gives back what it gets: another key may have
        tokens available, and others may wait for this one's.
        """
        context.end_lease()
        state = context.state
        context.waiter.deadline = self._environment.clock()
        try:
            waiter = await self._routes.choose(context) if state.route_limits else context.waiter
            context.lease = await state.scheduler.lease(waiter)
            context.lease.unsent()
        except TooMany as refusal:
            return replace(verdict, retry_after=refusal.retry_after)
        except (Refusal, Displaced, Moved):
            return verdict
        finally:
            self._routes.leave(context, counted=False)
        return replace(verdict, retry_after=1)

    def _dress(self, context: RequestContext, verdict: Respond) -> Answer:
        """The answer with the fields that its caller gets."""
        answer, status, waiter = verdict.answer, verdict.answer.status, context.waiter
        if isinstance(answer.body, Whole):
            context.end_lease()  # nothing of it is at the upstream any more, however slowly its caller reads
        left = context.state.scheduler.view.limits_left(waiter.client.name, waiter.method, waiter.path)
        refused = status == TOO_MANY_REQUESTS or status in OUTAGES
        fields = to_caller(
            answer.fields, context.log, rates(left, self._environment.wall()), verdict.retry_after, refused=refused
        )
        return Answer(status, answer.reason, fields, answer.body)
