"""Identical GETs of one pool that wait for a lease share one lease and one answer (`queue.join`).

Laws of this module:

- No answer is stale: a caller joins only while the request has not been sent, so the answer is made after it arrived.
- No caller is worse off. It joins a request of its own client with the same urgency and a deadline that is not later;
  the same request of another client waits in that client's own queue, and the one that is sent first serves all.
- Requests are joined only under the same rules: pool, allow list, the right to pin, the pinned key, and every field
  that can change the answer are the same.
- A failure fails its first caller at most: the others go on, each by itself or with those that are left.
- A caller that leaves affects no other; the exchange ends when none is left.
- No reader sets the pace for the others: see `fanout`.
"""

import asyncio
from bisect import insort
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import partial
from operator import attrgetter
from typing import Any, NamedTuple, Protocol

from keyturn.core.errors import Refusal, TooMany, UpstreamError
from keyturn.core.events import ConnectionEnded, Joined, Observer, RequestLog
from keyturn.core.http import Answer, Fields, Request
from keyturn.core.model import Client, Micros
from keyturn.core.policy import Rule
from keyturn.core.translate import fields_for_another
from keyturn.joining.fanout import ANSWER_BOUND, Fanout, FanoutBudget, FanoutReader
from keyturn.tasks import finish, spawn

_IDENTIFYING_FIELDS = frozenset({
    b"x-request-id", b"traceparent", b"tracestate", b"baggage", b"postman-token", b"priority",
})  # fmt: skip
"""Fields that name or order a request and change no answer; clients of Postman's make a `Postman-Token` each time."""


class Responder(Protocol):
    """The gateway, as it is used here."""

    def handle(
        self, request: Request, log: RequestLog, *, sending: Callable[[], None] | None = None
    ) -> AbstractAsyncContextManager[Answer]:
        """The answer; `sending` is called each time just before the request is sent."""

    def rates(self, pool: str, client: str, method: str, path: str | None) -> Fields:
        """Rate fields: what is left of a request's limits."""


class JoinKey(NamedTuple):
    """Attributes on which requests must agree to share one answer."""

    pool: str
    target: bytes
    fields: Fields
    allow: tuple[Rule, ...] | None
    may_pin: bool
    pinned: str | None


def join_key(request: Request) -> JoinKey | None:
    """The key by which a request is joined; `None` if it never is."""
    if request.method != "GET" or request.body is not None:
        return None
    client = request.client
    fields = sorted((name.lower(), value) for name, value in request.fields if name.lower() not in _IDENTIFYING_FIELDS)
    return JoinKey(client.pool, request.target, tuple(fields), client.allow, client.pin, request.pinned)


class Fallback(Enum):
    """How a caller without an answer goes on: with those that are left, or by itself."""

    JOIN_AGAIN = "together"
    SEND_ALONE = "alone"


@dataclass(slots=True, eq=False)
class Caller:
    """One request of a shared exchange."""

    request: Request
    log: RequestLog
    deadline: Micros
    arrived: Micros
    outcome: "asyncio.Future[Answer | Fallback]"
    shared: "_SharedRequest | None" = None


_deadline = attrgetter("deadline")


@dataclass(slots=True, eq=False)
class _SharedRequest:
    """One exchange and its callers, sorted by deadline until it is sent; the first one leads."""

    join_key: JoinKey
    leader: Caller
    log: RequestLog
    callers: list[Caller] = field(default_factory=list)
    gone: int = 0
    """Callers that have left."""
    task: asyncio.Task[Any] | None = None
    sent: Micros | None = None

    @property
    def client(self) -> Client:
        """The client in whose queue it waits."""
        return self.leader.request.client

    def takes(self, caller: Caller) -> bool:
        """Whether a caller is no worse off here than by itself."""
        ours, its = self.leader.request, caller.request
        same = (ours.client.name, ours.urgency) == (its.client.name, its.urgency)
        return same and self.leader.deadline <= caller.deadline


class Joining:
    """A gateway whose callers may share answers; `enabled` may change at any time."""

    def __init__(self, responder: Responder, *, enabled: bool, clock: Callable[[], Micros], observer: Observer) -> None:
        self.enabled = enabled
        self._responder = responder
        self.clock = clock
        self._observer = observer
        self._budget = FanoutBudget()
        self._waiting: dict[JoinKey, list[_SharedRequest]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    def handle(self, request: Request, log: RequestLog) -> AbstractAsyncContextManager[Answer]:
        """The answer, shared or not; its body is read within the block.

        Raises:
            Refusal: the proxy answers itself.
        """
        key = join_key(request) if self.enabled else None
        if key is None:
            return self._responder.handle(request, log)
        return _JoinedRequest(self, self._responder, key, request, log)

    def rates(self, pool: str, client: str, method: str, path: str | None) -> Fields:
        """Rate fields: what is left of a request's limits."""
        return self._responder.rates(pool, client, method, path)

    async def stop(self) -> None:
        """End every shared exchange."""
        await finish(self._tasks)

    # Callers

    def join(self, key: JoinKey, request: Request, log: RequestLog, deadline: Micros) -> Caller:
        """Join an exchange that has not been sent, else begin one."""
        caller = Caller(request, log, deadline, self.clock(), asyncio.get_running_loop().create_future())
        candidates = self._waiting.setdefault(key, [])
        shared = next((shared for shared in candidates if shared.takes(caller)), None)
        if shared is None:
            shared = _SharedRequest(key, caller, _exchange_log(log))
            candidates.append(shared)
            shared.task = spawn(self._run(shared), name=f"joined {log.id}", owner=self._tasks)
        insort(shared.callers, caller, key=_deadline)
        caller.shared = shared
        return caller

    def leave(self, caller: Caller) -> None:
        """Remove a caller that gave up; the exchange ends if it was the last."""
        shared = caller.shared
        if shared and caller.outcome.cancelled():
            shared.gone += 1
            if shared.gone == len(shared.callers) and shared.task:
                shared.task.cancel()
        if caller.outcome.done() and not caller.outcome.cancelled() and not caller.outcome.exception():
            answer = caller.outcome.result()  # it came in the same tick
            if isinstance(answer, Answer):
                answer.body.abort()

    # The shared exchange

    async def _run(self, shared: _SharedRequest) -> None:
        try:
            while not await self._exchange(shared):
                pass
        except Exception as problem:  # noqa: BLE001  # its callers meet it
            self._fail(shared, problem)
        finally:
            self._forget(shared)

    async def _exchange(self, shared: _SharedRequest) -> bool:
        """Send once; returns false when the leader was refused and another one leads."""
        request = shared.leader.request
        try:
            async with self._responder.handle(request, shared.log, sending=lambda: self._sending(shared)) as answer:
                await self._share(shared, answer)
        except TooMany as refusal:
            if shared.sent is not None:
                raise
            await asyncio.sleep(0)  # many refusals at once must not block the event loop
            return not self._next_leader(shared, refusal)
        return True

    def _next_leader(self, shared: _SharedRequest, refusal: TooMany) -> bool:
        """Refuse the leader and let the next one lead, with the time that it has left; returns whether there is one.

        The others are not woken, so many refusals one after another cost no more than each alone.
        """
        now, callers = self.clock(), shared.callers
        leader = callers.pop(0)
        leader.log.queued += now - leader.arrived
        _copy_tries(leader.log, shared.log, joined=False)
        if not leader.outcome.done():
            leader.outcome.set_exception(refusal)
        else:
            shared.gone -= 1
        while callers and callers[0].outcome.done():
            callers.pop(0)
            shared.gone -= 1
        if not callers:
            return False
        shared.leader = leader = callers[0]
        shared.log = _exchange_log(leader.log)
        leader.request = replace(leader.request, wait=max(0, leader.deadline - now))
        return True

    def _sending(self, shared: _SharedRequest) -> None:
        """Close the exchange when it is sent, and take in those that wait elsewhere for the same answer."""
        if shared.sent is not None:
            return
        shared.sent = self.clock()
        for other in self._waiting.pop(shared.join_key, []):
            if other is not shared:
                for caller in other.callers:
                    caller.shared = shared
                shared.callers += other.callers
                shared.gone += other.gone
                other.callers, other.gone = [], 0
                if other.task:
                    other.task.cancel()

    async def _share(self, shared: _SharedRequest, answer: Answer) -> None:
        shared.callers = [caller for caller in shared.callers if not caller.outcome.done()]
        shared.gone = 0
        length = answer.header(b"content-length")
        if length is not None and length.isdigit() and int(length) > ANSWER_BOUND:
            for caller in shared.callers[1:]:
                _resolve(caller, Fallback.SEND_ALONE)
            del shared.callers[1:]
        fanout = Fanout(answer.body, self._budget)
        head = self.clock()
        for number, caller in enumerate(shared.callers):
            reader = fanout.reader(partial(self._cut, caller))
            _resolve(caller, self._answer(shared, caller, answer, reader, head, joined=number > 0))
        await fanout.pump()

    def _cut(self, caller: Caller) -> None:
        """Note that a caller gets no more of its answer; its head was sent, so it cannot start again."""
        problem = "The caller was too slow for the others that share its answer (`queue.join`). Let it read faster."
        caller.log.problem = problem
        self._observer.observe(ConnectionEnded("fell_behind"))

    def _answer(
        self, shared: _SharedRequest, caller: Caller, answer: Answer, body: FanoutReader, head: Micros, *, joined: bool
    ) -> Answer:
        """The answer for one caller, with its own id, times and rates."""
        sent = shared.sent if shared.sent is not None else head
        log = caller.log
        log.queued += max(0, sent - caller.arrived)
        log.upstream += head - sent
        _copy_tries(log, shared.log, joined=joined)
        if joined:
            self._observer.observe(Joined(caller.request.client.pool, caller.request.client.name))
        request = caller.request
        left = self.rates(request.client.pool, request.client.name, request.method, request.path)
        fields = fields_for_another(answer.fields, log, left)
        return Answer(answer.status, answer.reason, fields, body)

    def _fail(self, shared: _SharedRequest, problem: Exception) -> None:
        """Fail the first caller; a failure of one try or of one deadline is not the others'."""
        now = self.clock()
        for number, caller in enumerate(shared.callers):
            caller.log.queued += now - caller.arrived
            _copy_tries(caller.log, shared.log, joined=number > 0)
            if number and isinstance(problem, TooMany):
                _resolve(caller, Fallback.JOIN_AGAIN)
            elif number and (isinstance(problem, UpstreamError) or not isinstance(problem, Refusal)):
                _resolve(caller, Fallback.SEND_ALONE)
            elif not caller.outcome.done():
                caller.outcome.set_exception(problem)

    def _forget(self, shared: _SharedRequest) -> None:
        candidates = self._waiting.get(shared.join_key, [])
        if shared in candidates:
            candidates.remove(shared)
            if not candidates:
                del self._waiting[shared.join_key]
        for caller in shared.callers:  # those without an outcome: the exchange was ended from outside
            _resolve(caller, Fallback.SEND_ALONE)


def _exchange_log(log: RequestLog) -> RequestLog:
    """The request log of an exchange, with the id of its leader."""
    return RequestLog(id=log.id, method=log.method, path=log.path)


def _copy_tries(log: RequestLog, shared: RequestLog, *, joined: bool) -> None:
    """Copy what the exchange cost into a caller's log; its tries count for the first caller only."""
    log.key = shared.key
    if not joined:
        log.attempts += shared.attempts
        log.tries += shared.tries
        log.retried += shared.retried


def _resolve(caller: Caller, what: Answer | Fallback) -> None:
    if not caller.outcome.done():
        caller.outcome.set_result(what)


class _JoinedRequest:
    """The block in which one caller reads its answer."""

    __slots__ = ("_alone", "_answer", "_joining", "_key", "_log", "_request", "_responder")

    def __init__(self, joining: Joining, responder: Responder, key: JoinKey, request: Request, log: RequestLog) -> None:
        self._joining = joining
        self._responder = responder
        self._key = key
        self._request = request
        self._log = log
        self._alone: AbstractAsyncContextManager[Answer] | None = None
        self._answer: Answer | None = None

    async def __aenter__(self) -> Answer:
        deadline = self._joining.clock() + self._request.wait
        while True:
            outcome = await self._outcome(deadline)
            if isinstance(outcome, Answer):
                self._answer = outcome
                return outcome
            left = max(0, deadline - self._joining.clock())
            self._request = replace(self._request, wait=left)
            if outcome is Fallback.SEND_ALONE:
                self._alone = self._responder.handle(self._request, self._log)
                return await self._alone.__aenter__()

    async def _outcome(self, deadline: Micros) -> Answer | Fallback:
        caller = self._joining.join(self._key, self._request, self._log, deadline)
        try:
            return await caller.outcome
        except asyncio.CancelledError:
            self._joining.leave(caller)
            if (
                caller.outcome.done()
                and not caller.outcome.cancelled()
                and isinstance(answer := caller.outcome.result(), Answer)
            ):
                answer.body.abort()  # it came in the same tick
            raise

    async def __aexit__(self, *problem: object) -> bool | None:
        if self._alone is not None:
            return await self._alone.__aexit__(*problem)  # type: ignore[arg-type]  # as they came
        if self._answer is not None:
            self._answer.body.abort()
        return None
