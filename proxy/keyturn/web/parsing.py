"""Reading from a caller's connection: one head or one body at a time, within the byte budget of all connections.

The parser is aiohttp's (llhttp, in C). Its server is not used: it parses ahead, and builds objects for each request
that a proxy has no use for.
"""

import asyncio
import logging
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, cast

from aiohttp.hdrs import CONTENT_LENGTH
from aiohttp.http import HttpProcessingError, HttpRequestParser, RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader

from keyturn.aiohttp_internals import buffered
from keyturn.core.errors import BadRequest, Refusal, TooManyConnections, TooSlow
from keyturn.web.connections import Connections, OpenConnection
from keyturn.web.error_responses import MalformedBody, UnreadableBody, foreign_protocol, head_too_large, refusal_of
from keyturn.web.overload import BYTES_FLOOR, ConnectionBytes, HeadCounter

if TYPE_CHECKING:
    from aiohttp.base_protocol import BaseProtocol

_HEAD_END = b"\r\n\r\n"
MAX_READ = 2**16
"""Bytes that are read at once; a quarter of them before the request has been admitted."""
_READ_BUFFER = memoryview(bytearray(MAX_READ))
"""Every read goes here, and is taken out of it before the event loop does anything else."""
_BUFFER = 2**16
"""Bytes of a body that are read ahead once its request has been admitted; at most twice as many."""
_WIDE_BUFFER = 2**20
"""Bytes of a body over TLS that the system may keep."""
_CLOSING = (RuntimeError, AttributeError)
"""Raised by transports that are being closed when reading is paused or resumed."""
_SMALL_HEAD = 8192
"""Bytes of memory that a parser may keep: it holds the head of a message until the next one begins."""

_log = logging.getLogger("keyturn")

Message = RawRequestMessage | HttpProcessingError | Refusal
"""An item read from a connection: a request, bytes that the parser refuses, or a refusal made without it."""


class RequestReader(OpenConnection, asyncio.BufferedProtocol):
    """Reads requests, and has them parsed one at a time: the next head when the one before is answered.

    A body is read when its request has been admitted. Until then what has come is held as it is, and no more is read.
    Held bytes are counted in `_account`. A head that has begun is timed.

    A `BufferedProtocol` bounds each read. A plain one would be handed up to 256 KiB at once, which a thousand
    connections would all hold before any of them could be paused.
    """

    __slots__ = (
        "_account", "_admitted", "_asked", "_at", "_bounds", "_busy", "_drains", "_head", "_head_timer", "_held",
        "_length", "_loop", "_message", "_narrow", "_parser", "_parsing", "_reading", "_reading_paused", "_stopped",
        "_waiter", "_was_paused", "_watched", "_wire", "deaf", "known", "owner", "transport",
    )  # fmt: skip

    def __init__(self, owner: Connections, address: str) -> None:
        self.owner = owner
        self._bounds = owner.bounds
        self._loop = owner.loop
        self._parser: HttpRequestParser | None = self._new_parser()
        self.transport: asyncio.Transport | None = None
        """`None` once the connection is being closed."""
        self._wire: asyncio.Transport | None = None
        """The transport until it is closed."""
        self._message: Message | None = None
        """Items read and not being answered yet."""
        self._waiter: asyncio.Future[None] | None = None
        """Set while the next message is awaited."""
        self.deaf = False
        """Whether what still comes is thrown away: the end of the message is not known, or too much was sent."""
        self._drains = True
        """Whether it is read to be thrown away."""
        self._head = HeadCounter()
        self._head_timer: asyncio.TimerHandle | None = None
        self._busy = False
        """Whether a message has come and is not answered."""
        self._asked = 0
        """Bytes of memory that its head takes."""
        self._admitted = False
        self.known = False
        """Whether any of its requests has been admitted."""
        self._reading: StreamReader = EMPTY_PAYLOAD
        """Its body."""
        self._reading_paused = self._was_paused = False
        """Whether more of the body is here than is read ahead, and whether that has been so before."""
        self._length = 0
        """The bytes of the body, when its head says how many there are."""
        self._held = b""
        """Bytes received that may not be parsed yet, from `_at` on."""
        self._at = 0
        self._parsing = False
        self._stopped = False
        """Whether the transport reads nothing."""
        self._account = ConnectionBytes(owner.buffers, self._balance)
        self._narrow = False
        """Whether the system keeps few bytes of it, see `listener`."""
        self._watched = -1
        """The file descriptor that is watched for the caller's disconnecting, while nothing is read."""
        self.address, self.peer, self.late = address, "", False

    def _new_parser(self) -> HttpRequestParser:
        bounds = self._bounds
        return HttpRequestParser(
            cast("BaseProtocol", self),  # its streams call `connected`, `pause_reading` and `resume_reading`
            self._loop,
            _BUFFER,
            max_line_size=bounds.target,
            max_field_size=bounds.head,
            max_headers=bounds.fields,
            payload_exception=UnreadableBody,
            auto_decompress=False,
            max_msg_queue_size=1,  # it stops behind each message
        )

    # What the transport calls

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002  # uvloop always says 64 KiB, asyncio nothing
        """As much room as may be read at once now; at least one byte."""
        if self.deaf:
            return _READ_BUFFER
        room = self._account.room()
        if not self._busy:
            room = self._head.affordable(room)
        return _READ_BUFFER[: max(1, min(room, MAX_READ if self._admitted else MAX_READ // 4))]

    def buffer_updated(self, nbytes: int) -> None:
        """So many bytes have been read."""
        if not self.deaf:
            self.receive(bytes(_READ_BUFFER[:nbytes]))

    def receive(self, data: bytes) -> None:
        """Take bytes that have come in."""
        if self._held:
            self._held = self._held[self._at :] + data
        elif self._busy or self._head.received or not self._is_head(data):
            self._held = data
        else:  # one whole head, as usual
            self._parsing = True
            try:
                self._take(data)
            finally:
                self._parsing = False
            self._balance()
            return
        self._at = 0
        self._parse()

    def _is_head(self, data: bytes) -> bool:
        """Whether these bytes are one whole head that is not too large."""
        return data.find(_HEAD_END) == len(data) - len(_HEAD_END) and len(data) <= self._bounds.head

    def admit(self) -> None:
        """Count the request that is being answered as admitted, and read its body.

        Raises:
            TooManyConnections: admitted requests hold as many bytes as they may.
        """
        self._admitted = self.known = True
        self._account.admit(admitted=True)
        if self._account.crowded:
            raise TooManyConnections("Requests hold as many bytes as they may here. Try again.", retry_after=1)
        if not self._reading.is_eof():
            self._widen()
            self._parse()

    def _widen(self) -> None:
        """Let the system keep as much of a connection over TLS as of others: now it is read."""
        if self._narrow and self.transport is not None:
            self._narrow = False
            sock = self.transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _WIDE_BUFFER)

    def _answered(self) -> None:
        """Go on to the next request."""
        self._busy = self._admitted = False
        if self._asked > _SMALL_HEAD:
            self._parser = self._new_parser()
        self._reading, self._length, self._asked = EMPTY_PAYLOAD, 0, 0
        self._account.end()
        if self._held or self._stopped:
            self._parse()

    # Parsing

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
        """Whether what comes next may be parsed: a head when no request is being answered, else a part of the body.

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
        head = self._head
        if not head.received and (refusal := foreign_protocol(data)) is not None:
            self._refuse(self._malformed(refusal))
            return
        if head.received + len(data) > self._bounds.head:
            self._refuse(self._malformed(head_too_large(self._bounds.head)))
            return
        head.add(data)
        self._feed(data)
        if not self._busy and self._head_timer is None:
            self._head_timer = self._loop.call_later(self._bounds.head_time, self._head_is_late)

    def _feed(self, data: bytes) -> None:
        assert self._parser is not None
        try:
            messages, upgraded, tail = self._parser.feed_data(data)
        except HttpProcessingError as error:
            self._parser_refuses(error)
            return
        if messages:
            message, self._reading = messages[0]
            self._was_paused = False
            self._arrived(message)
            self._length = int(message.headers.get(CONTENT_LENGTH, 0))
        if upgraded:  # no upgrade is taken up: what stands behind the request is the next one
            self._parser.set_upgraded(False)
            if tail:
                self._held, self._at = tail + self._held[self._at :], 0

    def _arrived(self, message: Message) -> None:
        """Hand on a message, for which no more of a head is awaited."""
        self._busy, self._asked = True, self._head.cost
        self._head.begin()
        self._stop_head_timer()
        self._message = message
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _parser_refuses(self, error: HttpProcessingError) -> None:
        """Take note that what has come is not HTTP; in the middle of a body, its reader fails."""
        self.deaf = True
        if self._reading.is_eof():
            self._reading = EMPTY_PAYLOAD
            self._arrived(error)
        else:
            self._fail(self._reading, MalformedBody(refusal_of(error, self._bounds)))

    def _fail(self, body: StreamReader, error: MalformedBody) -> None:
        """Let a body's reader meet an error.

        It is set once more in the next iteration of the loop: a reader that the end of a chunk has just woken looks for
        bytes only, finds none, and would wait for ever.
        """
        body.set_exception(error)
        self._loop.call_soon(body.set_exception, error)

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self._account.paused:
            self._refuse(TooManyConnections("Requests hold as many bytes as they may here. Try again.", retry_after=1))
            return
        self.owner.tell("head_timeout")
        self._refuse(TooSlow(f"The head of a request did not come within {self._bounds.head_time:g} s."))

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _refuse(self, refusal: Refusal) -> None:
        """Answer this in place of the next request, and read nothing more."""
        self.deaf = True
        self._held, self._at = b"", 0
        self._arrived(refusal)

    def _malformed(self, refusal: Refusal) -> Refusal:
        """Take note of what is no request, or too large for one."""
        self.owner.tell("malformed")
        if isinstance(refusal, BadRequest) and refusal.foreign:
            self.owner.mention(refusal.foreign, self.peer)
        else:
            _log.debug("malformed request: %s", refusal.message)
        return refusal

    # Flow control

    @property
    def connected(self) -> bool:
        """Whether the connection is open."""
        return self.transport is not None

    def pause_reading(self) -> None:
        """As much of the body is here as is read ahead."""
        assert self._parser is not None
        self._reading_paused = self._was_paused = True
        self._parser.pause_reading()
        self._balance()

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Some of the body has been taken; aiohttp says so behind every piece, whether reading was paused or not.

        Once paused, the parser may hold something back behind each piece, and has to be asked for it.
        """
        if self._was_paused:
            self._reading_paused = False
            if resume_parser and not self.deaf:
                if not self._reading.is_eof():
                    self._feed(b"")
                self._parse()
        self._balance()

    def _balance(self) -> None:
        """Count what is held, and read on or pause by that."""
        if self._parsing or self._wire is None:
            return
        held = len(self._held) - self._at
        reading, account = self._reading, self._account
        account.hold(held + self._asked + self._head.cost + (0 if reading is EMPTY_PAYLOAD else buffered(reading)))
        if account.paused:
            account.unpause()
        if self.deaf:
            more = self._drains
        elif held or self._reading_paused or not (self._admitted or reading.is_eof()):
            more = False
        else:
            more = account.held < BYTES_FLOOR or account.room() > 0 or not account.pause()
        if more == self._stopped:
            self._read_on() if more else self._stop_reading()

    def _read_on(self) -> None:
        self._stopped = False
        self._unwatch()
        if self.transport is not None:
            with suppress(*_CLOSING):
                self.transport.resume_reading()

    def _stop_reading(self) -> None:
        """Read nothing for a while, and notice all the same when the caller disconnects."""
        self._stopped = True
        if self.transport is None:
            return
        with suppress(*_CLOSING):
            self.transport.pause_reading()
        sock = self.transport.get_extra_info("socket")
        if sock is not None and self._watched < 0:
            self._watched = sock.fileno()
            self.owner.disconnects.watch(self._watched, self.cut)

    def _unwatch(self) -> None:
        if self._watched >= 0:
            self.owner.disconnects.forget(self._watched)
            self._watched = -1

    def cut(self) -> None:
        """End the connection at once; its handler is cancelled."""
        if self._wire is not None:
            self._wire.abort()
