"""Health checks of keys: a key that an answer says is not accepted is checked before it is quarantined.

A check is one `GET /me`, on a token of the key's own quota (laws 1 and 10). Several requests that meet the same dead
key share it. A quarantined key is checked again and again, ever less often (`core.health`), and at once when its secret
changes or it is resumed.
"""

import asyncio
from typing import Any, Literal

from keyturn.core.errors import KeyturnError, NoKey
from keyturn.core.events import KeyChanged, RequestLog
from keyturn.core.exchange import DemandClass
from keyturn.core.http import Request
from keyturn.core.model import SECOND, Key, Micros
from keyturn.core.signals import FORBIDDEN, TOO_MANY_REQUESTS, UNAUTHORIZED
from keyturn.gateway.context import Environment, PoolState, RequestContext, Respond, Retry, Verdict
from keyturn.gateway.failures import Throttling
from keyturn.gateway.sending import Sender, StaleLease, UpstreamResponse
from keyturn.scheduler import INTERNAL, Lease, Waiter
from keyturn.tasks import finish, spawn

CHECK_WAIT: Micros = 90 * SECOND
"""How long a check may wait for its token: more than a usual window."""

RESULT_WAIT: Micros = 2 * SECOND
"""How long a request waits for the check of its key, if another key may serve it meanwhile."""

CHECK_TIMEOUT = 30.0
"""Seconds for the answer."""

CheckResult = Literal["accepted", "rejected", "inconclusive"]

_CHECK_TARGET, _CHECK_PATH = b"/me", "/me"


class KeyChecks:
    """The health checks of all pools' keys."""

    def __init__(self, sender: Sender, throttling: Throttling, environment: Environment) -> None:
        self._sender = sender
        self._throttling = throttling
        self._environment = environment
        self._checks: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._watches: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    async def stop(self) -> None:
        """End the checks in flight."""
        await finish(self._tasks)

    def attend(self, state: PoolState) -> None:
        """Check the keys of this pool when their checks are due."""
        state.scheduler.health.on_check_due = lambda name: self._reschedule(state, name)

    # Answers 401 and 403

    async def rejected(self, context: RequestContext, lease: Lease, response: UpstreamResponse) -> Verdict:
        """Settle the lease of a 401 or 403; if it is about the key, and the key is dead, the request is sent again.

        An answer to HEAD has no body that could say what it is about.

        Raises:
            NoKey: the key is dead, and the request cannot be sent again.
        """
        state, name = context.state, lease.key.name
        health, now = state.scheduler.health, self._environment.clock()
        lease.spent()
        if response.signals.about != "key" and context.request.method != "HEAD":
            return Respond(response.answer)
        if health.begin_check(name, now):
            state.scheduler.apply_health()
            self._check(state, name)
        context.end_lease()
        elsewhere = self._may_go_elsewhere(context)
        deadline = context.waiter.deadline
        await self._wait(state, name, min(deadline, self._environment.clock() + RESULT_WAIT) if elsewhere else deadline)
        if health.usable(name) or (health.checking(name) and not elsewhere):
            return Respond(response.answer)
        context.unverified_keys += health.checking(name)
        if not context.replayable:
            raise NoKey("The key of this request turned out dead; nothing was processed. Send it again.", retry_after=1)
        return Retry("dead_key")

    def _may_go_elsewhere(self, context: RequestContext) -> bool:
        """Whether a request may go on with another key before its own is checked.

        The check may have to wait long for a token of that key. But what all keys are refused is about the request: so
        it tries a few of them only.
        """
        others = context.waiter.pinned is None and bool(context.state.scheduler.quotas)
        return others and context.replayable and context.unverified_keys + 1 < self._environment.retries.attempts

    async def _wait(self, state: PoolState, name: str, deadline: Micros) -> None:
        """Wait until a check in flight is over, but not past a deadline."""
        check = self._checks.get((state.name, name))
        if check is not None:
            await asyncio.wait([check], timeout=max(0, deadline - self._environment.clock()) / SECOND)

    # A check

    def _check(self, state: PoolState, name: str) -> asyncio.Task[None]:
        """Check a key, unless a check is in flight."""
        check = self._checks.get((state.name, name))
        if check is None:
            check = spawn(self._run(state, name), name=f"check key {state.name}/{name}", owner=self._tasks)
            self._checks[state.name, name] = check
            check.add_done_callback(lambda _: self._checks.pop((state.name, name), None))
        return check

    async def _run(self, state: PoolState, name: str) -> None:
        key = state.scheduler.pool.key(name)
        result: CheckResult = "inconclusive"
        reason = ""
        try:
            if key is not None:
                result, reason = await self._ask(state, key)
        finally:  # requests wait for a result, whatever happened
            self._settle(state, name, result, reason)

    def _settle(self, state: PoolState, name: str, result: CheckResult, reason: str) -> None:
        """Note the result of a check."""
        environment, health = self._environment, state.scheduler.health
        now, chance = environment.clock(), environment.chance()
        if result == "rejected":
            if health.rejected(name, now, reason, chance):
                environment.observer.observe(KeyChanged(state.name, name, "quarantined", reason))
            self._watch(state, name)
        elif result == "accepted":
            if health.accepted(name, now):
                environment.observer.observe(KeyChanged(state.name, name, "ready"))
        else:
            health.inconclusive(name, now, chance)
        state.scheduler.apply_health()

    async def _ask(self, state: PoolState, key: Key) -> tuple[CheckResult, str]:
        """Ask the upstream; the reason why a key is rejected holds nothing but a status and a path."""
        if not state.breakers.pool.closed or state.throttles.closed:
            return "inconclusive", ""
        demand_class = DemandClass(state.scheduler.pool.limits_on("GET", _CHECK_PATH), key.quota)
        deadline = self._environment.clock() + CHECK_WAIT
        waiter = Waiter(INTERNAL, demand_class, deadline, 0, key.name, "GET", _CHECK_PATH)
        context = RequestContext(state, _request(waiter), RequestLog(), waiter)
        try:
            with await state.scheduler.lease(waiter, front=True) as lease:
                async with asyncio.timeout(CHECK_TIMEOUT):
                    response = await self._sender.send(context, lease)
                return self._judge(context, lease, response)
        except (KeyturnError, StaleLease, TimeoutError):
            return "inconclusive", ""

    def _judge(self, context: RequestContext, lease: Lease, response: UpstreamResponse) -> tuple[CheckResult, str]:
        status, signals = response.answer.status, response.signals
        response.answer.body.abort()
        if status == TOO_MANY_REQUESTS:  # by a key's own limit, so it is known
            self._throttling.refused(context, lease, response)
            return "accepted", ""
        lease.spent(signals.seen(lease.limits, lease.pool.limits))
        if signals.about == "outage" or status >= 500:  # noqa: PLR2004  # it could not say
            return "inconclusive", ""
        if status == UNAUTHORIZED or (status == FORBIDDEN and signals.about == "key"):
            return "rejected", f"the upstream does not accept it ({status} on GET {_CHECK_PATH})"
        return "accepted", ""

    # Checks of quarantined keys

    def _reschedule(self, state: PoolState, name: str) -> None:
        """The next check of a quarantined key is due at another time."""
        if watch := self._watches.pop((state.name, name), None):
            watch.cancel()
        self._watch(state, name)

    def _watch(self, state: PoolState, name: str) -> None:
        """Check a quarantined key again until it is accepted."""
        if state.scheduler.health.next_check(name) is not None and (state.name, name) not in self._watches:
            watch = spawn(self._keep_checking(state, name), name=f"watch {state.name}/{name}", owner=self._tasks)
            self._watches[state.name, name] = watch

    async def _keep_checking(self, state: PoolState, name: str) -> None:
        try:
            while (at := state.scheduler.health.next_check(name)) is not None:
                wait = at - self._environment.clock()
                if wait > 0:
                    await asyncio.sleep(wait / SECOND)
                else:
                    await asyncio.wait([self._check(state, name)])
        finally:
            if self._watches.get((state.name, name)) is asyncio.current_task():
                del self._watches[state.name, name]


def _request(waiter: Waiter) -> Request:
    return Request(
        id=f"check-{waiter.pinned}",
        client=waiter.client,
        method="GET",
        target=_CHECK_TARGET,
        path=_CHECK_PATH,
        fields=((b"Accept", b"application/json"), (b"User-Agent", b"keyturn")),
        body=None,
        urgency=waiter.urgency,
        wait=CHECK_WAIT,
        pinned=waiter.pinned,
    )
