"""The data listener's handler: a request is read and checked, handed to the gateway, and its answer relayed."""

import logging
from asyncio import Transport
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from functools import partial
from random import getrandbits
from typing import NamedTuple, Protocol

from aiohttp.hdrs import TRANSFER_ENCODING, UPGRADE, USER_AGENT, VIA
from multidict import istr

from keyturn.access import Admission
from keyturn.core.credentials import without
from keyturn.core.errors import (
    Forbidden,
    LoopDetected,
    MethodNotAllowed,
    Refusal,
    ShuttingDown,
    Unauthenticated,
    UpstreamError,
)
from keyturn.core.events import Observer, RequestLog
from keyturn.core.forwarded import TrustedProxies, telling
from keyturn.core.headers import passed, prefer_wait, priority_urgency, sane_request_id, to_upstream, values
from keyturn.core.http import Answer, Fields, Request
from keyturn.core.model import SECOND, Client, Micros
from keyturn.core.policy import normalise
from keyturn.core.redaction import Redactor
from keyturn.core.tracing import UNTRACED, NoTracer, Trace, Tracer
from keyturn.web.connection import IncomingRequest
from keyturn.web.error_responses import error_response
from keyturn.web.incoming import RequestBody, check_framing, origin_form, own_url, postman_hosts
from keyturn.web.relay import connection_fields, relay, write_interim

_NOT_FORWARDED = frozenset({"CONNECT", "TRACE"})
_PROXY = b"keyturn"
_KEY, _PREFER, _PRIORITY, _REQUEST_ID = map(istr, ("Keyturn-Key", "Prefer", "Priority", "X-Request-Id"))
MAX_PASSES = 4
"""Keyturns that a request may pass at all, in case its id is changed on the way round."""

_log = logging.getLogger("keyturn")


class CallerAccess(Protocol):
    """Authenticates callers; see `access.Access`."""

    def admit(self, fields: Fields, target: bytes, peer: Transport | None) -> Admission:
        """Identify the caller, and take its credential off the request.

        Raises:
            Unauthenticated, Forbidden, BadRequest: it is not admitted.
        """

    def hidden(self, fields: Fields, target: bytes) -> Redactor:
        """The parts of a request that was not admitted which neither a log nor an answer may show."""

    async def refresh_keys(self, refusal: Unauthenticated) -> bool:
        """Whether a refused request is worth a second check, once its issuer's keys have been read again."""

    async def slow(self, refusal: Unauthenticated, caller: str) -> bool:
        """Count a failed attempt; returns when it may be answered, and whether its connection may go on."""

    async def accept(self, client: Client) -> None:
        """Count a request against its client's rate.

        Raises:
            TooMany: the client is over it.
        """


class RequestGateway(Protocol):
    """Answers requests; see `gateway.Gateway`."""

    def handle(self, request: Request, log: RequestLog) -> AbstractAsyncContextManager[Answer]:
        """The answer, complete for the caller but for its framing; its body is read within the block."""

    def rates(self, pool: str, client: str, method: str, path: str | None) -> Fields:
        """Rate fields: what is left of the limits that a request falls under."""


@dataclass(frozen=True, slots=True)
class ForwardSettings:
    """Bounds of requests: bytes of a body, times in microseconds, lower-case authorities in absolute targets."""

    max_body: int
    max_wait: Micros
    max_wait_ceiling: Micros
    body_timeout: Micros = 30 * SECOND
    hosts: frozenset[bytes] = postman_hosts()
    proxies: TrustedProxies = field(default_factory=TrustedProxies)
    """The proxies that may tell their callers' addresses."""
    forwarded: bool = False
    """Whether the upstream learns the callers' addresses."""


class _Arrived(NamedTuple):
    """See `core.tracing.Arrived`."""

    method: str
    raw_headers: Fields
    scheme: str
    version: tuple[int, int]


class Forward:
    """The handler of the data listener; `settings` and the `tracer` may be exchanged at any time."""

    def __init__(
        self,
        access: CallerAccess,
        gateway: RequestGateway,
        observer: Observer,
        settings: ForwardSettings,
        *,
        clock: Callable[[], Micros],
        leaving: Callable[[], bool],
        draining: Callable[[], bool],
    ) -> None:
        self.settings = settings
        self._access = access
        self._gateway = gateway
        self._observer = observer
        self._clock = clock
        self._leaving = leaving
        self._draining = draining
        self.tracer: Tracer = NoTracer()
        self._loops = LoopDetector()

    async def __call__(self, incoming: IncomingRequest) -> bool:
        """Answer one request; its log is handed to the observer at its end, whatever that is."""
        began = self._clock()
        connection, proxies = incoming.connection, self.settings.proxies
        caller = proxies.caller(connection.address, incoming.raw_headers) if proxies else connection.address
        agent = incoming.headers.get(USER_AGENT, "")
        trace = UNTRACED if type(self.tracer) is NoTracer else self._trace(incoming)
        log = RequestLog(method=incoming.method, address=caller, agent=agent, trace=trace)
        try:
            return await self._forward(incoming, log)
        except ConnectionError:
            return _cut(incoming)
        except Refusal as refusal:
            return self._refuse(incoming, refusal, log)
        except Exception:  # noqa: BLE001  # a request's bug must not end the connection without an answer
            _log.exception("unexpected error in request %s", log.id)
            unexpected = Refusal(
                "Something unexpected happened in this proxy; its log says what, under the request's id."
            )
            return self._refuse(incoming, unexpected, log)
        finally:
            log.total = self._clock() - began
            if log.outcome == "gone":
                log.reason = connection.why_cut or log.reason
            self._observer.observe(log)

    async def _forward(self, incoming: IncomingRequest, log: RequestLog) -> bool:
        connection = incoming.connection
        beginning = connection.owner.beginning
        refused = request = None
        try:
            request = self._read(incoming, log)
        except Refusal as refusal:
            refused = refusal
        if not beginning.try_take(1):
            await beginning.take(1, log.client or connection.peer)
        if request is None:
            if not isinstance(refused, Unauthenticated):
                assert refused is not None
                raise refused
            request = await self._check_again(incoming, log, refused)
        await self._access.accept(request.client)
        connection.admit()
        body = request.body
        if isinstance(body, RequestBody):
            body.check()
        mark = self._loops.enter(request, passed(request.fields, _PROXY) if VIA in incoming.headers else 0)
        try:
            async with self._gateway.handle(request, log) as answer:
                log.code = answer.status
                began = self._clock()
                try:
                    return await relay(incoming, answer, log, close=self._must_close(incoming))
                finally:
                    log.streamed = self._clock() - began
        finally:
            self._loops.leave(mark)
            if isinstance(body, RequestBody):
                log.received = body.received

    def _trace(self, incoming: IncomingRequest) -> Trace:
        """Begin the request's trace, which sees no field that holds a credential."""
        shown = without(incoming.raw_headers, b"", self._access.hidden(incoming.raw_headers, b""))[0]
        return self.tracer.begin(_Arrived(incoming.method, shown, incoming.scheme, incoming.version))

    def _read(self, incoming: IncomingRequest, log: RequestLog) -> Request:
        """The request as it goes on.

        Raises:
            Refusal: it does not go on; neither the refusal nor the request log shows a credential.
        """
        try:
            return self._admitted(incoming, log)
        except Exception as error:
            if not log.client:
                hidden = self._access.hidden(incoming.raw_headers, incoming.target)
                _hide(log, hidden)
                if isinstance(error, Refusal):
                    error.message = hidden.mask(error.message.encode()).decode()
            raise

    def _admitted(self, incoming: IncomingRequest, log: RequestLog) -> Request:
        fields, present = incoming.raw_headers, incoming.headers
        log.id = _request_id(fields) if _REQUEST_ID in present else _new_id()
        if self._draining():
            raise ShuttingDown
        target = self._target(incoming)
        log.path = target.partition(b"?")[0].decode("ascii", "backslashreplace")
        if VIA in present:
            self._loops.check(log.id, incoming.method, target, passed(fields, _PROXY))
        admission = self._access.admit(fields, target, incoming.transport)
        if admission.hidden is not None:
            _hide(log, admission.hidden)
        client = admission.client
        log.client = client.name
        log.pool = client.pool
        path = normalise(admission.target)
        _authorise(client, incoming.method, path, pins=_KEY in present)
        settings = self.settings
        urgency = priority_urgency(fields) if _PRIORITY in present else None
        wait = prefer_wait(fields) if _PREFER in present else None
        told = admission.fields
        return Request(
            log.id,
            client,
            incoming.method,
            admission.target,
            path,
            self._told(incoming, told, log.address) if settings.forwarded else to_upstream(told),
            RequestBody.of(incoming, settings.max_body, settings.body_timeout / SECOND),
            client.urgency if urgency is None else max(client.urgency, urgency),
            min(settings.max_wait if wait is None else wait * SECOND, settings.max_wait_ceiling),
            _pinned(fields) if _KEY in present else None,
            partial(write_interim, incoming),
        )

    def _told(self, incoming: IncomingRequest, fields: Fields, caller: str) -> Fields:
        """The fields that go to the upstream, with the caller's address."""
        peer = incoming.connection.address
        told = telling(peer, caller, fields, incoming.scheme, trusted=peer in self.settings.proxies)
        return (*to_upstream(fields), *told)

    async def _check_again(self, incoming: IncomingRequest, log: RequestLog, refusal: Unauthenticated) -> Request:
        """The request of a caller whose credential is known after all.

        Raises:
            Unauthenticated: it is not; where many attempts fail this takes a while.
        """
        if await self._access.refresh_keys(refusal):
            try:
                return self._read(incoming, log)
            except Unauthenticated as again:
                refusal = again
        if not await self._access.slow(refusal, log.address):
            refusal.close = True  # type: ignore[misc]  # one too many is still a 401
        raise refusal

    def _target(self, incoming: IncomingRequest) -> bytes:
        if incoming.method == "CONNECT":
            instead = own_url(incoming) or "the URL of this proxy"
            raise MethodNotAllowed(
                "CONNECT is for proxies that tunnel, which this one does not. Leave `https_proxy` out, and use "
                f"{instead} as the base URL in place of https://api.getpostman.com."
            )
        if incoming.method in _NOT_FORWARDED:
            raise MethodNotAllowed(f"{incoming.method} is not forwarded. Ask for a resource of the Postman API.")
        check_framing(incoming)
        return origin_form(incoming, self.settings.hosts)

    def _must_close(self, incoming: IncomingRequest) -> bool:
        """Whether the connection ends with this answer.

        The unread rest of a body would stand before the next request, the parser does not go on
        behind an `Upgrade` that was not taken up, and takes what stands behind chunks for a field of the next request.
        """
        present = incoming.headers
        ends = not incoming.keep_alive or UPGRADE in present or TRANSFER_ENCODING in present
        return ends or not incoming.content.is_eof() or self._leaving()

    def _refuse(self, incoming: IncomingRequest, refusal: Refusal, log: RequestLog) -> bool:
        if isinstance(refusal, UpstreamError):
            log.outcome, log.problem = "failed", refusal.message
        else:
            log.outcome = "refused"
        log.reason = refusal.reason
        if incoming.begun:
            return _cut(incoming)
        log.code = refusal.status
        close = refusal.close or self._must_close(incoming)
        path = normalise(log.path.encode("ascii", "replace"))
        left = self._gateway.rates(log.pool, log.client, log.method, path) if log.pool else ()
        fields = connection_fields(incoming, close=close)
        try:
            incoming.write(error_response(refusal, log, incoming.raw_headers, fields, left))
        except ConnectionError:
            log.outcome = "gone"
        return not close


def _hide(log: RequestLog, hidden: Redactor) -> None:
    """Keep credentials out of what is written of a request (law 11)."""
    if hidden.is_in(log.id.encode()):
        log.id = _new_id()
    log.path = hidden.mask(log.path.encode()).decode()
    agent = log.agent.encode("utf-8", "surrogateescape")
    log.agent = hidden.mask(agent).decode("utf-8", "surrogateescape")


def _authorise(client: Client, method: str, path: str | None, *, pins: bool) -> None:
    """Check a request against its client's rules.

    Raises:
        Forbidden: they do not permit it.
    """
    if not client.may(method, path):
        raise Forbidden(
            f"The rules of client {client.name} (`allow`) do not let it {method} {path or 'a path like this one'}. "
            "Ask the operator of this proxy for a rule that does."
        )
    if pins and not client.pin:
        raise Forbidden(
            f"Client {client.name} may not choose a key (`pin` is not set). Leave the field `Keyturn-Key` out."
        )


def _request_id(fields: Fields) -> str:
    given = values(fields, b"x-request-id")[0]
    return given.decode("ascii") if sane_request_id(given) else _new_id()


def _new_id() -> str:
    return f"{getrandbits(128):032x}"  # it names a request and guards nothing


def _pinned(fields: Fields) -> str:
    return values(fields, b"keyturn-key")[0].decode("utf-8", "replace")


def _cut(incoming: IncomingRequest) -> bool:
    """End the connection so that the caller sees that its answer is not whole."""
    if incoming.transport is not None:
        incoming.transport.abort()
    return False


Mark = tuple[str, str, bytes, int]
"""Id, method and target of a request, and how many Keyturns it names in `Via` as it goes out."""


class LoopDetector:
    """Notices requests that come back to the process that sent them: `upstream.url` leads here (RFC 9110, 7.6.3).

    `Via: 1.1 keyturn` alone is no sign of a loop: a sidecar in front of a gateway shows it as well. A request is back
    when it names a Keyturn in its `Via`, and one with the same id, method and target is in flight here that went out
    with no more of these names than it came in with. The same request of a client that reuses ids does not look like
    that: it has come the same way as the first, so it has one name less than the first went out with.
    """

    def __init__(self) -> None:
        self._in_flight: dict[Mark, int] = {}

    def check(self, request_id: str, method: str, target: bytes, passed: int) -> None:
        """Look at a request that has come through `passed` Keyturns.

        Raises:
            LoopDetected: it has been here before.
        """
        times = range(1, passed + 1)
        if passed >= MAX_PASSES or any((request_id, method, target, time) in self._in_flight for time in times):
            raise LoopDetected("This request has come back to this proxy: `upstream.url` leads here.")

    def enter(self, request: Request, passed: int) -> Mark:
        """Remember a request that goes on; `leave` forgets it."""
        mark = (request.id, request.method, request.target, passed + 1)
        self._in_flight[mark] = self._in_flight.get(mark, 0) + 1
        return mark

    def leave(self, mark: Mark) -> None:
        """Forget a request that has ended."""
        left = self._in_flight[mark] - 1
        if left:
            self._in_flight[mark] = left
        else:
            del self._in_flight[mark]
