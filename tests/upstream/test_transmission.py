import asyncio
import dataclasses
from collections.abc import Callable

import pytest
from keyturn.core.errors import Broken, TimedOut
from keyturn.core.http import Fields
from keyturn.core.model import MILLISECOND
from keyturn.tasks import finish, spawn
from keyturn.upstream import Upstream

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
    """Bytes that have arrived can be read before the rest has."""
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
    """A body of 64 MB: at most a bounded buffer is in memory, however slowly it is read."""
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


async def test_an_answer_comes_as_it_was_sent() -> None:
    """Status, reason and fields are the upstream's own bytes, in order and with repetitions, but for the hop-by-hop."""
    head = (
        b"HTTP/1.1 299 Sehr sch\xf6n\r\nX-b: 1 \xff\r\nSet-Cookie: a\r\nx-B: 2\r\nSet-Cookie: b\r\n"
        b"Connection: keep-alive, X-Gone\r\nX-Gone: 1\r\nContent-Length: 2\r\n\r\n"
    )
    async with origin(answering(head + b"ok")) as url, opened(url) as upstream:
        answer = await sent(upstream)
        assert (answer.status, answer.reason) == (299, b"Sehr sch\xf6n")
        assert answer.fields == (
            (b"X-b", b"1 \xff"),
            (b"Set-Cookie", b"a"),
            (b"x-B", b"2"),
            (b"Set-Cookie", b"b"),
            (b"Content-Length", b"2"),
        )
        assert await whole(answer) == b"ok"


async def test_the_head_is_written_before_anything_is_awaited() -> None:
    """A lease is used the moment that `send` is called; a request without a body is then written in full."""
    async with origin(answering(OK)) as url, opened(url) as upstream:
        wire = await upstream.connect()
        written: list[int] = []
        sending = wire.send(a_request(), KEY, (), body=None, on_written=lambda: written.append(1))
        assert not written
        sending.send(None)
        assert wire.started
        assert written == [1]
        sending.close()


@pytest.mark.parametrize(
    ("method", "head"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n"),
        ("HEAD", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
        ("GET", b'HTTP/1.1 304 Not Modified\r\nETag: "a"\r\nContent-Length: 500\r\n\r\n'),
        ("DELETE", b"HTTP/1.1 204 No Content\r\n\r\n"),
        ("GET", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
    ],
)
async def test_answers_without_a_body_return_their_connection_at_once(method: str, head: bytes) -> None:
    """HEAD, 204 and 304 have no body whatever they announce."""
    async with origin(answering(head, OK)) as url, opened(url) as upstream:
        answer = await sent(upstream, a_request(method))
        assert (idle(upstream), in_use(upstream)) == (1, 0)
        assert await answer.body.read() == b""
        assert await whole(await sent(upstream)) == b"ok"


async def test_interim_answers_are_skipped() -> None:
    """100, 102 and 103 are not the answer."""
    interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
    async with (
        origin(answering(interim + OK, interim)) as url,
        opened(url, response_timeout=500 * MILLISECOND) as upstream,
    ):
        assert await whole(await sent(upstream)) == b"ok"
        with pytest.raises(TimedOut):
            await sent(upstream)


async def test_interim_answers_go_on_before_the_answer() -> None:
    """But for 100, which nobody waits for; without what is about the connection, the key masked."""
    seen: list[tuple[int, Fields]] = []
    hints = b"HTTP/1.1 103 Early Hints\r\nConnection: X\r\nX: 1\r\nLink: <" + KEY.reveal().encode() + b">\r\n\r\n"
    request = dataclasses.replace(a_request(), interim=lambda status, fields: seen.append((status, fields)))
    async with origin(answering(b"HTTP/1.1 100 Continue\r\n\r\n" + hints + OK)) as url, opened(url) as upstream:
        assert await whole(await sent(upstream, request)) == b"ok"
    assert seen == [(103, ((b"Link", b"<***>"),))]


async def test_a_trailer_is_no_field_of_the_next_answer() -> None:
    """Though the parser keeps its last one (aiohttp 3.14)."""
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nA: 1\r\nX-Trailer: 1\r\n\r\n"
    async with origin(answering(chunked, OK, chunked, OK)) as url, opened(url) as upstream:
        for _ in range(2):
            answer = await sent(upstream)
            assert (answer.fields, await whole(answer)) == ((), b"ok")
            assert (await sent(upstream)).fields == ((b"Content-Length", b"2"),)
            assert idle(upstream) == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nok",
        b"HTTP/1.1 102 Processing\r\n\r\n" * 200,
        b"HTTP/1.1 200 O",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 099 What\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000 + b"\r\n\r\n",
    ],
)
async def test_what_is_no_answer_is_broken(answer: bytes) -> None:
    """A connection that closes before a whole head, or says what is not HTTP/1.1, has broken after bytes went out."""
    async with origin(answering(answer, close=True)) as url, opened(url) as upstream:
        with pytest.raises(Broken) as caught:
            await sent(upstream)
        assert caught.value.written
        assert "gzip" not in caught.value.message
        assert (idle(upstream), in_use(upstream)) == (0, 0)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (b"", "connection_terminated"),
        (b"HTTP/1.1 200 OK\r\nContent-Le", "connection_terminated"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "http_protocol_error"),
        (b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n", "http_protocol_error"),
        (b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\n\r\n", "http_protocol_error"),
        (b"HTTP/1.1 200 OK\r\nX@Y: 1\r\nContent-Length: 0\r\n\r\n", "http_protocol_error"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nhello", "http_response_transfer_coding"),
    ],
)
async def test_what_broke_is_told_by_its_registered_name(answer: bytes, kind: str) -> None:
    """As RFC 9209 (section 2.3) calls it: whoever looks for the fault need not look at the network for all."""
    async with origin(answering(answer, close=True)) as url, opened(url) as upstream:
        with pytest.raises(Broken) as caught:
            await sent(upstream)
        assert caught.value.proxy_error == kind


async def test_a_reset_is_broken() -> None:
    """A connection that is reset has broken."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        reset(writer)

    async with origin(script) as url, opened(url) as upstream:
        with pytest.raises(Broken):
            await sent(upstream)


async def test_long_fields_are_read() -> None:
    """An answer may have many fields, and long ones."""
    many = b"".join(b"X-%d: %b\r\n" % (number, b"x" * 200) for number in range(400))
    head = b"HTTP/1.1 200 OK\r\n" + many + b"X: " + b"y" * 60_000 + b"\r\nContent-Length: 2\r\n\r\nok"
    async with origin(answering(head)) as url, opened(url) as upstream:
        answer = await sent(upstream)
        assert len(answer.fields) == 402
        assert await whole(answer) == b"ok"


async def test_an_answer_must_begin_in_time() -> None:
    """Without a head in time the request has timed out, and its connection is closed."""
    async with origin(answering(b"")) as url, opened(url, response_timeout=MILLISECOND) as upstream:
        with pytest.raises(TimedOut):
            await sent(upstream)
        assert (idle(upstream), in_use(upstream)) == (0, 0)


async def test_a_kept_connection_that_dies_under_a_request_is_broken() -> None:
    """The request may have been processed, so it is not sent again from here: one lease, one transmission (law 10)."""
    requests = 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal requests
        for answer in (OK, b""):
            await reader.readuntil(b"\r\n\r\n")
            requests += 1
            writer.write(answer)

    async with origin(script) as url, opened(url) as upstream:
        assert await whole(await sent(upstream)) == b"ok"
        with pytest.raises(Broken) as caught:
            await sent(upstream)
        assert caught.value.stale, "most likely it had been closed for being idle"
        assert requests == 2


async def test_a_new_connection_can_be_insisted_on() -> None:
    """And that one breaks is no sign of its having been idle."""
    async with origin(answering(OK)) as url, opened(url) as upstream:
        assert await whole(await sent(upstream)) == b"ok"
        wire = await upstream.connect(fresh=True)
        assert (idle(upstream), in_use(upstream)) == (0, 1)
        answer = await wire.send(a_request(), KEY, (), body=None, on_written=lambda: None)
        assert await whole(answer) == b"ok"
    async with origin(answering(b"", close=True)) as url, opened(url) as upstream:
        with pytest.raises(Broken) as caught:
            await sent(upstream)
        assert not caught.value.stale


async def test_a_key_that_cannot_be_sent_costs_the_connection_only() -> None:
    """When the head cannot be written nothing is."""
    async with origin(answering(OK)) as url, opened(url) as upstream:
        wire = await upstream.connect()
        bad = a_request()
        with pytest.raises(ValueError, match="line break"):
            await wire.send(bad, type(KEY)("a\r\nb"), (), body=None, on_written=lambda: None)
        assert not wire.started
        assert in_use(upstream) == 0


async def until(condition: Callable[[], bool]) -> None:
    """Let the event loop turn until something is so."""
    for _ in range(100_000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never came to be so")


def writing_paused(upstream: Upstream) -> bool:
    """Whether an upload waits for its connection."""
    assert upstream._connector is not None
    return any(getattr(kept, "writing_paused", False) for kept in upstream._connector._acquired)


@pytest.mark.parametrize("body", [None, Chunks(b"x", b"y", length=2, wait=(1, asyncio.Event()))], ids=["none", "some"])
async def test_a_caller_that_leaves_while_waiting_leaves_nothing(body: Chunks | None) -> None:
    """Cancelling while the head is awaited closes the connection and ends the upload."""
    async with origin(answering(b"")) as url, opened(url) as upstream:
        tasks: set[asyncio.Task[object]] = set()
        sending = spawn(sent(upstream, a_request("POST"), body), name="sending", owner=tasks)
        await until(lambda: in_use(upstream) == 1 and (body is None or bool(upstream.uploads)))
        await asyncio.sleep(0)
        await finish(tasks)
        assert sending.cancelled()
        assert not upstream.uploads
        assert (idle(upstream), in_use(upstream)) == (0, 0)


async def test_a_caller_that_leaves_while_writing_leaves_nothing() -> None:
    """Cancelling while the upstream does not take the body any more ends the upload and closes the connection."""
    endless = Chunks(*[bytes(2**16)] * 1000, length=1000 * 2**16)

    never = asyncio.Event()

    async def deaf(_: asyncio.StreamReader, __: asyncio.StreamWriter) -> None:
        await never.wait()

    async with origin(deaf) as url, opened(url) as upstream:
        tasks: set[asyncio.Task[object]] = set()
        spawn(sent(upstream, a_request("PUT"), endless), name="sending", owner=tasks)
        await until(lambda: writing_paused(upstream))
        await finish(tasks)
        assert not upstream.uploads
        assert (idle(upstream), in_use(upstream)) == (0, 0)
    assert 0 < endless._position < 200


async def test_a_caller_that_leaves_while_reading_leaves_nothing() -> None:
    """Cancelling while the body is awaited closes the connection."""
    async with origin(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\npart")) as url, opened(url) as upstream:
        answer = await sent(upstream)
        assert await answer.body.read() == b"part"
        tasks: set[asyncio.Task[object]] = set()
        spawn(answer.body.read(), name="reading", owner=tasks)
        await asyncio.sleep(0)
        await finish(tasks)
        assert (idle(upstream), in_use(upstream)) == (0, 0)
