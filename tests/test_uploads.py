"""Bodies of requests: read before they take a lease, kept in files, sent again, and bounded for each client."""

import asyncio
import resource
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.process import TOKENS, Caller, Keyturn, Reply, calling, client, limit, request, running, until, write
from tests.vectors.origin import Answering, Arrival, Origin

KIB = 2**10
MIB = 2**20
SMALL = {"spool_memory": 64 * KIB, "max_spooled": 256 * KIB}
"""Bounds that a test reaches with few bytes."""
INVALID = b'{"error":{"name":"AuthenticationError","message":"Invalid API Key."}}'
LIMITED = b'{"error":{"name":"rateLimitError","message":"Rate Limit exceeded."}}'

linux = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks into /proc")


def answering(status: int, body: bytes, *fields: bytes) -> Answering:
    """An answer of the upstream's."""
    lines = [b"HTTP/1.1 %d Whatever" % status, *fields, b"Content-Length: %d" % len(body)]
    return Answering((b"\r\n".join([*lines, b"", body]),))


def noise(length: int) -> bytes:
    """Bytes that are nowhere the same."""
    return Random(length).randbytes(length)


def put(target: str, length: int | None, *fields: str, token: str = TOKENS["ci"]) -> bytes:
    """The head of a request with a body of that length, or in chunks."""
    framing = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    return request(target, framing, *fields, method="PUT", token=token)


@dataclass
class House:
    """The process, and an upstream of raw bytes."""

    origin: Origin
    keyturn: Keyturn

    def arrived(self, path: str) -> list[Arrival]:
        """The requests that arrived under a path."""
        return self.origin.arrived(path.encode())

    async def taken(self, **where: str) -> float:
        """The bytes that bodies take."""
        return await self.keyturn.metric("keyturn_body_bytes", **where)

    async def empty(self) -> None:
        """See that bodies take nothing any more, no file either."""
        await until(self._nothing, "nothing is kept of any body")

    async def _nothing(self) -> bool:
        return await self.taken() == 0 and self.files() == 0

    def files(self) -> int:
        """How many temporary files the process has open."""
        found = 0
        for number in Path(f"/proc/{self.keyturn.process.pid}/fd").glob("*"):
            try:
                found += "(deleted)" in str(number.readlink())
            except FileNotFoundError:
                continue
        return found


@asynccontextmanager
async def house(
    folder: Path,
    *,
    limits: tuple[dict[str, Any], ...] = (limit(1000, "60s"),),
    keys: int = 2,
    environ: Mapping[str, str] | None = None,
    **sections: Any,
) -> AsyncIterator[House]:
    """The process in front of an origin."""
    async with AsyncExitStack() as stack:
        origin = await stack.enter_async_context(Origin().open())
        document = {
            "listen": "127.0.0.1:0",
            "admin": "127.0.0.1:0",
            "upstream": {"url": origin.url},
            "pools": {
                "default": {
                    "limits": list(limits),
                    "keys": [{"name": f"key-{number}", "secret": f"pooled-{number}"} for number in range(keys)],
                }
            },
            "clients": [client("ci"), client("reader")],
            **sections,
        }
        path = write(folder, document)
        command = running("serve", "-c", str(path), folder=folder, environ=environ)
        process = await stack.enter_async_context(command)
        addresses = await process.ready()
        yield House(origin, Keyturn(process, addresses["data"], addresses["admin"]))


async def send(caller: Caller, data: bytes) -> None:
    """Send bytes as fast as they are taken."""
    for start in range(0, len(data), 64 * KIB):
        caller.send(data[start : start + 64 * KIB])
        await caller.writer.drain()


async def upload(home: House, head: bytes, data: bytes) -> Reply:
    """A whole request."""
    async with calling(home.keyturn.data) as caller:
        caller.send(head)
        await send(caller, data)
        return await caller.reply()


# The cost of slow uploads to others


async def test_slow_uploads_hold_no_lease(tmp_path: Path) -> None:
    """While one client sends sixty bodies by drops, another gets the whole budget, all of it at once."""
    async with house(tmp_path, limits=(limit(30, "60s"),)) as home, AsyncExitStack() as stack:
        slow = [await stack.enter_async_context(calling(home.keyturn.data)) for _ in range(60)]
        for number, caller in enumerate(slow):
            length = (1000, 100 * MIB, None)[number % 3]
            caller.send(put("/slow", length) + (b"2\r\nxx\r\n" if length is None else b"xx"))
        await until(lambda: home.keyturn.metric("keyturn_connections"), "they have connected")
        for caller in slow:
            caller.send(b"2\r\nxx\r\n" if caller in slow[2::3] else b"xx")

        async def reading() -> bool:
            return await home.keyturn.metric("keyturn_connections") >= 60 and await home.taken() > 0

        await until(reading, "the bodies are being read")
        ask = request("/quick", "Prefer: wait=20", token=TOKENS["reader"])  # less than any token takes to return
        replies = await asyncio.gather(*[home.keyturn.ask(ask) for _ in range(60)])
        assert [reply.status for reply in replies] == [200] * 60
        assert home.arrived("/slow") == []
        assert await home.keyturn.metric("keyturn_refused_total", client="reader") == 0
        for caller in slow:
            caller.cut()
        await home.empty()
        assert await home.keyturn.metric("keyturn_in_flight") == 0


async def test_the_wait_begins_behind_the_body(tmp_path: Path) -> None:
    """A request that does not want to wait for its turn may take its time over its body."""
    async with house(tmp_path) as home, calling(home.keyturn.data) as caller:
        caller.send(put("/up", 4, "Prefer: wait=0"))
        for piece in (b"a", b"b", b"c"):
            caller.send(piece)
            await until(home.taken, "it is being read")
        assert home.arrived("/up") == []
        caller.send(b"d")
        reply = await caller.reply()
        assert (reply.status, home.arrived("/up")[0].body) == (200, b"abcd")
        assert float(reply.one("Server-Timing").partition("queue;dur=")[2].partition(",")[0]) < 1000
        await home.empty()


async def test_a_caller_that_leaves_within_its_body_costs_nothing(tmp_path: Path) -> None:
    """Neither a token nor room."""
    async with house(tmp_path, limits=(limit(1, "60s"),), keys=1) as home:
        async with calling(home.keyturn.data) as caller:
            caller.send(put("/up", MIB) + noise(300 * KIB))
            await until(lambda: home.files() == 1, "a file is made")
            caller.cut()
        await home.empty()
        assert (await home.keyturn.ask(request("/x", "Prefer: wait=0"))).status == 200


async def test_a_full_queue_is_told_before_the_body(tmp_path: Path) -> None:
    """A request that would be refused at once need not send its body; it is not asked to."""
    settings: dict[str, Any] = {"clients": [client("ci", max_waiting=1)]}
    async with house(tmp_path, limits=(limit(1, "60s"),), keys=1, **settings) as home:
        assert (await home.keyturn.ask(request("/x"))).status == 200
        async with calling(home.keyturn.data) as waits, calling(home.keyturn.data) as caller:
            waits.send(request("/x", "Prefer: wait=200"))
            await home.keyturn.waiting(1)
            await until(lambda: home.keyturn.metric("keyturn_estimated_wait_seconds"), "it is known to have to wait")
            caller.send(put("/up", MIB, "Prefer: wait=200", "Expect: 100-continue"))
            head = await caller.head()
            assert head.status == 429
            assert home.arrived("/up") == []
        async with calling(home.keyturn.data) as caller:
            caller.send(put("/up", 5, "Expect: 100-continue", token=TOKENS["reader"]))
            assert (await caller.head()).status == 401


async def test_a_client_takes_a_part_of_the_room(tmp_path: Path) -> None:
    """A body without room is read later, or refused at the end of its waiting time; other clients have room."""
    sizes = {**SMALL, "spool_size": 4 * 256 * KIB}
    async with house(tmp_path, inbound=sizes) as home:
        async with calling(home.keyturn.data) as first, calling(home.keyturn.data) as second:
            first.send(put("/first", MIB) + b"x")
            await until(home.taken, "the first has its room")
            reply = await upload(home, put("/none", MIB, "Prefer: wait=0"), b"")
            assert (reply.status, reply.error) == (429, "rateLimitError")
            assert "room" in reply.json()["error"]["message"]
            assert await home.keyturn.metric("keyturn_refused_total", reason="bodies", client="ci") == 1
            data = noise(100 * KIB)
            theirs = put("/reader", len(data), "Prefer: wait=0", token=TOKENS["reader"])
            assert (await upload(home, theirs, data)).status == 200
            second.send(put("/second", 300 * KIB))
            await send(second, noise(300 * KIB))
            first.cut()
            assert (await second.reply()).status == 200
            assert home.arrived("/second")[0].body == noise(300 * KIB)
        await home.empty()


# Sending again


@linux
@pytest.mark.parametrize("length", [3 * MIB, None], ids=["of a length", "in chunks"])
async def test_a_body_in_a_file_is_sent_again(tmp_path: Path, length: int | None) -> None:
    """A 429 and a dead key cost its caller nothing but time: the whole body arrives at each try, and is taken once."""
    data = noise(3 * MIB)
    framed = data if length else b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data)
    async with house(tmp_path, keys=3) as home:
        script = [answering(429, LIMITED, b"Retry-After: 60"), answering(401, INVALID), answering(200, b"taken")]
        home.origin.answers = Script(home.origin.answers, b"/up", script)
        home.origin.answers[b"/me"] = answering(401, INVALID)
        reply = await upload(home, put("/up", length), framed)
        assert (reply.status, reply.body) == (200, b"taken")
        arrivals = home.arrived("/up")
        assert [arrival.whole for arrival in arrivals] == [True] * 3
        assert all(arrival.body == data for arrival in arrivals)
        assert len({arrival.values(b"x-api-key")[0] for arrival in arrivals}) == 3
        await home.empty()


class Script(dict[bytes, Answering]):
    """Answers to one path, one after another."""

    def __init__(self, others: Mapping[bytes, Answering], path: bytes, script: list[Answering]) -> None:
        super().__init__(others)
        self._path = path
        self._script = script

    def get(self, path: bytes, default: Any = None) -> Any:
        """The next answer to that path."""
        return self._script.pop(0) if path == self._path else super().get(path, default)


# Larger bodies, and bodies that find no file


@linux
async def test_a_body_beyond_the_bound_streams(tmp_path: Path) -> None:
    """Its beginning is read before its turn, the rest while it is sent; whole bodies arrive whole."""
    data = noise(MIB)
    async with house(tmp_path, inbound=SMALL) as home, calling(home.keyturn.data) as caller:
        caller.send(put("/up", len(data)))
        await send(caller, data[: 200 * KIB])
        await until(lambda: home.files() == 1, "a file is made")
        assert home.arrived("/up") == []
        await send(caller, data[200 * KIB :])
        assert (await caller.reply()).status == 200
        assert home.arrived("/up")[0].body == data
        await home.empty()


async def test_the_rest_of_a_body_has_its_time(tmp_path: Path) -> None:
    """A body that streams under a lease is given up after `upload_timeout`, however steadily its drops come."""
    async with house(tmp_path, inbound={**SMALL, "upload_timeout": "300ms"}) as home:
        async with calling(home.keyturn.data) as caller:
            caller.send(put("/up", MIB))
            await send(caller, noise(300 * KIB))
            reading = asyncio.ensure_future(caller.reply())  # noqa: TID251  # drops are sent until it is there
            while not reading.done():
                caller.send(b"x")
                await asyncio.sleep(0.01)
            reply = await reading
            assert (reply.status, reply.error) == (408, "requestTimeout")
            assert reply.one("Connection") == "close"
        (arrival,) = home.arrived("/up")
        await arrival.left.wait()
        assert not arrival.whole
        await home.empty()
        assert await home.keyturn.metric("keyturn_in_flight") == 0


@linux
async def test_a_full_disk(tmp_path: Path) -> None:
    """A body that cannot be spooled is streamed; that is counted each time and logged once."""
    data = noise(MIB)
    async with house(tmp_path, inbound={"spool_memory": 64 * KIB}) as home:
        resource.prlimit(home.keyturn.process.pid, resource.RLIMIT_FSIZE, (100 * KIB, resource.RLIM_INFINITY))
        for number in range(3):
            assert (await upload(home, put(f"/{number}", len(data)), data)).status == 200
            assert home.arrived(f"/{number}")[0].body == data
        await home.empty()
        assert await home.keyturn.metric("keyturn_spool_failures_total") == 3
        assert home.keyturn.process.stderr.count("cannot be written to temporary files") == 1


@linux
async def test_no_folder_to_write_to(tmp_path: Path) -> None:
    """A container whose file system is read-only keeps bodies in memory, says so at its start, and the rest streams."""
    data = noise(MIB)
    async with house(tmp_path, environ={"TMPDIR": "/proc/nowhere"}) as home:
        assert home.keyturn.process.stderr.count("cannot be written to temporary files") == 1
        async with calling(home.keyturn.data) as caller:
            caller.send(put("/small", 5) + b"hell")
            await until(home.taken, "it is being read")
            assert home.arrived("/small") == []
            caller.send(b"o")
            assert (await caller.reply()).status == 200
        assert (await upload(home, put("/large", len(data)), data)).status == 200
        assert home.arrived("/large")[0].body == data
        assert await home.taken(where="file") == 0
        await home.empty()
