"""One connection of a caller: its requests are answered one after another."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import cast

from aiohttp.hdrs import TRANSFER_ENCODING
from aiohttp.http import HttpProcessingError, HttpVersion, RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from multidict import CIMultiDictProxy

from keyturn.core.errors import Refusal
from keyturn.core.events import ConnectionEndReason
from keyturn.core.http import Fields
from keyturn.tasks import spawn
from keyturn.web.connections import Connections
from keyturn.web.error_responses import UnreadableBody, plain_response, refusal_of
from keyturn.web.overload import WriteTimeout
from keyturn.web.parsing import RequestReader

_TLS_BUFFER = 2**15
"""Bytes to decrypt that are kept, and one read, while nothing of them is wanted; more than the largest record has."""
_LINGER = 2.0
"""Seconds for which what a refused caller still sends is thrown away."""
_FIRST_REQUEST = 1.0
"""Seconds that a new connection has for its first request while the listener retires."""

_log = logging.getLogger("keyturn")


class IncomingRequest:
    """One request of a caller, and the connection on which it is answered."""

    __slots__ = (
        "begun", "connection", "content", "headers", "keep_alive", "message", "method", "raw_headers", "target",
        "version",
    )  # fmt: skip

    def __init__(self, connection: "CallerConnection", message: RawRequestMessage, content: StreamReader) -> None:
        self.connection = connection
        self.message = message
        self.method: str = message.method
        self.version: HttpVersion = message.version
        self.headers: CIMultiDictProxy[str] = message.headers
        self.raw_headers: Fields = message.raw_headers
        self.target: bytes = message.path.encode("utf-8", "surrogateescape")
        """The request target, byte for byte."""
        self.content = content
        self.keep_alive: bool = not message.should_close
        """Whether the caller would keep its connection."""
        self.begun = False
        """Whether a byte of an answer has been written."""

    def __repr__(self) -> str:
        return f"<IncomingRequest {self.method} on {self.connection!r}>"

    @property
    def path(self) -> str:
        """The path of the target, percent-decoded."""
        return self.message.url.path

    @property
    def scheme(self) -> str:
        """`http` or `https`, by the listener."""
        return self.connection.scheme

    @property
    def transport(self) -> asyncio.Transport | None:
        """The connection's transport, `None` once it is being closed."""
        return self.connection.transport

    def write(self, data: bytes) -> None:
        """Hand bytes of the answer to the caller's transport.

        Raises:
            ConnectionResetError: the caller has disconnected.
        """
        transport = self.connection.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the caller has disconnected")
        self.begun = True
        transport.write(data)


Handler = Callable[[IncomingRequest], Awaitable[bool]]
"""Answers a request; returns whether its connection may carry another one."""


class CallerConnection(RequestReader):
    """One caller's connection: its requests are answered one after another.

    Its timers exist only while they may be needed: for a head that has begun, for bytes that the caller does not take,
    and one for its idleness, which is moved on when it goes off early.
    """

    __slots__ = (
        "_drained", "_ends", "_force_close", "_handler", "_idle_since", "_idle_timer", "_lingers", "_made", "_requests",
        "_serving", "_unread", "_write_timeout", "kept_fields", "scheme", "why_cut", "writing_paused",
    )  # fmt: skip

    def __init__(self, owner: Connections, handler: Handler, address: str = "") -> None:
        """`address`: where it comes from; by default what its transport says."""
        super().__init__(owner, address)
        loop, bounds = owner.loop, owner.bounds
        self._handler = handler
        self._made = loop.time()
        self._serving: asyncio.Task[None] | None = None
        self._requests = 0
        """Requests that have been answered, or are being answered."""
        self._idle_since = self._made
        self._idle_timer: asyncio.TimerHandle | None = None
        self._force_close = False
        self._ends = False
        """Whether no request will be answered any more."""
        self._unread: bool | None = None
        """Whether bytes of the caller are left behind the last answer; `None` before that."""
        self._lingers = False
        """Whether the last answer has been written, and its caller has time to read it."""
        self._write_timeout = WriteTimeout(loop, bounds.write_time, self._unsent, self._takes_too_long)
        self.writing_paused = False
        self._drained: asyncio.Future[None] | None = None
        """Set while an answer waits for the caller to take more."""
        self.scheme = "http"
        self.kept_fields = b"Connection: keep-alive"
        """The fields that tell the caller for how long its connection may be idle."""
        if seconds := int(bounds.keep_alive):
            self.kept_fields += b"\r\nKeep-Alive: timeout=%d" % seconds
        self.why_cut: ConnectionEndReason | None = None
        """Why it was ended before its time, if it was."""

    def __repr__(self) -> str:
        state = "closed" if self._wire is None else "idle" if self.idle else "answering" if self._busy else "reading"
        return f"<CallerConnection {self.address or 'new'}, {state}, {self._requests} requests>"

    @property
    def idle(self) -> bool:
        """Whether it waits for a request, its first or its next."""
        return not self._busy and not self._ends

    @property
    def unfinished(self) -> bool:
        """Whether a request has not been answered, or its answer not been taken as a whole."""
        return (self._busy and not self._lingers) or self._unsent() > 0

    def retire(self) -> None:
        """Close it now if it is idle, else behind its answer; a request on its way to a new connection is awaited."""
        if self._head.received or not self.idle:
            return
        left = self._made + _FIRST_REQUEST - self._loop.time()
        if self._requests or left <= 0:
            self.force_close()
        elif self._head_timer is None:
            self._head_timer = self._loop.call_later(left, self._first_is_late)

    def _first_is_late(self) -> None:
        self._head_timer = None
        if not self._head.received:
            self.force_close()
        else:
            self._head_timer = self._loop.call_later(self._bounds.head_time, self._head_is_late)

    # From its beginning to its end

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to serve; a connection beyond the bounds is refused and closed."""
        self._wire = self.transport = cast("asyncio.Transport", transport)
        if transport.get_extra_info("sslcontext") is not None:
            self.scheme = "https"
        if (limit := getattr(transport, "set_read_buffer_limits", None)) is not None:
            limit(_TLS_BUFFER)
            self._narrow = self.scheme == "https"
        self.owner.connection_made(self, self.transport)
        if self._bounds.keep_alive > 0:
            self._idle_timer = self._loop.call_later(self._bounds.keep_alive, self._is_idle_for_long)
        self._serving = spawn(self._serve(), name="serve a connection", owner=self.owner.serving)
        self._serving.add_done_callback(self._served)
        refusal = self.owner.one_too_many(self.peer)
        if refusal is not None:
            self._turn_away(refusal)

    def _turn_away(self, refusal: Refusal) -> None:
        """Say why it cannot stay, and give its caller a moment to read that; when many have one, none.

        What the caller has sent already would reset a connection that is closed at once (RFC 9112, section 9.6).
        """
        assert self._wire is not None
        self.deaf = True
        self._wire.write(plain_response(refusal))
        if not self.owner.let_linger(self):
            self.force_close()
            return
        if self._wire.can_write_eof():
            self._wire.write_eof()
        self._head_timer = self._loop.call_later(_LINGER, self.force_close)

    def _is_idle_for_long(self) -> None:
        self._idle_timer = None
        if self._busy or self._force_close:
            return  # a timer is set behind the answer
        left = self._idle_since + self._bounds.keep_alive - self._loop.time()
        if left > 0:
            self._idle_timer = self._loop.call_later(left, self._is_idle_for_long)
        else:
            self.force_close()

    def force_close(self) -> None:
        """Close it once what has been written is taken; no request is answered any more."""
        self._force_close = True
        if self._waiter is not None:
            self._waiter.cancel()
        if self.transport is not None:
            self.transport.close()
            self.transport = None

    async def _serve(self) -> None:
        """Answer one request after another."""
        while not self._force_close:
            if self._message is None:
                self._waiter = self._loop.create_future()
                try:
                    await self._waiter
                finally:
                    self._waiter = None
            if not self.known:
                await self.owner.looking.take(1, self.peer)
            if not await self._answer():
                break
            self._idle_since = self._loop.time()
            if self._idle_timer is None:
                self._idle_timer = self._loop.call_later(self._bounds.keep_alive, self._is_idle_for_long)
        if self._unread is not None:
            await self._linger(unread=self._unread)
        if self.transport is not None:
            self.transport.close()

    async def _answer(self) -> bool:
        """Answer the request that has come; returns whether the connection goes on.

        The request is let go of before the next one is awaited.
        """
        message, self._message = self._message, None
        body = self._reading
        self._requests += 1
        keep = False
        try:
            if isinstance(message, RawRequestMessage):
                request = IncomingRequest(self, message, body)
                try:
                    keep = await self._handler(request)
                except Exception as error:  # noqa: BLE001  # a bug must not end the connection without an answer
                    self._answer_failure(error, request)
                # The parser takes the last trailer of a chunked body for the first field of the next request, which
                # would let a caller write into another's where both share a connection.
                keep = keep and not self.owner.retired and TRANSFER_ENCODING not in message.headers
            else:
                assert message is not None
                self._answer_malformed(message)
        except ConnectionError:
            return False
        except BaseException:
            self.force_close()
            raise
        if body is not EMPTY_PAYLOAD:
            body.set_exception(UnreadableBody("the request has been answered"))
        if not keep:
            self._unread = self.deaf or bool(self._held) or not body.is_eof()
        if not keep or self._force_close or not body.is_eof():
            return False
        self._write_timeout.begin()
        self._answered()
        return True

    def _answer_malformed(self, message: HttpProcessingError | Refusal) -> None:
        """Answer what is no request, or what is not taken; the connection ends."""
        refusal = message if isinstance(message, Refusal) else self._malformed(refusal_of(message, self._bounds))
        self._write_refusal(refusal)

    def _answer_failure(self, error: Exception, request: IncomingRequest) -> None:
        """Answer a request whose handler has failed; the connection ends.

        Raises:
            ConnectionError: the caller has disconnected, or an answer has begun.
        """
        if isinstance(error, ConnectionError):
            raise error
        if not isinstance(error, Refusal):
            _log.error("unexpected error in a handler", exc_info=error)
            error = Refusal("Something unexpected happened in this proxy; its log says what.")
        if request.begun:
            raise ConnectionResetError("the answer has begun")
        self._write_refusal(error, request.method)

    def _write_refusal(self, refusal: Refusal, method: str = "") -> None:
        if self.transport is None or self.transport.is_closing():
            raise ConnectionResetError("the caller has disconnected")
        self.transport.write(plain_response(refusal, method))

    def _served(self, _: asyncio.Task[None]) -> None:
        """No request will be answered any more: what has been written has its time to leave, and no longer."""
        self._ends = True
        self._stop_head_timer()
        if self._wire is not None:
            self._write_timeout.wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed: its handler is cancelled."""
        self._unwatch()
        self._stop_head_timer()
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None
        self._wire = None
        self._write_timeout.stop()
        self._account.close()
        self._held, self._at = b"", 0
        self.owner.connection_lost(self)
        self.force_close()
        if self._drained is not None and not self._drained.done():
            self._drained.set_exception(ConnectionResetError("the caller has disconnected"))
        if self._reading is not EMPTY_PAYLOAD:
            self._reading.set_exception(exc or ConnectionResetError("the caller has disconnected"))
        if self._serving is not None:
            self._serving.cancel()
            self._serving = None
        self._parser, self._reading = None, EMPTY_PAYLOAD

    # Writing

    def pause_writing(self) -> None:
        """The caller takes less than is written to it."""
        self.writing_paused = True
        self._write_timeout.wait()

    def resume_writing(self) -> None:
        """The caller has taken what was written."""
        self.writing_paused = False
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        if not self._ends:
            self._write_timeout.resume()

    async def drain(self) -> None:
        """Wait until the caller has taken enough of what was written.

        Raises:
            ConnectionResetError: it has disconnected.
        """
        if self.transport is None:
            raise ConnectionResetError("the caller has disconnected")
        if self.writing_paused:
            self._drained = self._loop.create_future()
            try:
                await self._drained
            finally:
                self._drained = None

    def _unsent(self) -> int:
        try:
            return self._wire.get_write_buffer_size() if self._wire is not None else 0
        except AttributeError:  # asyncio's transport of TLS has no protocol any more when it was closed twice
            return 0

    def _takes_too_long(self, some: bool) -> None:
        self.why_cut = "slow_reader" if some else "write_timeout"
        self.owner.tell(self.why_cut)
        self.cut()

    async def _linger(self, *, unread: bool) -> None:
        """Give the caller time to read its answer, before unread bytes of its own break the connection.

        Closing with such bytes, or before they come, resets a connection, and what has been written is lost (RFC 9112,
        section 9.6). The end of the caller's side ends this too. Over TLS our side cannot end alone, and a caller that
        waits for that end would wait too long: there it is done only if bytes are left `unread`. When many linger,
        nothing more is read, or it would take the time of those that are served.
        """
        if self._wire is None or self._wire.is_closing():
            return
        ends = self._wire.can_write_eof()
        if not (ends or unread):
            return
        self.deaf = self._lingers = True
        self._held, self._at, self._asked = b"", 0, 0
        self._parser, self._reading = None, EMPTY_PAYLOAD
        with self.owner.draining() as drains:
            self._drains = drains
            self._balance()
            if ends:
                self._wire.write_eof()
            await asyncio.sleep(_LINGER)
