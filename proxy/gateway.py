"""The one chain of a request, from its caller's place in the queue to the upstream's answer.

    lease    waits for its turn (`dispatch`)
    send     goes out with the lease's key (`upstream`), if the lease is still fresh (law 10)
    read     what the answer says about limits (`core.signals`)
    settle   the lease, exactly once (law 2)
    dress    the answer for the caller (`core.translate`)

What certainly was not processed (no connection, a 429) goes back to the head of its lane and the caller notices
nothing but time. What may have been processed is sent again only if its method is idempotent, its body can be replayed,
and the retry budget allows it.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from random import uniform
from typing import Protocol

from proxy.bodies import ReplayBody
from proxy.core.complaints import BODY_LIMIT
from proxy.core.errors import Broken, TooMany, Unreachable, UpstreamError
from proxy.core.events import Journal, Observer, Retried, UpstreamAnswered, UpstreamThrottled
from proxy.core.exchange import Kind
from proxy.core.http import Answer, Body, Fields, Request, Whole
from proxy.core.model import SECOND, Client, Micros, Pool, Secret
from proxy.core.retries import RetryBudget
from proxy.core.signals import read
from proxy.core.translate import Standing, Story, to_caller, whole_seconds
from proxy.dispatch import Dispatch, Lease, Moved, Ticket, quota_of

IDEMPOTENT = frozenset(("GET", "HEAD", "OPTIONS", "PUT", "DELETE"))
"""RFC 9110, section 9.2.2; without TRACE, which is not forwarded."""

PAUSE: tuple[float, float] = (0.05, 0.2)
"""Seconds between tries after a failed connection: drawn between, so that a crowd does not return as one."""

TOO_MANY_REQUESTS = 429
WITH_RETRY_AFTER = frozenset((TOO_MANY_REQUESTS, 503))


class Wire(Protocol):
    """One connection, for one request."""

    def put_back(self) -> None:
        """Nothing was written: return it to its pool."""

    async def send(
        self, request: Request, key: Secret, extra: Fields, *, body: Body | None, on_written: Callable[[], None]
    ) -> Answer:
        """Write the request at once, and wait for the head of the answer."""


class Upstream(Protocol):
    """Where requests go."""

    async def connect(self) -> Wire:
        """A connection, kept alive or new."""


@dataclass(frozen=True, slots=True)
class Retries:
    """How often a request may be tried, first try counted, and the retries per request over the last ten seconds."""

    attempts: int = 3
    budget: float = 0.2


@dataclass(slots=True)
class _Passage:
    """One request on its way."""

    request: Request
    journal: Journal
    body: ReplayBody | None
    ticket: Ticket
    attempts: int = 0
    back: bool = False
    """Whether it has been at the head of its lane already."""
    lease: Lease | None = None
    """The lease in hand; it is ended exactly once."""
    sending: Callable[[], None] | None = None
    refused: Answer | None = None
    """The last 429 that it met: its answer, should no turn come in time."""

    def move(self, client: Client) -> None:
        """Its client uses another pool now: it goes there, with the deadline that it has."""
        self.ticket = replace(self.ticket, client=client)
        self.back = True
        self.journal.pool = client.pool

    def end_lease(self) -> None:
        """Settle what is not settled, and let the lease go."""
        lease, self.lease = self.lease, None
        if lease is not None:
            lease.close()

    @property
    def replayable(self) -> bool:
        return self.body is None or self.body.replayable


class _Handled:
    """The block in which an answer is read: its lease and its body end with it, however it is left."""

    __slots__ = ("_answer", "_dispatch", "_gateway", "_passage")

    def __init__(self, gateway: "Gateway", dispatch: Dispatch, passage: _Passage) -> None:
        self._gateway = gateway
        self._dispatch = dispatch
        self._passage = passage
        self._answer: Answer | None = None

    async def __aenter__(self) -> Answer:
        try:
            self._answer = await self._gateway.answer(self._dispatch, self._passage)
        except BaseException:
            self._passage.end_lease()
            raise
        return self._answer

    async def __aexit__(self, *_: object) -> None:
        if self._answer is not None:
            self._answer.body.abort()
        self._passage.end_lease()


class _Late(Exception):
    """The lease was too old to be used when the connection was there."""


class Gateway:
    """Carries requests of all pools."""

    def __init__(
        self,
        dispatches: Mapping[str, Dispatch],
        upstream: Upstream,
        *,
        retries: Retries,
        observer: Observer,
        clock: Callable[[], Micros],
        wall: Callable[[], Micros],
    ) -> None:
        self._dispatches = dispatches
        self._upstream = upstream
        self._retries = retries
        self._budget = RetryBudget(retries.budget)
        self._observer = observer
        self._clock = clock
        self._wall = wall

    def adopt(self, retries: Retries) -> None:
        """Try requests so often from now on; what was counted of the budget stays counted."""
        self._retries = retries
        self._budget.ratio = retries.budget

    def handle(self, request: Request, journal: Journal, *, sending: Callable[[], None] | None = None) -> "_Handled":
        """The answer for the caller, its body still to be read; the lease ends with the block.

        `sending` is called each time just before the request goes out.

        Raises:
            Refusal: the proxy answers itself.
        """
        dispatch = self._dispatches[request.client.pool]
        now = self._clock()
        self._budget.request(now)
        passage = _passage(request, journal, dispatch.pool, now)
        passage.sending = sending
        return _Handled(self, dispatch, passage)

    async def answer(self, dispatch: Dispatch, passage: "_Passage") -> Answer:
        """Try under one lease after another until there is an answer; the passage holds the lease it came under."""
        while True:
            try:
                passage.lease = await self._lease(dispatch, passage)
            except Moved as moved:
                passage.move(moved.client)
                dispatch = self._dispatches[moved.client.pool]
                continue
            except TooMany as refusal:
                if passage.refused is None:
                    raise
                return self._dress(dispatch, passage, passage.refused, refusal.retry_after)
            answer = await self._try(dispatch, passage.lease, passage)
            if answer is not None:
                return answer
            passage.end_lease()

    async def _lease(self, dispatch: Dispatch, passage: _Passage) -> Lease:
        began = self._clock()
        try:
            lease = await dispatch.lease(passage.ticket, front=passage.back)
        finally:
            passage.journal.queued += self._clock() - began
        passage.journal.key = lease.key.name
        return lease

    async def _try(self, dispatch: Dispatch, lease: Lease, passage: _Passage) -> Answer | None:
        """One try under one lease; `None` sends the request back to the head of its lane."""
        began = self._clock()
        try:
            answer = await self._send(lease, passage)
        except _Late:
            lease.unsent()
            self._back(passage, Retried(dispatch.pool.name, "late"))
            return None
        except UpstreamError as error:
            await self._failed(dispatch, lease, passage, error)
            return None
        finally:
            passage.journal.upstream += self._clock() - began
        self._observer.observe(UpstreamAnswered(dispatch.pool.name, lease.key.name, answer.status))
        if answer.status == TOO_MANY_REQUESTS:
            return await self._throttled(dispatch, lease, passage, answer)
        lease.spent()
        wait = read(answer.status, answer.fields, self._wall()).wait if answer.status in WITH_RETRY_AFTER else None
        return self._dress(dispatch, passage, answer, whole_seconds(wait) if wait is not None else None)

    async def _send(self, lease: Lease, passage: _Passage) -> Answer:
        try:
            wire = await self._upstream.connect()
        except BaseException:
            lease.unsent()
            raise
        if not lease.fresh():
            wire.put_back()
            raise _Late
        passage.journal.tries += 1
        if passage.sending:
            passage.sending()
        return await wire.send(
            passage.request, lease.key.secret, lease.pool.fields, body=passage.body, on_written=lease.written
        )

    def _back(self, passage: _Passage, why: Retried) -> None:
        passage.back = True
        self._observer.observe(why)

    async def _failed(self, dispatch: Dispatch, lease: Lease, passage: _Passage, error: UpstreamError) -> None:
        """Settle a try without an answer; returns when the request may be tried again, else raises the error."""
        if error.written:
            lease.lost()
        else:
            lease.unsent()
        self._observer.observe(UpstreamAnswered(dispatch.pool.name, lease.key.name, 0))
        passage.attempts += 1
        pause = uniform(*PAUSE)  # noqa: S311  # jitter, not a secret
        now = self._clock()
        again = now + int(pause * SECOND) < passage.ticket.deadline and passage.attempts < self._retries.attempts
        if not (again and _repeatable(passage, error) and self._budget.retry(now)):
            raise error
        self._back(passage, Retried(dispatch.pool.name, "broken" if error.written else "unreachable"))
        await asyncio.sleep(pause)

    async def _throttled(self, dispatch: Dispatch, lease: Lease, passage: _Passage, answer: Answer) -> Answer | None:
        """A 429: park what is full; back to the head of the lane, unless that cannot help."""
        body = await _read(answer)
        told = read(answer.status, answer.fields, self._wall(), body).throttle(lease.limits, lease.pool.limits)
        limits = lease.limits if told.kind == "endpoint" else told.limits
        windows = (lease.pool.limits[limit].window for limit in limits)
        park = told.wait if told.wait is not None else max(windows, default=SECOND)
        self._observer.observe(UpstreamThrottled(dispatch.pool.name, lease.key.name, lease.quota, told.kind, park))
        held = Answer(answer.status, answer.reason, answer.fields, Whole(body))
        if told.kind == "plan" or not limits:
            lease.spent()
        else:
            lease.throttled(park + lease.pool.guard, limits)
            if passage.replayable:
                passage.refused = held
                self._back(passage, Retried(dispatch.pool.name, "throttled"))
                return None
        return self._dress(dispatch, passage, held, whole_seconds(told.wait) if told.wait is not None else None)

    def _dress(self, dispatch: Dispatch, passage: _Passage, answer: Answer, retry_after: int | None) -> Answer:
        journal = passage.journal
        story = Story(passage.request.id, journal.key, journal.queued, journal.upstream)
        standing = Standing(dispatch.standing(passage.ticket), self._wall())
        fields = to_caller(answer.fields, story, standing, retry_after)
        return Answer(answer.status, answer.reason, fields, answer.body)


def _passage(request: Request, journal: Journal, pool: Pool, now: Micros) -> _Passage:
    """A request as it begins to wait.

    Raises:
        BadRequest: it names a key that the pool does not have.
    """
    kind = Kind(pool.limits_on(request.method, request.path))
    if request.pinned is not None:
        kind = Kind(kind.limits, quota_of(request.pinned, pool))
    ticket = Ticket(
        request.client,
        kind,
        now + request.wait,
        request.urgency,
        request.pinned,
        method=request.method,
        path=request.path,
    )
    body = ReplayBody(request.body) if request.body is not None else None
    return _Passage(request, journal, body, ticket)


async def _read(answer: Answer) -> bytes:
    """The body of an error.

    Raises:
        Broken: it is longer than an error's, or ended early.
    """
    parts: list[bytes] = []
    left = BODY_LIMIT
    while part := await answer.body.read():
        parts.append(part)
        left -= len(part)
        if left < 0:
            answer.body.abort()
            raise Broken("The upstream refused the request with 429 and a body too long to be an error.")
    return b"".join(parts)


def _repeatable(passage: _Passage, error: UpstreamError) -> bool:
    """Whether a request may be sent again after this failure."""
    match error:
        case Unreachable():
            return error.transient and passage.replayable
        case Broken():
            return passage.request.method in IDEMPOTENT and passage.replayable
        case _:
            return False
