"""Writing an upstream's answer to the caller as it comes in, byte for byte."""

import asyncio
from functools import lru_cache
from itertools import compress

from aiohttp.helpers import rfc822_formatted_time
from aiohttp.http import HttpVersion11

from keyturn.core.errors import Broken
from keyturn.core.events import RequestLog
from keyturn.core.headers import ByName, ByNames, names_of
from keyturn.core.http import Answer, Fields, Whole
from keyturn.core.translate import VIA, interim_fields
from keyturn.web.connection import IncomingRequest

_FRAMING = frozenset({
    b"connection", b"keep-alive", b"proxy-connection", b"trailer", b"transfer-encoding", b"upgrade",
})  # fmt: skip
"""Fields about a connection: those of the upstream's end at this proxy."""
_WITHOUT_BODY = frozenset({204, 304})


def connection_fields(incoming: IncomingRequest, *, close: bool) -> bytes:
    """The fields that say what becomes of the connection (RFC 9112, section 9.3), without the end of the last line."""
    return b"Connection: close" if close else incoming.connection.kept_fields


def write_interim(incoming: IncomingRequest, status: int, fields: Fields) -> None:
    """Write the head of an interim answer, which is no part of the answer (RFC 9110, section 15.2).

    HTTP/1.0 knows none.
    """
    transport = incoming.transport
    if transport is None or transport.is_closing() or incoming.begun or incoming.version != HttpVersion11:
        return
    lines = [b": ".join(field) for field in interim_fields(fields) if _role[field[0]] not in ("framing", "length")]
    transport.write(b"\r\n".join([b"HTTP/1.1 %d" % status + b" ", *lines, b"Via: " + VIA, b"\r\n"]))


async def relay(incoming: IncomingRequest, answer: Answer, log: RequestLog, *, close: bool) -> bool:
    """Write an upstream's answer, its body as it comes; returns whether the connection goes on, never with `close`.

    Memory stays flat: nothing more is read from the upstream while the caller's buffer is full. The log's outcome
    is `forwarded` as soon as the last byte is written: the caller may leave then, whatever the upstream's end takes.

    Raises:
        Broken: the upstream broke its answer off; if `incoming.begun`, the connection must not end properly.
        ConnectionError: the caller has disconnected.
    """
    without_body = answer.status in _WITHOUT_BODY or incoming.method == "HEAD"
    head, length, chunked, close = _head(incoming, answer, close=close, without_body=without_body)
    body = answer.body
    if type(body) is Whole and not without_body and len(body.data) == length:
        log.sent = length
        incoming.write(head + body.data)
        if incoming.connection.writing_paused:
            await incoming.connection.drain()
        log.outcome = "forwarded"
        return not close
    writer = _AnswerWriter(incoming, head, log.client)
    try:
        if without_body:
            writer.write(b"")
            log.outcome = "forwarded"
            await body.discard()
        else:
            await _copy(answer, writer, log, length, chunked=chunked)
    except BaseException:
        writer.drop()
        body.abort()
        raise
    return not close


async def _copy(answer: Answer, writer: "_AnswerWriter", log: RequestLog, length: int | None, *, chunked: bool) -> None:
    left = length
    while data := await answer.body.read():
        log.sent += len(data)
        if left is not None:
            left -= len(data)
            if left < 0:
                break
        writer.write(b"%x\r\n%b\r\n" % (len(data), data) if chunked else data)
        if left == 0:
            log.outcome = "forwarded"
        await writer.drain(0 if left == 0 else len(data))
    if left:
        raise Broken("The upstream's answer has not the length that its head announces.")
    writer.write(b"0\r\n\r\n" if chunked else b"")
    log.outcome = "forwarded"


@lru_cache(maxsize=256)
def _status_line(status: int, reason: bytes) -> bytes:
    return b"HTTP/1.1 %d %b" % (status, reason)


def _head(
    incoming: IncomingRequest, answer: Answer, *, close: bool, without_body: bool
) -> tuple[bytes, int | None, bool, bool]:
    """The head for the caller, and how the end of the answer is known (RFC 9112, section 6.3).

    Returns the head, the announced length, whether the body goes out in chunks, and whether the connection ends.
    """
    fields = answer.fields
    kept, place, dated = _shape[names_of(fields)]
    length = None if place is None else int(fields[place][1])
    lines = [
        _status_line(answer.status, answer.reason),
        *map(b": ".join, fields if kept is None else compress(fields, kept)),
    ]
    if not dated:
        lines.append(b"Date: " + rfc822_formatted_time().encode("ascii"))
    chunked = False
    if length is None and not without_body:
        chunked = incoming.version == HttpVersion11
        if chunked:
            lines.append(b"Transfer-Encoding: chunked")
        else:
            close = True
    lines += (connection_fields(incoming, close=close), b"\r\n")
    return b"\r\n".join(lines), length, chunked, close


_ROLES = {b"content-length": "length", b"date": "date"} | dict.fromkeys(_FRAMING, "framing")
_role = ByName(lambda name: _ROLES.get(name, ""))
"""The role of a field of that name in framing the message; empty for most."""


def _shape_of(names: tuple[bytes, ...]) -> tuple[tuple[bool, ...] | None, int | None, bool]:
    """The fields to write (`None`: all), the place of the length, and whether there is a date."""
    roles = [_role[name] for name in names]
    kept = tuple([role != "framing" for role in roles])
    lengths = [place for place, role in enumerate(roles) if role == "length"]
    return None if all(kept) else kept, lengths[-1] if lengths else None, "date" in roles


_shape = ByNames(_shape_of)


class _AnswerWriter:
    """Writes the head together with what is there in the same iteration of the event loop, and otherwise at its end."""

    __slots__ = ("_client", "_flush", "_head", "_incoming")

    def __init__(self, incoming: IncomingRequest, head: bytes, client: str) -> None:
        self._incoming = incoming
        self._client = client
        self._head = head
        self._flush = asyncio.get_running_loop().call_soon(self._write_head)

    def _write_head(self) -> None:
        transport = self._incoming.transport
        if self._head and transport is not None and not transport.is_closing():
            head, self._head = self._head, b""
            self._incoming.write(head)

    def write(self, data: bytes) -> None:
        """Write data, behind the head."""
        if self._head:
            self._flush.cancel()
            data, self._head = self._head + data, b""
        if data:
            self._incoming.write(data)

    def drop(self) -> None:
        """Write nothing more, not even the head."""
        self._flush.cancel()

    async def drain(self, more: int) -> None:
        """Wait while the caller's buffer is full; before `more` bytes, while the iteration's budget is spent."""
        connection = self._incoming.connection
        if more and not connection.owner.relaying.try_take(more):
            await connection.owner.relaying.take(more, self._client)
        if connection.writing_paused:
            await connection.drain()
