"""One request over one connection: written, answered, and the connection given back or closed.

A connection goes back to its pool only when the request was written in full, the answer was read in full, and both
sides keep it open. In every other case it is closed; nothing of one exchange is ever read in the next.
"""

import asyncio
from collections.abc import Callable, Iterable
from time import monotonic
from typing import Any

import aiohttp
from aiohttp.connector import Connection
from aiohttp.hdrs import CONTENT_LENGTH, KEEP_ALIVE, TRANSFER_ENCODING
from aiohttp.http import HttpProcessingError, HttpVersion10, HttpVersion11, RawResponseMessage
from aiohttp.streams import EMPTY_PAYLOAD, EofStream, StreamReader

from keyturn.aiohttp_internals import ArrivedBody, UpstreamConnector, UpstreamProtocol
from keyturn.core.errors import Broken, TimedOut, Unreachable, UpstreamError
from keyturn.core.headers import from_upstream, without
from keyturn.core.http import Answer, AnswerBody, Body, Fields, Request, Whole
from keyturn.core.model import Secret
from keyturn.core.references import OwnReferences
from keyturn.tasks import spawn
from keyturn.upstream.connect_errors import local_cause
from keyturn.upstream.request_writer import HeadWriter, Upload

LOST_ERRORS = (aiohttp.ClientError, HttpProcessingError, EofStream, OSError)
"""aiohttp's errors for a lost connection, or an answer that is not HTTP."""
_BODY_PIECE = 2**16
"""Bytes that are handed on at once: more would wait for a slow caller in one lump."""
_MAX_REST = 2**16
"""Bytes of an unwanted rest that are read to keep a connection; a longer one is not worth it."""
_REST_SECONDS = 1.0


_CONTINUE, _SWITCHING_PROTOCOLS, _FINAL = 100, 101, 200
_VERSIONS = (HttpVersion11, HttpVersion10)
_STALE_CONNECTION_SECONDS = 1.0
"""Seconds in which it shows that a kept connection had been closed already: a round trip."""
_NOT_HTTP = "The upstream's answer is not HTTP/1.1. Check `upstream.url`."
_MOST_HEADS = 100
"""Heads that are read for one answer, the interim ones before it included."""


_Head = tuple[RawResponseMessage, StreamReader | ArrivedBody]
"""The head of an answer, and its body."""


class Sending:
    """State that all transmissions to one upstream share."""

    head: HeadWriter
    references: OwnReferences
    response_timeout: float
    """Seconds."""
    uploads: set[asyncio.Task[Any]]
    """The tasks that write bodies."""


class Transmission:
    """A connection that carries one request, or none (`put_back`)."""

    __slots__ = (
        "_began", "_connection", "_connector", "_kept", "_protocol", "_task", "_upload", "_upstream", "started",
    )  # fmt: skip

    def __init__(
        self,
        upstream: Sending,
        connector: UpstreamConnector,
        connection: Connection,
        protocol: UpstreamProtocol,
        *,
        kept: bool,
    ) -> None:
        """`kept`: the connection has carried another request before."""
        self.started: bool = False
        """Whether any byte was written."""
        self._upstream = upstream
        self._connector = connector
        self._connection: Connection | None = connection
        """`None` once it has been given back or closed: it is another request's then."""
        self._protocol = protocol
        self._kept = kept
        self._began = 0.0
        self._upload: Upload | None = None
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        state = "ended" if self._connection is None else "sent" if self.started else "unsent"
        return f"<Transmission {state} on a {'kept' if self._kept else 'new'} connection>"

    def put_back(self) -> None:
        """Return the connection unused."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._connector.give_back(connection, self._protocol)

    async def send(
        self, request: Request, key: Secret, extra: Fields, *, body: Body | None, on_written: Callable[[], None]
    ) -> Answer:
        """Write the request and wait for the head of its answer; the first byte is written before anything is awaited.

        `extra` replaces fields of the same name. `on_written` is called once, when the last byte has been handed to the
        transport; never when the answer came before that and made the rest unwanted. On every error and cancellation
        the connection is closed.

        Raises:
            Unreachable: the connection had been closed meanwhile; nothing was sent.
            Broken: the connection was lost, or what came is not HTTP.
            TimedOut: no head within `response_timeout` of the last byte written (or of the last progress in writing).
            TooLarge, BadRequest, ConnectionError: from the body's reader.
        """
        try:
            self._begin(request, key, extra, body)
            if body is None:
                self._protocol.start_timeout()
                on_written()
            else:
                self._upload = Upload(self._protocol, body, on_written)
                self._task = spawn(self._upload.run(), name="upload", owner=self._upstream.uploads)
            head: _Head = await self._protocol.read()
            if head[0].code < _FINAL or head[0].version not in _VERSIONS:
                head = await self._final_head(request, key, head)
            answer = self._answer(*head, key)
        except LOST_ERRORS as error:
            await self.close()
            if self._upload is not None and error is self._upload.failure:
                raise
            raise self._translated(error) from error
        except BaseException:
            await self.close()
            raise
        if isinstance(answer.body, Whole) and not self._give_back():
            await self.close()
        return answer

    def _begin(self, request: Request, key: Secret, extra: Fields, body: Body | None) -> None:
        protocol = self._protocol
        transport = protocol.transport
        if transport is None or transport.is_closing():
            raise Unreachable("The connection to the upstream was closed before anything was sent. Try again.")
        head = self._upstream.head.write(request, key, extra, body)
        protocol.expect(without_body=request.method == "HEAD", timeout=self._upstream.response_timeout)
        self.started = True
        self._began = monotonic()
        transport.write(head)

    async def _final_head(self, request: Request, key: Secret, head: "_Head") -> "_Head":
        """The first head that is no interim one (RFC 9110, section 15.2); those before it go on, but for 100."""
        protocol = self._protocol
        for _ in range(_MOST_HEADS):
            message = head[0]
            if message.version not in _VERSIONS:
                raise Broken(_NOT_HTTP, proxy_error="http_protocol_error")
            if message.code >= _FINAL:
                return head
            if message.code == _SWITCHING_PROTOCOLS or message.code < _CONTINUE:
                unasked = f"The upstream answered with status {message.code}, which nobody asked for."
                raise Broken(unasked, proxy_error="http_protocol_error")
            if message.code != _CONTINUE and request.interim is not None:
                request.interim(message.code, self._fields(message, key))
            if not len(protocol):
                protocol.start_timeout()
            head = await protocol.read()
        raise Broken("The upstream gave interim answers only.", proxy_error="http_protocol_error")

    def _answer(self, message: RawResponseMessage, payload: StreamReader | ArrivedBody, key: Secret) -> Answer:
        if self._upload is not None:
            self._upload.answered = True
        headers = message.headers
        self._protocol.chunked = message.chunked
        if KEEP_ALIVE in headers:
            self._protocol.keep(headers[KEEP_ALIVE])
        if TRANSFER_ENCODING in headers and (
            message.version == HttpVersion10 or _strangely_coded(headers.getall(TRANSFER_ENCODING))
        ):
            unknown = "The upstream answered in a transfer coding that this proxy does not know."
            raise Broken(unknown, proxy_error="http_response_transfer_coding")
        reason = key.mask(message.reason.encode("utf-8", "surrogateescape"))
        return Answer(message.code, reason, self._fields(message, key), self._body(message, payload))

    def _fields(self, message: RawResponseMessage, key: Secret) -> Fields:
        """A head's fields as they go on: none that end here, none that shows the key or leads past this proxy."""
        return self._upstream.references.relative(without(key, from_upstream(message.raw_headers)))

    def _body(self, message: RawResponseMessage, payload: StreamReader | ArrivedBody) -> AnswerBody:
        """The body; a `Whole` one, when all of it is here already, needs the connection no more."""
        if isinstance(payload, ArrivedBody):
            return Whole(payload.data)
        until_close = payload is not EMPTY_PAYLOAD and not message.chunked and CONTENT_LENGTH not in message.headers
        if not payload.is_eof() or (until_close and self.reset):
            return StreamedBody(self, payload, until_close=until_close)
        return Whole(payload.read_nowait())

    @property
    def reset(self) -> bool:
        """Whether the connection was lost otherwise than by being closed."""
        return isinstance(self._protocol.exception(), aiohttp.ClientOSError)

    async def end(self) -> None:
        """The answer has been read in full: the connection goes back, unless the request is not written in full."""
        if not self._give_back():
            await self.close()

    def _give_back(self) -> bool:
        """Return the connection to its pool, if the request is written in full."""
        if self._upload is not None and not self._upload.written:
            return False
        self._protocol.rest()
        self.put_back()
        return True

    def _translated(self, error: Exception) -> UpstreamError:
        """Translate an error of aiohttp's, without its text, which may quote what was received."""
        if isinstance(error, aiohttp.ServerTimeoutError):
            return TimedOut("The upstream did not answer in time. Whether it acted on the request is unknown.")
        if isinstance(error, HttpProcessingError):
            return Broken(_NOT_HTTP, proxy_error="http_protocol_error")
        broke = "The connection to the upstream broke before it answered. Whether it acted is unknown."
        stale = self._kept and monotonic() - self._began < _STALE_CONNECTION_SECONDS
        return Broken(broke, stale=stale, cause=local_cause(error))

    async def close(self) -> None:
        """Close the connection, and see the upload to its end, so that its body may be read again."""
        self.abort()
        if self._task is not None and not self._task.done():
            await asyncio.gather(self._task, return_exceptions=True)

    def abort(self) -> None:
        """Close the connection at once; without effect when it has gone back to its pool."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if self._task is not None:
            self._task.cancel()
        self._protocol.abort()
        connection.close()


class StreamedBody:
    """A body that is still coming in, and the connection on which it does."""

    __slots__ = ("_ended", "_payload", "_until_close", "_wire")

    def __init__(self, wire: Transmission, payload: StreamReader, *, until_close: bool) -> None:
        self._wire = wire
        self._payload = payload
        self._until_close = until_close
        self._ended = False

    async def read(self) -> bytes:
        """The next bytes, `b""` at the end, when the connection has gone back to its pool.

        Raises:
            Broken: the connection was lost before the end that the answer's framing announced.
        """
        if self._ended:
            return b""
        try:
            data = await self._payload.read(_BODY_PIECE)
            if not self._payload.at_eof():
                return data
        except (*LOST_ERRORS, RuntimeError) as error:
            await self._wire.close()
            raise Broken("The upstream broke its answer off.") from error
        except BaseException:
            await self._wire.close()
            raise
        if self._until_close and self._wire.reset:
            broken = Broken("The upstream broke its answer off.")
            self._payload.set_exception(broken)
            await self._wire.close()
            raise broken
        self._ended = True
        await self._wire.end()
        return data

    async def discard(self) -> None:
        """Read a short rest, or close the connection."""
        left = _MAX_REST
        try:
            async with asyncio.timeout(_REST_SECONDS):
                while left > 0 and (data := await self.read()):
                    left -= len(data)
        except (Broken, TimeoutError):
            pass
        if not self._ended:
            await self._wire.close()

    def abort(self) -> None:
        """Close the connection at once."""
        self._wire.abort()


def _strangely_coded(codings: Iterable[str]) -> bool:
    """Whether a coding other than `chunked` lies on the body: it would be lost, since `Transfer-Encoding` ends here."""
    return any(coding.lower() != "chunked" for coding in codings)
