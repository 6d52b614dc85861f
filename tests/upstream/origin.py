"""An upstream made of scripts: each connection is answered by a coroutine that reads and writes raw bytes."""

import asyncio
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from keyturn.core.http import Answer, Body, Fields, Request
from keyturn.core.model import SECOND, Client, Micros, Secret
from keyturn.upstream import Upstream, UpstreamOptions

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

KEY = Secret("PMAK-of-the-pool")
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@asynccontextmanager
async def origin(script: Script, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """A server on a free port that runs the script for each connection; yields its URL."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await script(reader, writer)
        writer.close()
        with suppress(ConnectionError, ssl.SSLError, asyncio.CancelledError):
            await writer.wait_closed()
        tasks.discard(task)

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    try:
        yield f"{'https' if tls else 'http'}://{'localhost' if tls else '127.0.0.1'}:{port}"
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def opened(
    url: str,
    *,
    ca: Path | None = None,
    connect_timeout: Micros = 5 * SECOND,
    response_timeout: Micros = 60 * SECOND,
    max_connections: int = 8,
) -> AsyncIterator[Upstream]:
    """An upstream that leaves no connection in use and no upload behind."""
    upstream = Upstream(UpstreamOptions(url, ca, connect_timeout, response_timeout, max_connections))
    await upstream.open()
    try:
        yield upstream
        await asyncio.sleep(0)
        assert in_use(upstream) == 0
        assert not upstream.uploads
    finally:
        await upstream.close()


def in_use(upstream: Upstream) -> int:
    """How many connections are lent out."""
    assert upstream._connector is not None
    return upstream._connector.in_use


def idle(upstream: Upstream) -> int:
    """How many connections are kept."""
    assert upstream._connector is not None
    return len(upstream._connector.idle)


def only_idle(upstream: Upstream) -> object:
    """The one connection that is kept."""
    assert upstream._connector is not None
    ((connection, _, _),) = upstream._connector.idle
    return connection.protocol


async def closed_by_peer(upstream: Upstream) -> None:
    """Wait until the connections that are kept have been closed by the other side."""
    assert upstream._connector is not None
    for connection, _, _ in list(upstream._connector.idle):
        if connection.protocol is not None and connection.protocol.closed is not None:
            await connection.protocol.closed


def a_request(method: str = "GET", target: bytes = b"/me", fields: Fields = ()) -> Request:
    """A request of nobody in particular."""
    return Request("id-1", Client("ci"), method, target, target.decode(), fields, None, 3, 0)


async def sent(upstream: Upstream, request: Request | None = None, body: Body | None = None) -> Answer:
    """Connect and send."""
    wire = await upstream.connect()
    return await wire.send(request or a_request(), KEY, (), body=body, on_written=lambda: None)


async def whole(answer: Answer) -> bytes:
    """The body of an answer, read to its end."""
    parts = []
    while part := await answer.body.read():
        parts.append(part)
    return b"".join(parts)


def answering(*answers: bytes, close: bool = False) -> Script:
    """Answer the n-th request (without a body) of each connection with the n-th of these, then wait or close."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()
        if not close:
            await reader.read()

    return script


def reset(writer: asyncio.StreamWriter) -> None:
    """Break the connection off as a crashed machine does."""
    raw: socket.socket = writer.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


class Chunks:
    """A request's body of given chunks; `wait` holds it up before the chunk of that position."""

    def __init__(
        self, *chunks: bytes, length: int | None = None, wait: tuple[int, asyncio.Event] | None = None
    ) -> None:
        self.length = length
        self._chunks = chunks
        self._position = 0
        self._wait = wait

    def chunks(self) -> AsyncIterator[bytes]:
        """Itself."""
        return self

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self._wait and self._wait[0] == self._position:
            await self._wait[1].wait()
        if self._position == len(self._chunks):
            raise StopAsyncIteration
        self._position += 1
        return self._chunks[self._position - 1]
