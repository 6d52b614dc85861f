import asyncio
import logging
import ssl
from ipaddress import ip_network

import pytest
import trustme
from keyturn.config.units import TcpListener
from keyturn.core.errors import Unauthenticated
from keyturn.core.events import ConnectionEnded
from keyturn.core.forwarded import Proxies
from keyturn.web.bounds import Bounds

from tests.process import until
from tests.web.callers import Access, Gateway, World, ended, get, okay, read, split, until_closed

HEADER = b"PROXY TCP4 192.0.2.7 127.0.0.1 1000 80\r\n"
BLOCK = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c\xc0\x00\x02\x07\x7f\x00\x00\x01\x03\xe8\x00\x50"
LOOPBACK = Proxies((ip_network("127.0.0.1"),))


def behind_a_balancer(**settings: object) -> World:
    """A listener that expects the PROXY protocol from this machine."""
    bind = (TcpListener("127.0.0.1", 0, proxy_protocol=True),)
    return World(**{"bind": bind, "proxies": LOOPBACK, "gateway": Gateway(okay), **settings})  # type: ignore[arg-type]  # as the caller names them


def refusing() -> Access:
    """Nobody is known."""
    return Access(required=True)


@pytest.mark.parametrize("header", [HEADER, BLOCK])
async def test_the_caller_is_the_one_of_the_header(header: bytes) -> None:
    """In the journal, and for the gateway; requests behind it are read as ever, also when they come with it."""
    async with behind_a_balancer().running() as world:
        answers = await world.ask(header + get(close=False) + get())
        assert answers.count(b"HTTP/1.1 200") == 2
        assert [journal.address for journal in world.journals] == ["192.0.2.7"] * 2


async def test_a_header_may_come_in_pieces() -> None:
    """Byte by byte, each in a read of its own."""
    async with behind_a_balancer().running() as world:
        for header in (HEADER, BLOCK):
            reader, writer = await world.connect()
            for index in range(len(header)):
                writer.write(header[index : index + 1])
                await writer.drain()
                await asyncio.sleep(0)
            writer.write(get())
            assert b" 200 " in split(await read(reader))[0]
            writer.close()
        assert [journal.address for journal in world.journals] == ["192.0.2.7"] * 2


async def test_the_balancer_may_speak_for_itself() -> None:
    """By a header without an address; its own stands in the log."""
    async with behind_a_balancer().running() as world:
        assert b" 200 " in await world.ask(b"PROXY UNKNOWN\r\n" + get())
        assert world.journals[-1].address == "127.0.0.1"


async def test_a_proxy_behind_the_balancer_is_believed() -> None:
    """The header names a trusted proxy, whose field names the caller; of others the field is not read."""
    proxies = Proxies((ip_network("127.0.0.1"), ip_network("192.0.2.0/24")))
    async with behind_a_balancer(proxies=proxies).running() as world:
        await world.ask(HEADER + get(b"/me", b"X-Forwarded-For: 203.0.113.9"))
        await world.ask(HEADER.replace(b"192.0.2.7", b"198.51.100.1") + get(b"/me", b"X-Forwarded-For: 203.0.113.9"))
        assert [journal.address for journal in world.journals] == ["203.0.113.9", "198.51.100.1"]


@pytest.mark.parametrize("sent", [get(), HEADER.replace(b"1000", b"x"), b"\x16\x03\x01" + bytes(200)])
async def test_without_a_header_it_is_closed(sent: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """Without an answer; counted, and told once with its address."""
    caplog.set_level(logging.INFO)
    async with behind_a_balancer().running() as world:
        for _ in range(2):
            reader, writer = await world.connect()
            writer.write(sent)
            assert await read(reader) == b""
            writer.close()
        assert ended(world) == ["proxy_protocol"] * 2
        told = [record.getMessage() for record in caplog.records if "PROXY protocol" in record.getMessage()]
        assert len(told) == 1
        assert told[0].endswith("came from 127.0.0.1")
        assert world.journals == []


async def test_only_trusted_proxies_may_connect() -> None:
    """Whatever header others send."""
    async with behind_a_balancer(proxies=Proxies((ip_network("10.0.0.0/8"),))).running() as world:
        reader, writer = await world.connect()
        writer.write(HEADER + get())
        assert await read(reader) == b""
        writer.close()
        assert ended(world) == ["proxy_protocol"]


async def test_a_header_that_is_late_or_ends_early_is_not_waited_for() -> None:
    """A check of the port, which sends nothing, is no trouble."""
    async with behind_a_balancer(bounds=Bounds(head_time=0.01)).running() as world:
        reader, writer = await world.connect()
        writer.write(b"PROXY TCP4 ")
        assert await read(reader) == b""
        writer.close()
        reader, writer = await world.connect()
        writer.write(b"PROXY TCP4 ")
        writer.write_eof()
        assert await read(reader) == b""
        writer.close()
        assert ended(world) == ["head_timeout", "proxy_protocol"]
    async with behind_a_balancer().running() as world:
        reader, writer = await world.connect()
        writer.close()
        await writer.wait_closed()
        await world.ask(HEADER + get())
        assert ended(world) == []


async def test_connections_without_a_whole_header_are_bounded_and_cut() -> None:
    """They take places like others, and end with the listener."""
    async with behind_a_balancer(bounds=Bounds(connections=1)).running() as world:
        reader, writer = await world.connect()
        writer.write(b"PROXY TCP4 ")
        await until(lambda: len(world.listener._protocols._expected) == 1, "it is waited for")  # type: ignore[union-attr]  # nothing else tells
        second_reader, second = await world.connect()
        assert await read(second_reader) == b""
        assert ended(world) == ["too_many"]
        second.close()
    assert await read(reader) == b""
    writer.close()


async def test_bounds_of_one_address_are_those_of_the_callers() -> None:
    """Not of the balancer, whose all connections are."""
    async with behind_a_balancer(bounds=Bounds(per_peer=1)).running() as world:
        open_ones = []
        for number in (1, 2):
            reader, writer = await world.connect()
            writer.write(HEADER.replace(b".7 ", b".%d " % number) + get(close=False))
            assert (await reader.readuntil(b"\r\n")).endswith(b"200 Fine\r\n")
            open_ones.append(writer)
        assert b" 503 " in await world.ask(HEADER.replace(b".7 ", b".1 ") + get())
        assert ended(world) == ["too_many_of_peer"]
        for writer in open_ones:
            writer.close()
        await until_closed(world)


async def test_failed_attempts_are_those_of_the_caller() -> None:
    """By the header, and by the field of a trusted proxy."""
    async with behind_a_balancer(access=refusing()).running() as world:
        await world.ask(HEADER + get())
        await world.ask(b"PROXY UNKNOWN\r\n" + get(b"/me", b"X-Forwarded-For: 203.0.113.9"))
        assert world.access.callers == ["192.0.2.7", "203.0.113.9"]
        assert all(isinstance(refusal, Unauthenticated) for refusal in world.access.slowed)


def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's and a client's."""
    authority = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.issue_cert("proxy.example").configure_cert(server)
    authority.configure_trust(client)
    return server, client


async def test_tls_begins_behind_the_header() -> None:
    """The first request may come with the end of the handshake; the connection goes on as others do."""
    server, client = contexts()
    async with behind_a_balancer(tls=server).running() as world:
        for header in (HEADER, BLOCK):
            reader, writer = await world.connect()
            writer.write(header)
            await writer.start_tls(client, server_hostname="proxy.example")
            writer.write(get(close=False))
            assert b" 200 " in await reader.readuntil(b"\r\n\r\nok")
            writer.write(get())
            assert b" 200 " in await read(reader)
            writer.close()
        assert [journal.address for journal in world.journals] == ["192.0.2.7"] * 4
        await until_closed(world)


async def test_a_request_may_come_with_the_end_of_the_handshake() -> None:
    """In the same bytes: none of it is lost."""
    server, client = contexts()
    async with behind_a_balancer(tls=server).running() as world:
        reader, writer = await world.connect()
        inward, outward = ssl.MemoryBIO(), ssl.MemoryBIO()
        hands = client.wrap_bio(inward, outward, server_hostname="proxy.example")
        writer.write(HEADER)
        while True:
            try:
                hands.do_handshake()
                break
            except ssl.SSLWantReadError:
                writer.write(outward.read())
                inward.write(await reader.read(2**16))
        hands.write(get())
        writer.write(outward.read())
        answer = b""
        while b"ok" not in answer:
            inward.write(await reader.read(2**16))
            try:
                answer += hands.read()
            except ssl.SSLWantReadError:
                continue
        assert b" 200 " in answer
        writer.close()


async def test_a_handshake_that_fails_ends_the_connection(caplog: pytest.LogCaptureFixture) -> None:
    """Told as it is elsewhere; nothing is left of it."""
    caplog.set_level(logging.INFO)
    server, _ = contexts()
    async with behind_a_balancer(tls=server).running() as world:
        reader, writer = await world.connect()
        writer.write(HEADER + b"no handshake at all")
        assert (await read(reader))[:1] in (b"", b"\x15")
        writer.close()
        reader, writer = await world.connect()
        writer.write(HEADER + b"\x16\x03")
        await writer.drain()
        writer.transport.abort()
        assert world.listener._protocols is not None  # nothing else tells
        await until(lambda: not world.listener._protocols._expected, "it is over")  # type: ignore[union-attr]
        assert "a TLS handshake that failed (wrong version number) came from 192.0.2.7" in caplog.text
        assert [event for event in world.events if isinstance(event, ConnectionEnded)] == []


async def test_another_certificate_is_taken_over_behind_headers() -> None:
    """The sockets go on expecting them."""
    server, _ = contexts()
    other, client = contexts()
    async with behind_a_balancer(tls=server).running() as world:
        world.listener.renew(other)
        reader, writer = await world.connect()
        writer.write(HEADER)
        await writer.start_tls(client, server_hostname="proxy.example")
        writer.write(get())
        assert b" 200 " in await read(reader)
        writer.close()
        assert world.journals[-1].address == "192.0.2.7"
