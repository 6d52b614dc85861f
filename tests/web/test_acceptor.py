"""Failed TLS handshakes: answers to callers and lines in the log, on both event loops."""

import asyncio
import errno
import logging
import socket
import ssl
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from ipaddress import ip_network
from typing import Any, cast

import pytest
import trustme
import uvloop
from keyturn.config.units import TcpListener
from keyturn.core.errors import Unauthenticated
from keyturn.core.events import ConnectionEnded
from keyturn.core.forwarded import TrustedProxies
from keyturn.web import acceptor
from keyturn.web.acceptor import Acceptor
from keyturn.web.connection import IncomingRequest
from keyturn.web.connections import CONNECTIONS_MADE, Connections
from keyturn.web.overload import Bounds

from tests.process import until
from tests.web.callers import Access, Gateway, World, ended, get, okay, read, split, until_closed

LOOPS = pytest.mark.parametrize("loop", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])


async def nothing(_: IncomingRequest) -> bool:
    """Nobody asks for anything here."""
    raise AssertionError


class Troubled(socket.socket):
    """A listening socket of a system that has troubles first."""

    troubles: list[int]

    def accept(self) -> tuple[socket.socket, Any]:
        """A connection, when they are over."""
        if self.troubles:
            raise OSError(self.troubles.pop(0), "a trouble")
        return super().accept()


class Door:
    """A listening socket, those who connect to it, and the protocols that are made for them."""

    def __init__(self, *troubles: int) -> None:
        self.sock = Troubled(socket.AF_INET, socket.SOCK_STREAM)
        self.sock.troubles = list(troubles)
        self.sock.bind(("127.0.0.1", 0))
        self.sock.listen(1024)
        self.address = self.sock.getsockname()
        self.callers: list[socket.socket] = []
        self.made: list[asyncio.BaseTransport] = []
        self.turn = 0
        self.in_turn = Counter[int]()

    def knock(self, number: int, source: str = "127.0.0.1") -> None:
        """Connect so often: the kernel says yes to all of them."""
        for _ in range(number):
            self.callers.append(socket.create_connection(self.address, source_address=(source, 0)))

    @asynccontextmanager
    async def attended(self) -> AsyncIterator[Acceptor]:
        """Accept who comes."""
        door = self

        class Made(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                door.made.append(transport)
                door.in_turn[door.turn] += 1

        taking = Acceptor(self.sock, Connections(Bounds(), None), Made, {})
        try:
            yield taking
        finally:
            await taking.close()
            for transport in self.made:
                cast("asyncio.Transport", transport).abort()
            for caller in self.callers:
                caller.close()
            await asyncio.sleep(0)

    async def until(self, number: int) -> None:
        """Go on, turn after turn, until so many are made."""
        async with asyncio.timeout(60):
            while len(self.made) < number:
                self.turn += 1
                await asyncio.sleep(0)


@LOOPS
def test_those_who_wait_are_taken_some_in_each_turn(
    loop: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So neither does a crowd make a turn long, nor does its last one wait for as many turns as there are others."""
    monkeypatch.setattr(acceptor, "ACCEPTED_AT_ONCE", 300)

    async def scenario() -> None:
        door = Door()
        door.knock(300)
        async with door.attended():
            await door.until(300)
        assert max(door.in_turn.values()) <= 2 * CONNECTIONS_MADE, "those that are woken and those that come anew"
        assert len(door.in_turn) <= 300 // CONNECTIONS_MADE + 2

    loop(scenario())


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the loopback has one address")
@LOOPS
def test_a_crowd_of_one_address_holds_up_itself(loop: Callable[[Any], None]) -> None:
    """A connection from another address behind it is among the next that are accepted."""

    async def scenario() -> None:
        door = Door()
        door.knock(acceptor.ACCEPTED_AT_ONCE - 1)
        door.knock(1, "127.0.0.2")
        async with door.attended():
            await door.until(acceptor.ACCEPTED_AT_ONCE)
            peers = [transport.get_extra_info("peername")[0] for transport in door.made]
            assert peers.index("127.0.0.2") <= CONNECTIONS_MADE + 1

    loop(scenario())


@LOOPS
def test_those_who_have_connected_are_served_when_it_closes(loop: Callable[[Any], None]) -> None:
    """Nobody is lost who was told by the kernel that he is connected; nobody comes later."""

    async def scenario() -> None:
        door = Door()
        door.knock(200)
        async with door.attended() as taking:
            await taking.close()
            assert len(door.made) == 200
            with pytest.raises(ConnectionRefusedError):
                door.knock(1)

    loop(scenario())


async def test_few_are_accepted_that_have_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others stay in the kernel, until their time has come."""
    monkeypatch.setattr(acceptor, "MAX_ACCEPTED_WAITING", 8)
    door = Door()
    door.knock(100)
    async with door.attended() as taking:
        most = 0
        while len(door.made) < 100:
            most = max(most, len(taking._making))
            await asyncio.sleep(0)
    assert most <= 8


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
async def test_a_system_that_has_nothing_left_is_asked_again(
    number: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Connections wait meanwhile; the log tells of it once."""
    monkeypatch.setattr(acceptor, "_RETRY_SECONDS", 0.0)
    door = Door(number, number, number)
    door.knock(3)
    async with door.attended():
        await door.until(3)
    assert [record.levelno for record in caplog.records if record.name == "keyturn"] == [logging.WARNING]


async def test_a_connection_that_fails_holds_up_nobody() -> None:
    """It was reset before it was accepted, say: the next one is taken in the same turn."""
    door = Door(errno.ECONNABORTED, errno.EPROTO, errno.EPERM)
    door.knock(2)
    async with door.attended():
        await door.until(2)
    assert not door.sock.troubles


async def test_a_system_that_has_nothing_left_does_not_hold_up_the_end() -> None:
    """Connections that wait in the kernel are lost then; no descriptor is left open."""
    door = Door(errno.EMFILE)
    door.knock(1)
    async with door.attended() as taking:
        await taking.close()
        assert not door.made
        assert door.sock.fileno() < 0


HEADER = b"PROXY TCP4 192.0.2.7 127.0.0.1 1000 80\r\n"
BLOCK = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c\xc0\x00\x02\x07\x7f\x00\x00\x01\x03\xe8\x00\x50"
LOOPBACK = TrustedProxies((ip_network("127.0.0.1"),))


def behind_a_balancer(**settings: object) -> World:
    """A listener that expects the PROXY protocol from this machine."""
    bind = (TcpListener("127.0.0.1", 0, proxy_protocol=True),)
    return World(**{"bind": bind, "proxies": LOOPBACK, "gateway": Gateway(okay), **settings})  # type: ignore[arg-type]  # as the caller names them


def refusing() -> Access:
    """Nobody is known."""
    return Access(required=True)


@pytest.mark.parametrize("header", [HEADER, BLOCK])
async def test_the_caller_is_the_one_of_the_header(header: bytes) -> None:
    """In the request log, and for the gateway; requests behind it are read as ever, also when they come with it."""
    async with behind_a_balancer().running() as world:
        answers = await world.ask(header + get(close=False) + get())
        assert answers.count(b"HTTP/1.1 200") == 2
        assert [log.address for log in world.journals] == ["192.0.2.7"] * 2


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
        assert [log.address for log in world.journals] == ["192.0.2.7"] * 2


async def test_the_balancer_may_speak_for_itself() -> None:
    """A header without an address is accepted; the log has the connection's own address."""
    async with behind_a_balancer().running() as world:
        assert b" 200 " in await world.ask(b"PROXY UNKNOWN\r\n" + get())
        assert world.journals[-1].address == "127.0.0.1"


async def test_a_proxy_behind_the_balancer_is_believed() -> None:
    """The header names a trusted proxy, whose field names the caller; of others the field is not read."""
    proxies = TrustedProxies((ip_network("127.0.0.1"), ip_network("192.0.2.0/24")))
    async with behind_a_balancer(proxies=proxies).running() as world:
        await world.ask(HEADER + get(b"/me", b"X-Forwarded-For: 203.0.113.9"))
        await world.ask(HEADER.replace(b"192.0.2.7", b"198.51.100.1") + get(b"/me", b"X-Forwarded-For: 203.0.113.9"))
        assert [log.address for log in world.journals] == ["203.0.113.9", "198.51.100.1"]


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
    async with behind_a_balancer(proxies=TrustedProxies((ip_network("10.0.0.0/8"),))).running() as world:
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
        await until(lambda: len(world.listener._connections._expected) == 1, "it is waited for")  # type: ignore[union-attr]  # nothing else tells
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
        assert ended(world) == ["too_many_per_address"]
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
        assert [log.address for log in world.journals] == ["192.0.2.7"] * 4
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
        assert world.listener._connections is not None  # nothing else tells
        await until(lambda: not world.listener._connections._expected, "it is over")  # type: ignore[union-attr]
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


EVENT_LOOPS = pytest.mark.parametrize("loop", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])


def certified(authority: trustme.CA) -> ssl.SSLContext:
    """A server's side of TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    return context


@EVENT_LOOPS
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


@EVENT_LOOPS
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
