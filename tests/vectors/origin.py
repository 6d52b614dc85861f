"""An upstream of raw bytes: reads requests strictly, keeps them, and gives each path its answer."""

import asyncio
import re
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Literal

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
WAIT = b"wait"
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)[ \t]*\r\n", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:[ \t]*chunked[ \t]*\r\n", re.IGNORECASE)

Then = Literal["keep", "close", "reset", "never"]
"""The action after the answer; `never` sends none, and waits for the other side to disconnect."""


@dataclass
class Arrival:
    """A request as it arrived; `whole` when its body came to the announced end."""

    head: bytes
    body: bytes = b""
    whole: bool = False
    left: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when its connection has been closed by the other side, before its end."""

    @property
    def target(self) -> bytes:
        """Return its target."""
        return self.head.split(b" ", 2)[1]

    @property
    def line(self) -> bytes:
        """Return its request line."""
        return self.head.partition(b"\r\n")[0]

    @property
    def fields(self) -> list[tuple[bytes, bytes]]:
        """Return its fields, names in lower case."""
        pairs = (line.partition(b": ") for line in self.head.rstrip().split(b"\r\n")[1:])
        return [(name.lower(), value) for name, _, value in pairs]

    def values(self, name: bytes) -> list[bytes]:
        """Return the values of all fields of that (lower-case) name."""
        return [value for known, value in self.fields if known == name]


@dataclass
class Answering:
    """An answer: pieces that are written one after another, and then the end of the connection or not."""

    pieces: tuple[bytes, ...] = (OK,)
    then: Then = "keep"
    early: bool = False
    """Whether it answers before it reads the body."""
    seen: asyncio.Event = field(default_factory=asyncio.Event, compare=False, repr=False)
    """Set by the test when the caller has what came before the piece `WAIT`."""


@dataclass
class Origin:
    """The upstream, its answers by path, and what has arrived."""

    answers: dict[bytes, Answering] = field(default_factory=dict)
    arrivals: list[Arrival] = field(default_factory=list)
    url: str = ""
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def arrived(self, prefix: bytes) -> list[Arrival]:
        """Return the requests that arrived under a path."""
        return [arrival for arrival in self.arrivals if arrival.target.startswith(prefix)]

    @asynccontextmanager
    async def open(self) -> AsyncIterator["Origin"]:
        """Run the upstream for as long as the block lasts."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                while await self._exchange(reader, writer):
                    pass
        finally:
            writer.close()
            self._tasks.discard(task)

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        arrival = Arrival(await reader.readuntil(b"\r\n\r\n"))
        self.arrivals.append(arrival)
        answering = self.answers.get(arrival.target.partition(b"?")[0]) or _usual(arrival)
        if not answering.early:
            try:
                await _read_body(reader, arrival)
            except (ConnectionError, asyncio.IncompleteReadError):
                arrival.left.set()
                raise
        if answering.then == "never":
            await reader.read()
            arrival.left.set()
            return False
        for piece in answering.pieces:
            if piece == WAIT:
                await answering.seen.wait()
                continue
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        if answering.early:
            await _read_body(reader, arrival)
        if answering.then == "reset":
            _reset(writer)
        return answering.then == "keep"


def _usual(arrival: Arrival) -> Answering:
    return Answering((OK.removesuffix(b"ok") if arrival.head.startswith(b"HEAD ") else OK,))


async def _read_body(reader: asyncio.StreamReader, arrival: Arrival) -> None:
    if _CHUNKED.search(arrival.head):
        while length := int((await reader.readuntil(b"\r\n")).rstrip(b"\r\n"), 16):
            arrival.body += await reader.readexactly(length)
            assert await reader.readexactly(2) == b"\r\n"
        assert await reader.readexactly(2) == b"\r\n"
    elif found := _LENGTH.search(arrival.head):
        while len(arrival.body) < int(found[1]):
            part = await reader.read(int(found[1]) - len(arrival.body))
            if not part:
                raise ConnectionResetError
            arrival.body += part
    arrival.whole = True


def _reset(writer: asyncio.StreamWriter) -> None:
    raw: socket.socket = writer.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
