"""Writing to the caller: an upstream's answer as it comes in, byte for byte, or an answer of our own.

aiohttp's `StreamResponse` would re-encode fields, add some, and build a dictionary for each answer. Instead the bytes
go to the transport, and the server is handed a response that has been sent already: `KEPT` or `CLOSED`.
"""

import asyncio
from functools import lru_cache

from aiohttp import web
from aiohttp.helpers import rfc822_formatted_time
from aiohttp.http import HttpVersion11

from keyturn.core.errors import Broken
from keyturn.core.events import RequestLog
from keyturn.core.headers import ByName
from keyturn.core.http import Answer, Fields, Whole
from keyturn.core.translate import VIA, interim_fields
from keyturn.web.overload import IterationBudget

_FRAMING = frozenset({
    b"connection", b"keep-alive", b"proxy-connection", b"trailer", b"transfer-encoding", b"upgrade",
})  # fmt: skip
"""Fields about a connection: those of the upstream's end at this proxy."""
_WITHOUT_BODY = frozenset({204, 304})


class Sent(web.StreamResponse):
    """A response that is on its way; the server has nothing left to do but to keep the connection or to close it."""

    _eof_sent = True

    def __init__(self, *, keep_alive: bool) -> None:
        super().__init__()
        self._keep_alive = keep_alive


KEPT = Sent(keep_alive=True)
CLOSED = Sent(keep_alive=False)


def connection(incoming: web.BaseRequest, *, close: bool) -> bytes:
    """The fields that say what becomes of the connection (RFC 9112, section 9.3), without the end of the last line."""
    if close:
        return b"Connection: close"
    return _kept_for(int(incoming.protocol.keepalive_timeout))


@lru_cache(maxsize=16)
def _kept_for(seconds: int) -> bytes:
    """The caller is told for how long its connection may be idle, so that it does not use it while we close it."""
    return b"Connection: keep-alive\r\nKeep-Alive: timeout=%d" % seconds if seconds else b"Connection: keep-alive"


def has_begun(incoming: web.BaseRequest) -> bool:
    """Whether a byte of an answer to this request has been written."""
    return incoming.writer.output_size > 0


def write(incoming: web.BaseRequest, data: bytes) -> None:
    """Hand bytes of the answer to the caller's transport.

    Raises:
        ConnectionResetError: the caller has gone.
    """
    transport = incoming.transport
    if transport is None or transport.is_closing():
        raise ConnectionResetError("the caller has gone")
    incoming.writer.output_size += len(data)
    transport.write(data)


def pass_on(incoming: web.BaseRequest, status: int, fields: Fields) -> None:
    """Write the head of an interim answer, which is no part of the answer (RFC 9110, section 15.2).

    HTTP/1.0 knows none.
    """
    transport = incoming.transport
    if transport is None or transport.is_closing() or has_begun(incoming) or incoming.version != HttpVersion11:
        return
    lines = [b": ".join(field) for field in interim_fields(fields) if _role[field[0]] not in ("framing", "length")]
    transport.write(b"\r\n".join([b"HTTP/1.1 %d" % status + b" ", *lines, b"Via: " + VIA, b"\r\n"]))


async def relay(incoming: web.BaseRequest, answer: Answer, log: RequestLog, *, close: bool) -> web.StreamResponse:
    """Write an upstream's answer, its body as it comes; `close` ends the connection afterwards.

    Memory stays flat: nothing more is read from the upstream while the caller's buffer is full. The log's outcome
    is `forwarded` as soon as the last byte is written: the caller may leave then, whatever the upstream's end takes.

    Raises:
        Broken: the upstream broke its answer off; if `has_begun`, the caller's connection must not end properly.
        ConnectionError: the caller has gone.
    """
    framing = _Framing(incoming, answer, close=close)
    if isinstance(answer.body, Whole) and len(answer.body.data) == framing.length and not framing.without_body:
        log.sent = framing.length
        write(incoming, framing.head + answer.body.data)
        if incoming.protocol.writing_paused:
            await incoming.writer.drain()
        log.outcome = "forwarded"
        return CLOSED if framing.close else KEPT
    outlet = _AnswerWriter(incoming, framing.head, log.client)
    try:
        if framing.without_body:
            outlet.write(b"")
            log.outcome = "forwarded"
            await answer.body.discard()
        else:
            await _copy(answer, framing, outlet, log)
    except BaseException:
        outlet.drop()
        answer.body.abort()
        raise
    return CLOSED if framing.close else KEPT


async def _copy(answer: Answer, framing: "_Framing", outlet: "_AnswerWriter", log: RequestLog) -> None:
    left = framing.length
    while data := await answer.body.read():
        log.sent += len(data)
        if left is not None:
            left -= len(data)
            if left < 0:
                break
        outlet.write(b"%x\r\n%b\r\n" % (len(data), data) if framing.chunked else data)
        if left == 0:
            log.outcome = "forwarded"
        await outlet.drain(0 if left == 0 else len(data))
    if left:
        raise Broken("The upstream's answer has not the length that its head announces.")
    outlet.write(b"0\r\n\r\n" if framing.chunked else b"")
    log.outcome = "forwarded"


@lru_cache(maxsize=256)
def _status_line(status: int, reason: bytes) -> bytes:
    return b"HTTP/1.1 %d %b" % (status, reason)


class _Framing:
    """How the caller learns where the answer ends (RFC 9112, section 6.3), and the head that says so."""

    __slots__ = ("chunked", "close", "head", "length", "without_body")

    def __init__(self, incoming: web.BaseRequest, answer: Answer, *, close: bool) -> None:
        lines, length, dated = [_status_line(answer.status, answer.reason)], None, False
        for field in answer.fields:
            if role := _role[field[0]]:
                if role == "framing":
                    continue
                if role == "length":
                    length = int(field[1])
                else:
                    dated = True
            lines.append(b": ".join(field))
        if not dated:
            lines.append(b"Date: " + rfc822_formatted_time().encode("ascii"))
        self.without_body: bool = answer.status in _WITHOUT_BODY or incoming.method == "HEAD"
        unframed = length is None and not self.without_body
        self.chunked: bool = unframed and incoming.version == HttpVersion11
        self.close: bool = close or (unframed and not self.chunked)
        self.length: int | None = length
        if self.chunked:
            lines.append(b"Transfer-Encoding: chunked")
        lines += (connection(incoming, close=self.close), b"\r\n")
        self.head: bytes = b"\r\n".join(lines)


_ROLES = {b"content-length": "length", b"date": "date"} | dict.fromkeys(_FRAMING, "framing")
_role = ByName(lambda name: _ROLES.get(name, ""))
"""What a field of that name says about the message itself; empty for most."""


class _AnswerWriter:
    """Writes the head together with what is there in the same turn of the event loop, and otherwise at its end."""

    __slots__ = ("_client", "_flush", "_head", "_incoming", "_turns")

    def __init__(self, incoming: web.BaseRequest, head: bytes, client: str) -> None:
        self._incoming = incoming
        self._client = client
        self._turns: IterationBudget = incoming.protocol._manager.relaying  # type: ignore[union-attr]  # noqa: SLF001  # our server
        self._head = head
        self._flush = asyncio.get_running_loop().call_soon(self._write_head)

    def _write_head(self) -> None:
        transport = self._incoming.transport
        if self._head and transport is not None and not transport.is_closing():
            head, self._head = self._head, b""
            write(self._incoming, head)

    def write(self, data: bytes) -> None:
        """Write data, behind the head."""
        if self._head:
            self._flush.cancel()
            data, self._head = self._head + data, b""
        if data:
            write(self._incoming, data)

    def drop(self) -> None:
        """Write nothing more, not even the head."""
        self._flush.cancel()

    async def drain(self, more: int) -> None:
        """Wait while the caller's buffer is full; before `more` bytes, while answers of others have their turn."""
        if more:
            await self._turns.take(more, self._client)
        if self._incoming.protocol.writing_paused:
            await self._incoming.writer.drain()
