"""One connection of a caller: how long it may keep us waiting, and what is no HTTP on it."""

import asyncio
import logging
import sys
from typing import TYPE_CHECKING, Any, cast

from aiohttp import web
from aiohttp.hdrs import CONTENT_LENGTH, TRANSFER_ENCODING
from aiohttp.http import HttpProcessingError, HttpRequestParser
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.web_protocol import _ErrInfo

from proxy.core.errors import BadRequest, Refusal, TooSlow
from proxy.web.bounds import Bounds
from proxy.web.malformed import Broken, head_too_large, plain, what_is_wrong
from proxy.web.relay import CLOSED, KEPT, has_begun, write

if TYPE_CHECKING:
    from proxy.web.connections import Connections

_BUFFER = 2**16
"""Bytes of a body that are read ahead, for each request that waits for its turn; at most twice as many."""
_LINGER = 2.0
"""Seconds for which what a refused caller still sends is thrown away."""
_FIRST = 1.0
"""Seconds that a connection has for its first request when we leave: its caller could not know that we would."""
_END_OF_HEAD = b"\r\n\r\n"
_NO_LOG: Any = None
"""In place of aiohttp's log of requests, which shows queries."""

_log = logging.getLogger("keyturn")


class Connection(web.RequestHandler):
    """One caller's connection.

    Three things are timed, each by a timer that exists only while it may be needed: a head of which some is here, bytes
    that the caller does not take, and a close that waits for such bytes.
    """

    __slots__ = (
        "_bounds", "_deaf", "_ends", "_head", "_head_timer", "_held", "_left", "_length", "_made", "_owner", "_reading",
        "_seam", "_watched", "_wire", "_write_timer", "late", "peer",
    )  # fmt: skip

    def __init__(self, owner: "Connections", bounds: Bounds, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(
            owner,
            loop=loop,
            access_log=_NO_LOG,
            auto_decompress=False,
            keepalive_timeout=bounds.keep_alive,
            lingering_time=0,
            read_bufsize=_BUFFER,
            logger=_log,
        )
        self._parser = HttpRequestParser(
            self,
            loop,
            _BUFFER,
            max_line_size=bounds.target,
            max_field_size=bounds.head,
            max_headers=bounds.fields,
            payload_exception=web.RequestPayloadError,
            auto_decompress=False,
            max_msg_queue_size=bounds.pipelined,
        )
        self._max_msg_queue_size = bounds.pipelined
        self._msg_queue_resume_size = bounds.pipelined // 2
        self._owner = owner
        self._bounds = bounds
        self._made = loop.time()
        self._wire: asyncio.Transport | None = None
        """The transport until it is closed; `transport` is let go of when it begins to close."""
        self._deaf = False
        """Whether what still comes is thrown away: the end of the message is not known, or too much was sent."""
        self._ends = False
        """Whether no request will be answered any more."""
        self._head = 0
        """Bytes of a head that has begun and is not complete."""
        self._seam = b""
        """The last few of them, where its end may have begun."""
        self._held = b""
        """What has come behind as many requests as may be read ahead."""
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._left = 0
        """What was written and not taken when the timer was set; more than that once the caller took something."""
        self._reading: StreamReader = EMPTY_PAYLOAD
        """The body of the last request whose head has come."""
        self._length = 0
        """Its bytes, when its head says how many there are."""
        self._watched = -1
        """The file descriptor under which its caller's leaving is watched for, while nothing is read."""
        self.peer: str = ""
        self.late = False
        """Whether it came when no connection was to be kept any more."""

    @property
    def idle(self) -> bool:
        """Whether it waits for a request, its first or its next."""
        return not self._request_count or (self._waiter is not None and not self._waiter.done())

    def retire(self) -> None:
        """Close it now if it is idle, else behind its answer; a request on its way to a new connection is awaited."""
        if self._head or not self.idle:
            return
        left = self._made + _FIRST - self._loop.time()
        if self._request_count or self._ends or left <= 0:
            self.force_close()
        elif self._head_timer is None:
            self._head_timer = self._loop.call_later(left, self._first_is_late)

    def _first_is_late(self) -> None:
        self._head_timer = None
        if not self._head:
            self.force_close()
        else:
            self._head_timer = self._loop.call_later(self._bounds.head_time, self._head_is_late)

    # From its beginning to its end

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is there; one too many is told so, and closed."""
        self._wire = cast("asyncio.Transport", transport)
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
        self._deaf = True
        self._wire.write(plain(refusal))
        if not self._owner.let_linger(self):
            self.force_close()
            return
        if self._wire.can_write_eof():
            self._wire.write_eof()
        self._head_timer = self._loop.call_later(_LINGER, self.force_close)

    def _served(self, _: asyncio.Task[None]) -> None:
        """No request will be answered any more: what has been written has its time to leave, and no longer."""
        self._ends = True
        self._stop_head_timer()
        if self._wire is not None and self._write_timer is None:
            self._watch_writing()

    def cut(self) -> None:
        """End the connection at once; its handler is cancelled."""
        if self._wire is not None:
            self._wire.abort()

    def connection_lost(self, exc: BaseException | None) -> None:
        """The connection is closed, its handler cancelled."""
        self._watch_no_more()
        self._stop_head_timer()
        self._wire = None
        if self._write_timer is not None:
            self._write_timer.cancel()
        if self._task_handler is not None:
            self._owner.ends(self._task_handler)
        super().connection_lost(exc)

    # Reading

    def data_received(self, data: bytes) -> None:
        """Parse what has come in, up to the end of a head or of a body at a time.

        aiohttp's parser throws away what it has just read when it meets an error behind that, so what becomes of a
        request would depend on which bytes arrived together.
        """
        if self._held:
            data, self._held = self._held + data, b""
        while not self._deaf:
            length = self._next(data)
            self._take(data[:length])
            data = data[length:]
            if not data:
                return
            if len(self._messages) >= self._bounds.pipelined:
                self._held = data
                return

    def _next(self, data: bytes) -> int:
        """How many bytes the parser gets at once."""
        if self._upgraded or not data:
            return len(data)
        if not self._reading.is_eof():
            return min(self._length - self._reading.total_bytes, len(data)) if self._length else len(data)
        end = (self._seam + data).find(_END_OF_HEAD)
        length = len(data) if end < 0 else end + len(_END_OF_HEAD) - len(self._seam)
        return min(length, max(self._bounds.head - self._head, 1))

    def _take(self, data: bytes) -> None:
        """Have bytes parsed.

        A body that stops being HTTP in its middle fails its reader: aiohttp would only note it for the next request.
        """
        before, body = self._request_count, self._reading
        behind_it = body.is_eof() and not self._upgraded
        if behind_it and self._head + len(data) > self._bounds.head:
            self._refuse(self._malformed(head_too_large(self._bounds.head)))
            return
        super().data_received(data)
        if self._request_count != before:
            self._head_has_come(body)
        elif behind_it and data:
            self._head_goes_on(data)

    def _head_has_come(self, body: StreamReader) -> None:
        """A request is there, or something that is none; `body` is that of the one before."""
        self._head, self._seam, self._length = 0, b"", 0
        self._stop_head_timer()
        message, self._reading = self._messages[-1]
        if isinstance(message, RawRequestMessage):
            self._length = int(message.headers.get(CONTENT_LENGTH, 0))
            return
        self._deaf = True
        if not body.is_eof():
            assert isinstance(message.exc, HttpProcessingError)
            self._fail(body, Broken(what_is_wrong(message.exc, self._bounds)))

    def _fail(self, body: StreamReader, error: Broken) -> None:
        """Let a body's reader meet an error.

        It is told once more in the next turn of the loop: a reader that the end of a chunk has just woken looks for
        bytes only, finds none, and would wait for ever.
        """
        body.set_exception(error)
        self._loop.call_soon(body.set_exception, error)

    def _head_goes_on(self, data: bytes) -> None:
        self._head += len(data)
        self._seam = (self._seam + data)[1 - len(_END_OF_HEAD) :]
        if self._head_timer is None:
            self._head_timer = self._loop.call_later(self._bounds.head_time, self._head_is_late)

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self.idle:
            self._owner.tell("head_timeout")
            self._refuse(TooSlow(f"The head of a request did not come within {self._bounds.head_time:g} s."))
        else:  # it stands behind a request that is being answered, which may take its time
            self._head_timer = self._loop.call_later(self._bounds.head_time, self._head_is_late)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _refuse(self, refusal: Refusal) -> None:
        """Answer this in place of the next request, and read nothing more."""
        self._deaf = True
        self._stop_head_timer()
        self._request_count += 1
        self._messages.append((_ErrInfo(refusal.status, refusal, refusal.message), EMPTY_PAYLOAD))
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _pause_transport_reading(self) -> None:
        """Read nothing for a while, and notice all the same when the caller leaves."""
        super()._pause_transport_reading()
        sock = self.transport.get_extra_info("socket") if self.transport is not None else None
        if sock is not None and self._watched < 0:
            self._watched = sock.fileno()
            self._owner.departures.watch(self._watched, self.cut)

    def _resume_transport_reading(self) -> None:
        """Go on reading."""
        self._watch_no_more()
        super()._resume_transport_reading()

    def _watch_no_more(self) -> None:
        if self._watched >= 0:
            self._owner.departures.forget(self._watched)
            self._watched = -1

    # Writing

    def pause_writing(self) -> None:
        """The caller takes less than is written to it."""
        super().pause_writing()
        if self._write_timer is None:
            self._watch_writing()

    def resume_writing(self) -> None:
        """The caller has taken what was written."""
        super().resume_writing()
        self._left = sys.maxsize

    def _watch_writing(self) -> None:
        assert self._wire is not None
        self._left = self._wire.get_write_buffer_size()
        self._write_timer = self._loop.call_later(self._bounds.write_time, self._look_at_writing)

    def _look_at_writing(self) -> None:
        self._write_timer = None
        if self._wire is None or not (self.writing_paused or self._ends):
            return
        if self._wire.get_write_buffer_size() < self._left:
            self._watch_writing()
        else:
            self._owner.tell("write_timeout")
            self.cut()

    # Answers to what is no request

    def _malformed(self, refusal: Refusal) -> Refusal:
        """Take note of what is no request, or too large for one."""
        self._owner.tell("malformed")
        _log.debug("malformed request: %s", refusal.message)
        return refusal

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
        if resp is CLOSED:
            await self._linger(unread=self._deaf or bool(self._messages) or not request.content.is_eof())
        return resp, reset

    async def _linger(self, *, unread: bool) -> None:
        """Give the caller time to read its answer, before bytes of it that nobody reads break the connection.

        Closing with such bytes, or before they come, resets a connection, and what has been written is lost (RFC 9112,
        section 9.6). The end of the caller's side ends this too. Over TLS our side cannot end alone, and whoever waits
        for that end would wait too long: there it is done only if bytes are left `unread`.
        """
        if self._wire is None or self._wire.is_closing():
            return
        ends = self._wire.can_write_eof()
        if not (ends or unread):
            return
        self._deaf = True
        self._resume_transport_reading()
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
        """Answer what is no request, or what a handler has failed to answer; the connection ends."""
        if isinstance(exc, Refusal):
            refusal = exc
        elif isinstance(exc, HttpProcessingError) and status == BadRequest.status:
            refusal = self._malformed(what_is_wrong(exc, self._bounds))
        else:
            refusal = Refusal("Something unexpected happened in this proxy; its log says what.")
            _log.error("unexpected error in a handler", exc_info=exc)
        if has_begun(request):
            raise ConnectionResetError("the answer has begun")
        write(request, plain(refusal, request.method))
        return CLOSED
