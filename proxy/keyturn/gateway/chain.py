"""The one chain of a request, from its caller's place in the queue to the upstream's answer.

    read     its body, to its end or as far as may be, before it waits (`bodies`)
    lease    waits for its turn (`scheduler`), where no breaker and no narrower limit stands in the way
    send     goes out with the lease's key (`sending`), if the lease is still fresh (law 10)
    judge    a 429 (`throttling`), a key that is not accepted (`care`), an outage (`trouble`), or an answer
    learn    what the answer says of limits (`learning`)
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
from keyturn.core.breaker import BreakerView
from keyturn.core.errors import NoKey, Outage, Refusal, TooMany, UpstreamError
from keyturn.core.events import Journal, Observer, Retried, UpstreamAnswered
from keyturn.core.http import Answer, Body, Fields, Request, Whole
from keyturn.core.lessons import Higher, Lessons
from keyturn.core.model import SECOND, Micros
from keyturn.core.retries import RetryBudget
from keyturn.core.signals import FORBIDDEN, OUTAGES, TOO_MANY, UNAUTHORIZED
from keyturn.core.translate import Standing, Story, rates, to_caller
from keyturn.gateway.care import Care
from keyturn.gateway.desk import Again, Desk, Means, Outcome, Relay, Retries
from keyturn.gateway.learning import Learning
from keyturn.gateway.passage import Passage
from keyturn.gateway.sending import Heard, Late, Sender, Upstream
from keyturn.gateway.throttling import Throttling
from keyturn.gateway.trouble import OnTrial, Trouble
from keyturn.gateway.ways import Ways
from keyturn.scheduler import Displaced, Lease, Moved, Scheduler

ERRORS = 500
"""Statuses from here on are errors of the upstream's own."""


class Handled:
    """The block in which an answer is read: its lease and its body end with it, however it is left."""

    __slots__ = ("_answer", "_desk", "_gateway", "_passage")

    def __init__(self, gateway: "Gateway", desk: Desk, passage: Passage) -> None:
        self._gateway = gateway
        self._desk = desk
        self._passage = passage
        self._answer: Answer | None = None

    async def __aenter__(self) -> Answer:
        try:
            if (body := self._passage.request.body) is not None:
                await self._gateway.read_ahead(self._desk, self._passage, body)
            self._answer = await self._gateway.answer(self._desk, self._passage)
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
        retries: Retries,
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
        self._desks: dict[str, Desk] = {}
        self._sender = Sender(upstream, means)
        self._throttling = Throttling(means)
        self._trouble = Trouble(means)
        self._learning = Learning(means)
        self._ways = Ways(means)
        self._care = Care(self._sender, self._throttling, means)

    async def stop(self) -> None:
        """End what is under way besides the requests of callers."""
        await self._care.stop()

    def adopt(self, retries: Retries) -> None:
        """Try requests so often from now on; what was counted of the budget stays counted."""
        self._means.retries = retries
        self._means.budget.ratio = retries.budget
        for desk in self._desks.values():
            desk.lessons = Lessons()  # of limits that may stand in other places now

    def _desk(self, pool: str) -> Desk:
        """What is known of a pool; of one that is new, or was closed and opened again, nothing."""
        scheduler, desk = self._schedulers[pool], self._desks.get(pool)
        if desk is None or desk.scheduler is not scheduler:
            desk = self._desks[pool] = Desk(scheduler)
            self._care.attend(desk)
        return desk

    def outages(self, pool: str) -> list[BreakerView]:
        """The breakers of a pool that are open, its own first; a pool that 429s have closed is shown as one."""
        desk = self._desks.get(pool)
        if desk is None:
            return []
        throttled = desk.throttles.view() if desk.breakers.pool.closed else None
        return [*([throttled] if throttled else []), *desk.breakers.views(self._means.clock())]

    def higher(self, pool: str) -> list[Higher]:
        """The limits of a pool that the upstream tells to be higher than they are configured."""
        desk = self._desks.get(pool)
        return [] if desk is None else list(desk.lessons.higher(desk.scheduler.pool.limits))

    # A request's way

    def handle(self, request: Request, journal: Journal, *, sending: Callable[[], None] | None = None) -> Handled:
        """The answer for the caller, its body still to be read; the lease ends with the block.

        `sending` is called each time just before the request goes out.

        Raises:
            Refusal: the proxy answers itself.
        """
        if request.client.pool not in self._schedulers:
            raise NoKey("The pool of this request was taken out just now. Send it again.", retry_after=1)
        desk = self._desk(request.client.pool)
        now = self._means.clock()
        self._means.budget.request(request.client.name, now)
        return Handled(self, desk, Passage.of(request, journal, desk.scheduler.pool, now, sending))

    def rates(self, pool: str, client: str, method: str, path: str | None) -> Fields:
        """What is left of the limits that a request falls under, for an answer that is not the upstream's."""
        scheduler = self._schedulers.get(pool)
        return rates(Standing(scheduler.standing(client, method, path), self._means.wall())) if scheduler else ()

    async def read_ahead(self, desk: Desk, passage: Passage, body: Body) -> None:
        """Read a request's body, unless the request would be refused at once behind it.

        Raises:
            Refusal: it would be, or the body is not as it has to be.
            ConnectionError: its caller broke off.
        """
        if not desk.breakers.idle:
            await self._trouble.check(desk, passage)
        with suppress(Displaced, Moved):
            desk.scheduler.admit(passage.ticket)
        await passage.read_ahead(body, self._bodies)

    async def answer(self, desk: Desk, passage: Passage) -> Answer:
        """Try under one lease after another until there is an answer; the passage holds the lease it came under."""
        while True:
            tries = passage.journal.tries
            try:
                if not desk.breakers.idle:
                    await self._trouble.check(desk, passage)
                if desk.throttles.closed:
                    await self._throttling.check(desk, passage)
                passage.lease = self._lease_at_once(desk, passage) or await self._lease(desk, passage)
                outcome = await self._try(desk, passage, passage.lease)
            except (Displaced, OnTrial):
                passage.end_lease()
                passage.back = True
                continue
            except Moved as moved:
                passage.move(moved.client)
                desk = self._desk(moved.client.pool)
                continue
            except (TooMany, Outage) as refusal:
                if passage.held is None:
                    raise
                outcome = Relay(passage.held, refusal.retry_after)
            finally:
                self._trouble.leave(passage)
                self._throttling.leave(passage)
                self._ways.free(passage, counted=passage.journal.tries > tries)
            if isinstance(outcome, Relay):
                if outcome.turn:
                    outcome = await self._turn(desk, passage, outcome)
                return self._dress(desk, passage, outcome)
            passage.end_lease()
            await self._back(desk, passage, outcome)

    def _lease_at_once(self, desk: Desk, passage: Passage) -> Lease | None:
        """The lease of a request that need not wait."""
        if passage.back or desk.narrows:
            return None
        lease = desk.scheduler.try_lease(passage.ticket)
        if lease is not None:
            journal = passage.journal
            journal.key = lease.key.name
            journal.recording.waits()
            journal.recording.waited()
        return lease

    async def _lease(self, desk: Desk, passage: Passage) -> Lease:
        began, recording = self._means.clock(), passage.journal.recording
        recording.waits()
        try:
            ticket = await self._ways.choose(desk, passage) if desk.narrows else passage.ticket
            lease = await desk.scheduler.lease(ticket, front=passage.back)
        finally:
            passage.journal.queued += self._means.clock() - began
            recording.waited()
        passage.journal.key = lease.key.name
        return lease

    async def _try(self, desk: Desk, passage: Passage, lease: Lease) -> Outcome:
        """One try under one lease.

        Raises:
            Outage: the upstream is left alone meanwhile.
            UpstreamError: it failed, and the request may not go out once more.
            NoKey: its key is dead, and the request cannot go out once more.
        """
        request, body, journal = passage.request, passage.body, passage.journal
        try:
            if desk.throttles.closed and not self._throttling.enter(desk, passage):
                raise OnTrial  # noqa: TRY301  # settled below, as what `trouble` raises
            self._trouble.enter(desk, passage)
            heard = await self._sender.send(
                lease, request, body, journal, passage.sending, fresh=passage.stale, deadline=passage.ticket.deadline
            )
        except (Outage, OnTrial):
            lease.unsent()
            raise
        except Late:
            return Again("late")
        except UpstreamError as error:
            self._means.observer.observe(UpstreamAnswered(desk.name, lease.key.name, 0))
            return self._trouble.failed(desk, passage, lease, error)
        status = heard.answer.status
        if status in (UNAUTHORIZED, FORBIDDEN):
            if not desk.throttles.idle:
                self._throttling.answered(desk, passage, lease)
            self._trouble.answered(desk, passage)
            self._learning.seen(desk, passage, lease, heard)
            return await self._care.rejected(desk, passage, lease, heard)
        return self._judge(desk, passage, lease, heard, status)

    def _judge(self, desk: Desk, passage: Passage, lease: Lease, heard: Heard, status: int) -> Outcome:
        if status in OUTAGES:
            return self._trouble.out_of_order(desk, passage, lease, heard)
        if status >= ERRORS:
            self._trouble.erred(desk, passage)
            lease.spent()
            return Relay(heard.answer)
        self._trouble.answered(desk, passage)
        seen = self._learning.seen(desk, passage, lease, heard)
        if status == TOO_MANY:
            return self._throttling.refused(desk, passage, lease, heard)
        if not desk.throttles.idle:
            self._throttling.answered(desk, passage, lease)
        lease.spent(seen)
        return Relay(heard.answer)

    async def _back(self, desk: Desk, passage: Passage, again: Again) -> None:
        """The request goes to the head of its lane."""
        passage.back = True
        if again.held is not None:
            passage.held = again.held
        passage.journal.retried += (again.why,)
        self._means.observer.observe(Retried(desk.name, again.why))
        if again.pause:
            await asyncio.sleep(again.pause / SECOND)

    async def _turn(self, desk: Desk, passage: Passage, relay: Relay) -> Relay:
        """A refusal of a request that is not sent again, with the time after which a try of its caller's succeeds.

        It asks for its turn as its caller would, with no time to wait, and gives back what it gets: another key may
        have tokens at hand, and others may wait for this one's.
        """
        passage.end_lease()
        passage.ticket = replace(passage.ticket, deadline=self._means.clock())
        try:
            ticket = await self._ways.choose(desk, passage) if desk.narrows else passage.ticket
            passage.lease = await desk.scheduler.lease(ticket)
            passage.lease.unsent()
        except TooMany as refusal:
            return replace(relay, retry_after=refusal.retry_after)
        except (Refusal, Displaced, Moved):
            return relay
        finally:
            self._ways.free(passage, counted=False)
        return replace(relay, retry_after=1)

    def _dress(self, desk: Desk, passage: Passage, relay: Relay) -> Answer:
        journal, answer = passage.journal, relay.answer
        if isinstance(answer.body, Whole):
            passage.end_lease()  # nothing of it is at the upstream any more, however slowly its caller reads
        story = Story(passage.request.id, journal.key, journal.queued, journal.upstream)
        ticket = passage.ticket
        left = desk.scheduler.standing(ticket.client.name, ticket.method, ticket.path)
        standing = Standing(left, self._means.wall())
        refused = answer.status == TOO_MANY or answer.status in OUTAGES
        fields = to_caller(answer.fields, story, standing, relay.retry_after, refused=refused)
        return Answer(answer.status, answer.reason, fields, answer.body)
