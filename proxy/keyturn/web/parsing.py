"""Reading from a caller's connection: one head or one body at a time, within the byte budget of all connections."""

import asyncio
import logging
import socket
from typing import TYPE_CHECKING, Any

from aiohttp import web
from aiohttp.hdrs import CONTENT_LENGTH
from aiohttp.http import HttpProcessingError, HttpRequestParser
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.web_protocol import _ErrInfo

from keyturn.core.errors import BadRequest, Refusal, TooManyConnections, TooSlow
from keyturn.web.error_responses import Broken, foreign_protocol, head_too_large, refusal_of
from keyturn.web.overload import Bounds, ConnectionBytes

if TYPE_CHECKING:
    from keyturn.web.connections import Connections

_END = b"\r\n\r\n"
_SEAM = len(_END) - 1
_COST, _COST_BEYOND_ASCII = 2, 5
"""Bytes of memory for each byte of a head: the parser keeps every field as bytes and as text, and text with one
character outside ASCII may take four bytes for each."""


class HeadCounter:
    """Counts the bytes of one head after another, as they come in pieces."""

    __slots__ = ("_cost", "_seam", "received")

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Expect another head."""
        self.received = 0
        """Bytes of a head that has begun and is not complete."""
        self._seam = b""
        """The last few of them, where its end may have begun."""
        self._cost = _COST

    @property
    def cost(self) -> int:
        """Bytes of memory that what has been received takes."""
        return self.received * self._cost

    def affordable(self, room: int) -> int:
        """How many bytes of a head fit into so much memory."""
        return room // self._cost

    def length(self, data: bytes, at: int) -> int:
        """How many of the bytes from `at` on belong to this head."""
        if self._seam:
            across = (self._seam + data[at : at + _SEAM]).find(_END)
            if across >= 0:
                return across + len(_END) - len(self._seam)
        end = data.find(_END, at)
        return (len(data) if end < 0 else end + len(_END)) - at

    def add(self, piece: bytes) -> None:
        """Count a piece of it."""
        self.received += len(piece)
        self._seam = piece[-_SEAM:] if len(piece) >= _SEAM else (self._seam + piece)[-_SEAM:]
        if not piece.isascii():
            self._cost = _COST_BEYOND_ASCII


MAX_READ = 2**16
"""Bytes that are read at once; of a request that has not been admitted yet a quarter of them."""
_BUFFER = 2**16
"""Bytes of a body that are read ahead once its request has been admitted; at most twice as many."""
_WIDE = 2**20
"""Bytes that the system keeps of a body over TLS, if it lets us."""
_SMALL = 8192
"""Bytes of memory that a parser may keep: it holds the head of a message until the next one begins."""
_CHUNK = 128
"""Bytes of memory that a piece of a body takes beside its own."""
_NO_LOG: Any = None
"""In place of aiohttp's log of requests, which shows queries."""

_log = logging.getLogger("keyturn")


class RequestReader(web.RequestHandler):
    """Reads requests, and has them parsed one at a time: the next head when the one before is answered.

    A body is read when its request has been admitted. What has come before that is held as it is, and no more is read.
    Held bytes are counted in `_account`. A head of which some is here is timed.
    """

    __slots__ = (
        "_account", "_admitted", "_asked", "_at", "_bounds", "_busy", "_drains", "_head", "_head_timer", "_held",
        "_length", "_narrow", "_owner", "_parsing", "_reading", "_stopped", "_watched", "_wire", "address", "deaf",
        "known", "peer",
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
        self._owner = owner
        self._bounds = bounds
        self._parser = self._new_parser()
        self._wire: asyncio.Transport | None = None
        """The transport until it is closed; `transport` is let go of when it begins to close."""
        self.deaf = False
        """Whether what still comes is thrown away: the end of the message is not known, or too much was sent."""
        self._drains = True
        """Whether it is read to be thrown away."""
        self._head = HeadCounter()
        self._head_timer: asyncio.TimerHandle | None = None
        self._busy = False
        """Whether a request, or what is none, has come and is not answered."""
        self._asked = 0
        """Bytes of memory that its head takes."""
        self._admitted = False
        self.known = False
        """Whether any of its requests has been admitted."""
        self._reading: StreamReader = EMPTY_PAYLOAD
        """Its body."""
        self._length = 0
        """The bytes of that, when its head says how many there are."""
        self._held = b""
        """What has come and may not be parsed yet, from `_at` on."""
        self._at = 0
        self._parsing = False
        self._stopped = False
        """Whether the transport reads nothing."""
        self._account = ConnectionBytes(owner.buffers, self._balance)
        self._narrow = False
        """Whether the system keeps few bytes of it, see `server`."""
        self._watched = -1
        """The file descriptor under which its caller's leaving is watched for, while nothing is read."""
        self.address: str = ""
        """Where it comes from."""
        self.peer: str = ""
        """What all connections from there have in common, see `access.failures.origin_of`."""

    def _new_parser(self) -> HttpRequestParser:
        bounds = self._bounds
        return HttpRequestParser(
            self,
            self._loop,
            _BUFFER,
            max_line_size=bounds.target,
            max_field_size=bounds.head,
            max_headers=bounds.fields,
            payload_exception=web.RequestPayloadError,
            auto_decompress=False,
            max_msg_queue_size=1,
        )

    def appetite(self) -> int:
        """How many bytes may be read at once now; at least one."""
        if self.deaf:
            return MAX_READ
        room = self._account.room()
        if not self._busy:
            room = self._head.affordable(room)
        return max(1, min(room, MAX_READ if self._admitted else MAX_READ // 4))

    def data_received(self, data: bytes) -> None:
        """Take what has come in; without bytes, go on with what the parser holds of a body."""
        if self.deaf:
            return
        if data:
            self._held = self._held[self._at :] + data if self._held else data
            self._at = 0
        elif not self._reading.is_eof() and not self._upgraded:
            self._feed(data)
        self._parse()

    def admit(self) -> None:
        """Read the body of the request that is being answered."""
        self._admitted = self.known = True
        self._account.know(known=True)
        if self._account.crowded:
            raise TooManyConnections("Requests hold as many bytes as they may here. Try again.", retry_after=1)
        if not self._reading.is_eof():
            self._widen()
            self._parse()

    def _widen(self) -> None:
        """Let the system keep as much of a connection over TLS as of others: now somebody reads it."""
        if self._narrow and self.transport is not None:
            self._narrow = False
            sock = self.transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _WIDE)

    def _answered(self) -> None:
        """Go on to the next request."""
        self._busy = self._admitted = False
        if self._asked > _SMALL:
            self._parser = self._new_parser()
        self._reading, self._length, self._asked = EMPTY_PAYLOAD, 0, 0
        self._account.hold(0)
        self._account.know(known=False)
        if self._held or self._stopped:
            self._parse()

    def _parse(self) -> None:
        """Parse what is here as far as that may be, up to the end of a head or of a body at a time.

        aiohttp's parser throws away what it has just read when it meets an error behind that, so what becomes of a
        request would depend on which bytes arrived together.
        """
        if self._parsing:
            return
        self._parsing = True
        try:
            while self._held and not self.deaf and self._may_parse():
                length = self._next()
                at, self._at = self._at, self._at + length
                data = self._held
                if self._at == len(data):
                    self._held, self._at = b"", 0
                self._take(data[at : at + length])
        finally:
            self._parsing = False
        self._balance()

    def _may_parse(self) -> bool:
        """Whether what comes next may be parsed: a head when nobody waits for an answer, else what is of the body.

        The length of a body that has not been admitted is no reason to read on, but what is here of it may be kept as
        well as held.
        """
        if not self._reading.is_eof():
            return (self._admitted or self._length > 0) and not self._reading_paused
        return not self._busy

    def _next(self) -> int:
        """How many bytes the parser gets at once."""
        left = len(self._held) - self._at
        if not self._reading.is_eof():
            return min(self._length - self._reading.total_bytes, left) if self._length else left
        return min(self._head.length(self._held, self._at), max(self._bounds.head - self._head.received, 1))

    def _take(self, data: bytes) -> None:
        """Have bytes of a body or of a head parsed."""
        if not self._reading.is_eof():
            self._feed(data)
            return
        if not self._head.received and (refusal := foreign_protocol(data)) is not None:
            self._refuse(self._malformed(refusal))
            return
        if self._head.received + len(data) > self._bounds.head:
            self._refuse(self._malformed(head_too_large(self._bounds.head)))
            return
        self._head.add(data)
        self._feed(data)
        if not self._busy and self._head_timer is None:
            self._head_timer = self._loop.call_later(self._bounds.head_time, self._head_is_late)

    def _feed(self, data: bytes) -> None:
        """Let aiohttp parse it.

        A body that stops being HTTP in its middle fails its reader: aiohttp would only note it for the next request.
        """
        before, body = self._request_count, self._reading
        super().data_received(data)
        if self._request_count != before:
            self._head_has_come(body)

    def _head_has_come(self, body: StreamReader) -> None:
        """A request is there, or something that is none; `body` is that of the one before."""
        self._busy, self._asked, self._length = True, self._head.cost, 0
        self._head.begin()
        self._stop_head_timer()
        message, self._reading = self._messages[-1]
        if isinstance(message, RawRequestMessage):
            self._length = int(message.headers.get(CONTENT_LENGTH, 0))
            return
        self.deaf = True
        if not body.is_eof():
            assert isinstance(message.exc, HttpProcessingError)
            self._fail(body, Broken(refusal_of(message.exc, self._bounds)))

    def _fail(self, body: StreamReader, error: Broken) -> None:
        """Let a body's reader meet an error.

        It is told once more in the next turn of the loop: a reader that the end of a chunk has just woken looks for
        bytes only, finds none, and would wait for ever.
        """
        body.set_exception(error)
        self._loop.call_soon(body.set_exception, error)

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self._account.paused:
            self._refuse(TooManyConnections("Requests hold as many bytes as they may here. Try again.", retry_after=1))
            return
        self._owner.tell("head_timeout")
        self._refuse(TooSlow(f"The head of a request did not come within {self._bounds.head_time:g} s."))

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _refuse(self, refusal: Refusal) -> None:
        """Answer this in place of the next request, and read nothing more."""
        self.deaf = self._busy = True
        self._held, self._at = b"", 0
        self._stop_head_timer()
        self._request_count += 1
        self._messages.append((_ErrInfo(refusal.status, refusal, refusal.message), EMPTY_PAYLOAD))
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _balance(self) -> None:
        """Count what is held, and read on or pause by that."""
        if self._parsing or self._wire is None:
            return
        held = len(self._held) - self._at
        reading = self._reading
        self._account.hold(
            held + self._asked + self._head.cost + (_weight(reading) if reading is not EMPTY_PAYLOAD else 0)
        )
        self._account.go_on_anyway()
        if self.deaf:
            more = self._drains
        elif held or self._reading_paused or not (self._admitted or reading.is_eof()):
            more = False
        else:
            more = self._account.room() > 0 or not self._account.pause()
        if more == self._stopped:
            self._read_on() if more else self._pause()

    def _read_on(self) -> None:
        self._stopped = False
        self._watch_no_more()
        super()._resume_transport_reading()

    def _pause(self) -> None:
        """Read nothing for a while, and notice all the same when the caller leaves."""
        self._stopped = True
        super()._pause_transport_reading()
        sock = self.transport.get_extra_info("socket") if self.transport is not None else None
        if sock is not None and self._watched < 0:
            self._watched = sock.fileno()
            self._owner.departures.watch(self._watched, self.cut)

    def _pause_transport_reading(self) -> None:
        """A buffer of aiohttp's is full: one reason more to pause."""
        self._balance()

    def _resume_transport_reading(self) -> None:
        """It is not any more: one reason less."""
        self._balance()

    def _watch_no_more(self) -> None:
        if self._watched >= 0:
            self._owner.departures.forget(self._watched)
            self._watched = -1

    def _malformed(self, refusal: Refusal) -> Refusal:
        """Take note of what is no request, or too large for one."""
        self._owner.tell("malformed")
        if isinstance(refusal, BadRequest) and refusal.foreign:
            self._owner.mention(refusal.foreign, self.peer)
        else:
            _log.debug("malformed request: %s", refusal.message)
        return refusal

    def cut(self) -> None:
        """End the connection at once; its handler is cancelled."""
        if self._wire is not None:
            self._wire.abort()


def _weight(body: StreamReader) -> int:
    """Bytes of memory that what has been read of a body, and not been taken, keeps."""
    return body._size + _CHUNK * len(body._buffer)  # noqa: SLF001  # nothing else tells
