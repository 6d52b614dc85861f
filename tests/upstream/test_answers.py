import asyncio

import pytest
from keyturn.core.errors import Broken
from keyturn.core.model import MILLISECOND

from tests.upstream.origin import (
    OK,
    Script,
    answering,
    idle,
    in_use,
    opened,
    origin,
    reset,
    sent,
    whole,
)

LENGTH_9 = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
DEADLINE = 20.0
"""Seconds, less than the upstream may stand still: only a failure waits for them."""
UNTIL_CLOSE = b"HTTP/1.1 200 OK\r\n\r\n"


def in_parts(*parts: bytes, then: str = "wait") -> tuple[Script, list[asyncio.Event]]:
    """Answer in parts, each behind its event but the first; then wait, close or reset."""
    events = [asyncio.Event() for _ in parts]

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        events[0].set()
        for part, event in zip(parts, events, strict=True):
            await event.wait()
            writer.write(part)
        if then == "reset":
            reset(writer)
        elif then == "wait":
            await reader.read()

    return script, events


async def test_chunks_come_as_they_arrive() -> None:
    """What has arrived is there to be read before the rest has."""
    script, events = in_parts(LENGTH_9 + b"abc", b"def", b"ghi")
    async with origin(script) as url, opened(url) as upstream:
        answer = await sent(upstream)
        for event, part in zip(events, (b"abc", b"def", b"ghi"), strict=True):
            event.set()
            assert await answer.body.read() == part
        assert (idle(upstream), in_use(upstream)) == (1, 0)
        assert await answer.body.read() == b""
        assert await answer.body.read() == b""


@pytest.mark.parametrize(
    ("head", "rest"),
    [
        (LENGTH_9, b"abcdefghi"),
        (CHUNKED, b"4\r\nabcd\r\n5\r\nefghi\r\n0\r\n\r\n"),
        (CHUNKED, b"4;x=y\r\nabcd\r\n5\r\nefghi\r\n0\r\nX-Trailer: dropped\r\n\r\n"),
    ],
)
async def test_connections_are_kept_behind_a_whole_answer(head: bytes, rest: bytes) -> None:
    """An answer whose end is known returns its connection when it is read; whether it came at once or not."""
    for parts in [(head + rest,), (head, rest)]:
        script, events = in_parts(*parts)
        async with origin(script) as url, opened(url) as upstream:
            answer = await sent(upstream)
            events[-1].set()
            assert await whole(answer) == b"abcdefghi"
            assert not answer.header(b"x-trailer")
            assert (idle(upstream), in_use(upstream)) == (1, 0)


async def test_answers_may_end_with_the_connection() -> None:
    """Without a length and without chunks the body ends where the connection does."""
    for parts in [(UNTIL_CLOSE, b"abc", b"def"), (UNTIL_CLOSE + b"abcdef",)]:
        script, events = in_parts(*parts, then="close")
        async with origin(script) as url, opened(url) as upstream:
            answer = await sent(upstream)
            for event in events:
                event.set()
            assert await whole(answer) == b"abcdef"
            assert (idle(upstream), in_use(upstream)) == (0, 0)


async def test_connections_that_the_upstream_closes_are_not_kept() -> None:
    """`Connection: close` is the last answer on a connection."""
    answer = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"
    async with origin(answering(answer)) as url, opened(url) as upstream:
        assert await whole(await sent(upstream)) == b"ok"
        assert (idle(upstream), in_use(upstream)) == (0, 0)


@pytest.mark.parametrize(
    ("parts", "then"),
    [
        ((LENGTH_9, b"abc"), "close"),
        ((LENGTH_9, b"abc"), "reset"),
        ((CHUNKED, b"3\r\nabc\r\n"), "close"),
        ((CHUNKED, b"3\r\nabc\r\n0\r\n"), "close"),
        ((CHUNKED, b"3\r\nab"), "close"),
        ((CHUNKED, b"3\r\nabc\r\nZZ\r\n"), "wait"),
        ((UNTIL_CLOSE, b"abc"), "reset"),
    ],
)
async def test_a_truncated_body_is_broken(parts: tuple[bytes, ...], then: str) -> None:
    """A body that ends before its announced end, or stops being HTTP, never ends as if it were whole."""
    script, events = in_parts(*parts, then=then)
    async with origin(script) as url, opened(url) as upstream:
        answer = await sent(upstream)
        for event in events:
            event.set()
        with pytest.raises(Broken):
            await whole(answer)
        assert (idle(upstream), in_use(upstream)) == (0, 0)
        with pytest.raises(Broken):
            await whole(answer)


@pytest.mark.parametrize("rest", [b"\r\nZZ\r\n", b"\r\n-1\r\n", b"\r\n\r\n"])
async def test_an_error_behind_the_end_of_a_chunk_is_not_missed(rest: bytes) -> None:
    """Also when both come with the same bytes, and a reader waits for them."""
    script, events = in_parts(CHUNKED + b"3\r\nabc", rest)
    async with origin(script) as url, opened(url) as upstream:
        answer = await sent(upstream)
        assert await answer.body.read() == b"abc"
        asyncio.get_running_loop().call_soon(events[1].set)
        async with asyncio.timeout(DEADLINE):
            with pytest.raises(Broken):
                await answer.body.read()
        assert (idle(upstream), in_use(upstream)) == (0, 0)


async def test_a_body_that_stands_still_is_broken() -> None:
    """A silent connection does not hold its reader for ever."""
    script, _ = in_parts(LENGTH_9 + b"abc", b"never")
    async with origin(script) as url, opened(url, response_timeout=500 * MILLISECOND) as upstream:
        answer = await sent(upstream)
        assert await answer.body.read() == b"abc"
        with pytest.raises(Broken):
            await answer.body.read()


async def test_a_short_rest_is_read_to_keep_the_connection() -> None:
    """Discarding an answer keeps its connection when little is left."""
    script, events = in_parts(LENGTH_9 + b"abc", b"defghi")
    async with origin(script) as url, opened(url) as upstream:
        answer = await sent(upstream)
        events[1].set()
        await answer.body.discard()
        assert (idle(upstream), in_use(upstream)) == (1, 0)
        await answer.body.discard()
        answer.body.abort()
        assert idle(upstream) == 1


async def test_a_long_rest_is_not_worth_a_connection() -> None:
    """Discarding an answer closes its connection when much is left."""
    script, _ = in_parts(b"HTTP/1.1 200 OK\r\nContent-Length: 10000000\r\n\r\n" + bytes(10_000_000))
    async with origin(script) as url, opened(url) as upstream:
        answer = await sent(upstream)
        await answer.body.discard()
        assert (idle(upstream), in_use(upstream)) == (0, 0)


async def test_a_truncated_rest_does_not_matter() -> None:
    """Discarding an answer that breaks off is no failure."""
    script, events = in_parts(LENGTH_9, b"abc", then="close")
    async with origin(script) as url, opened(url) as upstream:
        answer = await sent(upstream)
        events[1].set()
        await answer.body.discard()
        assert (idle(upstream), in_use(upstream)) == (0, 0)


async def test_aborting_closes_the_connection_at_once() -> None:
    """An answer that nobody wants any more costs its connection, once."""
    script, _ = in_parts(LENGTH_9 + b"abc", b"never")
    async with origin(script) as url, opened(url) as upstream:
        answer = await sent(upstream)
        answer.body.abort()
        answer.body.abort()
        assert (idle(upstream), in_use(upstream)) == (0, 0)
        with pytest.raises(Broken):
            await answer.body.read()


async def test_aborting_a_whole_answer_spares_its_connection() -> None:
    """A connection that has gone back belongs to somebody else."""
    async with origin(answering(OK)) as url, opened(url) as upstream:
        answer = await sent(upstream)
        assert idle(upstream) == 1
        answer.body.abort()
        await answer.body.discard()
        assert idle(upstream) == 1
        assert await whole(answer) == b"ok"


async def test_a_large_body_comes_at_the_readers_pace() -> None:
    """Of 64 MB never more than a bounded buffer waits in memory, however slowly it is read."""
    size = 64 * 2**20
    script, _ = in_parts(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + bytes(size))
    async with origin(script) as url, opened(url) as upstream:
        answer = await sent(upstream)
        received = 0
        while part := await answer.body.read():
            received += len(part)
            assert len(part) < 2**20
            for _ in range(3):
                await asyncio.sleep(0)
        assert received == size
        assert idle(upstream) == 1
