"""The one chain of a request, from its caller's place in the queue to the upstream's answer.

    read     its body, to its end or as far as may be, before it waits (`bodies`)
    lease    waits for its turn (`scheduler`), where no breaker and no narrower limit stands in the way
    send     goes out with the lease's key (`sending`), if the lease is still fresh (law 10)
    judge    a 429 (`throttling`), a key that is not accepted (`key_checks`), an outage (`outages`), or an answer
    learn    what the answer says of limits (`limits`)
    settle   the lease, exactly once (law 2)
    dress    the answer for the caller (`core.translate`)

What certainly was not processed (no connection, a 429, a dead key) goes back to the head of its lane and the caller
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
from keyturn.core.signals import FORBIDDEN, OUTAGES, TOO_MANY, UNAUTHORIZED
from keyturn.core.translate import Standing, Story, rates, to_caller
from keyturn.gateway.context import Means, Outcome, PoolState, RequestContext, Respond, Retry, RetryPolicy
from keyturn.gateway.key_checks import KeyChecks
from keyturn.gateway.limits import LimitPolicy, RoutePolicy
from keyturn.gateway.outages import Outages, ProbeInFlight
from keyturn.gateway.sending import Late, Sender, Upstream, UpstreamResponse
from keyturn.gateway.throttling import Throttling
from keyturn.scheduler import Displaced, Lease, Moved, Scheduler

ERRORS = 500
"""Statuses from here on are errors of the upstream's own."""


class Handled:
    """The block in which an answer is read: its lease and its body end with it, however it is left."""

    __slots__ = ("_answer", "_gateway", "_passage", "_state")

    def __init__(self, gateway: "Gateway", state: PoolState, context: RequestContext) -> None:
        self._gateway = gateway
        self._state = state
        self._passage = context
        self._answer: Answer | None = None

    async def __aenter__(self) -> Answer:
        try:
            if (body := self._passage.request.body) is not None:
                await self._gateway.read_ahead(self._state, self._passage, body)
            self._answer = await self._gateway.answer(self._state, self._passage)
        except BaseException:
            self._passage.end()
            raise
        return self._answer

    async def __aexit__(self, *_: object) -> None:
        if self._answer is not None:
            self._answer.body.abort()
        self._passage.end()


class Gateway:
    """Carries requests of all pools."""

    def __init__(
        self,
        schedulers: Mapping[str, Scheduler],
        upstream: Upstream,
        *,
        retries: RetryPolicy,
        observer: Observer,
        clock: Callable[[], Micros],
        wall: Callable[[], Micros],
        chance: Callable[[], float] = random,
        bodies: Bodies | None = None,
    ) -> None:
        """Without `bodies`, they are kept in memory only."""
        self._means = means = Means(clock, wall, chance, retries, RetryBudget(retries.budget), observer)
        self._schedulers = schedulers
        self._bodies = bodies or Bodies(BodySettings(), observer, clock)
        self._states: dict[str, PoolState] = {}
        self._sender = Sender(upstream, means)
        self._throttling = Throttling(means)
        self._outages = Outages(means)
        self._limits = LimitPolicy(means)
        self._routes = RoutePolicy(means)
        self._key_checks = KeyChecks(self._sender, self._throttling, means)

    async def stop(self) -> None:
        """End what is under way besides the requests of callers."""
        await self._key_checks.stop()

    def adopt(self, retries: RetryPolicy) -> None:
        """Try requests so often from now on; what was counted of the budget stays counted."""
        self._means.retries = retries
        self._means.budget.ratio = retries.budget
        for state in self._states.values():
            state.inference = LimitInference()  # of limits that may stand in other places now

    def _state(self, pool: str) -> PoolState:
        """What is known of a pool; of one that is new, or was closed and opened again, nothing."""
        scheduler, state = self._schedulers[pool], self._states.get(pool)
        if state is None or state.scheduler is not scheduler:
            state = self._states[pool] = PoolState(scheduler)
            self._key_checks.attend(state)
        return state

    def outages(self, pool: str) -> list[BreakerSnapshot]:
        """The breakers of a pool that are open, its own first; a pool that 429s have closed is shown as one."""
        state = self._states.get(pool)
        if state is None:
            return []
        throttled = state.throttles.snapshot() if state.breakers.pool.closed else None
        return [*([throttled] if throttled else []), *state.breakers.snapshots(self._means.clock())]

    def higher(self, pool: str) -> list[HigherLimit]:
        """The limits of a pool that the upstream tells to be higher than they are configured."""
        state = self._states.get(pool)
        return [] if state is None else list(state.inference.higher(state.scheduler.pool.limits))

    # A request's way

    def handle(self, request: Request, log: RequestLog, *, sending: Callable[[], None] | None = None) -> Handled:
        """The answer for the caller, its body still to be read; the lease ends with the block.

        `sending` is called each time just before the request goes out.

        Raises:
            Refusal: the proxy answers itself.
        """
        if request.client.pool not in self._schedulers:
            raise NoKey("The pool of this request was taken out just now. Send it again.", retry_after=1)
        state = self._state(request.client.pool)
        now = self._means.clock()
        self._means.budget.request(request.client.name, now)
        return Handled(self, state, RequestContext.of(request, log, state.scheduler.pool, now, sending))

    def rates(self, pool: str, client: str, method: str, path: str | None) -> Fields:
        """What is left of the limits that a request falls under, for an answer that is not the upstream's."""
        scheduler = self._schedulers.get(pool)
        return rates(Standing(scheduler.standing(client, method, path), self._means.wall())) if scheduler else ()

    async def read_ahead(self, state: PoolState, context: RequestContext, body: Body) -> None:
        """Read a request's body, unless the request would be refused at once behind it.

        Raises:
            Refusal: it would be, or the body is not as it has to be.
            ConnectionError: its caller broke off.
        """
        if not state.breakers.idle:
            await self._outages.check(state, context)
        with suppress(Displaced, Moved):
            state.scheduler.admit(context.ticket)
        await context.read_ahead(body, self._bodies)

    async def answer(self, state: PoolState, context: RequestContext) -> Answer:
        """Try under one lease after another until there is an answer; the passage holds the lease it came under."""
        while True:
            tries = context.log.tries
            try:
                if not state.breakers.idle:
                    await self._outages.check(state, context)
                if state.throttles.closed:
                    await self._throttling.check(state, context)
                context.lease = self._lease_at_once(state, context) or await self._lease(state, context)
                outcome = await self._try(state, context, context.lease)
            except (Displaced, ProbeInFlight):
                context.end_lease()
                context.back = True
                continue
            except Moved as moved:
                context.move(moved.client)
                state = self._state(moved.client.pool)
                continue
            except (TooMany, Outage) as refusal:
                if context.held is None:
                    raise
                outcome = Respond(context.held, refusal.retry_after)
            finally:
                self._outages.leave(context)
                self._throttling.leave(context)
                self._routes.free(context, counted=context.log.tries > tries)
            if isinstance(outcome, Respond):
                if outcome.turn:
                    outcome = await self._turn(state, context, outcome)
                return self._dress(state, context, outcome)
            context.end_lease()
            await self._back(state, context, outcome)

    def _lease_at_once(self, state: PoolState, context: RequestContext) -> Lease | None:
        """The lease of a request that need not wait."""
        if context.back or state.route_limits:
            return None
        lease = state.scheduler.try_lease(context.ticket)
        if lease is not None:
            log = context.log
            log.key = lease.key.name
            log.trace.wait_began()
            log.trace.wait_ended()
        return lease

    async def _lease(self, state: PoolState, context: RequestContext) -> Lease:
        began, trace = self._means.clock(), context.log.trace
        trace.wait_began()
        try:
            ticket = await self._routes.choose(state, context) if state.route_limits else context.ticket
            lease = await state.scheduler.lease(ticket, front=context.back)
        finally:
            context.log.queued += self._means.clock() - began
            trace.wait_ended()
        context.log.key = lease.key.name
        return lease

    async def _try(self, state: PoolState, context: RequestContext, lease: Lease) -> Outcome:
        """One try under one lease.

        Raises:
            Outage: the upstream is left alone meanwhile.
            UpstreamError: it failed, and the request may not go out once more.
            NoKey: its key is dead, and the request cannot go out once more.
        """
        request, body, log = context.request, context.body, context.log
        try:
            if state.throttles.closed and not self._throttling.enter(state, context):
                raise ProbeInFlight  # noqa: TRY301  # settled below, as what `outages` raises
            self._outages.enter(state, context)
            response = await self._sender.send(
                lease, request, body, log, context.sending, fresh=context.stale, deadline=context.ticket.deadline
            )
        except (Outage, ProbeInFlight):
            lease.unsent()
            raise
        except Late:
            return Retry("late")
        except UpstreamError as error:
            self._means.observer.observe(UpstreamAnswered(state.name, lease.key.name, 0))
            return self._outages.failed(state, context, lease, error)
        status = response.answer.status
        if status in (UNAUTHORIZED, FORBIDDEN):
            if not state.throttles.idle:
                self._throttling.answered(state, context, lease)
            self._outages.answered(state, context)
            self._limits.seen(state, context, lease, response)
            return await self._key_checks.rejected(state, context, lease, response)
        return self._judge(state, context, lease, response, status)

    def _judge(
        self, state: PoolState, context: RequestContext, lease: Lease, response: UpstreamResponse, status: int
    ) -> Outcome:
        if status in OUTAGES:
            return self._outages.out_of_order(state, context, lease, response)
        if status >= ERRORS:
            self._outages.erred(state, context)
            lease.spent()
            return Respond(response.answer)
        self._outages.answered(state, context)
        seen = self._limits.seen(state, context, lease, response)
        if status == TOO_MANY:
            return self._throttling.refused(state, context, lease, response)
        if not state.throttles.idle:
            self._throttling.answered(state, context, lease)
        lease.spent(seen)
        return Respond(response.answer)

    async def _back(self, state: PoolState, context: RequestContext, again: Retry) -> None:
        """The request goes to the head of its lane."""
        context.back = True
        if again.held is not None:
            context.held = again.held
        context.log.retried += (again.why,)
        self._means.observer.observe(Retried(state.name, again.why))
        if again.pause:
            await asyncio.sleep(again.pause / SECOND)

    async def _turn(self, state: PoolState, context: RequestContext, relay: Respond) -> Respond:
        """A refusal of a request that is not sent again, with the time after which a try of its caller's succeeds.

        It asks for its turn as its caller would, with no time to wait, and gives back what it gets: another key may
        have tokens at hand, and others may wait for this one's.
        """
        context.end_lease()
        context.ticket = replace(context.ticket, deadline=self._means.clock())
        try:
            ticket = await self._routes.choose(state, context) if state.route_limits else context.ticket
            context.lease = await state.scheduler.lease(ticket)
            context.lease.unsent()
        except TooMany as refusal:
            return replace(relay, retry_after=refusal.retry_after)
        except (Refusal, Displaced, Moved):
            return relay
        finally:
            self._routes.free(context, counted=False)
        return replace(relay, retry_after=1)

    def _dress(self, state: PoolState, context: RequestContext, relay: Respond) -> Answer:
        log, answer = context.log, relay.answer
        if isinstance(answer.body, Whole):
            context.end_lease()  # nothing of it is at the upstream any more, however slowly its caller reads
        story = Story(context.request.id, log.key, log.queued, log.upstream)
        ticket = context.ticket
        left = state.scheduler.standing(ticket.client.name, ticket.method, ticket.path)
        standing = Standing(left, self._means.wall())
        refused = answer.status == TOO_MANY or answer.status in OUTAGES
        fields = to_caller(answer.fields, story, standing, relay.retry_after, refused=refused)
        return Answer(answer.status, answer.reason, fields, answer.body)
