import asyncio
import json
from dataclasses import replace

import pytest
from keyturn.core.errors import BadRequest
from keyturn.core.http import Answer, Request
from keyturn.web.incoming import postman_hosts
from keyturn.web.overload import Bounds

from tests.web.callers import Gateway, World, an_answer, get, okay, split


async def consume(request: Request) -> Answer:
    """Read the body, and give it back."""
    assert request.body is not None
    return an_answer(b"".join([chunk async for chunk in request.body.chunks()]))


def error_of(answer: bytes) -> str:
    """`error.name` of an answer."""
    return str(json.loads(split(answer)[2])["error"]["name"])


@pytest.mark.parametrize(
    "raw",
    [
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\nx",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\nx",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        b"GET / HTTP/1.1\nHost: a\n\n",
        b"GET / HTTP/2.0\r\nHost: a\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET a HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET ftp://api.getpostman.com/ HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"nonsense\r\n\r\n",
    ],
)
async def test_what_can_be_read_in_two_ways_is_refused(raw: bytes) -> None:
    """A message whose end or whose target is open to doubt gets 400 in our shape and the end of its connection."""
    async with World().running() as world:
        answer = await world.ask(raw)
        assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
        assert b"\r\nConnection: close" in answer
        assert error_of(answer) == "badRequest"
        assert not world.gateway.requests


@pytest.mark.parametrize(
    ("url", "target"),
    [
        (b"http://api.getpostman.com/collections/1?apikey=a%2Fb", b"/collections/1?apikey=a%2Fb"),
        (b"http://API.getpostman.com:80/a//b", b"/a//b"),
        (b"https://api.postman.com:443/x", b"/x"),
        (b"HTTP://api.postman.com", b"/"),
        (b"http://api.postman.com?x=/", b"/?x=/"),
    ],
)
async def test_absolute_targets_go_on_as_paths(url: bytes, target: bytes) -> None:
    """A client that takes this proxy for its `http_proxy` is understood when it asks for the Postman API."""
    async with World().running() as world:
        await world.ask(get(url))
        assert world.gateway.requests[0].target == target


async def test_absolute_targets_may_name_the_listener() -> None:
    """The address at which a request arrives is a name of this proxy."""
    async with World().running() as world:
        for host in (b"127.0.0.1", b"localhost"):
            await world.ask(get(b"http://%b:%d/x" % (host, world.port)))
        assert [request.target for request in world.gateway.requests] == [b"/x", b"/x"]


@pytest.mark.parametrize(
    "url",
    [b"http://example.com/x", b"http://api.getpostman.com:8080/x", b"http://api.getpostman.com.evil.example/x"],
)
async def test_other_targets_are_misdirected(url: bytes) -> None:
    """This proxy does not carry requests for other hosts."""
    async with World().running() as world:
        answer = await world.ask(get(url))
        assert answer.startswith(b"HTTP/1.1 421 Misdirected Request\r\n")
        assert error_of(answer) == "misdirectedRequest"
        assert not world.gateway.requests


async def test_each_postman_api_is_asked_through_its_own_upstream() -> None:
    """The European one is not that of the USA, nor the other way round, whether the target names it or `Host`."""
    for upstream, ours, other in (
        ("api.postman.com", b"api.getpostman.com", b"api.eu.postman.com"),
        ("127.0.0.1:8443", b"api.postman.com", b"api.eu.postman.com"),
        ("api.eu.postman.com", b"api.EU.postman.com", b"api.getpostman.com"),
    ):
        async with World(gateway=Gateway(okay)).running() as world:
            world.forward.settings = replace(world.forward.settings, hosts=postman_hosts(upstream))
            for host, status in ((ours, 200), (other, 421)):
                for raw in (
                    b"GET http://%b/x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" % host,
                    b"GET https://%b:443/x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" % host,
                    b"GET /x HTTP/1.1\r\nHost: %b:443\r\nConnection: close\r\n\r\n" % host,
                ):
                    answer = await world.ask(raw)
                    assert answer.startswith(b"HTTP/1.1 %d " % status), raw
                    assert status == 200 or b"`upstream.url`" in answer


async def test_a_password_in_the_target_is_not_shown() -> None:
    """The refusal of a target names its host only."""
    async with World().running() as world:
        answer = await world.ask(get(b"http://user:secret@example.com/x"))
        assert answer.startswith(b"HTTP/1.1 421 ")
        assert b"secret" not in answer


async def test_a_body_is_passed_on() -> None:
    """A body keeps its length, or has none when it came in chunks."""
    async with World(gateway=Gateway(consume)).running() as world:
        counted = await world.ask(get(b"/", b"Content-Length: 5", method=b"PUT", body=b"hello"))
        chunked = await world.ask(
            get(b"/", b"Transfer-Encoding: chunked", method=b"PUT", body=b"2\r\nhe\r\n3\r\nllo\r\n0\r\nX: y\r\n\r\n")
        )
        assert split(counted)[2] == split(chunked)[2] == b"hello"
        first, second = world.gateway.requests
        assert first.body is not None
        assert second.body is not None
        assert (first.body.length, second.body.length) == (5, None)
        assert first.fields == ((b"Content-Length", b"5"),)
        assert second.fields == ()
        assert (await world.log()).received == 5


async def test_an_empty_body_is_none() -> None:
    """`Content-Length: 0` announces no body."""
    async with World().running() as world:
        await world.ask(get(b"/", b"Content-Length: 0", method=b"POST"))
        assert world.gateway.requests[0].body is None
        assert world.gateway.requests[0].fields == ((b"Content-Length", b"0"),)


async def test_an_announced_body_that_is_too_large_never_waits() -> None:
    """413 comes before any queueing and before any sign to go on, from the length alone."""
    async with World(gateway=Gateway(consume)).running() as world:
        reader, writer = await world.connect()
        writer.write(get(b"/", b"Content-Length: 1001", b"Expect: 100-continue", method=b"PUT", close=False))
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 413 ")
        assert b"\r\nConnection: close" in head
        assert (
            error_of(head + await reader.readexactly(int(dict(split(head)[1])[b"Content-Length"]))) == "requestTooLarge"
        )
        writer.close()
        assert not world.gateway.requests
        await world.ask(get(b"/", b"Content-Length: 1000", method=b"PUT", body=bytes(1000)))
        assert len(world.gateway.requests) == 1


async def test_a_body_that_outgrows_the_limit_is_stopped() -> None:
    """Chunks are counted as they come."""
    async with World(gateway=Gateway(consume)).running() as world:
        chunks = b"".join(b"64\r\n" + bytes(100) + b"\r\n" for _ in range(11)) + b"0\r\n\r\n"
        answer = await world.ask(get(b"/", b"Transfer-Encoding: chunked", method=b"PUT", body=chunks))
        assert answer.startswith(b"HTTP/1.1 413 ")
        log = await world.log()
        assert (log.outcome, log.reason) == ("refused", "too_large")


async def test_a_body_that_stops_being_http_is_refused() -> None:
    """A malformed chunk in the middle of a body is answered, in one piece with its head or not."""
    async with World(gateway=Gateway(consume)).running() as world:
        head = get(b"/", b"Transfer-Encoding: chunked", method=b"PUT", close=False, body=b"2\r\nhe\r\n")
        assert (await world.ask(head + b"ZZ\r\n")).startswith(b"HTTP/1.1 400 ")
        reader, writer = await world.connect()
        writer.write(head)
        while not world.gateway.requests:  # real sockets: a few turns of the loop
            await asyncio.sleep(0)
        writer.write(b"ZZ\r\n")
        answer = await reader.read()
        writer.close()
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert answer.count(b"HTTP/1.1 ") == 1
        assert error_of(answer) == "badRequest"


@pytest.mark.parametrize(
    ("body", "status"), [(b"no chunk\r\n", 400), (b"0\r\nX: " + b"x" * 9_000, 431)], ids=["chunk", "trailer"]
)
async def test_a_body_that_is_known_not_to_be_http_does_not_wait(body: bytes, status: int) -> None:
    """Nor does it cost a token, and an upstream that answers before it has read everything does not see it."""
    async with World(bounds=Bounds(head=8192)).running() as world:
        answer = await world.ask(get(b"/", b"Transfer-Encoding: chunked", method=b"POST", body=body))
        assert answer.startswith(b"HTTP/1.1 %d " % status)
        assert not world.gateway.requests


async def test_a_caller_that_breaks_off_its_body_is_gone() -> None:
    """A body that ends with its connection is no body."""
    seen: list[bytes] = []

    async def reply(request: Request) -> Answer:
        assert request.body is not None
        async for chunk in request.body.chunks():
            seen.append(chunk)  # noqa: PERF401  # seen while the body is still coming in
        raise AssertionError("the body was taken for whole")

    async with World(gateway=Gateway(reply)).running() as world:
        _, writer = await world.connect()
        writer.write(get(b"/", b"Content-Length: 5", method=b"PUT", body=b"he"))
        while not seen:  # real sockets: a few turns of the loop
            await asyncio.sleep(0)
        writer.close()
        assert (await world.log()).outcome == "gone"


async def test_the_sign_to_go_on_comes_when_the_body_is_wanted() -> None:
    """`100 Continue` is sent when the body is first read, that is, when the lease is there."""
    turn = asyncio.Event()

    async def reply(request: Request) -> Answer:
        await turn.wait()
        return await consume(request)

    async with World(gateway=Gateway(reply)).running() as world:
        reader, writer = await world.connect()
        writer.write(get(b"/", b"Expect: 100-Continue", b"Content-Length: 5", method=b"PUT"))
        while not world.gateway.requests:  # real sockets: a few turns of the loop
            await asyncio.sleep(0)
        assert not reader._buffer  # type: ignore[attr-defined]  # nothing has been sent yet
        turn.set()
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"hello")
        assert split(await reader.read())[2] == b"hello"
        assert b"Expect" not in dict(world.gateway.requests[0].fields)
        writer.close()


@pytest.mark.parametrize("expect", [b"Expect: 100-continue", b"Expect: miracles"])
async def test_no_sign_is_sent_to_who_does_not_wait(expect: bytes) -> None:
    """A body that is on its way already needs no sign, and other expectations are ignored."""
    async with World(gateway=Gateway(consume)).running() as world:
        answer = await world.ask(get(b"/", expect, b"Content-Length: 5", method=b"PUT", body=b"hello"))
        assert answer.startswith(b"HTTP/1.1 200 ")


async def test_an_answer_without_the_body_ends_the_connection() -> None:
    """A caller that still waits for its sign must not send its body where the next request is expected."""
    async with World(gateway=Gateway(replying_at_once)).running() as world:
        reader, writer = await world.connect()
        writer.write(get(b"/", b"Expect: 100-continue", b"Content-Length: 5", method=b"PUT", close=False))
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"\r\nConnection: close\r\n" in head
        writer.close()


async def replying_at_once(_: Request) -> Answer:
    """Answer without reading the body."""
    return an_answer(b"ok")


async def test_a_malformed_body_is_the_callers_fault() -> None:
    """The reader of a body learns of it as a refusal."""
    raised: list[BaseException] = []

    async def reply(request: Request) -> Answer:
        try:
            return await consume(request)
        except BaseException as error:
            raised.append(error)
            raise

    async with World(gateway=Gateway(reply)).running() as world:
        reader, writer = await world.connect()
        writer.write(get(b"/", b"Transfer-Encoding: chunked", method=b"PUT", body=b"2\r\nhe\r\n"))
        while not world.gateway.requests:  # real sockets: a few turns of the loop
            await asyncio.sleep(0)
        writer.write(b"2\r\nhello\r\n")
        await reader.read()
        writer.close()
        assert isinstance(raised[0], BadRequest)
