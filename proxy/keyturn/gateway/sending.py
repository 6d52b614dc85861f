"""One transmission under one lease (law 10), and what its answer says.

Now and then more leases are outstanding than connections are free (several pools, the proxy's own requests). Then a
request waits for a connection while its lease is fresh, and goes back to its queue after that: waiting, not a failure.

The body of a refusal is read before it is passed on or dropped. The head of a 429 or of an outage's answer is enough to
act on, so it counts even if the body breaks off. Only the body of a 401 or 403 shows whether the key was refused; if it
breaks off, there was no answer.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Protocol

from keyturn.core.complaints import BODY_LIMIT
from keyturn.core.errors import Broken, UpstreamError
from keyturn.core.events import LocalErrorMet, UpstreamAnswered
from keyturn.core.http import Answer, AnswerBody, Body, Fields, Request, Whole
from keyturn.core.model import SECOND, Secret
from keyturn.core.recent import RecentCauses
from keyturn.core.signals import OUTAGES, SPEAKING, TOO_MANY_REQUESTS, Signals, read
from keyturn.core.values import value_object
from keyturn.gateway.context import Environment, RequestContext
from keyturn.scheduler import Lease
from keyturn.scheduler.admission import all_connections_in_use

REFUSAL_PATIENCE = 5.0
"""Seconds that a refusal's body may take to arrive."""


class UpstreamConnection(Protocol):
    """One connection, for one request."""

    def put_back(self) -> None:
        """Return it to its pool: nothing was written."""

    async def send(
        self, request: Request, key: Secret, extra: Fields, *, body: Body | None, on_written: Callable[[], None]
    ) -> Answer:
        """Write the request at once, and wait for the head of the answer."""


class UpstreamConnections(Protocol):
    """Where requests are sent."""

    def idle_connection(self) -> UpstreamConnection | None:
        """A connection that was kept alive, if there is one."""

    async def connect(self, *, fresh: bool = False) -> UpstreamConnection:
        """A connection, kept alive or new; if `fresh`, new."""

    @property
    def limit(self) -> int:
        """Connections that may be in use at once."""

    @property
    def full(self) -> bool:
        """Whether `wait_until_free` has to be awaited before a connection is taken."""

    async def wait_until_free(self) -> None:
        """Wait until a connection may be taken; that has to be done before anything else is awaited."""


class StaleLease(Exception):
    """The lease was too old to be used when the connection was there; it is settled as unsent."""


@value_object
class UpstreamResponse:
    """An answer and what it says; the body of a refusal has been read for that, and is still there."""

    answer: Answer
    signals: Signals

    @property
    def whole(self) -> bool:
        """Whether it can be passed on: its body has not broken off."""
        return not isinstance(self.answer.body, TruncatedBody)

    def hold(self) -> Answer | None:
        """The answer, to be passed on later; `None` if its body would occupy a connection, or is not there."""
        if isinstance(self.answer.body, Whole):
            return self.answer
        self.answer.body.abort()
        return None


class Sender:
    """Sends requests under leases."""

    def __init__(self, upstream: UpstreamConnections, environment: Environment) -> None:
        self._upstream = upstream
        self._environment = environment
        self._causes = RecentCauses()

    async def send(self, context: RequestContext, lease: Lease) -> UpstreamResponse:
        """Transmit once; the lease is settled here only when nothing was sent.

        Raises:
            StaleLease: the lease was not fresh any more.
            TooMany: no connection was free before the deadline.
            UpstreamError: there is no answer, or only a part of one.
        """
        upstream, environment = self._upstream, self._environment
        if upstream.full:
            await self._wait(context, lease)
        request, log, code = context.request, context.log, 0
        trace, key = log.trace, lease.key
        began = environment.clock()
        log.attempts += 1
        fields = trace.try_began(key.name, log.path, request.fields)
        if fields is not request.fields:
            request = replace(request, fields=fields)
        try:
            fresh = context.needs_new_connection
            try:
                connection = (None if fresh else upstream.idle_connection()) or await upstream.connect(fresh=fresh)
            except BaseException:
                lease.unsent()
                raise
            if not lease.fresh():
                connection.put_back()
                lease.unsent()
                raise StaleLease
            log.tries += 1
            if context.sending is not None:
                context.sending()
            answer = await connection.send(
                request, key.secret, lease.pool.fields, body=context.body, on_written=lease.written
            )
            code = answer.status
        except UpstreamError as error:
            self._report(error)
            raise
        finally:
            log.upstream += environment.clock() - began
            trace.try_ended(code)
        wall, body = environment.wall(), b""
        if code in SPEAKING:
            answer, body = await peek(answer)
        environment.observer.observe(UpstreamAnswered(lease.pool.name, key.name, code))
        return UpstreamResponse(answer, read(code, answer.fields, wall, body))

    async def _wait(self, context: RequestContext, lease: Lease) -> None:
        """Wait for a free connection.

        Raises:
            StaleLease: none was free while the lease was fresh.
            TooMany: nor before the deadline.
        """
        clock, deadline = self._environment.clock, context.waiter.deadline
        began = clock()
        try:
            async with asyncio.timeout(max(0, min(lease.use_by, deadline) - began) / SECOND):
                await self._upstream.wait_until_free()
        except BaseException as error:
            lease.unsent()
            if not isinstance(error, TimeoutError):
                raise
            if clock() >= deadline:
                raise all_connections_in_use(self._upstream.limit, SECOND) from None
            raise StaleLease from None
        finally:
            context.log.queued += clock() - began

    def _report(self, error: UpstreamError) -> None:
        """Count a failure of this machine, and have each cause logged once."""
        if error.cause is not None:
            is_new = self._causes.is_new(("local", error.cause), self._environment.clock())
            self._environment.observer.observe(LocalErrorMet(error.cause, error.message, is_new))


class PartlyReadBody:
    """A body whose beginning has been read already."""

    __slots__ = ("_parts", "_rest")

    def __init__(self, parts: Iterable[bytes], rest: AnswerBody) -> None:
        self._parts = deque(parts)
        self._rest = rest

    async def read(self) -> bytes:
        """The next bytes; see `core.http.AnswerBody`."""
        return self._parts.popleft() if self._parts else await self._rest.read()

    async def discard(self) -> None:
        """Be done with it early."""
        self._parts.clear()
        await self._rest.discard()

    def abort(self) -> None:
        """Close the connection at once."""
        self._rest.abort()


class TruncatedBody:
    """A body that ended early, or did not arrive in time: no part of it is passed on."""

    __slots__ = ()

    async def read(self) -> bytes:
        """See `core.http.AnswerBody`.

        Raises:
            Broken: always.
        """
        raise Broken("The upstream broke its answer off. Send the request again.")

    async def discard(self) -> None:
        """Do nothing: the connection is closed."""

    def abort(self) -> None:
        """Do nothing: the connection is closed."""


async def peek(answer: Answer) -> tuple[Answer, bytes]:
    """Read a refusal's body; returns the answer with the body still to be read, and the body.

    A body that is longer than an error's is returned as empty, and passed on as it comes. So is one that ended early or
    did not arrive within `REFUSAL_PATIENCE`, and the answer has a `TruncatedBody` then.

    Raises:
        Broken: the same of an answer that says by its body only what it is about.
    """
    try:
        return await _peek(answer)
    except Broken:
        answer.body.abort()
        if answer.status != TOO_MANY_REQUESTS and answer.status not in OUTAGES:
            raise
        return Answer(answer.status, answer.reason, answer.fields, TruncatedBody()), b""


async def _peek(answer: Answer) -> tuple[Answer, bytes]:
    if isinstance(answer.body, Whole):
        return answer, answer.body.data
    parts: list[bytes] = []
    left = BODY_LIMIT
    try:
        async with asyncio.timeout(REFUSAL_PATIENCE):
            while left >= 0:
                part = await answer.body.read()
                if not part:
                    body = b"".join(parts)
                    return Answer(answer.status, answer.reason, answer.fields, Whole(body)), body
                parts.append(part)
                left -= len(part)
    except TimeoutError:
        raise Broken(
            f"The upstream answered {answer.status}, and did not end its answer in {REFUSAL_PATIENCE:g} s. "
            "Send the request again."
        ) from None
    return Answer(answer.status, answer.reason, answer.fields, PartlyReadBody(parts, answer.body)), b""
