import asyncio
from contextlib import suppress
from typing import cast

import pytest
from aiohttp import SocketTimeoutError
from aiohttp.base_protocol import BaseProtocol
from aiohttp.client_proto import ResponseHandler
from aiohttp.http import HttpProcessingError
from aiohttp.streams import StreamReader
from keyturn.aiohttp_internals import ArrivedBody, UpstreamProtocol, buffered, check_aiohttp, check_private_names
from keyturn.core.errors import StartError

from tests.virtual import virtual

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Transport(asyncio.Transport):
    """A transport that goes nowhere."""

    def is_closing(self) -> bool:
        return False

    def abort(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""

    def pause_reading(self) -> None:
        """Nothing to do."""

    def resume_reading(self) -> None:
        """Nothing to do."""


def connected() -> UpstreamProtocol:
    """A protocol on an open connection."""
    protocol = UpstreamProtocol(asyncio.get_running_loop())
    protocol.connection_made(Transport())
    return protocol


async def exchange(protocol: UpstreamProtocol, answer: bytes = ANSWER, *, without_body: bool = False) -> bytes:
    """One answer's body, read to its end."""
    protocol.expect(without_body=without_body, timeout=60)
    protocol.data_received(answer)
    _, payload = await protocol.read()
    body = payload.read_nowait()
    protocol.rest()
    return body


async def test_a_connection_carries_answers_one_after_another() -> None:
    """Also when one without a body stands between: to HEAD, the length is that of nothing that follows."""
    protocol = connected()
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n"
    assert await exchange(protocol) == b"ok"
    assert await exchange(protocol) == b"ok"
    assert await exchange(protocol, head, without_body=True) == b""
    assert await exchange(protocol) == b"ok"
    assert not protocol.should_close


@pytest.mark.parametrize(
    ("answer", "at_once"),
    [
        (ANSWER, True),
        (b"HTTP/1.1 404 No\r\nserver: x\r\ncontent-length: 2\r\n\r\nok", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length:  2\r\n\r\nok", False),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", False),
        (b"HTTP/1.1 103 Hint\r\n\r\n" + ANSWER, False),
        (b"HTTP/1.1 103 Hint\r\nContent-Length: 40\r\n\r\n" + ANSWER, False),
    ],
)
async def test_an_answer_that_comes_at_once_needs_no_stream(answer: bytes, at_once: bool) -> None:
    """Only one that is a head with a plain length, and so many bytes; anything else is parsed as it comes."""
    protocol = connected()
    for _ in range(3):
        protocol.expect(without_body=False, timeout=60)
        protocol.data_received(answer)
        message, payload = await protocol.read()
        if message.code == 103:
            message, payload = await protocol.read()
        assert isinstance(payload, ArrivedBody) == at_once
        assert (payload.is_eof(), payload.read_nowait()) == (True, b"ok")
        protocol.rest()
        assert not protocol.should_close


@pytest.mark.parametrize("behind", [b"H", ANSWER])
async def test_bytes_behind_an_answer_that_came_at_once_end_its_connection(behind: bytes) -> None:
    """They are no answer to the next request."""
    protocol = connected()
    protocol.expect(without_body=False, timeout=60)
    protocol.data_received(ANSWER)
    protocol.data_received(behind)
    await protocol.read()
    protocol.rest()
    assert protocol.should_close


async def test_an_answer_that_comes_at_once_may_close_its_connection() -> None:
    """It says so in its head."""
    protocol = connected()
    await exchange(protocol, b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")
    assert protocol.should_close


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: 2\r\nContent-Length: 2\r\n",
        b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n",
        b"A b: c\r\nContent-Length: 2\r\n",
    ],
)
async def test_an_answer_that_comes_at_once_is_parsed_as_strictly(head: bytes) -> None:
    """Two lengths, or two framings, are an error."""
    with pytest.raises(HttpProcessingError):
        await exchange(connected(), b"HTTP/1.1 200 OK\r\n" + head + b"\r\nok")


async def test_a_paused_answer_is_read_to_its_end_and_so_is_the_next() -> None:
    """Thousands of chunks of a byte pause the parser behind the last that came; the rest is not held back for ever."""
    protocol = connected()
    head, chunk = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n"
    for _ in range(2):
        protocol.expect(without_body=False, timeout=60)
        protocol.data_received(head + 8193 * chunk)
        _, payload = await protocol.read()
        body = await payload.readany()
        protocol.data_received(3 * chunk + b"0\r\n\r\n")
        async with asyncio.timeout(5):
            assert body + await payload.read() == 8196 * b"a"
        protocol.rest()
        assert await exchange(protocol) == b"ok"
    assert not protocol.should_close


@pytest.mark.parametrize("unasked", [ANSWER, b"H", b"\r\n"])
async def test_what_comes_unasked_is_no_answer(unasked: bytes) -> None:
    """A connection that said something while it was idle is not fit for another answer, however little it said."""
    protocol = connected()
    await exchange(protocol)
    protocol.data_received(unasked)
    assert protocol.should_close


@virtual
async def test_time_counts_from_the_last_sign() -> None:
    """Reading times out when nothing has come for the whole time, and not a moment earlier."""
    protocol = connected()
    protocol.expect(without_body=False, timeout=10)
    protocol.start_timeout()
    await asyncio.sleep(9)
    protocol.data_received(ANSWER[:20])
    await asyncio.sleep(9.9)
    assert protocol.exception() is None
    await asyncio.sleep(0.2)
    assert isinstance(protocol.exception(), SocketTimeoutError)


@virtual
async def test_an_idle_connection_does_not_time_out() -> None:
    """Nor does the rest of an earlier answer's time count for the next."""
    protocol = connected()
    protocol.expect(without_body=False, timeout=10)
    protocol.start_timeout()
    protocol.data_received(ANSWER)
    _, payload = await protocol.read()
    payload.read_nowait()
    protocol.rest()
    await asyncio.sleep(8)
    protocol.expect(without_body=False, timeout=10)
    protocol.start_timeout()
    await asyncio.sleep(9)
    assert protocol.exception() is None
    protocol.connection_lost(None)
    with suppress(Exception):
        await protocol.read()


async def test_what_waits_in_a_body_is_weighed() -> None:
    """Its bytes, and what each piece costs beside them."""
    body = StreamReader(cast("BaseProtocol", None), 2**16, loop=asyncio.get_running_loop())
    assert buffered(body) == 0
    for _ in range(3):
        body.feed_data(b"x" * 100)
    assert buffered(body) == 3 * 228


@pytest.mark.parametrize("version", ["3.14.4", "3.15.0", "3.15", "4.0.0a1", "3.9.9"])
def test_only_the_known_aiohttp_is_used(version: str) -> None:
    """The assumptions about aiohttp's internals hold for the versions they were written for."""
    check_aiohttp("3.14.5")
    check_aiohttp("3.14.12")
    check_aiohttp()
    with pytest.raises(StartError, match="install aiohttp"):
        check_aiohttp(version)


def test_the_parsers_are_those_in_c() -> None:
    """The parsers in Python are slower and more lenient."""
    with pytest.raises(StartError, match="C extensions"):
        check_aiohttp(parsers=(int,))


async def test_a_private_name_that_is_missing_stops_the_start() -> None:
    """The message names it, aiohttp's version and what to install."""
    await check_private_names()
    with pytest.raises(StartError, match=r"^aiohttp 3\.\d+\.\d+ has no ResponseHandler\._gone, .*; install aiohttp>="):
        await check_private_names({StreamReader: ("_size",), ResponseHandler: ("_parser", "_gone")})
