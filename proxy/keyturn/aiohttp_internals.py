"""Everything that this package uses of aiohttp beyond its documentation, each with its reason, checked at the start.

The private names stand here and nowhere else: a new version of aiohttp is read against this module.
"""

import asyncio
import re
import ssl
from collections import deque
from collections.abc import Callable
from functools import cached_property, partial
from importlib import metadata
from random import random
from time import monotonic
from typing import Any, cast

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ClientRequest, ConnectionKey
from aiohttp.connector import Connection
from aiohttp.helpers import _EXC_SENTINEL, EMPTY_BODY_STATUS_CODES
from aiohttp.http import HttpRequestParser, HttpResponseParser
from aiohttp.streams import StreamReader

from keyturn.core.errors import StartError
from keyturn.keepalive import tcp_socket

_AIOHTTP = ((3, 14, 5), (3, 15))
"""The versions of aiohttp that this module was written for: from, and below."""
_PRIVATE_NAMES = {
    StreamReader: ("_size", "_buffer"),  # what a body keeps in memory: nothing public tells
    ResponseHandler: (
        "_should_close",  # an answer that comes as a whole says that the connection ends
        "_parser", "_skip_payload",  # a parser is kept for the next answer, and put aside while none is awaited
        "_payload",  # the reader of a body learns of everything that goes wrong in its middle
        "_read_timeout", "_read_timeout_handle", "_reschedule_timeout", "_drop_timeout",
        "_on_read_timeout",  # one timer stands for all answers of a connection
    ),
    aiohttp.TCPConnector: (
        "_factory",  # its connections have the protocol below
        "_acquired", "_release_acquired",  # connections in use are counted, and those that wait are told
        "_throttle_dns_futures",  # a look-up that does not end is an error of this machine, not of the upstream
    ),
}  # fmt: skip
_CHUNK_COST = 128
"""Bytes of memory that a piece of a body takes beside its own."""


def buffered(body: StreamReader) -> int:
    """Bytes of memory that what has been read of a body, and not been taken, keeps."""
    return body._size + _CHUNK_COST * len(body._buffer)  # noqa: SLF001


def check_aiohttp(
    version: str | None = None, parsers: tuple[type, ...] = (HttpRequestParser, HttpResponseParser)
) -> None:
    """Check that aiohttp is of a known version and parses in C.

    Raises:
        StartError: it is another, or it parses in Python: slower, and more lenient about what is HTTP.
    """
    version = version or metadata.version("aiohttp")
    lowest, below = _AIOHTTP
    if not lowest <= tuple(map(int, re.findall(r"\d+", version)[:3])) < below:
        raise StartError(f"aiohttp {version} is installed; install aiohttp>=3.14.5,<3.15 (make run does)")
    if any(parser.__module__ != "aiohttp._http_parser" for parser in parsers):
        raise StartError("aiohttp runs without its C extensions; unset AIOHTTP_NO_EXTENSIONS, or install its wheel")


async def check_private_names(names: dict[type, tuple[str, ...]] = _PRIVATE_NAMES) -> None:
    """Check that aiohttp has the private names that are used here.

    Raises:
        StartError: one of them is missing.
    """
    loop = asyncio.get_running_loop()
    protocol = ResponseHandler(loop)
    connector = aiohttp.TCPConnector()
    objects = {StreamReader: StreamReader(protocol, 1, loop=loop), ResponseHandler: protocol}
    try:
        for owner, private in names.items():
            made = objects.get(owner, connector)
            missing = [name for name in private if not hasattr(made, name)]
            if missing:
                version = metadata.version("aiohttp")
                raise StartError(
                    f"aiohttp {version} has no {owner.__name__}.{missing[0]}, which Keyturn uses; "
                    "install aiohttp>=3.14.5,<3.15 (make run does)"
                )
    finally:
        await connector.close()


KEPT_ALIVE = 15.0
"""Seconds for which an idle connection is kept: fewer than servers wait, which so seldom close it under a request."""
_SPREAD = 0.2
"""The part of its age that a connection loses at random, so that those made together end at different times."""
_ON_ITS_WAY = 1.0
"""Seconds by which a connection is left alone before the upstream closes it."""
_BUFFER = 2**16
"""Bytes of an answer that are read ahead; reading stops at twice as many, so that memory stays flat."""
_FINAL = 200
"""The first status that is no interim answer's."""
_LONGEST_LINE = 2**16
_MOST_FIELDS = 512


class UpstreamProtocol(ResponseHandler):
    """A connection whose reader learns of everything that goes wrong, also in the middle of an answer."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._spare_parser: Any = None
        """The parser of the last answer that had a body, ready for the next."""
        self._head_parser: Any = None
        """A parser of heads only, kept for further answers."""
        self._awaits_head = False
        """Whether nothing of an answer that may have a body has come."""
        self._was_paused = False
        """Whether reading this answer was paused: then its parser may hold something back, and go on doing so."""
        self._deadline: float | None = None
        """When reading times out; the timer itself may go off earlier."""

        self.kept_for: float = KEPT_ALIVE
        """Seconds for which the connection may be idle, and be used again."""
        self._made = monotonic()
        self._part = 1 - _SPREAD * random()  # noqa: S311  # it hides nothing

        self.chunked: bool = False
        """Whether this answer is in chunks: its last trailer would become the first field of the next answer."""

    def keep(self, told: str) -> None:
        """Take note of the upstream's `Keep-Alive`: for how long it lets a connection be idle."""
        for parameter in told.split(","):
            name, _, seconds = parameter.partition("=")
            if name.strip().lower() == "timeout" and seconds.strip().isdecimal():
                self.kept_for = min(KEPT_ALIVE, float(seconds) - _ON_ITS_WAY)

    def lasts(self, now: float, idle_since: float, max_age: float) -> bool:
        """Whether the connection may be used for one more request; instants in seconds of the monotonic clock."""
        return now - idle_since < self.kept_for and now - self._made < max_age * self._part

    def expect(self, *, without_body: bool, timeout: float) -> None:
        """Get ready for one answer; `timeout` seconds may pass without a sign of it once `start_timeout` is called."""
        self._was_paused = self.chunked = False
        self._awaits_head = not without_body
        if without_body or self._spare_parser is None:
            self.set_response_params(
                skip_payload=without_body,
                read_until_eof=True,
                auto_decompress=False,
                read_timeout=timeout,
                read_bufsize=_BUFFER,
                max_line_size=_LONGEST_LINE,
                max_field_size=_LONGEST_LINE,
                max_headers=_MOST_FIELDS,
            )
        else:
            self._parser, self._spare_parser = self._spare_parser, None
            self._read_timeout = timeout
            self._skip_payload = False

    def rest(self) -> None:
        """The answer has been read in full: whatever comes before the next `expect` makes the connection unfit."""
        if self._parser is not None and not (self._skip_payload or self._was_paused or self.chunked):
            self._spare_parser = self._parser
        self._parser = None

    # When the connection fails

    def set_exception(self, exc: BaseException, exc_cause: BaseException = _EXC_SENTINEL) -> None:
        """Fail the waiter for a head, and the reader of a body."""
        payload = self._payload
        super().set_exception(exc, exc_cause)
        _fail(payload, exc)

    def abort(self) -> None:
        """Close at once, and fail the reader of a body."""
        payload = self._payload
        super().abort()
        _fail(payload, aiohttp.ClientConnectionError("closed by us"))

    def close(self) -> None:
        """Close, and fail the reader of a body."""
        payload = self._payload
        super().close()
        _fail(payload, aiohttp.ClientConnectionError("closed by us"))

    def connection_lost(self, exc: BaseException | None) -> None:
        """The connection is gone, and its timer with it."""
        super().connection_lost(exc)
        self._spare_parser = self._head_parser = None
        if self._read_timeout_handle is not None:
            self._read_timeout_handle.cancel()
            self._read_timeout_handle = None

    # Reading

    def data_received(self, data: bytes) -> None:
        """Take bytes of an answer, as a whole if they are one."""
        if self._awaits_head and data:
            self._awaits_head = False
            if self._parser is not None and self._is_whole(data):
                return
        super().data_received(data)

    def _is_whole(self, data: bytes) -> bool:
        """Deliver an answer that has come at once, head and counted body: the body needs no parser, and no stream.

        Everything else is left as it is, to be parsed from its beginning.
        """
        end = data.find(b"\r\n\r\n") + 4
        length = b"%d" % (len(data) - end)
        if end < 4 or b"\r\ncontent-length: " + length + b"\r\n" not in data[:end].lower():  # noqa: PLR2004
            return False
        parser, self._head_parser = self._head_parser or self._new_parser(), None
        try:
            messages, upgraded, _ = parser.feed_data(data[:end])
        except aiohttp.http.HttpProcessingError:
            return False
        message = messages[0][0] if len(messages) == 1 and not upgraded else None
        if message is None or message.code < _FINAL or message.code in EMPTY_BODY_STATUS_CODES:
            return False
        self._head_parser = parser
        if message.should_close:
            self._should_close = True
        self._payload, self._deadline = None, None
        self._spare_parser, self._parser = self._parser, None  # what comes unasked is not parsed
        self.feed_data((message, cast("StreamReader", ArrivedBody(data[end:]))))
        return True

    def _new_parser(self) -> HttpResponseParser:
        return HttpResponseParser(
            self,
            self._loop,
            _BUFFER,
            response_with_body=False,
            auto_decompress=False,
            max_line_size=_LONGEST_LINE,
            max_field_size=_LONGEST_LINE,
            max_headers=_MOST_FIELDS,
        )

    def pause_reading(self) -> None:
        """Read nothing for a while."""
        self._was_paused = True
        super().pause_reading()

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Go on reading; aiohttp asks for it behind every piece of a body, whether reading was paused or not."""
        if self._was_paused:
            super().resume_reading(resume_parser)

    def _reschedule_timeout(self) -> None:
        if self._read_timeout:
            self._deadline = self._loop.time() + self._read_timeout
            if self._read_timeout_handle is None:
                self._read_timeout_handle = self._loop.call_at(self._deadline, self._on_read_timeout)

    def _drop_timeout(self) -> None:
        self._deadline = None

    def _on_read_timeout(self) -> None:
        self._read_timeout_handle = None
        if self._deadline is None:
            return
        if self._loop.time() < self._deadline:
            self._read_timeout_handle = self._loop.call_at(self._deadline, self._on_read_timeout)
        else:
            super()._on_read_timeout()


class ArrivedBody:
    """The body of an answer that has come as a whole."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data

    def is_eof(self) -> bool:
        """Whether all of it is here."""
        return True

    def read_nowait(self) -> bytes:
        """All of it, then nothing."""
        data, self.data = self.data, b""
        return data


def _fail(payload: StreamReader | None, error: BaseException) -> None:
    """Let a body's reader meet an error.

    It is set once more in the next iteration of the loop: a reader that the end of a chunk has just woken looks for
    bytes only, finds none, and would wait for ever.
    """
    if payload is not None and not payload.is_eof() and payload.exception() is None:
        payload.set_exception(error)
        asyncio.get_running_loop().call_soon(payload.set_exception, error)


class RequestTemplate(ClientRequest):
    """The request that a connector connects for: always the upstream's origin."""

    @cached_property
    def connection_key(self) -> ConnectionKey:
        """The connector's key of the origin, computed once."""
        return super().connection_key


class UpstreamConnector(aiohttp.TCPConnector):
    """Makes connections to one upstream, and keeps idle ones; `freed` is called when one is not in use any more.

    aiohttp would keep idle connections itself, by origin and with an object for each use. Here they stay lent out, to
    the deque of those that are idle.
    """

    def __init__(self, context: ssl.SSLContext, max_age: float, freed: Callable[[], None]) -> None:
        super().__init__(limit=0, ssl=context, keepalive_timeout=KEPT_ALIVE, socket_factory=tcp_socket)
        self.max_age = max_age
        self.idle: deque[tuple[Connection, UpstreamProtocol, float]] = deque()
        """With the instant since when each is idle, the longest first."""
        self._freed = freed
        self._retired = False
        self._sweeping: asyncio.TimerHandle | None = None
        self._factory = cast("partial[ResponseHandler]", partial(UpstreamProtocol, loop=self._loop))

    def reuse(self) -> tuple[Connection, "UpstreamProtocol"] | None:
        """An idle connection that is fit for a request, if there is one."""
        idle = self.idle
        if not idle:
            return None
        now = monotonic()
        while idle:
            connection, protocol, since = idle.popleft()
            if protocol.is_connected() and protocol.lasts(now, since, self.max_age) and not protocol.should_close:
                return connection, protocol
            connection.close()
        return None

    def give_back(self, connection: Connection, protocol: "UpstreamProtocol") -> None:
        """Keep a connection for another request, unless it is not fit for one.

        Bytes that arrive unasked while it is idle must not be read as an answer: see `should_close`.
        """
        if self._retired or protocol.should_close:
            connection.close()
            return
        self.idle.append((connection, protocol, monotonic()))
        if self._sweeping is None:
            self._sweeping = self._loop.call_later(KEPT_ALIVE, self._sweep)
        self._freed()

    def _sweep(self) -> None:
        """Close what has been idle for too long."""
        self._sweeping = None
        oldest = monotonic() - KEPT_ALIVE
        while self.idle and self.idle[0][2] <= oldest:
            self.idle.popleft()[0].close()
        if self.idle:
            left = self.idle[0][2] - oldest
            self._sweeping = self._loop.call_later(left, self._sweep)

    @property
    def in_use(self) -> int:
        """Connections that are lent out, or being made."""
        return len(self._acquired) - len(self.idle)

    @property
    def looking_up(self) -> bool:
        """Whether a look-up of the upstream's name has begun and not ended."""
        return bool(self._throttle_dns_futures)

    def _release_acquired(self, key: ConnectionKey, proto: ResponseHandler) -> None:
        super()._release_acquired(key, proto)
        self._freed()

    def retire(self) -> None:
        """Close idle connections now, and the others when they are given back."""
        self._retired = True
        self.close_idle()

    def close_idle(self) -> None:
        """Close idle connections."""
        while self.idle:
            self.idle.popleft()[0].close()

    async def close_all(self) -> None:
        """Close every connection, also those in use, and wait until they are closed."""
        if self._sweeping is not None:
            self._sweeping.cancel()
        self.retire()
        await self.close(abort_ssl=True)


def protocol_of(connection: Connection) -> UpstreamProtocol:
    """The protocol of a connection that an `UpstreamConnector` has made."""
    return cast("UpstreamProtocol", connection.protocol)
