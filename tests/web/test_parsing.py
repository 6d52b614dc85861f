"""Bytes held for callers, and answers to those that are not HTTP, over real sockets."""

import asyncio
import gc
import logging
import tracemalloc

import pytest
from keyturn.core.errors import Unauthenticated
from keyturn.core.http import Answer, Request
from keyturn.web.overload import BYTES_FLOOR, Bounds, ByteBudget
from keyturn.web.parsing import MAX_READ

from tests.web.callers import Access, Gateway, World, an_answer, ended, get, okay, read, until_closed

SOON = 0.05
"""Seconds that run out."""


async def read_all(request: Request) -> Answer:
    """Read the body, and answer."""
    assert request.body is not None
    async for _ in request.body.chunks():
        pass
    return an_answer(b"ok")


# How much is held


def held(world: World) -> int:
    """Bytes that requests hold on their way in."""
    assert world.listener._connections is not None
    return world.listener._connections.buffers.held


async def as_much_as_goes(writer: asyncio.StreamWriter, data: bytes) -> None:
    """Send what the other side's system takes."""
    assert isinstance(writer.transport, asyncio.Transport)
    writer.transport.set_write_buffer_limits(0)
    writer.write(data)
    before = -1
    while before != (before := writer.transport.get_write_buffer_size()):
        for _ in range(100):
            await asyncio.sleep(0)


@pytest.mark.parametrize("framing", [b"Content-Length: 1000000", b"Transfer-Encoding: chunked"])
async def test_a_body_is_not_read_before_its_request_is_admitted(framing: bytes) -> None:
    """But for what came with the head; nor is it in the end when the caller is nobody's client."""
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def slow(refusal: Unauthenticated, caller: str) -> bool:  # as it is called
        asked.set()
        await go_on.wait()
        return False

    access = Access(required=True)
    access.slow = slow  # type: ignore[method-assign]
    async with World(access=access).running() as world:
        reader, writer = await world.connect()
        body = b"x" * 900 if framing.startswith(b"C") else b"1\r\nx\r\n" * 150
        await as_much_as_goes(writer, get(b"/", framing, method=b"POST", body=body * 1000))
        await asked.wait()
        assert 0 < held(world) <= MAX_READ // 4 + 1000
        go_on.set()
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 401 ")
        writer.transport.abort()
        await until_closed(world)
        assert held(world) == 0


async def test_an_answered_request_holds_nothing() -> None:
    """Also while its connection waits for the next one."""
    async with World(gateway=Gateway(okay)).running() as world:
        reader, writer = await world.connect()
        for _ in range(3):
            writer.write(get(b"/", b"X: " + b"x" * 20_000, b"Content-Length: 900", close=False, body=b"x" * 900))
            assert (await reader.readuntil(b"\r\n\r\nok")).startswith(b"HTTP/1.1 200 ")
            while held(world):
                await asyncio.sleep(0)
        writer.close()


@pytest.mark.parametrize("close", [False, True])
async def test_memory_of_an_answered_request_is_given_back(*, close: bool) -> None:
    """While its connection waits for the next one, and while its caller has time to read its answer."""
    number, size = 20, 60_000
    head = get(b"/", b"X: " + b"x" * size, close=close)
    async with World(gateway=Gateway(okay)).running() as world:
        callers = [await world.connect() for _ in range(number)]
        tracemalloc.start()
        try:
            for reader, writer in callers:
                writer.write(head)
                assert (await reader.readuntil(b"\r\n\r\nok")).startswith(b"HTTP/1.1 200 ")
            while held(world):
                await asyncio.sleep(0)
            world.gateway.requests.clear()
            gc.collect()
            assert world.listener.connections == number
            assert tracemalloc.get_traced_memory()[0] < number * size / 4
        finally:
            tracemalloc.stop()
        for _, writer in callers:
            writer.close()


async def test_a_crowd_with_half_heads_holds_no_more_than_it_may() -> None:
    """And a caller with a usual head is served beside it, as is one with a body."""
    buffers = ByteBudget(1 << 20)
    async with World(gateway=Gateway(read_all), buffers=buffers).running() as world:
        crowd = [(await world.connect())[1] for _ in range(60)]
        for writer in crowd:
            await as_much_as_goes(writer, b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 60_000)
        assert buffers.paused > 0
        assert buffers.held <= buffers.limit // 4 + 61 * BYTES_FLOOR + 2 * Bounds().head
        body = b"x" * 1000
        answer = await world.ask(get(b"/", b"Content-Length: %d" % len(body), method=b"PUT", body=body))
        assert answer.endswith(b"\r\n\r\nok")
        for writer in crowd:
            writer.transport.abort()
        await until_closed(world)
        assert (buffers.held, buffers.paused) == (0, 0)


async def test_heads_that_were_paused_go_on() -> None:
    """When others have gone; nothing of them is lost."""
    buffers = ByteBudget(1 << 20)
    async with World(gateway=Gateway(okay), buffers=buffers).running() as world:
        crowd = [await world.connect() for _ in range(60)]
        head = get(b"/", b"X: " + b"x" * 30_000)
        for _, writer in crowd:
            await as_much_as_goes(writer, head[:-1])
        assert buffers.paused > 0
        for _, writer in crowd:
            writer.write(head[-1:])
        for reader, writer in crowd:
            assert (await read(reader)).startswith(b"HTTP/1.1 200 ")
            writer.close()


async def test_a_head_that_found_no_room_in_its_time_is_told_so() -> None:
    """It was not its caller that was slow."""
    async with World(bounds=Bounds(head_time=4 * SOON), buffers=ByteBudget(0)).running() as world:
        head = b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 30_000
        first, second = [await world.connect() for _ in range(2)]
        for _, writer in (first, second):
            await as_much_as_goes(writer, head)
        assert world.buffers.paused == 1
        assert (await read(first[0])).startswith(b"HTTP/1.1 408 ")
        answer = await read(second[0])
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nRetry-After: 1\r\n" in answer
        assert ended(world) == ["head_timeout"]
        for _, writer in (first, second):
            writer.close()


async def test_clients_that_hold_everything_are_refused() -> None:
    """Those that come then; no more is held than there is, and a head for each connection."""

    async def reply(_: Request) -> Answer:
        await asyncio.Event().wait()
        raise AssertionError

    buffers = ByteBudget(20_000)
    async with World(gateway=Gateway(reply), buffers=buffers).running() as world:
        writers = []
        for number in range(1, 11):
            _, writer = await world.connect()
            writer.write(get(b"/", b"X: " + b"x" * 900))
            while len(world.gateway.requests) < number:
                await asyncio.sleep(0)
            writers.append(writer)
        answer = await world.ask(get(b"/", b"X: " + b"x" * 900))
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert world.journals[-1].reason == "too_many_connections"
        for writer in writers:
            writer.transport.abort()


# Other protocols


@pytest.mark.parametrize("piece", [1, 100_000])
@pytest.mark.parametrize(
    ("data", "line", "told"),
    [
        (b"\x16\x03\x01\x02\x00\x01" + b"\x00" * 200, "TLS on a port of plain HTTP", b"Use http://"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00" * 30, "HTTP/2", b"Send HTTP/1.1"),
        (get("/caf\u00e9".encode()), "a request target with bytes outside ASCII", b"percent-encoded"),
        (get(b"/?q=\xe9"), "a request target with bytes outside ASCII", b"percent-encoded"),
    ],
)
async def test_another_protocol_is_told_what_is_spoken_here(
    data: bytes, line: str, told: bytes, piece: int, caplog: pytest.LogCaptureFixture
) -> None:
    """In an answer, and in the log: once, with the address, however often it comes, and none of its bytes."""
    with caplog.at_level(logging.INFO, "keyturn"):
        async with World().running() as world:
            for _ in range(3):
                reader, writer = await world.connect()
                for start in range(0, len(data), piece):
                    writer.write(data[start : start + piece])
                    await asyncio.sleep(0)
                answer = await read(reader)
                assert answer.startswith(b"HTTP/1.1 400 ")
                assert told in answer
                writer.close()
            assert ended(world) == ["malformed"] * 3
    assert [record.getMessage() for record in caplog.records] == [f"{line} came from 127.0.0.1"]
