import asyncio
from contextlib import suppress
from typing import cast

import pytest
from keyturn.core.errors import Broken
from keyturn.core.http import Answer, Fields, Request
from keyturn.web.overload import IterationBudget

from tests.web.callers import Gateway, Parts, World, an_answer, get, open_connections, split


def giving(answer: Answer) -> Gateway:
    """A gateway with this answer."""

    async def reply(_: Request) -> Answer:
        return answer

    return Gateway(reply)


KEPT = [(b"Connection", b"keep-alive"), (b"Keep-Alive", b"timeout=75")]
"""Field of an answer whose connection is kept: how long it may be idle."""


async def test_an_answer_goes_out_as_it_came() -> None:
    """Status, reason and fields are the upstream's bytes, in order, with repetitions; nothing but framing is added."""
    fields: Fields = (
        (b"x-b", b"1 \xff"),
        (b"Set-Cookie", b"a"),
        (b"Date", b"Tue, 22 Jun 2021 19:51:24 GMT"),
        (b"X-B", b"2"),
        (b"Set-Cookie", b"b"),
        (b"Content-Length", b"4"),
        (b"ETag", b'W/"1"'),
    )
    answer = Answer(299, b"Sehr sch\xf6n", fields, Parts(b"he", b"yo"))
    async with World(gateway=giving(answer)).running() as world:
        reader, writer = await world.connect()
        writer.write(get(close=False))
        raw = await reader.readuntil(b"heyo")
        assert split(raw) == (b"HTTP/1.1 299 Sehr sch\xf6n", [*fields, *KEPT], b"heyo")
        log = await world.log()
        assert (log.outcome, log.sent) == ("forwarded", 4)
        writer.close()


async def test_a_date_is_added_where_there_is_none() -> None:
    """An answer has a date (RFC 9110, section 6.6.1)."""
    async with World(gateway=giving(an_answer(b"ok"))).running() as world:
        assert b"\r\nDate: " in await world.ask(get())


async def test_framing_is_that_of_this_connection() -> None:
    """The upstream's hop-by-hop fields stay behind, whatever their spelling."""
    fields = ((b"TRANSFER-ENCODING", b"chunked"), (b"connection", b"close"), (b"Keep-Alive", b"timeout=5"))
    answer = Answer(200, b"OK", fields, Parts(b"he", b"yo"))
    async with World(gateway=giving(answer)).running() as world:
        reader, writer = await world.connect()
        writer.write(get(close=False))
        raw = await reader.readuntil(b"0\r\n\r\n")
        head, _, body = raw.partition(b"\r\n\r\n")
        assert head.lower().count(b"transfer-encoding: chunked") == 1
        assert [field for field in split(raw)[1] if field[0] in (b"connection", b"Connection", b"Keep-Alive")] == KEPT
        assert body == b"2\r\nhe\r\n2\r\nyo\r\n0\r\n\r\n"
        writer.close()


@pytest.mark.parametrize(
    ("method", "status", "fields"),
    [
        (b"HEAD", 200, ((b"Content-Length", b"500"), (b"ETag", b'"a"'))),
        (b"HEAD", 200, ()),
        (b"GET", 304, ((b"Content-Length", b"500"), (b"ETag", b'"a"'))),
        (b"DELETE", 204, ()),
    ],
)
async def test_answers_without_a_body_keep_their_fields(method: bytes, status: int, fields: Fields) -> None:
    """HEAD, 204 and 304 say how long the body would be, and have none; the connection goes on."""
    async with World(gateway=giving(an_answer(b"not this", status=status, fields=fields))).running() as world:
        reader, writer = await world.connect()
        for _ in range(2):
            writer.write(get(method=method, close=False))
            status_line, found, _ = split(await reader.readuntil(b"\r\n\r\n"))
            assert status_line == b"HTTP/1.1 %d Fine" % status
            assert [field for field in found if field[0] != b"Date"] == [*fields, *KEPT]
        writer.close()


@pytest.mark.parametrize(
    ("keep", "fields", "expected"),
    [
        (b"", ((b"Content-Length", b"4"),), b"close"),
        (b"Connection: keep-alive\r\n", ((b"Content-Length", b"4"),), b"keep-alive"),
        (b"Connection: keep-alive\r\n", (), b"close"),
    ],
)
async def test_callers_of_http_1_0_are_understood(keep: bytes, fields: Fields, expected: bytes) -> None:
    """They get no chunks: an answer without a length ends with its connection, and keeping one is said."""
    async with World(gateway=giving(an_answer(b"heyo", fields=fields))).running() as world:
        reader, writer = await world.connect()
        writer.write(b"GET / HTTP/1.0\r\n" + keep + b"\r\n")
        raw = await reader.readuntil(b"heyo")
        assert dict(split(raw)[1])[b"Connection"] == expected
        assert b"chunked" not in raw
        if expected == b"close":
            assert await reader.read() == b""
        writer.close()


async def test_the_head_does_not_wait_for_the_body() -> None:
    """When the body is not there yet, its head goes out alone; what arrives is passed on at once."""
    more, end = asyncio.Event(), asyncio.Event()
    answer = an_answer(more, b"he", end, b"yo")
    async with World(gateway=giving(answer)).running() as world:
        reader, writer = await world.connect()
        writer.write(get())
        await reader.readuntil(b"\r\n\r\n")
        more.set()
        assert await reader.readexactly(2) == b"he"
        end.set()
        assert await reader.read() == b"yo"
        writer.close()


async def test_a_body_that_is_there_leaves_with_its_head() -> None:
    """One write for a small answer: one packet."""
    written: list[bytes] = []
    answer = an_answer(b"heyo")

    async def reply(_: Request) -> Answer:
        for connection in open_connections(world):
            assert connection.transport is not None
            connection.transport = Watched(connection.transport, written)  # type: ignore[assignment]  # stands in for it
        return answer

    async with World(gateway=Gateway(reply)).running() as world:
        await world.ask(get())
        assert len(written) == 1
        assert written[0].endswith(b"\r\n\r\nheyo")


class Watched:
    """A transport whose writes are noted."""

    def __init__(self, transport: asyncio.Transport, written: list[bytes]) -> None:
        self._transport = transport
        self._written = written

    def write(self, data: bytes) -> None:
        """Note it, and write it."""
        self._written.append(data)
        self._transport.write(data)

    def __getattr__(self, name: str) -> object:
        return getattr(self._transport, name)


@pytest.mark.parametrize("fields", [None, ()], ids=["counted", "chunked"])
async def test_an_answer_that_breaks_off_does_not_end_properly(fields: Fields | None) -> None:
    """A truncated answer stays visibly truncated: fewer bytes than announced, or chunks without an end."""
    broken = asyncio.Event()
    answer = an_answer(b"he", broken, Broken("Lost."), b"yo", fields=fields)
    async with World(gateway=giving(answer)).running() as world:
        reader, writer = await world.connect()
        writer.write(get(close=False))
        got = await reader.readuntil(b"he")
        broken.set()
        with suppress(ConnectionResetError):
            got += await reader.read()
        assert not got.endswith((b"yo", b"0\r\n\r\n"))
        assert b"Content-Length: 4" in got or b"chunked" in got
        log = await world.log()
        assert (log.outcome, log.reason, log.code) == ("failed", "upstream", 200)
        assert log.problem == "Lost."
        writer.close()


async def test_an_answer_that_breaks_before_its_first_byte_becomes_a_refusal() -> None:
    """As long as nothing went out the caller can be told what happened."""
    async with World(gateway=giving(an_answer(Broken("Lost.")))).running() as world:
        answer = await world.ask(get())
        assert answer.startswith(b"HTTP/1.1 502 Bad Gateway\r\n")
        assert answer.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize("announced", [b"3", b"5"])
async def test_an_answer_of_another_length_than_announced_ends_the_connection(announced: bytes) -> None:
    """Whatever follows would be read as part of another answer."""
    more = asyncio.Event()
    answer = an_answer(b"he", more, b"yo", fields=((b"Content-Length", announced),))
    async with World(gateway=giving(answer)).running() as world:
        reader, writer = await world.connect()
        writer.write(get(close=False))
        await reader.readuntil(b"he")
        more.set()
        try:
            rest = await reader.read()
        except ConnectionResetError:
            rest = b""
        assert len(rest) <= int(announced) - 2
        assert (await world.log()).outcome == "failed"
        writer.close()


async def test_a_caller_that_leaves_during_an_answer_is_gone() -> None:
    """The upstream's answer is aborted, wherever it stands."""
    answer = an_answer(b"he", asyncio.Event(), b"yo")
    async with World(gateway=giving(answer)).running() as world:
        reader, writer = await world.connect()
        writer.write(get())
        await reader.readuntil(b"he")
        writer.close()
        assert (await world.log()).outcome == "gone"
        assert isinstance(answer.body, Parts)
        assert answer.body.aborted


async def test_a_caller_that_leaves_with_all_of_an_answer_has_got_it() -> None:
    """Whether or not the upstream's end of the body has been seen by then."""
    async with World(gateway=giving(an_answer(b"he", b"yo", asyncio.Event()))).running() as world:
        reader, writer = await world.connect()
        writer.write(get())
        await reader.readuntil(b"heyo")
        writer.close()
        log = await world.log()
        assert (log.outcome, log.sent) == ("forwarded", 4)


async def test_a_large_answer_goes_out_at_the_callers_pace() -> None:
    """A slow caller of 64 MB: only as much as the transport's buffer holds is read ahead from the upstream."""
    size, number = 2**16, 1000
    parts = [bytes(size)] * number
    answer = an_answer(*parts)
    async with World(gateway=giving(answer)).running() as world:
        reader, writer = await world.connect()
        transport = cast("asyncio.Transport", writer.transport)
        transport.pause_reading()
        writer.write(get())
        assert isinstance(answer.body, Parts)
        for _ in range(2000):
            await asyncio.sleep(0)
        assert number // 2 < len(answer.body.parts) < number
        transport.resume_reading()
        raw = await reader.readuntil(b"\r\n\r\n")
        received = 0
        while part := await reader.read(2**20):
            received += len(part)
        assert received == size * number
        assert raw.startswith(b"HTTP/1.1 200 ")
        writer.close()


@pytest.mark.parametrize(("version", "heads"), [(b"1.1", 2), (b"1.0", 1)])
async def test_an_interim_answer_goes_out_before_the_answer(version: bytes, heads: int) -> None:
    """A head that frames nothing and speaks for no key, to callers that know of such; an error behind it is told."""

    async def reply(request: Request) -> Answer:
        assert request.interim is not None
        of_one_key = ((b"X-RateLimit-Remaining", b"7"), (b"ratelimit", b'"a";r=1'), (b"Keyturn-Key", b"x"))
        request.interim(103, ((b"Link", b"</a>"), (b"Content-Length", b"5"), *of_one_key))
        raise Broken("Lost.")

    async with World(gateway=Gateway(reply)).running() as world:
        raw = await world.ask(get().replace(b"HTTP/1.1", b"HTTP/" + version))
        assert raw.count(b"HTTP/1.1 ") == heads
        if heads > 1:
            assert raw.startswith(b"HTTP/1.1 103 \r\nLink: </a>\r\nVia: 1.1 keyturn\r\n\r\nHTTP/1.1 502 ")
        else:
            assert raw.startswith(b"HTTP/1.1 502 ")


async def test_an_upgrade_is_not_taken_up() -> None:
    """An `Upgrade` is ignored (RFC 9110, section 7.8), and the connection ends behind the answer."""
    async with World().running() as world:
        answer = await world.ask(get(b"/", b"Upgrade: h2c", b"Connection: upgrade", close=False))
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b"\r\nConnection: close\r\n" in answer
        assert world.gateway.requests[0].fields == ()


class NoTurns(IterationBudget):
    """Large answers to others have all of them."""

    async def take(self, number: int, party: str = "") -> None:
        """Wait for ever."""
        await asyncio.Event().wait()


async def test_an_answer_that_is_complete_waits_for_no_turn() -> None:
    """The next request on its connection is not held up by answers to others."""

    async def reply(_: Request) -> Answer:
        return an_answer(b"ok")

    async with World(gateway=Gateway(reply)).running() as world:
        assert world.listener._connections is not None
        world.listener._connections.relaying = NoTurns(asyncio.get_running_loop(), 1)
        reader, writer = await world.connect()
        for _ in range(2):
            writer.write(get(close=False))
            await reader.readuntil(b"\r\n\r\nok")
        writer.close()
