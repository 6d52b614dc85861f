"""Bounds of a caller's connection, over real sockets, without waiting on the wall clock."""

import asyncio
import gc
import re
import ssl
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import trustme
import uvloop
from aiohttp.streams import StreamReader
from keyturn.core.http import Answer, Request
from keyturn.web.connection import CallerConnection
from keyturn.web.overload import Bounds
from keyturn.web.parsing import MAX_READ

from tests.web.callers import Gateway, World, an_answer, deaf, ended, get, okay, open_connections, read, until_closed

MANY = 4 * MAX_READ


@pytest.mark.parametrize("loop", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "tls"])
def test_a_read_is_no_larger_than_asked_for(loop: Callable[[Any], None], *, encrypted: bool) -> None:
    """A quarter before a request has been admitted, whatever has come meanwhile."""
    authority = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.issue_cert("localhost").configure_cert(server)
    authority.configure_trust(client)
    reads: list[int] = []
    updated = CallerConnection.buffer_updated

    def counted(self: CallerConnection, nbytes: int) -> None:
        reads.append(nbytes)
        updated(self, nbytes)

    async def scenario() -> None:
        async with World(gateway=Gateway(okay), tls=server if encrypted else None).running() as world:
            world.access.required = True
            world.access.cut = True
            tls: dict[str, Any] = {"ssl": client, "server_hostname": "localhost"} if encrypted else {}
            reader, writer = await asyncio.open_connection("127.0.0.1", world.port, **tls)
            writer.write(get(b"/", b"Content-Length: %d" % MANY, method=b"PUT", body=b"x" * MANY))
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 401 ")
            writer.transport.abort()

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(CallerConnection, "buffer_updated", counted)
        loop(scenario())
    assert 0 < reads[0] <= MAX_READ // 4
    assert max(reads) <= MAX_READ


SOON = 0.05
"""Seconds that run out."""
DEADLINE = 20.0
"""Seconds, less than a body may take: only a failure waits for them."""
BOUNDS = Bounds(head=8192, fields=16, target=1024)


# How large a head may be


@pytest.mark.parametrize(
    ("data", "status", "name"),
    [
        (get(b"/" + b"x" * 1024), 414, b"targetTooLong"),
        (get(b"/" + b"x" * 9000), 414, b"targetTooLong"),
        (b"GET /" + b"x" * 2000, 414, b"targetTooLong"),
        (get(b"/", b"X: " + b"x" * 9000), 431, b"headTooLarge"),
        (get(b"/", *[b"X: " + b"x" * 1000] * 9), 431, b"headTooLarge"),
        (get(b"/", *[b"X-%d: 1" % number for number in range(16)]), 431, b"headTooLarge"),
        (get(b"/", b"X" * 9000 + b": 1"), 431, b"headTooLarge"),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 9000, 431, b"headTooLarge"),
        (b"\r\n" * 5000, 431, b"headTooLarge"),
    ],
)
@pytest.mark.parametrize("piece", [700, 100_000])
async def test_a_head_that_is_too_large_is_refused(data: bytes, status: int, name: bytes, piece: int) -> None:
    """In one piece or in several, complete or not; the answer says what was too large, and the connection ends."""
    async with World(bounds=BOUNDS).running() as world:
        reader, writer = await world.connect()
        for start in range(0, len(data), piece):
            writer.write(data[start : start + piece])
            await asyncio.sleep(0)
        answer = await read(reader)
        assert answer.startswith(b"HTTP/1.1 %d " % status)
        assert (b'"%b"' % name in answer, b"\r\nConnection: close\r\n" in answer) == (True, True)
        assert not world.gateway.requests
        writer.close()


async def test_a_head_that_is_just_right_is_read() -> None:
    """The bounds themselves are permitted, and a body is no part of a head."""
    async with World(bounds=BOUNDS).running() as world:
        target = b"/" + b"x" * 1023
        fields = [b"X: " + b"x" * 400] * 13
        answer = await world.ask(get(target, *fields, b"Content-Length: 900", method=b"PUT", body=b"x" * 900))
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert (await world.log()).received == 900


@pytest.mark.parametrize("piece", [1, 1000, 100_000])
@pytest.mark.parametrize(("length", "status"), [(BOUNDS.head, 200), (BOUNDS.head + 1, 431)])
async def test_a_head_has_so_many_bytes(length: int, status: int, piece: int) -> None:
    """From the first of its line to the last of the empty line, however they arrive."""
    data = get(b"/", *[b"X: " + b"x" * 700] * 11, b"Y: ")
    data = data[: -len(b"\r\n\r\n")].replace(b"Y: ", b"Y: " + b"y" * (length - len(data))) + b"\r\n\r\n"
    assert len(data) == length
    async with World(bounds=BOUNDS).running() as world:
        reader, writer = await world.connect()
        for start in range(0, len(data), piece):
            writer.write(data[start : start + piece])
            await asyncio.sleep(0)
        assert (await read(reader)).startswith(b"HTTP/1.1 %d " % status)
        writer.close()


async def test_the_end_of_a_body_is_no_head() -> None:
    """However much of it comes at once."""
    bounds = replace(BOUNDS, head_time=SOON)
    go_on = asyncio.Event()

    async def reply(request: Request) -> Answer:
        assert request.body is not None
        assert len(b"".join([part async for part in request.body.chunks()])) == 900
        await go_on.wait()
        return an_answer(b"ok")

    async with World(gateway=Gateway(reply), bounds=replace(bounds, head=800)).running() as world:
        reader, writer = await world.connect()
        writer.write(get(b"/", b"Content-Length: 900", method=b"PUT"))
        while not world.gateway.requests:
            await asyncio.sleep(0)
        writer.write(b"x" * 900)
        await asyncio.sleep(2 * SOON)
        go_on.set()
        assert (await read(reader)).endswith(b"\r\n\r\nok")
        writer.close()


async def test_one_head_too_large_ends_what_follows() -> None:
    """Pipelined requests before the failing one are answered, those behind it are not read."""
    async with World(bounds=BOUNDS).running() as world:
        large = get(b"/2", *[b"X: " + b"x" * 1000] * 9, close=False)
        answer = await world.ask(get(b"/1", close=False), large, get(b"/3"))
        assert re.findall(rb"HTTP/1\.1 (\d+) ", answer) == [b"200", b"431"]
        assert [request.target for request in world.gateway.requests] == [b"/1"]


# How long it may take


@pytest.mark.parametrize(
    "begin", [b"G", b"\r\n", b"GET / HTTP/1.1\r\nHost: a\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nX: "]
)
async def test_a_head_that_does_not_come_is_given_up(begin: bytes) -> None:
    """Wherever it stops; a connection on which nothing has come may stay idle for longer."""
    async with World(bounds=Bounds(head_time=SOON)).running() as world:
        idle, idle_writer = await world.connect()
        reader, writer = await world.connect()
        writer.write(begin)
        answer = await read(reader)
        assert answer.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
        assert b'"requestTimeout"' in answer
        assert ended(world) == ["head_timeout"]
        idle_writer.write(get())
        assert (await read(idle)).startswith(b"HTTP/1.1 200 ")
        writer.close()
        idle_writer.close()


async def test_a_head_that_trickles_is_given_up() -> None:
    """A byte now and then does not make it last."""
    async with World(bounds=Bounds(head_time=4 * SOON)).running() as world:
        reader, writer = await world.connect()

        async def trickle() -> None:
            for byte in get(b"/", b"X: " + b"x" * 10_000):
                writer.write(bytes([byte]))
                await asyncio.sleep(SOON / 10)

        trickling = asyncio.get_running_loop().create_task(trickle())
        assert (await read(reader)).startswith(b"HTTP/1.1 408 ")
        trickling.cancel()
        writer.close()


async def test_a_head_behind_a_request_has_its_time_when_that_is_answered() -> None:
    """A request in flight is not ended by it; afterwards it has as long as any other."""
    go_on = asyncio.Event()

    async def reply(_: Request) -> Answer:
        await go_on.wait()
        return an_answer(b"ok")

    async with World(gateway=Gateway(reply), bounds=Bounds(head_time=SOON)).running() as world:
        reader, writer = await world.connect()
        writer.write(get(b"/1", close=False))
        while not world.gateway.requests:
            await asyncio.sleep(0)
        writer.write(b"GET /2 HTTP/1.1\r\n")
        await asyncio.sleep(3 * SOON)
        assert not ended(world)
        go_on.set()
        answer = await read(reader)
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b"HTTP/1.1 408 " in answer
        writer.close()


async def test_a_body_that_does_not_come_is_given_up() -> None:
    """While somebody reads it; the bytes that have come gave it more time."""
    async with World(body_timeout=int(SOON * 1_000_000)).running() as world:
        answer = await world.ask(get(b"/", b"Content-Length: 10", method=b"PUT", body=b"four"))
        assert answer.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
        log = await world.log()
        assert (log.reason, log.received) == ("too_slow", 4)


async def test_an_idle_connection_is_closed() -> None:
    """Before its first request and behind its last, without a word."""
    async with World(bounds=Bounds(keep_alive=SOON)).running() as world:
        reader, writer = await world.connect()
        assert await read(reader) == b""
        writer.close()
        reader, writer = await world.connect()
        writer.write(get(close=False))
        assert (await read(reader)).endswith(b"\r\n\r\nok")
        writer.close()


# Callers that take nothing


async def test_an_answer_that_nobody_takes_ends_its_connection() -> None:
    """The upstream's answer is let go, and what holds it with it."""
    large = b"x" * 2**20

    async def reply(_: Request) -> Answer:
        return an_answer(*[large] * 64)

    async with World(gateway=Gateway(reply), bounds=Bounds(write_time=SOON)).running() as world:
        _, writer = await deaf(world)
        writer.write(get())
        log = await world.log()
        assert log.outcome == "gone"
        assert log.sent < 64 * len(large)
        assert ended(world) == ["write_timeout"]
        await until_closed(world)
        writer.close()


async def test_a_caller_that_takes_its_time_is_served() -> None:
    """As long as it takes something now and then."""
    large = b"x" * 2**20

    async def reply(_: Request) -> Answer:
        return an_answer(*[large] * 16)

    async with World(gateway=Gateway(reply), bounds=Bounds(write_time=10 * SOON)).running() as world:
        reader, writer = await asyncio.open_connection("127.0.0.1", world.port, limit=2**12)
        writer.write(get())
        await reader.readuntil(b"\r\n\r\n")
        received = 0
        while part := await reader.read(2**20):
            received += len(part)
            await asyncio.sleep(SOON / 50)
        assert received == 16 * len(large)
        assert not ended(world)
        writer.close()


async def test_an_end_that_nobody_takes_is_cut() -> None:
    """A connection whose last answer stays untaken does not stay for ever."""

    async def reply(_: Request) -> Answer:
        return an_answer(b"x" * 2**23)

    async with World(gateway=Gateway(reply), bounds=Bounds(write_time=SOON)).running() as world:
        _, writer = await deaf(world)
        writer.write(get())
        await until_closed(world)
        assert ended(world) == ["write_timeout"]
        writer.close()


# Several at once


async def test_pipelined_requests_wait_outside() -> None:
    """None is parsed before the one in front of it is answered, and next to nothing held; each has its turn."""
    go_on = asyncio.Event()

    async def reply(_: Request) -> Answer:
        await go_on.wait()
        return an_answer(b"ok")

    async with World(gateway=Gateway(reply), bounds=BOUNDS).running() as world:
        reader, writer = await world.connect()
        writer.writelines(get(b"/%d" % number, close=False) for number in range(100))
        while not world.gateway.requests:
            await asyncio.sleep(0)
        assert world.listener._connections is not None
        (connection,) = open_connections(world)
        assert connection._message is None
        assert world.listener._connections.buffers.held <= MAX_READ
        go_on.set()
        for number in range(100):
            assert (await reader.readuntil(b"\r\n\r\nok")).startswith(b"HTTP/1.1 200 ")
            assert world.gateway.requests[number].target == b"/%d" % number
        writer.close()


async def test_what_is_no_request_takes_none_before_it_along() -> None:
    """Also when they all arrive together, and are more than are read ahead."""
    async with World(gateway=Gateway(okay), bounds=BOUNDS).running() as world:
        posted = get(b"/", b"Content-Length: 5", method=b"POST", close=False, body=b"\r\n\r\n.")
        answer = await world.ask(*[posted, get(b"/", close=False)] * 3, b"no HTTP\r\n\r\n", get(b"/never"))
        assert re.findall(rb"HTTP/1\.1 (\d+) ", answer) == [b"200"] * 6 + [b"400"]
        assert len(world.gateway.requests) == 6


async def test_a_caller_that_leaves_behind_pipelined_requests_is_noticed() -> None:
    """Though nothing is read from it any more."""

    async def reply(_: Request) -> Answer:
        await asyncio.Event().wait()
        raise AssertionError

    async with World(gateway=Gateway(reply)).running() as world:
        _, writer = await world.connect()
        writer.writelines(get(close=False) for _ in range(100))
        while not world.gateway.requests:
            await asyncio.sleep(0)
        writer.close()
        assert (await world.log()).outcome == "gone"


# Bytes that are not HTTP


async def test_a_body_that_breaks_fails_its_own_reader() -> None:
    """Also when its request still stood behind another as it broke."""
    go_on = asyncio.Event()
    bodies: list[bytes] = []

    async def reply(request: Request) -> Answer:
        if request.body is None:
            await go_on.wait()
        else:
            bodies.extend([part async for part in request.body.chunks()])
        return an_answer(b"ok")

    async with World(gateway=Gateway(reply)).running() as world:
        reader, writer = await world.connect()
        writer.write(get(b"/1", close=False))
        writer.write(get(b"/2", b"Transfer-Encoding: chunked", method=b"POST", close=False, body=b"3\r\nabc\r\n"))
        while not world.gateway.requests:
            await asyncio.sleep(0)
        writer.write(b"no chunk\r\n")
        await asyncio.sleep(SOON)
        go_on.set()
        answer = await read(reader)
        assert re.findall(rb"HTTP/1\.1 (\d+) ", answer) == [b"200", b"400"]
        writer.close()


@pytest.mark.parametrize("rest", [b"\r\nZZ\r\n", b"\r\n0\n\n", b"\r\n1\n"])
async def test_an_error_behind_the_end_of_a_chunk_is_not_missed(rest: bytes) -> None:
    """Also when both come with the same bytes, and a reader waits for them."""
    parts: list[bytes] = []

    async def reply(request: Request) -> Answer:
        assert request.body is not None
        async for part in request.body.chunks():
            parts.append(part)  # noqa: PERF401  # it must be seen as it comes
        raise AssertionError

    async with World(gateway=Gateway(reply)).running() as world:
        reader, writer = await world.connect()
        writer.write(get(b"/", b"Transfer-Encoding: chunked", method=b"POST", body=b"3\r\nabc"))
        while parts != [b"abc"]:
            await asyncio.sleep(0)
        writer.write(rest)
        async with asyncio.timeout(DEADLINE):
            assert (await read(reader)).startswith(b"HTTP/1.1 400 ")
        writer.close()


async def test_malformed_requests_are_counted() -> None:
    """Once each, whatever follows."""
    async with World().running() as world:
        await world.ask(b"no HTTP at all\r\n\r\nnor here")
        assert ended(world) == ["malformed"]


async def test_a_body_that_ends_in_too_many_trailers_is_told_so() -> None:
    """However its bytes come in pieces."""

    async def reply(request: Request) -> Answer:
        assert request.body is not None
        assert not [part async for part in request.body.chunks() if part != b"abc"]
        raise AssertionError

    for trailers in (b"X: " + b"x" * 9000, b"X: 1\r\n" * 40):
        async with World(gateway=Gateway(reply), bounds=BOUNDS).running() as world:
            reader, writer = await world.connect()
            writer.write(get(b"/", b"Transfer-Encoding: chunked", method=b"POST", body=b"3\r\nabc\r\n0\r\n"))
            while not world.gateway.requests:
                await asyncio.sleep(0)
            writer.write(trailers)
            answer = await read(reader)
            assert answer.startswith(b"HTTP/1.1 431 ")
            assert b'"headTooLarge"' in answer
            writer.close()


async def test_a_lost_connection_leaves_nothing_of_an_unread_body() -> None:
    """Bytes read ahead are freed at once, not by the garbage collector."""
    never = asyncio.Event()

    async def reply(_: Request) -> Answer:
        await never.wait()
        raise AssertionError

    def left() -> int:
        return sum(isinstance(one, StreamReader) and getattr(one, "_size", 0) > 0 for one in gc.get_objects())

    async with World(gateway=Gateway(reply)).running() as world:
        gc.collect()
        gc.disable()
        before = left()
        try:
            _, writer = await world.connect()
            writer.write(get(b"/", b"Content-Length: 1000", method=b"PUT", body=bytes(500)))
            while not world.gateway.requests:
                await asyncio.sleep(0)
            assert left() == before + 1
            writer.transport.abort()
            await world.log()
            world.gateway.requests.clear()
            world.journals.clear()
            async with asyncio.timeout(DEADLINE):
                while left() > before:
                    await asyncio.sleep(0)
        finally:
            gc.enable()


async def test_a_connection_says_where_it_stands() -> None:
    """Its caller's address, its state and how many requests it has carried, for people who debug."""
    shown: list[str] = []

    async def reply(_: Request) -> Answer:
        shown.extend(map(repr, open_connections(world)))
        shown.append(repr(world.listener._connections))
        return an_answer(b"ok")

    async with World(gateway=Gateway(reply)).running() as world:
        reader, writer = await world.connect()
        writer.write(get(close=False))
        assert (await reader.readuntil(b"\r\n\r\nok")).startswith(b"HTTP/1.1 200 ")
        assert shown == ["<CallerConnection 127.0.0.1, answering, 1 requests>", "<Connections 1 open, 1 unfinished>"]
        (connection,) = open_connections(world)
        assert repr(connection) == "<CallerConnection 127.0.0.1, idle, 1 requests>"
        writer.close()
        await until_closed(world)
        assert repr(connection) == "<CallerConnection 127.0.0.1, closed, 1 requests>"
