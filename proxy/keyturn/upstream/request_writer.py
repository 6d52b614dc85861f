"""Requests as bytes: the head, put together field by field, and the body, written while the answer is awaited."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable

from aiohttp.client_proto import ResponseHandler
from aiohttp.http import StreamWriter

from keyturn.core.headers import ByName, ByNames, names_of
from keyturn.core.http import Body, Fields, Request
from keyturn.core.model import Secret
from keyturn.core.translate import VIA

_OURS = frozenset({b"connection", b"content-length", b"host", b"transfer-encoding", b"via", b"x-request-id"})
_EMPTY = b"Content-Length: 0"
_CHUNKED = b"Transfer-Encoding: chunked"
_VIA = b"Via: " + VIA
_CONTENT_EXPECTED = frozenset({"PATCH", "POST", "PUT"})


class HeadWriter:
    """Writes heads for one upstream: `authority` goes into `Host`, and the key into the field `key_header`."""

    __slots__ = ("_begin", "_key", "_plain", "_role")

    def __init__(self, authority: str, key_header: str) -> None:
        self._begin = b" HTTP/1.1\r\nHost: " + authority.encode("ascii")
        self._key = key_header.encode("ascii") + b": "
        dropped = _OURS | {key_header.lower().encode("ascii")}
        self._role = ByName(lambda name: name if name in dropped else b"")
        """The lower-case name of a field that is written anew; empty for most."""
        self._plain = ByNames(lambda names: not any(map(self._role.__getitem__, names)))
        """Whether no field of a head is written anew."""

    def write(self, request: Request, key: Secret, extra: Fields, body: Body | None) -> bytes:
        """The head of `request` with its empty line; `extra` replaces fields of the same name.

        The framing follows `body`, not the fields. Our `Via` goes behind those of others (RFC 9110, section 7.6.3).

        Raises:
            ValueError: the key cannot stand in a field.
        """
        fields, role = request.fields, self._role
        if extra:
            replaced = {name.lower() for name, _ in extra}
            fields = tuple([field for field in fields if field[0].lower() not in replaced])
        framing = _framing(request.method, body)
        via = []
        lines = [request.method.encode("ascii") + b" " + request.target + self._begin]
        if self._plain[names_of(fields)]:
            lines += map(b": ".join, fields)
        else:
            for field in fields:
                name = role[field[0]]
                if not name:
                    lines.append(b": ".join(field))
                elif name == b"content-length":
                    framing = framing or _EMPTY
                elif name == b"via":
                    via.append(field[1])
        if framing:
            lines.append(framing)
        if extra:
            lines.extend(map(b": ".join, extra))
        lines += (
            self._key + _bytes(key),
            b"Via: " + b", ".join((*via, VIA)) if via else _VIA,
            b"X-Request-Id: " + request.id.encode("ascii", "replace"),
            b"\r\n",
        )
        return b"\r\n".join(lines)


def _framing(method: str, body: Body | None) -> bytes:
    """The field that frames the body (RFC 9112, section 6).

    A request without a body says so where its method makes servers expect one (RFC 9110, section 8.6): some answer 411.
    """
    if body is None:
        return _EMPTY if method in _CONTENT_EXPECTED else b""
    return _CHUNKED if body.length is None else b"Content-Length: %d" % body.length


def _bytes(key: Secret) -> bytes:
    value = key.reveal()
    if "\r" in value or "\n" in value:
        raise ValueError("a key holds a line break: it cannot be sent")
    return value.encode("utf-8", "replace")


class Upload:
    """Writes one body: exactly as many bytes as were announced, or in chunks when none were.

    A body that breaks its announcement is not ended properly, so that the upstream sees it truncated.
    """

    __slots__ = ("_body", "_on_written", "_protocol", "answered", "failure", "written")

    def __init__(self, protocol: ResponseHandler, body: Body, on_written: Callable[[], None]) -> None:
        self._protocol = protocol
        self._body = body
        self._on_written = on_written
        self.written = False
        self.answered = False
        self.failure: Exception | None = None
        """Why the body could not be read to its end."""

    async def run(self) -> None:
        """Write the body; when its reader fails, so does the wait for the head."""
        chunks = self._body.chunks()
        try:
            if self._body.length is None:
                await self._write_chunked(chunks)
            else:
                await self._write_counted(chunks, self._body.length)
            self.written = True
            self._protocol.start_timeout()
            self._on_written()
        except _ConnectionLost:
            pass
        except Exception as failure:  # noqa: BLE001  # whatever it is, `Wire.send` raises it again
            self.failure = failure
            if not self.answered:
                self._protocol.set_exception(failure)
        finally:
            if isinstance(chunks, AsyncGenerator):
                await chunks.aclose()

    async def _write_chunked(self, chunks: AsyncIterator[bytes]) -> None:
        async for chunk in chunks:
            if chunk:
                self._put(b"%x\r\n%b\r\n" % (len(chunk), chunk))
                await self._drain()
        self._put(b"0\r\n\r\n")

    async def _write_counted(self, chunks: AsyncIterator[bytes], left: int) -> None:
        while left:
            chunk = await anext(chunks, None)
            if chunk is None or len(chunk) > left:
                raise ConnectionError("the body of the request has not the length that its head announces")
            left -= len(chunk)
            self._put(chunk)
            if left:
                await self._drain()

    def _put(self, data: bytes) -> None:
        transport = self._protocol.transport
        if transport is None or transport.is_closing():
            raise _ConnectionLost
        transport.write(data)

    async def _drain(self) -> None:
        """Wait while the transport's buffer is full; getting on is progress, so the upstream's time starts anew."""
        if self._protocol.writing_paused:
            try:
                await StreamWriter(self._protocol, asyncio.get_running_loop()).drain()
            except ConnectionError as error:
                raise _ConnectionLost from error
        self._protocol.start_timeout()


class _ConnectionLost(Exception):
    """The connection was lost under the upload."""
