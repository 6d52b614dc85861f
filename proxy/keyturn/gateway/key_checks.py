"""Finding out about keys: a key that an answer says is not accepted is asked after by itself.

The asking is one `GET /me`, on a token of the key's own quota (laws 1 and 10). Several requests that meet the same
dead key share it. A key that is found dead is asked after again and again, ever less often (`core.health`), and at once
when its secret changes or it is resumed.
"""

import asyncio
from typing import Any, Literal

from keyturn.core.errors import KeyturnError, NoKey
from keyturn.core.events import KeyChanged, RequestLog
from keyturn.core.exchange import DemandClass
from keyturn.core.http import Request
from keyturn.core.model import SECOND, Key, Micros
from keyturn.core.signals import FORBIDDEN, TOO_MANY, UNAUTHORIZED
from keyturn.gateway.context import Means, Outcome, PoolState, RequestContext, Respond, Retry
from keyturn.gateway.sending import Late, Sender, UpstreamResponse
from keyturn.gateway.throttling import Throttling
from keyturn.scheduler import Lease, Ticket
from keyturn.scheduler.scheduler import OWN
from keyturn.tasks import finish, spawn

ASK_WITHIN: Micros = 90 * SECOND
"""How long an asking may wait for its token: more than a usual window."""

VERDICT_WITHIN: Micros = 2 * SECOND
"""How long a request waits for what is found out about its key, if another key may serve it meanwhile."""

ANSWER_WITHIN = 30.0
"""Seconds for the answer."""

Verdict = Literal["alive", "dead", "unknown"]

_TARGET, _PATH = b"/me", "/me"


class KeyChecks:
    """The keys of all pools."""

    def __init__(self, sender: Sender, throttling: Throttling, means: Means) -> None:
        self._sender = sender
        self._throttling = throttling
        self._means = means
        self._askings: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._watches: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    async def stop(self) -> None:
        """End what is under way."""
        await finish(self._tasks)

    def attend(self, state: PoolState) -> None:
        """Be there when a key of this pool is to be asked after."""
        state.scheduler.health.on_due = lambda name: self._look_again(state, name)

    # Answers 401 and 403

    async def rejected(
        self, state: PoolState, context: RequestContext, lease: Lease, response: UpstreamResponse
    ) -> Outcome:
        """Settle the lease of a 401 or 403; if it is about the key, and the key is dead, the request goes on.

        An answer to HEAD has no body that could say what it is about.

        Raises:
            NoKey: the key is dead, and the request cannot be sent again.
        """
        name, health = lease.key.name, state.scheduler.health
        lease.spent()
        if response.signals.about != "key" and context.request.method != "HEAD":
            return Respond(response.answer)
        if health.suspect(name, self._means.clock()):
            state.scheduler.heed()
            self._ask(state, name)
        context.end_lease()
        elsewhere = self._may_go_elsewhere(state, context)
        deadline = context.ticket.deadline
        await self._wait(state, name, min(deadline, self._means.clock() + VERDICT_WITHIN) if elsewhere else deadline)
        if health.usable(name) or (health.suspected(name) and not elsewhere):
            return Respond(response.answer)
        context.doubts += health.suspected(name)
        if not context.replayable:
            raise NoKey("The key of this request turned out dead; nothing was processed. Send it again.", retry_after=1)
        return Retry("dead_key")

    def _may_go_elsewhere(self, state: PoolState, context: RequestContext) -> bool:
        """Whether a request may go on with another key before it is known how its own is.

        The asking may have to wait long for a token of that key. But what all keys are refused is about the request:
        so not more than a few are tried by it.
        """
        others = context.ticket.pinned is None and bool(state.scheduler.quotas)
        return others and context.replayable and context.doubts + 1 < self._means.retries.attempts

    async def _wait(self, state: PoolState, name: str, deadline: Micros) -> None:
        """Wait until a key has been asked after, if that is under way, but not past a deadline."""
        asking = self._askings.get((state.name, name))
        if asking is not None:
            await asyncio.wait([asking], timeout=max(0, deadline - self._means.clock()) / SECOND)

    # Asking

    def _ask(self, state: PoolState, name: str) -> asyncio.Task[None]:
        """Ask after a key, unless that is under way."""
        asking = self._askings.get((state.name, name))
        if asking is None:
            asking = spawn(self._find_out(state, name), name=f"ask after {state.name}/{name}", owner=self._tasks)
            self._askings[state.name, name] = asking
            asking.add_done_callback(lambda _: self._askings.pop((state.name, name), None))
        return asking

    async def _find_out(self, state: PoolState, name: str) -> None:
        key = state.scheduler.pool.key(name)
        verdict: Verdict = "unknown"
        reason = ""
        try:
            if key is not None:
                verdict, reason = await self._verdict(state, key)
        finally:  # whatever happened, nobody waits for ever for what is found out
            self._settle(state, name, verdict, reason)

    def _settle(self, state: PoolState, name: str, verdict: Verdict, reason: str) -> None:
        """Take note of what was found out about a key."""
        health, now, chance = state.scheduler.health, self._means.clock(), self._means.chance()
        if verdict == "dead":
            if health.dead(name, now, reason, chance):
                self._means.observer.observe(KeyChanged(state.name, name, "quarantined", reason))
            self._watch(state, name)
        elif verdict == "alive":
            if health.alive(name, now):
                self._means.observer.observe(KeyChanged(state.name, name, "ready"))
        else:
            health.unknown(name, now, chance)
        state.scheduler.heed()

    async def _verdict(self, state: PoolState, key: Key) -> tuple[Verdict, str]:
        """Ask the upstream; the reason why a key is dead holds nothing but a status and a name."""
        scheduler = state.scheduler
        if not state.breakers.pool.closed or state.throttles.closed:
            return "unknown", ""
        demand_class = DemandClass(scheduler.pool.limits_on("GET", _PATH), key.quota)
        deadline = self._means.clock() + ASK_WITHIN
        ticket = Ticket(OWN, demand_class, deadline, 0, key.name, own=True, method="GET", path=_PATH)
        context = RequestContext(_request(ticket), RequestLog(), None, ticket)
        try:
            with await scheduler.lease(ticket, front=True) as lease:
                async with asyncio.timeout(ANSWER_WITHIN):
                    response = await self._sender.send(lease, context.request, None, context.log)
                return self._judge(state, context, lease, response)
        except (KeyturnError, Late, TimeoutError):
            return "unknown", ""

    def _judge(
        self, state: PoolState, context: RequestContext, lease: Lease, response: UpstreamResponse
    ) -> tuple[Verdict, str]:
        status, signals = response.answer.status, response.signals
        response.answer.body.abort()
        if status == TOO_MANY:  # by a key's own limit, so it is known
            self._throttling.refused(state, context, lease, response)
            return "alive", ""
        lease.spent(signals.seen(lease.limits, lease.pool.limits))
        if signals.about == "outage" or status >= 500:  # noqa: PLR2004  # it could not say
            return "unknown", ""
        if status == UNAUTHORIZED or (status == FORBIDDEN and signals.about == "key"):
            return "dead", f"the upstream does not accept it ({status} on GET {_PATH})"
        return "alive", ""

    # Asking again

    def _look_again(self, state: PoolState, name: str) -> None:
        """A dead key's time has changed: ask after it when that says so."""
        if watch := self._watches.pop((state.name, name), None):
            watch.cancel()
        self._watch(state, name)

    def _watch(self, state: PoolState, name: str) -> None:
        """See that a dead key is asked after again until it lives."""
        if state.scheduler.health.ask_again(name) is not None and (state.name, name) not in self._watches:
            watch = spawn(self._keep_asking(state, name), name=f"watch {state.name}/{name}", owner=self._tasks)
            self._watches[state.name, name] = watch

    async def _keep_asking(self, state: PoolState, name: str) -> None:
        try:
            while (at := state.scheduler.health.ask_again(name)) is not None:
                wait = at - self._means.clock()
                if wait > 0:
                    await asyncio.sleep(wait / SECOND)
                else:
                    await asyncio.wait([self._ask(state, name)])
        finally:
            if self._watches.get((state.name, name)) is asyncio.current_task():
                del self._watches[state.name, name]


def _request(ticket: Ticket) -> Request:
    return Request(
        id=f"ask-after-{ticket.pinned}",
        client=ticket.client,
        method="GET",
        target=_TARGET,
        path=_PATH,
        fields=((b"Accept", b"application/json"), (b"User-Agent", b"keyturn")),
        body=None,
        urgency=ticket.urgency,
        wait=ASK_WITHIN,
        pinned=ticket.pinned,
    )
