"""One transmission under one lease (law 10), and what its answer says.

More leases than there are free connections are out now and then (several rooms, the proxy's own requests): then a
request waits for one while its lease is fresh, and goes back to its lane behind that. That is waiting, no failure.
"""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from keyturn.core.errors import UpstreamError
from keyturn.core.events import LocalTroubleMet, RequestLog, UpstreamAnswered
from keyturn.core.http import Answer, Body, Fields, Request, Whole
from keyturn.core.model import SECOND, Micros, Secret
from keyturn.core.recent import RecentCauses
from keyturn.core.signals import SPEAKING, Signals, read
from keyturn.core.values import value_object
from keyturn.gateway.context import Means
from keyturn.gateway.peeking import BrokenOff, peek
from keyturn.scheduler import Lease
from keyturn.scheduler.refusals import no_connection


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

    def idle_connection(self) -> Wire | None:
        """A connection that was kept alive, if there is one."""

    async def connect(self, *, fresh: bool = False) -> Wire:
        """A connection, kept alive or new; if `fresh`, new."""

    @property
    def limit(self) -> int:
        """Connections that may be in use at once."""

    @property
    def full(self) -> bool:
        """Whether `free` has to be awaited before a connection is taken."""

    async def wait_until_free(self) -> None:
        """Wait until a connection may be taken; that has to be done before anything else is awaited."""


class Late(Exception):
    """The lease was too old to be used when the connection was there; it is settled as unsent."""


@value_object
class UpstreamResponse:
    """An answer and what it says; the body of a refusal has been looked at, and is still to be read."""

    answer: Answer
    signals: Signals

    @property
    def whole(self) -> bool:
        """Whether it can be relayed: its body has not broken off while it was looked at."""
        return not isinstance(self.answer.body, BrokenOff)

    def hold(self) -> Answer | None:
        """The answer, to be relayed later; none whose body would keep a connection, or is not there."""
        if isinstance(self.answer.body, Whole):
            return self.answer
        self.answer.body.abort()
        return None


class Sender:
    """Sends requests under leases."""

    def __init__(self, upstream: Upstream, means: Means) -> None:
        self._upstream = upstream
        self._means = means
        self._causes = RecentCauses()

    async def send(
        self,
        lease: Lease,
        request: Request,
        body: Body | None,
        log: RequestLog,
        sending: Callable[[], None] = lambda: None,
        *,
        fresh: bool = False,
        deadline: Micros | None = None,
    ) -> UpstreamResponse:
        """Transmit once; `sending` is called just before. The lease is settled here only when nothing was sent.

        `fresh`: over a new connection. `deadline`: how long a free connection is waited for, if its lease lasts.

        Raises:
            Late: the lease was not fresh any more.
            TooMany: no connection was free before the deadline.
            UpstreamError: there is no answer, or only a part of one.
        """
        if self._upstream.full:
            await self._wait(lease, log, deadline)
        means, code = self._means, 0
        began = means.clock()
        log.attempts += 1
        fields = log.trace.try_began(lease.key.name, log.path, request.fields)
        if fields is not request.fields:
            request = replace(request, fields=fields)
        try:
            try:
                wire = None if fresh else self._upstream.idle_connection()
                if wire is None:
                    wire = await self._upstream.connect(fresh=fresh)
            except BaseException:
                lease.unsent()
                raise
            if not lease.fresh():
                wire.put_back()
                lease.unsent()
                raise Late
            log.tries += 1
            sending()
            answer = await wire.send(request, lease.key.secret, lease.pool.fields, body=body, on_written=lease.written)
            code = answer.status
        except UpstreamError as error:
            self._tell(error)
            raise
        finally:
            log.upstream += means.clock() - began
            log.trace.try_ended(code)
        wall, said = means.wall(), b""
        if answer.status in SPEAKING:
            answer, said = await peek(answer)
        means.observer.observe(UpstreamAnswered(lease.pool.name, lease.key.name, answer.status))
        return UpstreamResponse(answer, read(answer.status, answer.fields, wall, said))

    async def _wait(self, lease: Lease, log: RequestLog, deadline: Micros | None) -> None:
        """Wait for a free connection.

        Raises:
            Late: there was none while the lease was fresh.
            TooMany: nor before the deadline.
        """
        began = self._means.clock()
        last = lease.use_by if deadline is None else min(lease.use_by, deadline)
        try:
            async with asyncio.timeout(max(0, last - began) / SECOND):
                await self._upstream.wait_until_free()
        except BaseException as error:
            lease.unsent()
            if not isinstance(error, TimeoutError):
                raise
            if deadline is not None and self._means.clock() >= deadline:
                raise no_connection(self._upstream.limit, SECOND) from None
            raise Late from None
        finally:
            log.queued += self._means.clock() - began

    def _tell(self, error: UpstreamError) -> None:
        """Count a trouble of this machine, and have each told once."""
        if error.cause is not None:
            is_new = self._causes.is_new(("local", error.cause), self._means.clock())
            self._means.observer.observe(LocalTroubleMet(error.cause, error.message, is_new))
