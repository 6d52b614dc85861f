"""One connection of a caller: its requests are answered one after another."""

import asyncio
import logging
from typing import TYPE_CHECKING, Any, cast

from aiohttp import web
from aiohttp.hdrs import TRANSFER_ENCODING
from aiohttp.http import HttpProcessingError, StreamWriter
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import _PAYLOAD_ACCESS_ERROR, ERROR, _ErrInfo

from keyturn.core.errors import BadRequest, Refusal
from keyturn.core.events import WhyEnded
from keyturn.web.error_responses import plain_response, refusal_of
from keyturn.web.overload import Bounds, WriteTimeout
from keyturn.web.parsing import MAX_READ, RequestReader
from keyturn.web.relay import CLOSED, KEPT, has_begun, write

if TYPE_CHECKING:
    from keyturn.web.connections import Connections

_INTO = memoryview(bytearray(MAX_READ))
"""Where every read goes: bytes are taken out of it before the event loop does anything else."""


class BoundedReader(asyncio.BufferedProtocol):
    """Reads for a connection as many bytes as it can take, and passes everything else on."""

    __slots__ = ("_connection",)

    def __init__(self, connection: RequestReader) -> None:
        self._connection = connection

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002  # uvloop always says 64 KiB, asyncio nothing
        """As much room as may be read at once."""
        return _INTO[: self._connection.appetite()]

    def buffer_updated(self, nbytes: int) -> None:
        """So many bytes have been read."""
        if not self._connection.deaf:
            self._connection.data_received(bytes(_INTO[:nbytes]))

    def take(self, data: bytes) -> None:
        """Take bytes that were read before the connection was there."""
        self._connection.data_received(data)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is there."""
        self._connection.connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        """It is closed."""
        self._connection.connection_lost(exc)

    def eof_received(self) -> None:
        """The caller sends no more."""
        self._connection.eof_received()

    def pause_writing(self) -> None:
        """The caller takes less than is written to it."""
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        """The caller has taken what was written."""
        self._connection.resume_writing()


_OF_TLS = 2**15
"""Bytes to decrypt that are kept, and one read, while nothing of them is wanted; more than the largest record has."""
_LINGER = 2.0
"""Seconds for which what a refused caller still sends is thrown away."""
_FIRST = 1.0
"""Seconds that a connection has for its first request when we leave: its caller could not know that we would."""

_log = logging.getLogger("keyturn")


def admit(incoming: web.BaseRequest) -> None:
    """Take a request in: from here on what it holds is a client's, and its body is read.

    Raises:
        TooManyConnections: clients hold as many bytes as they may.
    """
    cast("Connection", incoming.protocol).admit()


async def begin(incoming: web.BaseRequest, client: str) -> None:
    """Wait for a turn to serve or refuse a request: a client's, or with an empty name that of where it comes from."""
    await cast("Connection", incoming.protocol).begin(client)


def peer_of(incoming: web.BaseRequest) -> str:
    """The address that its connection comes from; `unix` for a socket."""
    return cast("Connection", incoming.protocol).address


def why_cut(incoming: web.BaseRequest) -> str:
    """Why its connection was ended before its time; empty when its caller left."""
    return cast("Connection", incoming.protocol).why_cut or ""


class Connection(RequestReader):
    """One caller's connection: its requests are answered one after another.

    Two things are timed, each by a timer that exists only while it may be needed: bytes that the caller does not take,
    and a close that waits for such bytes.
    """

    __slots__ = ("_ends", "_lingers", "_made", "_pace", "_unread", "late", "why_cut")

    def __init__(
        self, owner: "Connections", bounds: Bounds, loop: asyncio.AbstractEventLoop, address: str = ""
    ) -> None:
        super().__init__(owner, bounds, loop)
        self.address = address
        self._made = loop.time()
        self._ends = False
        """Whether no request will be answered any more."""
        self._unread: bool | None = None
        """Whether bytes of the caller are left behind the last answer; `None` before that."""
        self._lingers = False
        """Whether the last answer has been written, and its caller has time to read it."""
        self._pace = WriteTimeout(loop, bounds.write_time, self._unsent, self._takes_too_long)
        self.late = False
        """Whether it came when no connection was to be kept any more."""
        self.why_cut: WhyEnded | None = None
        """Why it was ended before its time, if it was."""

    @property
    def idle(self) -> bool:
        """Whether it waits for a request, its first or its next."""
        return not self._request_count or (self._waiter is not None and not self._waiter.done())

    @property
    def unfinished(self) -> bool:
        """Whether a request has not been answered, or its answer not been taken as a whole."""
        return (self._busy and not self._lingers) or self._unsent() > 0

    def retire(self) -> None:
        """Close it now if it is idle, else behind its answer; a request on its way to a new connection is awaited."""
        if self._head.received or not self.idle:
            return
        left = self._made + _FIRST - self._loop.time()
        if self._request_count or self._ends or left <= 0:
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
        """The connection is there; one too many is told so, and closed."""
        self._wire = cast("asyncio.Transport", transport)
        if (limit := getattr(transport, "set_read_buffer_limits", None)) is not None:
            limit(_OF_TLS)
            self._narrow = transport.get_extra_info("sslcontext") is not None
        super().connection_made(transport)
        assert self._task_handler is not None
        self._task_handler.add_done_callback(self._served)
        refusal = self._owner.one_too_many(self.peer)
        if refusal is not None:
            self._turn_away(refusal)

    def _turn_away(self, refusal: Refusal) -> None:
        """Say why it cannot stay, and give its caller a moment to read that; when many have one, none.

        What the caller has sent already would reset a connection that is closed at once (RFC 9112, section 9.6).
        """
        assert self._wire is not None
        self.deaf = True
        self._wire.write(plain_response(refusal))
        if not self._owner.let_linger(self):
            self.force_close()
            return
        if self._wire.can_write_eof():
            self._wire.write_eof()
        self._head_timer = self._loop.call_later(_LINGER, self.force_close)

    async def begin(self, client: str) -> None:
        """See `begin`."""
        await self._owner.beginning.take(1, client or self.peer)

    async def start(self) -> None:
        """Answer one request after another.

        aiohttp's own loop keeps the last request, and what was read ahead of its body, while it waits for the next.
        """
        while not self._force_close:
            if not self._messages:
                self._waiter = self._loop.create_future()
                try:
                    await self._waiter
                finally:
                    self._waiter = None
            if not self.known:
                await self._owner.looking.take(1, self.peer)
            if not await self._answer():
                break
            self._next_keepalive_close_time = close_time = self._loop.time() + self._keepalive_timeout
            if self._keepalive_handle is None:
                self._keepalive_handle = self._loop.call_at(close_time, self._process_keepalive)
        if self._unread is not None:
            await self._linger(unread=self._unread)
        if not self._force_close:
            self._task_handler = None
            if self.transport is not None:
                self.transport.close()

    async def _answer(self) -> bool:
        """Answer the request that has come; returns whether the connection goes on."""
        message, payload = self._messages.popleft()
        assert self._parser is not None
        assert self._manager is not None
        assert self._request_factory is not None
        assert self._request_handler is not None
        self._parser.message_consumed()
        self._manager.requests_count += 1
        handler = self._request_handler
        if isinstance(message, _ErrInfo):
            handler = self._make_error_handler(message)
            message = ERROR
        # A task that is cancelled keeps this frame, which must not keep the task.
        request = self._request_factory(
            message, payload, self, StreamWriter(self, self._loop), cast("Any", asyncio.current_task(self._loop))
        )
        try:
            response, gone = await self._handle_request(request, None, handler)
        except ConnectionError:
            return False
        except Exception as error:  # noqa: BLE001  # as aiohttp does: one connection's bug ends that connection
            self.log_exception("unexpected error on a connection", exc_info=error)
            self.force_close()
            return False
        except BaseException:
            self.force_close()
            raise
        finally:
            request._task = cast("Any", None)  # noqa: SLF001  # or the two would keep each other
        payload.set_exception(_PAYLOAD_ACCESS_ERROR)
        self._keepalive = bool(response.keep_alive)
        if response is CLOSED and not gone:
            self._unread = self.deaf or bool(self._held) or not payload.is_eof()
        if gone or not self._keepalive or self._close or self._force_close or not payload.is_eof():
            return False
        self._pace.begin()
        self._answered()
        return True

    def _served(self, _: asyncio.Task[None]) -> None:
        """No request will be answered any more: what has been written has its time to leave, and no longer."""
        self._ends = True
        self._stop_head_timer()
        if self._wire is not None:
            self._pace.wait()

    def connection_lost(self, exc: BaseException | None) -> None:
        """The connection is closed, its handler cancelled."""
        self._watch_no_more()
        self._stop_head_timer()
        self._wire = None
        self._pace.stop()
        self._account.close()
        self._held = b""
        if self._task_handler is not None:
            self._owner.ends(self._task_handler)
        super().connection_lost(exc)
        self._reading = EMPTY_PAYLOAD

    # Writing

    def pause_writing(self) -> None:
        """The caller takes less than is written to it."""
        super().pause_writing()
        self._pace.wait()

    def resume_writing(self) -> None:
        """The caller has taken what was written."""
        super().resume_writing()
        if not self._ends:
            self._pace.go_on()

    def _unsent(self) -> int:
        try:
            return self._wire.get_write_buffer_size() if self._wire is not None else 0
        except AttributeError:  # asyncio's transport of TLS has no protocol any more when it was closed twice
            return 0

    def _takes_too_long(self, some: bool) -> None:
        self.why_cut = "slow_reader" if some else "write_timeout"
        self._owner.tell(self.why_cut)
        self.cut()

    # Answers to what is no request

    def log_exception(self, *args: Any, **kwargs: Any) -> None:
        """Log what nobody expected; a caller that breaks its body off, behind its answer, is no such thing."""
        if isinstance(kwargs.get("exc_info"), web.RequestPayloadError):
            _log.debug("a body broke off behind its answer")
        else:
            super().log_exception(*args, **kwargs)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Behind the answer: a listener that has stopped accepting keeps no connection.

        Nor is one kept behind a request in chunks: aiohttp's parser takes its last trailer for the first field of the
        next request, which would let a caller write into another's where both share a connection.
        """
        reset = False
        if resp is not KEPT or self._upgraded:
            resp, reset = await super().finish_response(request, resp, start_time)
        if self._owner.retired or TRANSFER_ENCODING in request.headers:
            resp = CLOSED
        return resp, reset

    async def _linger(self, *, unread: bool) -> None:
        """Give the caller time to read its answer, before bytes of it that nobody reads break the connection.

        Closing with such bytes, or before they come, resets a connection, and what has been written is lost (RFC 9112,
        section 9.6). The end of the caller's side ends this too. Over TLS our side cannot end alone, and whoever waits
        for that end would wait too long: there it is done only if bytes are left `unread`. In a crowd nothing more is
        read, or it would take the time of those that are served. The request is let go of before that.
        """
        if self._wire is None or self._wire.is_closing():
            return
        ends = self._wire.can_write_eof()
        if not (ends or unread):
            return
        self.deaf = self._lingers = True
        self._held, self._at, self._asked = b"", 0, 0
        self._parser, self._reading = None, EMPTY_PAYLOAD
        with self._owner.draining() as drains:
            self._drains = drains
            self._balance()
            if ends:
                self._wire.write_eof()
            await asyncio.sleep(_LINGER)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002  # it may quote a credential
    ) -> web.StreamResponse:
        """Answer what is no request, or what a handler has failed to answer; the connection ends.

        Raises:
            ConnectionError: the caller has gone, or an answer has begun.
        """
        if isinstance(exc, ConnectionError):
            raise exc
        if isinstance(exc, Refusal):
            refusal = exc
        elif isinstance(exc, HttpProcessingError) and status == BadRequest.status:
            refusal = self._malformed(refusal_of(exc, self._bounds))
        else:
            refusal = Refusal("Something unexpected happened in this proxy; its log says what.")
            _log.error("unexpected error in a handler", exc_info=exc)
        if has_begun(request):
            raise ConnectionResetError("the answer has begun")
        write(request, plain_response(refusal, request.method))
        return CLOSED
