import asyncio
import errno
import logging
import os
import socket
import ssl
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trustme
import uvloop
from keyturn.core.errors import StartError
from keyturn.core.forwarded import TrustedProxies
from keyturn.core.http import Answer, Request
from keyturn.tasks import spawn
from keyturn.web import listener
from keyturn.web.connection import _FIRST_REQUEST, IncomingRequest
from keyturn.web.error_responses import UnreadableBody
from keyturn.web.listener import Listener, tcp_sockets, unix_socket, why
from keyturn.web.overload import Bounds

from tests.web.callers import Gateway, Parts, World, an_answer, get, open_connections

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


async def answer(incoming: IncomingRequest) -> bool:
    """Answer anything."""
    incoming.write(ANSWER)
    return True


async def ask_at(path: str) -> bytes:
    """Ask over a unix socket."""
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(get(close=False))
    try:
        return await reader.readexactly(len(ANSWER))
    finally:
        writer.close()
        await writer.wait_closed()


async def test_it_listens_at_several_addresses(tmp_path: Path) -> None:
    """Ports given as 0 are chosen by the system and told; a unix socket is for its owner and group."""
    path = tmp_path / "proxy.sock"
    listener = Listener(answer, ["127.0.0.1:0", f"unix:{path}"])
    await listener.start()
    url, unix = listener.addresses
    assert url.startswith("http://127.0.0.1:")
    assert not url.endswith(":0")
    assert unix == f"unix:{path}"
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert await ask_at(str(path)) == ANSWER
    await listener.stop(1)
    assert not path.exists()


async def test_it_speaks_tls() -> None:
    """With a certificate the addresses are https."""
    authority = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("localhost").configure_cert(server)
    authority.configure_trust(client)
    listener = Listener(answer, ["127.0.0.1:0"], tls=server)
    await listener.start()
    assert listener.addresses[0].startswith("https://127.0.0.1:")
    port = int(listener.addresses[0].rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client, server_hostname="localhost")
    writer.write(get(close=False))
    assert await reader.readexactly(len(ANSWER)) == ANSWER
    writer.close()
    await listener.stop(1)


async def test_an_address_in_use_stops_the_start() -> None:
    """The error is one clear line, and what was listened at before is let go."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        listener = Listener(answer, ["127.0.0.1:0", f"127.0.0.1:{port}"])
        with pytest.raises(
            StartError, match=rf"^cannot listen on 127\.0\.0\.1:{port}: address in use\. Stop .*"
        ) as caught:
            await listener.start()
        assert "\n" not in str(caught.value)
        free = int(listener.addresses[0].rpartition(":")[2])
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", free)


@pytest.mark.parametrize(
    ("address", "why"),
    [("203.0.113.7:0", "no such address"), ("unix:/nowhere/proxy.sock", "No such file or directory. Choose another")],
)
async def test_an_address_that_is_none_stops_the_start(address: str, why: str) -> None:
    """The error names the address and what to do."""
    with pytest.raises(StartError, match="cannot listen on ") as caught:
        await Listener(answer, [address]).start()
    assert address in str(caught.value)
    assert why in str(caught.value)


async def test_a_socket_that_nobody_listens_on_makes_room(tmp_path: Path) -> None:
    """A crashed proxy leaves its socket behind; the next one takes its place."""
    path = tmp_path / "proxy.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    listener = Listener(answer, [f"unix:{path}"])
    await listener.start()
    assert await ask_at(str(path)) == ANSWER
    await listener.stop(1)


async def test_a_socket_in_use_does_not_make_room(tmp_path: Path) -> None:
    """A living proxy is not pushed out, and no other file is removed."""
    path = tmp_path / "proxy.sock"
    first = Listener(answer, [f"unix:{path}"])
    await first.start()
    with pytest.raises(StartError, match="address in use"):
        await Listener(answer, [f"unix:{path}"]).start()
    assert await ask_at(str(path)) == ANSWER
    await first.stop(1)
    path.write_text("a file")
    with pytest.raises(StartError, match="address in use"):
        await Listener(answer, [f"unix:{path}"]).start()
    assert path.read_text() == "a file"


async def test_stopping_lets_requests_come_to_their_end() -> None:
    """No new connection is taken, idle ones are closed, and a request under way is the last on its own."""
    go_on, waiting = asyncio.Event(), asyncio.Event()

    async def reply(request: Request) -> Answer:
        if request.path == "/slow":
            waiting.set()
            await go_on.wait()
        return an_answer(b"ok")

    async with World(gateway=Gateway(reply)).running() as world:
        idle, idle_writer = await world.connect()
        idle_writer.write(get(close=False))
        assert (await idle.readuntil(b"\r\n\r\nok")).startswith(b"HTTP/1.1 200 ")
        busy, busy_writer = await world.connect()
        busy_writer.write(get(b"/slow", close=False))
        await waiting.wait()
        await world.listener.stop_accepting()
        assert await idle.read() == b""
        with pytest.raises(ConnectionRefusedError):
            await world.connect()
        stopping = spawn(world.listener.stop(60), name="stopping", owner=set())
        await asyncio.sleep(0)
        assert not stopping.done()
        go_on.set()
        assert (await busy.read()).endswith(b"\r\n\r\nok")
        await stopping
        idle_writer.close()
        busy_writer.close()


async def test_a_listener_that_has_retired_answers_who_still_comes() -> None:
    """One answer for each connection; whoever connects and says nothing is not waited for, and cut in the end."""
    async with World().running() as world:
        world.listener.retire()
        answer = await world.ask(get(close=False))  # until its end
        assert answer.endswith(b"\r\n\r\nok")
        silent, silent_writer = await world.connect()
        while not world.listener.connections:  # real sockets: a few turns of the loop
            await asyncio.sleep(0)
        await world.listener.quiet(60)
        assert world.listener.connections == 1
        await world.listener.stop(60)
        assert world.listener.connections == 0
        assert await silent.read() == b""
        silent_writer.close()


@pytest.mark.parametrize("before", [0, 9], ids=["nothing", "a part of a head"])
async def test_a_request_on_its_way_to_a_new_connection_is_answered_while_stopping(before: int) -> None:
    """Its caller connected before it could know; the answer is the last on the connection."""
    async with World().running() as world:
        reader, writer = await world.connect()
        request = get(close=False)
        writer.write(request[:before])
        while not world.listener.connections:  # real sockets: a few turns of the loop
            await asyncio.sleep(0)
        stopping = spawn(world.listener.stop(60), name="stopping", owner=set())
        await asyncio.sleep(0)
        writer.write(request[before:])
        assert (await reader.read()).endswith(b"\r\n\r\nok")
        await stopping
        writer.close()


async def test_a_new_connection_on_which_no_request_comes_does_not_hold_stopping_up() -> None:
    """It is closed a moment after it was made, and one that is older at once."""
    async with World().running() as world:
        old, old_writer = await world.connect()
        while not world.listener.connections:  # real sockets: a few turns of the loop
            await asyncio.sleep(0)
        await asyncio.sleep(_FIRST_REQUEST)
        new, new_writer = await world.connect()
        while world.listener.connections < 2:
            await asyncio.sleep(0)
        await world.listener.stop_accepting()
        assert await old.read() == b""
        assert world.listener.connections == 1
        await world.listener.quiet(60)
        assert world.listener.connections == 0
        assert await new.read() == b""
        old_writer.close()
        new_writer.close()


async def test_an_upload_under_way_is_read_to_its_end_while_stopping() -> None:
    """The rest of a caller's body is not thrown away."""
    async with World().running() as world:
        reader, writer = await world.connect()
        writer.write(get(b"/", b"Content-Length: 10", method=b"PUT", close=False, body=b"hello"))
        while not world.gateway.requests:  # real sockets: a few turns of the loop
            await asyncio.sleep(0)
        await world.listener.stop_accepting()
        writer.write(b"world")
        assert (await reader.read()).endswith(b"\r\n\r\nok")
        assert (await world.log()).received == 10
        writer.close()


async def test_patience_ends() -> None:
    """After the grace what is left is cut off, and its handlers have ended."""
    waiting = asyncio.Event()

    async def reply(_: Request) -> Answer:
        waiting.set()
        await asyncio.Event().wait()
        raise AssertionError

    async with World(gateway=Gateway(reply)).running() as world:
        reader, writer = await world.connect()
        writer.write(get())
        await waiting.wait()
        await world.listener.stop(0.001)
        assert world.gateway.ended == 1
        assert await reader.read() == b""
        writer.close()


async def test_a_listener_that_never_started_can_be_stopped() -> None:
    """The process can be ended at any point of its start."""
    await Listener(answer, ["127.0.0.1:0"]).stop(1)


async def test_malformed_requests_leave_one_line_for_the_curious(caplog: pytest.LogCaptureFixture) -> None:
    """A debug line without a traceback says what was wrong, and quotes nothing of the request."""
    with caplog.at_level(logging.DEBUG, "keyturn"):
        async with World().running() as world:
            for raw in (
                b"GET /?apikey=secret HTTP/1.1\r\nHost: a\r\nX-Api-Key : secret\r\n\r\n",
                b"GET secret HTTP/1.1\r\nHost: a\r\n\r\n",
                b"GET / HTTP/1.1\r\nHost: a\r\nX: secret\0\r\n\r\n",
                b"GET / HTTP/1.1\r\nHost: a\r\nX: secret" + b"x" * 70_000 + b"\r\n\r\n",
                b"secret",
            ):
                assert b"secret" not in await world.ask(raw)
    lines = [record for record in caplog.records if record.name == "keyturn"]
    assert len(lines) == 5
    assert all(record.levelno == logging.DEBUG and not record.exc_info for record in lines)
    assert "secret" not in caplog.text


async def test_a_body_that_is_no_http_leaves_no_traceback(caplog: pytest.LogCaptureFixture) -> None:
    """The handler answers a malformed body; it is not logged as an error of this process."""
    begun = asyncio.Event()

    async def reading(incoming: IncomingRequest) -> bool:
        incoming.connection.admit()
        assert await incoming.content.readany() == b"abc"
        begun.set()
        with pytest.raises(UnreadableBody):
            await incoming.content.readany()
        return await answer(incoming)

    with caplog.at_level(logging.DEBUG, "keyturn"):
        listener = Listener(reading, ["127.0.0.1:0"])
        await listener.start()
        reader, writer = await asyncio.open_connection("127.0.0.1", int(listener.addresses[0].rpartition(":")[2]))
        writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        await begun.wait()
        writer.write(b"no chunk\r\n")
        assert (await reader.read()).startswith(ANSWER)
        writer.close()
        await writer.wait_closed()
        await listener.stop(1)
    assert all(record.levelno == logging.DEBUG and not record.exc_info for record in caplog.records)


async def test_long_fields_are_read() -> None:
    """A field may have 30,000 bytes."""
    async with World().running() as world:
        assert (await world.ask(get(b"/", b"X: " + b"x" * 30_000))).startswith(b"HTTP/1.1 200 ")


async def test_a_handler_that_fails_is_answered_for(caplog: pytest.LogCaptureFixture) -> None:
    """An error that a handler lets out is logged once, and answered with 500 where nothing has been sent."""

    async def failing(_: IncomingRequest) -> bool:
        raise ZeroDivisionError

    async def failing_late(incoming: IncomingRequest) -> bool:
        incoming.write(ANSWER[:-1])
        raise ZeroDivisionError

    for handler, expected in ((failing, b"HTTP/1.1 500 "), (failing_late, ANSWER[:-1])):
        caplog.clear()
        listener = Listener(handler, ["127.0.0.1:0"])
        await listener.start()
        reader, writer = await asyncio.open_connection("127.0.0.1", int(listener.addresses[0].rpartition(":")[2]))
        writer.write(get(close=False))
        raw = await reader.read()
        assert raw.startswith(expected)
        assert raw.count(b"HTTP/1.1") == 1
        assert [record.name for record in caplog.records] == ["keyturn"]
        writer.close()
        await listener.stop(1)


def certified(authority: trustme.CA) -> ssl.SSLContext:
    """A server's side of TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    return context


class Caller:
    """A connection over TLS, to a port or a unix socket."""

    def __init__(self, authority: trustme.CA, address: str) -> None:
        self._address = address
        self._trust = ssl.create_default_context()
        authority.configure_trust(self._trust)
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self) -> bytes:
        """An answer; the connection is made when it is first needed, and kept."""
        if self._streams is None:
            tls: dict[str, Any] = {"ssl": self._trust, "server_hostname": "localhost"}
            if self._address.startswith("unix:"):
                self._streams = await asyncio.open_unix_connection(self._address.removeprefix("unix:"), **tls)
            else:
                port = int(self._address.rpartition(":")[2])
                self._streams = await asyncio.open_connection("127.0.0.1", port, **tls)
        reader, writer = self._streams
        writer.write(get(close=False))
        return await reader.readexactly(len(ANSWER))

    async def leave(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            await self._streams[1].wait_closed()


@pytest.mark.parametrize("loop", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_another_certificate_is_taken_over_without_a_gap(loop: Callable[[Any], None], tmp_path: Path) -> None:
    """New connections meet it, open ones go on, at the same sockets."""
    first, second = trustme.CA(), trustme.CA()
    path = tmp_path / "proxy.sock"

    async def scenario() -> None:
        listener = Listener(answer, ["127.0.0.1:0", f"unix:{path}"], tls=certified(first))
        await listener.start()
        open_ones = [Caller(first, address) for address in listener.addresses]
        assert [await caller.ask() for caller in open_ones] == [ANSWER, ANSWER]
        addresses = list(listener.addresses)
        listener.renew(certified(second))
        assert listener.addresses == addresses
        assert [await caller.ask() for caller in open_ones] == [ANSWER, ANSWER]
        new_ones = [Caller(second, address) for address in listener.addresses]
        assert [await caller.ask() for caller in new_ones] == [ANSWER, ANSWER]
        with pytest.raises(ssl.SSLCertVerificationError):
            await Caller(first, listener.addresses[0]).ask()
        for caller in (*open_ones, *new_ones):
            await caller.leave()
        await listener.stop(1)
        assert not path.exists()

    loop(scenario())


@pytest.mark.parametrize("loop", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_a_handshake_that_does_not_come_ends_with_the_listener(loop: Callable[[Any], None]) -> None:
    """It is neither waited for nor left behind."""

    async def scenario() -> None:
        listener = Listener(answer, ["127.0.0.1:0"], tls=certified(trustme.CA()))
        await listener.start()
        reader, writer = await asyncio.open_connection("127.0.0.1", int(listener.addresses[0].rpartition(":")[2]))
        await listener.stop(60)
        assert await reader.read() == b""
        writer.close()

    loop(scenario())


async def test_the_system_keeps_little_of_an_answer_that_nobody_reads() -> None:
    """So what is relayed of it is little, too."""
    parts = [b"x" * 2**16] * 256

    async def reply(_: Request) -> Answer:
        return Answer(200, b"Fine", ((b"Content-Length", b"%d" % 2**24),), body)

    body = Parts(*parts)
    async with World(gateway=Gateway(reply)).running() as world:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", world.port))
        await asyncio.get_running_loop().sock_sendall(sock, get())
        while not any(one.writing_paused for one in open_connections(world)):  # a few turns of the loop
            await asyncio.sleep(0)
        assert 2**24 - sum(len(part) for part in body.parts if isinstance(part, bytes)) < 2**20
        sock.close()


async def test_an_address_where_nobody_can_listen_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process may have come first behind the binding."""

    def late(*_: object) -> None:
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))

    socks = [socket.socket(), socket.socket()]

    async def two(*_: object) -> list[socket.socket]:
        for sock in socks:
            sock.bind(("127.0.0.1", 0))
        return list(socks)

    monkeypatch.setattr(listener, "tcp_sockets", two)
    monkeypatch.setattr(listener, "Acceptor", late)
    with pytest.raises(StartError, match="address in use"):
        await Listener(answer, ["127.0.0.1:0"]).start()
    assert [sock.fileno() for sock in socks] == [-1, -1]


async def test_other_bounds_hold_for_who_comes() -> None:
    """Before the start and behind it."""
    listener = Listener(answer, ["127.0.0.1:0"])
    listener.adopt(Bounds(keep_alive=1), TrustedProxies())
    await listener.start()
    assert listener._connections is not None
    assert listener._connections.bounds.keep_alive == 1
    listener.adopt(Bounds(keep_alive=2), TrustedProxies())
    assert listener._connections.bounds.keep_alive == 2
    await listener.stop(0)


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666])
def test_a_socket_has_its_permissions(tmp_path: Path, mode: int) -> None:
    """Whatever the mask of the process is, which stays as it was."""
    before = os.umask(0o077)
    try:
        unix_socket(tmp_path / "socket", mode).close()
        assert stat.S_IMODE((tmp_path / "socket").stat().st_mode) == mode
        assert os.umask(0o077) == 0o077
    finally:
        os.umask(before)


def test_nobody_connects_before_the_permissions_are_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between its making and its permissions a socket is its owner's alone."""
    seen = []
    change = Path.chmod

    def watched(path: Path, mode: int) -> None:
        seen.append(stat.S_IMODE(path.stat().st_mode))
        change(path, mode)

    monkeypatch.setattr(Path, "chmod", watched)
    unix_socket(tmp_path / "socket", 0o666).close()
    assert seen == [0o600]


def test_only_a_socket_makes_room(tmp_path: Path) -> None:
    """And only one that nobody listens on."""
    path = tmp_path / "socket"
    with unix_socket(path, 0o660) as listening:
        listening.listen()
        with pytest.raises(OSError, match="in use") as caught:
            unix_socket(path, 0o660)
        assert caught.value.errno == errno.EADDRINUSE
    unix_socket(path, 0o660).close()
    with pytest.raises(OSError, match="in use"), socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (errno.EADDRINUSE, "address in use"),
        (errno.EACCES, "not permitted"),
        (errno.EADDRNOTAVAIL, "no such address"),
        (errno.ENOENT, "No such file or directory"),
    ],
)
def test_an_error_says_what_to_do(number: int, text: str) -> None:
    """In words, with the way out."""
    assert text in why(OSError(number, os.strerror(number)))


async def test_a_name_is_bound_at_each_of_its_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that this machine does not have are left out, as that of IPv6 where there is none."""
    loop = asyncio.get_running_loop()
    foreign, here = ((socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, 0)) for host in ("203.0.113.7", "127.0.0.1"))

    def names(*found: object) -> None:
        async def getaddrinfo(*_: object, **__: object) -> list[object]:
            return list(found)

        monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)

    for found in ((foreign, here), (here, foreign), (here, here)):
        names(*found)
        (sock,) = await tcp_sockets("somewhere", 0)
        assert sock.getsockname()[0] == "127.0.0.1"
        sock.close()
    names(foreign)
    with pytest.raises(OSError, match=os.strerror(errno.EADDRNOTAVAIL)):
        await tcp_sockets("somewhere", 0)


async def test_an_address_in_use_lets_go_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of a name is bound then."""
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.create_server(("127.0.0.1", 0)) as free:
        addresses = [free.getsockname(), taken.getsockname()]
        free.close()

        async def getaddrinfo(*_: object, **__: object) -> list[object]:
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in addresses]

        monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)
        with pytest.raises(OSError, match=os.strerror(errno.EADDRINUSE)):
            await tcp_sockets("somewhere", 0)
        socket.create_server(addresses[0]).close()
