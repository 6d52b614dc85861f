import asyncio
from collections.abc import AsyncIterator

import pytest
from keyturn.bodies import Bodies, BodySettings, ReplayBody
from keyturn.core.errors import Broken, TimedOut, TooLarge
from keyturn.core.model import MILLISECOND, Secret
from keyturn.upstream.request_writer import HeadWriter

from tests.schedulers import Recorder
from tests.upstream.origin import (
    KEY,
    OK,
    Chunks,
    Script,
    a_request,
    answering,
    idle,
    in_use,
    opened,
    origin,
    reset,
    sent,
    whole,
)

WRITER = HeadWriter("api.example", "X-Api-Key")


def test_what_the_caller_wrote_is_untouched() -> None:
    """Target and fields go out byte for byte, in order, with repetitions; `Host` is the upstream's."""
    fields = ((b"x-A", b"1 \xff"), (b"Accept", b"b"), (b"X-a", b"\xc3\xa9"))
    head = WRITER.write(a_request("GET", b"/a%2Fb?x=%41+", fields), KEY, (), None)
    assert head == (
        b"GET /a%2Fb?x=%41+ HTTP/1.1\r\nHost: api.example\r\nx-A: 1 \xff\r\nAccept: b\r\nX-a: \xc3\xa9\r\n"
        b"X-Api-Key: PMAK-of-the-pool\r\nVia: 1.1 keyturn\r\nX-Request-Id: id-1\r\n\r\n"
    )


def test_nothing_of_ours_can_be_spoofed() -> None:
    """A key, a request id or a framing among the caller's fields is replaced, in any spelling."""
    fields = (
        (b"X-API-KEY", b"mine"),
        (b"x-request-id", b"mine"),
        (b"host", b"mine"),
        (b"transfer-encoding", b"gzip"),
        (b"connection", b"close"),
        (b"content-length", b"7"),
    )
    head = WRITER.write(a_request(fields=fields), KEY, (), None)
    assert b"mine" not in head
    assert head.lower().count(b"x-api-key") == head.count(b"Host: ") == 1
    assert b"encoding" not in head
    assert b"onnection" not in head
    assert b"\r\nContent-Length: 0\r\n" in head


def test_the_pools_fields_replace_those_of_the_same_name() -> None:
    """A field of the pool's configuration wins over the caller's."""
    head = WRITER.write(
        a_request(fields=((b"x-extra", b"theirs"), (b"X-Other", b"theirs"))), KEY, ((b"X-Extra", b"ours"),), None
    )
    assert b"X-Extra: ours\r\n" in head
    assert b"x-extra: theirs" not in head
    assert b"X-Other: theirs\r\n" in head


def test_via_lists_the_proxies_in_order() -> None:
    """Our `Via` goes behind those of the proxies before us."""
    head = WRITER.write(a_request(fields=((b"Via", b"1.0 a"), (b"X", b"y"), (b"via", b"1.1 b"))), KEY, (), None)
    assert b"\r\nVia: 1.0 a, 1.1 b, 1.1 keyturn\r\n" in head


@pytest.mark.parametrize(
    ("method", "length", "framing"),
    [
        ("GET", None, b""),
        ("HEAD", None, b""),
        ("DELETE", None, b""),
        ("OPTIONS", None, b""),
        ("POST", None, b"Content-Length: 0"),
        ("PUT", None, b"Content-Length: 0"),
        ("PATCH", None, b"Content-Length: 0"),
        ("POST", 7, b"Content-Length: 7"),
        ("GET", 2, b"Content-Length: 2"),
        ("PUT", -1, b"Transfer-Encoding: chunked"),
    ],
)
def test_framing_follows_the_body(method: str, length: int | None, framing: bytes) -> None:
    """A length stays a length, chunks stay chunks, and an empty POST says that it is empty."""
    body = None if length is None else Chunks(length=length if length >= 0 else None)
    head = WRITER.write(a_request(method), KEY, (), body)
    assert [line for line in head.split(b"\r\n") if line.startswith((b"Content-L", b"Transfer"))] == [framing] * bool(
        framing
    )


def test_a_key_cannot_add_fields() -> None:
    """A key with a line break is not sent, and the error does not show it."""
    with pytest.raises(ValueError, match="line break") as caught:
        WRITER.write(a_request(), Secret("PMAK\r\nX-Evil: 1"), (), None)
    assert "PMAK" not in str(caught.value)


POST = a_request("POST")


def collecting(into: bytearray, end: bytes) -> Script:
    """Read requests, and answer each when what was read ends with the given bytes."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while part := await reader.read(65536):
            into.extend(part)
            if into.endswith(end):
                writer.write(OK)

    return script


async def test_a_length_stays_a_length() -> None:
    """A body whose length is known goes out as exactly that many bytes, and `on_written` follows the last of them."""
    received = bytearray()
    async with origin(collecting(received, b"!")) as url, opened(url) as upstream:
        wire = await upstream.connect()
        written: list[int] = []
        answer = await wire.send(
            POST, KEY, (), body=Chunks(b"hello ", b"world!", length=12), on_written=lambda: written.append(1)
        )
        assert await whole(answer) == b"ok"
        assert written == [1]
        head, _, body = bytes(received).partition(b"\r\n\r\n")
        assert body == b"hello world!"
        assert b"\r\nContent-Length: 12\r\n" in head
        assert b"ransfer-" not in head
        assert (idle(upstream), in_use(upstream)) == (1, 0)


async def test_chunks_stay_chunks() -> None:
    """A body without a length goes out chunk by chunk, with its end."""
    received = bytearray()
    async with origin(collecting(received, b"0\r\n\r\n")) as url, opened(url) as upstream:
        assert await whole(await sent(upstream, POST, Chunks(b"hello", b"", b"x" * 17))) == b"ok"
        assert received.partition(b"\r\n\r\n")[2] == b"5\r\nhello\r\n11\r\n" + b"x" * 17 + b"\r\n0\r\n\r\n"
        assert await whole(await sent(upstream, POST, Chunks())) == b"ok"
        assert idle(upstream) == 1


@pytest.mark.parametrize("body", [Chunks(b"abc", length=5), Chunks(b"abc", b"def", length=5)], ids=["short", "long"])
async def test_a_body_that_breaks_its_announcement_is_not_ended(body: Chunks) -> None:
    """A body of another length than announced fails the request; the upstream never sees a whole one."""
    received = bytearray()
    async with origin(collecting(received, b"never")) as url, opened(url) as upstream:
        with pytest.raises(ConnectionError, match="length"):
            await sent(upstream, POST, body)
        assert (idle(upstream), in_use(upstream)) == (0, 0)


@pytest.mark.parametrize("error", [TooLarge("too much"), ConnectionResetError("gone"), ConnectionAbortedError()])
async def test_the_readers_failure_is_the_requests(error: Exception) -> None:
    """Exceptions of the body's reader are raised again unchanged; the connection is closed."""

    class Failing:
        length = None

        async def chunks(self) -> AsyncIterator[bytes]:
            yield b"some"
            raise error

    async with origin(answering(b"")) as url, opened(url) as upstream:
        with pytest.raises(type(error)) as caught:
            await sent(upstream, POST, Failing())
        assert caught.value is error
        assert (idle(upstream), in_use(upstream)) == (0, 0)


async def test_an_early_answer_is_passed_on_without_the_rest() -> None:
    """An upstream that refuses a body in its middle is heard; the upload stops, and its connection is closed."""
    never = asyncio.Event()
    refusal = b"HTTP/1.1 413 Too Much\r\nContent-Length: 4\r\n\r\nstop"
    body = Chunks(b"x" * 10, b"y" * 10, length=20, wait=(1, never))
    written: list[int] = []
    async with origin(answering(refusal)) as url, opened(url) as upstream:
        wire = await upstream.connect()
        answer = await wire.send(POST, KEY, (), body=body, on_written=lambda: written.append(1))
        assert (answer.status, await whole(answer)) == (413, b"stop")
        assert not upstream.uploads
        assert not written
        assert (idle(upstream), in_use(upstream)) == (0, 0)


async def test_an_early_answer_is_streamed_beside_the_upload() -> None:
    """The upload goes on while the answer streams, and when both are whole the connection is kept."""
    received = bytearray()

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.extend(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(3):
            part = await reader.readexactly(4)
            writer.write(b"4\r\n" + part + b"\r\n")
        writer.write(b"0\r\n\r\n")
        await reader.read()

    go_on = asyncio.Event()
    body = Chunks(b"abcd", b"efgh", b"ijkl", length=12, wait=(2, go_on))
    async with origin(echo) as url, opened(url) as upstream:
        answer = await sent(upstream, POST, body)
        assert await answer.body.read()
        go_on.set()
        assert (await whole(answer)).endswith(b"ijkl")
        assert idle(upstream) == 1


async def test_a_body_that_fails_behind_an_early_answer_costs_the_connection_only() -> None:
    """The answer is still read to its end."""
    go_on = asyncio.Event()

    class Failing:
        length = 9

        async def chunks(self) -> AsyncIterator[bytes]:
            yield b"some"
            await go_on.wait()
            raise ConnectionResetError

    finish_answer = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\npart")
        await finish_answer.wait()
        writer.write(b"rest")
        await reader.read()

    async with origin(script) as url, opened(url) as upstream:
        answer = await sent(upstream, POST, Failing())
        assert await answer.body.read() == b"part"
        go_on.set()
        await asyncio.sleep(0)
        finish_answer.set()
        assert await whole(answer) == b"rest"
        assert (idle(upstream), in_use(upstream)) == (0, 0)


async def test_an_upstream_that_breaks_off_during_an_upload_is_broken() -> None:
    """The loss of the connection is the upstream's fault, not the body's."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        reset(writer)

    async with origin(script) as url, opened(url) as upstream:
        body = Chunks(*[bytes(2**16)] * 500, length=500 * 2**16)
        with pytest.raises(Broken):
            await sent(upstream, a_request("PUT"), body)
        assert not upstream.uploads
        assert (idle(upstream), in_use(upstream)) == (0, 0)


async def test_a_refused_body_can_be_sent_again() -> None:
    """After an early refusal the body is free to be read from its beginning for the next try."""
    requests = 0
    received = bytearray()
    data = bytes(range(256)) * 2**16

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal requests
        requests += 1
        await reader.readuntil(b"\r\n\r\n")
        if requests == 1:
            writer.write(b"HTTP/1.1 429 Slow Down\r\nContent-Length: 1\r\n\r\nx")
            await asyncio.Event().wait()
        else:
            received.extend(await reader.readexactly(len(data)))
            writer.write(OK)
            await reader.read()

    bodies = Bodies(BodySettings(memory=len(data)), Recorder(), lambda: 0)
    pieces = [data[start : start + 2**20] for start in range(0, len(data), 2**20)]  # more than the sockets take
    body = ReplayBody(Chunks(*pieces, length=len(data)), "a", bodies)
    await body.read_ahead(0)
    async with origin(script) as url, opened(url) as upstream:
        refused = await sent(upstream, POST, body)
        assert refused.status == 429
        await refused.body.discard()
        assert body.replayable
        assert await whole(await sent(upstream, POST, body)) == b"ok"
        assert received == data
    body.close()


async def test_only_a_standstill_times_out_an_upload() -> None:
    """The upstream's time counts from the last progress in writing; a body that stands still runs into it."""
    stuck = Chunks(b"ab", b"cd", length=4, wait=(1, asyncio.Event()))
    async with origin(answering(b"")) as url, opened(url, response_timeout=MILLISECOND) as upstream:
        with pytest.raises(TimedOut):
            await sent(upstream, POST, stuck)
        assert not upstream.uploads


async def test_a_large_body_goes_out_at_the_upstreams_pace() -> None:
    """A body of 64 MB: at most the transport's buffer and one chunk are in memory."""
    size = 2**16
    number = 1000
    highest = 0
    received = 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal received
        await reader.readuntil(b"\r\n\r\n")
        while received < size * number:
            received += len(await reader.read(2**20))
        writer.write(OK)
        await reader.read()

    class Watched(Chunks):
        async def __anext__(self) -> bytes:
            nonlocal highest
            assert upstream._connector is not None
            for protocol in upstream._connector._acquired:
                assert protocol.transport is not None
                highest = max(highest, protocol.transport.get_write_buffer_size())
            return await super().__anext__()

    async with origin(script) as url, opened(url) as upstream:
        assert await whole(await sent(upstream, POST, Watched(*[bytes(size)] * number, length=size * number))) == b"ok"
        assert received == size * number
        assert highest < 3 * size
