"""The way of a request through this proxy: read, judged, handed to the gateway, its answer relayed."""

import logging
from asyncio import Transport
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from functools import partial
from random import getrandbits
from typing import NamedTuple, Protocol

from aiohttp import web
from aiohttp.hdrs import TRANSFER_ENCODING, UPGRADE, USER_AGENT, VIA
from multidict import istr

from keyturn.core.credentials import without
from keyturn.core.errors import (
    Forbidden,
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
from keyturn.core.tracing import Arrived, NoTracer, Tracer
from keyturn.web.connection import admit, begin, peer_of, why_cut
from keyturn.web.error_responses import error_response
from keyturn.web.incoming import RequestBody, check_framing, origin_form, own_url, postman_hosts, raw_target
from keyturn.web.loops import LoopDetector
from keyturn.web.relay import CLOSED, KEPT, connection, has_begun, pass_on, relay, write

_NOT_FORWARDED = frozenset({"CONNECT", "TRACE"})
_PROXY = b"keyturn"
_KEY, _PREFER, _PRIORITY, _REQUEST_ID = map(istr, ("Keyturn-Key", "Prefer", "Priority", "X-Request-Id"))

_log = logging.getLogger("keyturn")


class Admission(Protocol):
    """A caller known by its credential, and its request without that."""

    @property
    def client(self) -> Client:
        """Who it is."""

    @property
    def fields(self) -> Fields:
        """Its fields."""

    @property
    def target(self) -> bytes:
        """Its path and query."""

    @property
    def hidden(self) -> Redactor | None:
        """What no log may show of it, if that may stand in its path or its id."""


class Access(Protocol):
    """Who may come in."""

    def admit(self, fields: Fields, target: bytes, peer: Transport | None) -> Admission:
        """Know the caller by its credential or by its connection, and take the credential off.

        Raises:
            Unauthenticated: no credential, or an unknown one.
            BadRequest: a credential stands in the path.
        """

    def hidden(self, fields: Fields, target: bytes) -> Redactor:
        """What neither a log nor an answer may show of a request that was not admitted."""

    async def refresh_keys(self, refusal: Unauthenticated) -> bool:
        """Whether a refused request is worth a second look, once more is known of what it carries."""

    async def slow(self, refusal: Unauthenticated, caller: str) -> bool:
        """Take note of a failed attempt of the caller at an address.

        Returns when it may be answered, and whether its connection may go on.
        """

    async def accept(self, client: Client) -> None:
        """Count a request of a client.

        Raises:
            TooMany: it is over its rate.
        """


class Gateway(Protocol):
    """Who gets an answer."""

    def handle(self, request: Request, log: RequestLog) -> AbstractAsyncContextManager[Answer]:
        """The answer, complete for the caller but for its framing; its body is read within the block."""

    def rates(self, pool: str, client: str, method: str, path: str | None) -> Fields:
        """What is left of the limits that a request falls under, as fields."""


@dataclass(frozen=True, slots=True)
class ForwardSettings:
    """What requests may be like: bytes of a body, times in microseconds, lower-case authorities in absolute targets."""

    max_body: int
    max_wait: Micros
    max_wait_ceiling: Micros
    body_timeout: Micros = 30 * SECOND
    hosts: frozenset[bytes] = postman_hosts()
    proxies: TrustedProxies = field(default_factory=TrustedProxies)
    """Those whose word on their callers counts."""
    forwarded: bool = False
    """Whether the upstream learns the callers' addresses."""


class _Arrived(NamedTuple):
    """See `core.tracing.Arrived`."""

    method: str
    raw_headers: Fields
    scheme: str
    version: tuple[int, int]


class Forward:
    """The handler of the data listener; `settings` and the `tracer` of traces may be exchanged at any time."""

    def __init__(
        self,
        access: Access,
        gateway: Gateway,
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

    async def __call__(self, incoming: web.BaseRequest) -> web.StreamResponse:
        """Answer one request; its request log is handed to the observer at its end, whatever that is."""
        began = self._clock()
        trace = self.tracer.begin(self._arrived(incoming))
        agent = incoming.headers.get(USER_AGENT, "")
        caller = self.settings.proxies.caller(peer_of(incoming), incoming.raw_headers)
        log = RequestLog(method=incoming.method, address=caller, agent=agent, trace=trace)
        try:
            return await self._forward(incoming, log)
        except ConnectionError:
            return _cut(incoming)
        except Refusal as refusal:
            return self._refuse(incoming, refusal, log)
        except Exception:  # noqa: BLE001  # a request's bug must not end the connection without an answer
            _log.exception("unexpected error in request %s", log.id)
            return self._refuse(incoming, _unexpected(), log)
        finally:
            log.total = self._clock() - began
            if log.outcome == "gone":
                log.reason = why_cut(incoming) or log.reason
            self._observer.observe(log)

    async def _forward(self, incoming: web.BaseRequest, log: RequestLog) -> web.StreamResponse:
        try:
            request = self._read(incoming, log)
        except Refusal as refusal:
            await begin(incoming, log.client)
            if not isinstance(refusal, Unauthenticated):
                raise
            request = await self._look_again(incoming, log, refusal)
        else:
            await begin(incoming, log.client)
        await self._access.accept(request.client)
        admit(incoming)
        if isinstance(request.body, RequestBody):
            request.body.check()
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
            if isinstance(request.body, RequestBody):
                log.received = request.body.received

    def _arrived(self, incoming: web.BaseRequest) -> Arrived:
        """The request as a tracer may see it: without fields that hold a credential."""
        if isinstance(self.tracer, NoTracer):
            return incoming
        fields = incoming.raw_headers
        shown = without(fields, b"", self._access.hidden(fields, b""))[0]
        return _Arrived(incoming.method, shown, incoming.scheme, incoming.version)

    def _read(self, incoming: web.BaseRequest, log: RequestLog) -> Request:
        """The request as it goes on.

        Raises:
            Refusal: it does not go on; nothing of it or of the request log shows a credential.
        """
        try:
            return self._admitted(incoming, log)
        except Exception as error:
            if not log.client:
                hidden = self._access.hidden(incoming.raw_headers, raw_target(incoming))
                _hide(log, hidden)
                if isinstance(error, Refusal):
                    error.message = hidden.mask(error.message.encode()).decode()
            raise

    def _admitted(self, incoming: web.BaseRequest, log: RequestLog) -> Request:
        fields = incoming.raw_headers
        present = incoming.headers
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
        _judge(client, incoming.method, path, pins=_KEY in present)
        body = RequestBody.of(incoming, self.settings.max_body, self.settings.body_timeout / SECOND)
        urgency = priority_urgency(fields) if _PRIORITY in present else None
        return Request(
            id=log.id,
            client=client,
            method=incoming.method,
            target=admission.target,
            path=path,
            fields=self._told(incoming, admission.fields, log.address),
            body=body,
            urgency=client.urgency if urgency is None else max(client.urgency, urgency),
            wait=self._wait(prefer_wait(fields) if _PREFER in present else None),
            pinned=_pinned(fields) if _KEY in present else None,
            interim=partial(pass_on, incoming),
        )

    def _told(self, incoming: web.BaseRequest, fields: Fields, caller: str) -> Fields:
        """The fields that go to the upstream."""
        settings = self.settings
        if not settings.forwarded:
            return to_upstream(fields)
        peer = peer_of(incoming)
        told = telling(peer, caller, fields, incoming.scheme, trusted=peer in settings.proxies)
        return (*to_upstream(fields), *told)

    async def _look_again(self, incoming: web.BaseRequest, log: RequestLog, refusal: Unauthenticated) -> Request:
        """The request of a caller that is known after all.

        Raises:
            Unauthenticated: it is not; from where there are many of them that may take a while.
        """
        if await self._access.refresh_keys(refusal):
            try:
                return self._read(incoming, log)
            except Unauthenticated as again:
                refusal = again
        if not await self._access.slow(refusal, log.address):
            refusal.close = True  # type: ignore[misc]  # one too many is still a 401
        raise refusal

    def _target(self, incoming: web.BaseRequest) -> bytes:
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

    def _wait(self, asked: int | None) -> Micros:
        wait = self.settings.max_wait if asked is None else asked * SECOND
        return min(wait, self.settings.max_wait_ceiling)

    def _must_close(self, incoming: web.BaseRequest) -> bool:
        """Whether the connection ends with this answer.

        The rest of a body that nobody reads any more would stand before the next request; behind an `Upgrade` that was
        not taken up the parser does not go on; and `Connection` says what stands behind chunks.
        """
        unread = not incoming.content.is_eof()
        present = incoming.headers
        ends = UPGRADE in present or TRANSFER_ENCODING in present
        return not incoming.keep_alive or unread or ends or self._leaving()

    def _refuse(self, incoming: web.BaseRequest, refusal: Refusal, log: RequestLog) -> web.StreamResponse:
        if isinstance(refusal, UpstreamError):
            log.outcome, log.problem = "failed", refusal.message
        else:
            log.outcome = "refused"
        log.reason = refusal.reason
        if has_begun(incoming):
            return _cut(incoming)
        log.code = refusal.status
        close = refusal.close or self._must_close(incoming)
        left = self._gateway.rates(log.pool, log.client, log.method, _path(log)) if log.pool else ()
        answer = error_response(refusal, log, incoming.raw_headers, connection(incoming, close=close), left)
        try:
            write(incoming, answer)
        except ConnectionError:
            log.outcome = "gone"
        return CLOSED if close else KEPT


def _hide(log: RequestLog, hidden: Redactor) -> None:
    """Keep credentials out of what is written of a request (law 11)."""
    if hidden.is_in(log.id.encode()):
        log.id = _new_id()
    log.path = hidden.mask(log.path.encode()).decode()
    agent = log.agent.encode("utf-8", "surrogateescape")
    log.agent = hidden.mask(agent).decode("utf-8", "surrogateescape")


def _judge(client: Client, method: str, path: str | None, *, pins: bool) -> None:
    """See that the client may do this.

    Raises:
        Forbidden: its rules say otherwise.
    """
    if not client.may(method, path):
        raise Forbidden(
            f"The rules of client {client.name} (`allow`) do not let it {method} {path or 'a path like this one'}. "
            "Ask whoever runs this proxy for a rule that does."
        )
    if pins and not client.pin:
        raise Forbidden(
            f"Client {client.name} may not choose a key (`pin` is not set). Leave the field `Keyturn-Key` out."
        )


def _path(log: RequestLog) -> str | None:
    return normalise(log.path.encode("ascii", "replace"))


def _request_id(fields: Fields) -> str:
    given = values(fields, b"x-request-id")[0]
    return given.decode("ascii") if sane_request_id(given) else _new_id()


def _new_id() -> str:
    return f"{getrandbits(128):032x}"  # it names a request and guards nothing


def _pinned(fields: Fields) -> str:
    return values(fields, b"keyturn-key")[0].decode("utf-8", "replace")


def _cut(incoming: web.BaseRequest) -> web.StreamResponse:
    """End the connection so that the caller sees that its answer is not whole."""
    if incoming.transport is not None:
        incoming.transport.abort()
    return CLOSED


def _unexpected() -> Refusal:
    return Refusal("Something unexpected happened in this proxy; its log says what, under the request's id.")
