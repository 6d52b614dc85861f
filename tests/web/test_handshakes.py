"""Failed TLS handshakes: answers to callers and lines in the log, on both event loops."""

import asyncio
import logging
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import trustme
import uvloop

from tests.web.callers import World, get, read

LOOPS = pytest.mark.parametrize("loop", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])


def certified(authority: trustme.CA) -> ssl.SSLContext:
    """A server's side of TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    return context


@LOOPS
def test_plain_http_is_told_that_this_is_tls(loop: Callable[[Any], None], caplog: pytest.LogCaptureFixture) -> None:
    """With an answer that it can read; the log tells it once, with the address, however often it comes."""

    async def scenario() -> None:
        async with World(tls=certified(trustme.CA())).running() as world:
            for data in (get(), b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", get(method=b"POST")):
                reader, writer = await world.connect()
                writer.write(data)
                answer = await read(reader)
                assert answer.startswith(b"HTTP/1.1 400 ")
                assert b"Use https://, not http://." in answer
                writer.close()

    with caplog.at_level(logging.INFO):
        loop(scenario())
    lines = [record.getMessage() for record in caplog.records if record.name == "keyturn"]
    assert lines == ["plain HTTP on a port of TLS came from 127.0.0.1"]


@LOOPS
def test_another_failure_is_told_by_its_cause(loop: Callable[[Any], None], caplog: pytest.LogCaptureFixture) -> None:
    """A caller without a certificate, say, where each needs one; one with a certificate is served all the same."""
    authority = trustme.CA()
    server, client = certified(authority), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(server)
    authority.configure_trust(client)
    server.verify_mode = ssl.CERT_REQUIRED

    async def scenario() -> None:
        async with World(tls=server).running() as world:
            with suppress(ConnectionError, ssl.SSLError):
                reader, writer = await asyncio.open_connection(
                    "127.0.0.1", world.port, ssl=client, server_hostname="localhost"
                )
                assert await read(reader) == b""
                writer.close()
            authority.issue_cert("me").configure_cert(client)
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", world.port, ssl=client, server_hostname="localhost"
            )
            writer.write(get())
            assert (await read(reader)).startswith(b"HTTP/1.1 200 ")
            writer.close()

    with caplog.at_level(logging.INFO):
        loop(scenario())
    (line,) = [record.getMessage() for record in caplog.records if record.name == "keyturn"]
    assert line == "a TLS handshake that failed (peer did not return a certificate) came from 127.0.0.1"


async def test_other_errors_of_the_loop_are_left_to_it(caplog: pytest.LogCaptureFixture) -> None:
    """They are logged as ever."""
    async with World(tls=certified(trustme.CA())).running():
        asyncio.get_running_loop().call_exception_handler({"message": "something else"})
    assert "something else" in caplog.text
