"""The data listener on a free port, with everything behind it made up, and raw bytes in front of it."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import cast

from keyturn.access import Admission
from keyturn.config.units import TcpListener, UnixListener
from keyturn.core.errors import Unauthenticated
from keyturn.core.events import ConnectionEnded, Event, RequestLog
from keyturn.core.forwarded import TrustedProxies
from keyturn.core.http import Answer, Fields, Request
from keyturn.core.model import MILLISECOND, SECOND, Client
from keyturn.core.redaction import Redactor
from keyturn.web.connection import CallerConnection
from keyturn.web.forward import Forward, ForwardSettings
from keyturn.web.listener import Listener
from keyturn.web.overload import Bounds, ByteBudget


class Parts:
    """An answer's body of given parts; an exception among them is raised, an event is waited for."""

    def __init__(self, *parts: bytes | Exception | asyncio.Event) -> None:
        self.parts = list(parts)
        self.read_to_the_end = self.aborted = self.discarded = False

    async def read(self) -> bytes:
        """The next part."""
        while self.parts:
            part = self.parts.pop(0)
            if isinstance(part, Exception):
                raise part
            if isinstance(part, bytes):
                return part
            await part.wait()
        self.read_to_the_end = True
        return b""

    async def discard(self) -> None:
        """Remember it."""
        self.discarded = True

    def abort(self) -> None:
        """Remember it."""
        self.aborted = True


@dataclass
class Access:
    """Knows one client by its `X-Api-Key: token`, or everybody."""

    client: Client = field(default_factory=lambda: Client("ci", "team"))
    required: bool = False
    refusal: Exception | None = None

    peers: list[asyncio.Transport | None] = field(default_factory=list)
    slowed: list[Unauthenticated] = field(default_factory=list)
    callers: list[str] = field(default_factory=list)
    """Where those come from."""
    teachable: bool = False
    cut: bool = False

    def admit(self, fields: Fields, target: bytes, peer: asyncio.Transport | None) -> Admission:
        """Take the token off."""
        self.peers.append(peer)
        rest = tuple(item for item in fields if item != (b"X-Api-Key", b"token"))
        if self.required and rest == fields:
            raise Unauthenticated("No credential. Send a token.")
        return Admission(self.client, rest, target.replace(b"apikey=token&", b""))

    def hidden(self, fields: Fields, target: bytes) -> Redactor:
        """Nothing: whoever is refused has shown nothing."""
        return Redactor(())

    async def refresh_keys(self, refusal: Unauthenticated) -> bool:
        """Learn that everybody is known, if the test says so."""
        self.required = self.required and not self.teachable
        return self.teachable

    async def slow(self, refusal: Unauthenticated, caller: str) -> bool:
        """Remember it."""
        self.slowed.append(refusal)
        self.callers.append(caller)
        return not self.cut

    async def accept(self, client: Client) -> None:
        """Raise what the test asks for."""
        assert client is self.client
        if self.refusal:
            raise self.refusal


Reply = Callable[[Request], Awaitable[Answer]]


def replying(answer: Answer) -> Reply:
    """Read the body, then give this answer."""

    async def reply(request: Request) -> Answer:
        if request.body is not None:
            async for _ in request.body.chunks():
                pass
        return answer

    return reply


def an_answer(*parts: bytes | Exception | asyncio.Event, status: int = 200, fields: Fields | None = None) -> Answer:
    """An answer whose length is known when all of its body is."""
    whole = b"".join(part for part in parts if isinstance(part, bytes))
    return Answer(
        status, b"Fine", ((b"Content-Length", b"%d" % len(whole)),) if fields is None else fields, Parts(*parts)
    )


@dataclass
class Gateway:
    """Answers as it is told, and remembers the requests."""

    reply: Reply = field(default_factory=lambda: replying(an_answer(b"ok")))
    requests: list[Request] = field(default_factory=list)
    ended: int = 0

    @asynccontextmanager
    async def handle(self, request: Request, log: RequestLog) -> AsyncIterator[Answer]:
        """The answer, within the block."""
        self.requests.append(request)
        log.key = "team-a"
        try:
            yield await self.reply(request)
        finally:
            self.ended += 1

    def rates(self, pool: str, client: str, method: str, path: str | None) -> Fields:
        """Something to be recognised by."""
        return ((b"RateLimit", f"{pool} {client} {method} {path}".encode()),)


@dataclass
class World:
    """A listener and what is around it."""

    access: Access = field(default_factory=Access)
    gateway: Gateway = field(default_factory=Gateway)
    journals: list[RequestLog] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    """All others."""
    now: int = 0
    leaving: bool = False
    draining: bool = False
    observed: asyncio.Event = field(default_factory=asyncio.Event)
    bind: tuple[str | TcpListener | UnixListener, ...] = ("127.0.0.1:0",)
    proxies: TrustedProxies = field(default_factory=TrustedProxies)
    forwarded: bool = False
    tls: ssl.SSLContext | None = None
    bounds: Bounds = field(default_factory=Bounds)
    buffers: ByteBudget = field(default_factory=ByteBudget)
    body_timeout: int = 30 * SECOND
    forward: Forward = field(init=False)
    listener: Listener = field(init=False)

    def observe(self, event: Event) -> None:
        """Keep the event."""
        if isinstance(event, RequestLog):
            self.journals.append(event)
            self.observed.set()
        else:
            self.events.append(event)

    def tick(self) -> int:
        """A clock that goes on by a millisecond with every look."""
        self.now += 1000
        return self.now

    @asynccontextmanager
    async def running(self) -> AsyncIterator["World"]:
        """Serve."""
        settings = ForwardSettings(
            max_body=1000,
            max_wait=30 * SECOND,
            max_wait_ceiling=300 * SECOND,
            body_timeout=self.body_timeout,
            proxies=self.proxies,
            forwarded=self.forwarded,
        )
        self.forward = Forward(
            self.access,
            self.gateway,
            self,
            settings,
            clock=self.tick,
            leaving=lambda: self.leaving or self.draining,
            draining=lambda: self.draining,
        )
        self.listener = Listener(
            self.forward,
            self.bind,
            tls=self.tls,
            bounds=self.bounds,
            buffers=self.buffers,
            observer=self,
            proxies=self.proxies,
        )
        await self.listener.start()
        try:
            yield self
        finally:
            await self.listener.stop(0.001)

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.listener.addresses[0].rpartition(":")[2])

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to it."""
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def log(self) -> RequestLog:
        """The last request's request log, when it has come to its end."""
        await self.observed.wait()
        self.observed.clear()
        return self.journals[-1]

    async def ask(self, *raw: bytes) -> bytes:
        """Send bytes over a new connection, say that no more follow with `Connection: close`, and read to its end."""
        reader, writer = await self.connect()
        writer.writelines(raw)
        try:
            return await reader.read()
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()


def get(target: bytes = b"/me", *lines: bytes, method: bytes = b"GET", close: bool = True, body: bytes = b"") -> bytes:
    """The bytes of a request."""
    head = [method + b" " + target + b" HTTP/1.1", b"Host: proxy.example", *lines]
    if close:
        head.append(b"Connection: close")
    return b"\r\n".join(head) + b"\r\n\r\n" + body


def split(answer: bytes) -> tuple[bytes, list[tuple[bytes, bytes]], bytes]:
    """Status line, fields and body."""
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.split(b"\r\n")
    pairs = (line.partition(b": ") for line in lines)
    return status, [(name, value) for name, _, value in pairs], body


def receive(protocol: CallerConnection, data: bytes) -> None:
    """Hand over bytes as a transport does, as many at a time as are asked for."""
    while data:
        into = protocol.get_buffer(-1)
        part, data = data[: len(into)], data[len(into) :]
        into[: len(part)] = part
        protocol.buffer_updated(len(part))


async def read(reader: asyncio.StreamReader) -> bytes:
    """All that comes, up to the end of the connection."""
    parts = []
    with suppress(ConnectionError):
        async with asyncio.timeout(60):
            while part := await reader.read(2**16):
                parts.append(part)
    return b"".join(parts)


async def okay(_: Request) -> Answer:
    """A small answer, each time anew."""
    return an_answer(b"ok")


def ended(world: World) -> list[str]:
    """Why connections were ended."""
    return [event.why for event in world.events if isinstance(event, ConnectionEnded)]


async def deaf(world: World) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A caller that reads nothing."""
    reader, writer = await world.connect()
    assert isinstance(writer.transport, asyncio.Transport)
    writer.transport.pause_reading()
    return reader, writer


async def until_closed(world: World) -> None:
    """Wait until the listener has no connection."""
    async with asyncio.timeout(60):
        while world.listener.connections:
            await asyncio.sleep(MILLISECOND / 1_000_000)


def open_connections(world: World) -> list[CallerConnection]:
    """The open connections of a world's listener."""
    assert world.listener._connections is not None
    return [cast("CallerConnection", one) for one in world.listener._connections._open]
