"""Bytes over raw sockets through one real process, between raw callers and a raw upstream."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import singledispatch

import pytest
import pytest_asyncio

from tests.process import DEADLINE, KEYS, TOKENS, Keyturn, client, limit, request, serving, until, write
from tests.vectors.document import SECTIONS
from tests.vectors.origin import Answering, Arrival, Origin
from tests.vectors.table import (
    Abandoned,
    BadGateway,
    Case,
    Passes,
    Refused,
    Relayed,
    Truncated,
    Unheard,
    Vector,
    every,
    filled,
    target,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

TOKEN = TOKENS["ci"].encode()
CLOSE = b"connection: close"
_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)\r\n", re.IGNORECASE)


@dataclass
class Street:
    """The process between its callers and its upstream."""

    keyturn: Keyturn
    origin: Origin

    def arrived(self, vector: Vector) -> list[Arrival]:
        """Return the requests of a vector that have arrived."""
        return [
            arrival for arrival in self.origin.arrivals if arrival.target.partition(b"?")[0].endswith(target(vector))
        ]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def street(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Street]:
    """Run one process for all vectors, each of which has a path of its own."""
    origin = Origin()
    async with origin.open():
        settings = {
            "listen": "127.0.0.1:0",
            "admin": "127.0.0.1:0",
            "inbound": {"spool_memory": 16_384, "max_spooled": 16_384},
            "upstream": {"url": origin.url},
            "pools": {"default": {"limits": [limit(100_000, "60s")], "keys": [{"name": "team-1", "secret": KEYS[0]}]}},
            "clients": [client("ci")],
            "retry": {"attempts": 1},
        }
        async with serving(write(tmp_path_factory.mktemp("vectors"), settings)) as keyturn:
            yield Street(keyturn, origin)


@dataclass
class Reply:
    """An answer as raw bytes, and how it ended."""

    head: bytes
    body: bytes = b""
    whole: bool = True
    interim: list[bytes] = field(default_factory=list)

    @property
    def status(self) -> int:
        """Return its status."""
        return int(self.head.split(b" ")[1])

    @property
    def lower(self) -> bytes:
        """Return its head in lower case."""
        return self.head.lower()


class Caller:
    """A connection to the process."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    async def reply(self, *, bare: bool = False, begun: asyncio.Event | None = None) -> Reply:
        """Read the next answer; a `bare` one has no body. `begun` is set when its head is there."""
        before: list[bytes] = []
        head = await self._reader.readuntil(b"\r\n\r\n")
        while head.split(b" ")[1].startswith(b"1"):
            before.append(head)
            head = await self._reader.readuntil(b"\r\n\r\n")
        found = Reply(head, interim=before)
        if begun is not None:
            begun.set()
        if not bare and found.status not in (204, 304):
            await self._body(found)
        return found

    async def _body(self, found: Reply) -> None:
        try:
            if b"\r\ntransfer-encoding: chunked\r\n" in found.lower:
                while length := int(await self._reader.readuntil(b"\r\n"), 16):
                    found.body += await self._reader.readexactly(length)
                    assert await self._reader.readexactly(2) == b"\r\n"
                assert await self._reader.readexactly(2) == b"\r\n"
            elif length_of := _LENGTH.search(found.head):
                while len(found.body) < int(length_of[1]):
                    found.body += await self._reader.readexactly(1)
            else:
                found.body = await self._reader.read()
        except (asyncio.IncompleteReadError, ConnectionError):
            found.whole = False

    async def rest(self) -> bytes:
        """Read to the end of the connection."""
        try:
            return await self._reader.read()
        except ConnectionError:
            return b""

    async def goes_on(self) -> None:
        """Check that the connection serves another request with its own answer."""
        self.writer.write(request("/probe", token=TOKENS["ci"]))
        reply = await self.reply()
        assert (reply.status, reply.body) == (200, b"ok")
        assert b"x-trailer" not in reply.lower


@asynccontextmanager
async def calling(street: Street) -> AsyncIterator[Caller]:
    """Open a connection for a bounded time."""
    host, _, port = street.keyturn.data.partition("://")[2].rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=2**20)
    try:
        async with asyncio.timeout(DEADLINE):
            yield Caller(reader, writer)
    finally:
        writer.close()


VECTORS = [pytest.param(case, vector, id=vector.name) for case, vector in every(SECTIONS)]


@pytest.mark.parametrize(("case", "vector"), VECTORS)
async def test_vector(street: Street, case: Case, vector: Vector) -> None:
    """Each vector has its outcome, and no byte is read as another request or answer."""
    before = len(street.origin.arrived(b"/next"))
    await play(case.must, street, vector)
    if not isinstance(case.must, Refused):
        await check_no_answer_is_left_over(street)
    expected = case.must.answers - 1 if isinstance(case.must, Passes) else 0
    assert len(street.origin.arrived(b"/next")) - before == (expected if b"@N" in vector.sent else 0)
    assert all(arrival.line.endswith(b" HTTP/1.1") for arrival in street.arrived(vector))


async def check_no_answer_is_left_over(street: Street) -> None:
    """The next request over the upstream's connections gets its own answer.

    Its success also ends the streak of failures that vectors with a failing upstream leave in the breakers of the
    pool and the client: the vectors pass in any order.
    """
    async with calling(street) as other:
        await other.goes_on()


@singledispatch
async def play(must: object, _street: Street, _vector: Vector) -> None:
    """Send a vector and check its outcome."""
    raise NotImplementedError(must)


@play.register
async def _(must: Refused, street: Street, vector: Vector) -> None:
    async with calling(street) as caller:
        caller.writer.write(filled(vector, TOKEN))
        reply = await caller.reply()
        assert reply.status == must.status, (reply.head, reply.body)
        assert reply.whole
        assert (CLOSE in reply.lower) != must.keeps
        assert (b"@A" in vector.sent) != must.anonymous
        if must.keeps:
            await caller.goes_on()
        else:
            assert await caller.rest() == b""
    assert [arrival for arrival in street.arrived(vector) if arrival.whole] == []


@play.register
async def _(must: Passes, street: Street, vector: Vector) -> None:
    data = filled(vector, TOKEN)
    async with calling(street) as caller:
        caller.writer.write(data)
        for number in range(must.answers):
            reply = await caller.reply(bare=number == 0 and data.startswith(b"HEAD "))
            assert reply.status == 200, (reply.head, reply.body)
        if must.then is not None:
            assert (await caller.reply()).status == must.then
        if must.ends:
            assert await caller.rest() == b""
        else:
            await caller.goes_on()
    (arrival,) = street.arrived(vector)
    assert (arrival.body, arrival.whole) == (must.body, True)
    lines = arrival.head.split(b"\r\n")
    assert [line for line in must.sees if line not in lines] == [], arrival.head
    assert [text for text in must.hides if text in arrival.head.lower()] == [], arrival.head
    line = must.line.replace(b"@T", target(vector)) or data.lstrip(b"\r\n").partition(b"\r\n")[0]
    if b"apikey" not in line:
        assert arrival.line.rpartition(b" ")[0] == line.rpartition(b" ")[0]
    assert arrival.values(b"x-api-key") == [KEYS[0].encode()]


@play.register
async def _(_must: Unheard, street: Street, vector: Vector) -> None:
    async with calling(street) as caller:
        caller.writer.write(filled(vector, TOKEN))
        await caller.writer.drain()
        await check_no_answer_is_left_over(street)
        caller.writer.transport.abort()
    await check_no_answer_is_left_over(street)
    assert street.arrived(vector) == []


@play.register
async def _(must: Truncated, street: Street, vector: Vector) -> None:
    first, *others = filled(vector, TOKEN).split(b"@W")
    async with calling(street) as caller:
        caller.writer.write(first)
        await until(lambda: [arrival.body for arrival in street.arrived(vector)] == [must.body], "it arrives")
        caller.writer.writelines(others)
        if must.status is None:
            caller.writer.close()
        else:
            reply = await caller.reply()
            assert reply.status == must.status
            assert await caller.rest() == b""
    (arrival,) = street.arrived(vector)
    await arrival.left.wait()
    assert not arrival.whole


@play.register
async def _(must: Abandoned, street: Street, vector: Vector) -> None:
    street.origin.answers[target(vector)] = Answering(then="never")
    async with calling(street) as caller:
        caller.writer.write(filled(vector, TOKEN))
        body = must.body or vector.sent.partition(b"\r\n\r\n")[2]
        await until(lambda: [arrival.body for arrival in street.arrived(vector)] == [body], "it arrives")
        caller.writer.transport.abort()
    (arrival,) = street.arrived(vector)
    await arrival.left.wait()


@play.register
async def _(must: Relayed, street: Street, vector: Vector) -> None:
    assert vector.answering is not None
    answering = replace(vector.answering, seen=asyncio.Event())
    street.origin.answers[target(vector)] = answering
    data = filled(vector, TOKEN)
    async with calling(street) as caller:
        caller.writer.write(data)
        reply = await caller.reply(bare=data.startswith(b"HEAD "), begun=answering.seen)
        assert reply.status == must.status, (reply.head, reply.body)
        assert reply.whole == must.whole
        assert reply.body == must.body or (reply.body.startswith(must.body) and not must.whole)
        lines = reply.head.split(b"\r\n")
        assert [line for line in must.sees if line not in lines] == [], reply.head
        assert [text for text in must.hides if text in reply.lower] == [], reply.head
        assert [head.split(b" ")[1] for head in reply.interim] == list(must.interim)
        assert all(b"connection" not in head.lower() and b"length" not in head.lower() for head in reply.interim)
        if must.whole and not must.ends:
            await caller.goes_on()
    assert len(street.arrived(vector)) == 1


@play.register
async def _(must: BadGateway, street: Street, vector: Vector) -> None:
    assert vector.answering is not None
    street.origin.answers[target(vector)] = vector.answering
    data = filled(vector, TOKEN)
    async with calling(street) as caller:
        caller.writer.write(data)
        reply = await caller.reply(bare=data.startswith(b"HEAD "))
        assert reply.status == 502, (reply.head, reply.body)
        assert b"evil" not in reply.lower + reply.body
        if must.ends:
            assert await caller.rest() == b""
        else:
            await caller.goes_on()
    assert len(street.arrived(vector)) == 1
