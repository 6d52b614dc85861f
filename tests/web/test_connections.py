"""How many connections callers may have, over real sockets."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator

import pytest
from keyturn.access import Admission
from keyturn.core.http import Fields
from keyturn.core.model import Client
from keyturn.web import connections
from keyturn.web.connections import DisconnectWatcher
from keyturn.web.overload import Bounds

from tests.web.callers import Access, Gateway, World, ended, get, okay, open_connections, read, split, until_closed

SOON = 0.05
"""Seconds that run out."""


async def test_one_connection_too_many_is_told_so() -> None:
    """And closed; when another has gone there is room again."""
    async with World(gateway=Gateway(okay), bounds=Bounds(connections=2)).running() as world:
        first = [await world.connect() for _ in range(2)]
        for _, writer in first:
            writer.write(get(close=False))
        for reader, _ in first:
            await reader.readuntil(b"\r\n\r\nok")
        reader, writer = await world.connect()
        answer = await read(reader)
        assert answer.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        assert dict(split(answer)[1])[b"Retry-After"] == b"1"
        assert (b'"tooManyConnections"' in answer, ended(world)) == (True, ["too_many"])
        writer.close()
        first[0][1].close()
        while world.listener.connections > 1:
            await asyncio.sleep(0)
        assert (await world.ask(get())).startswith(b"HTTP/1.1 200 ")
        first[1][1].close()


async def test_one_too_many_that_has_asked_already_is_told_so() -> None:
    """Bytes that a refused connection has sent do not cost it the answer; it takes no slot and is soon closed."""
    async with World(gateway=Gateway(okay), bounds=Bounds(connections=1)).running() as world:
        reader, writer = await world.connect()
        writer.write(get(close=False))
        await reader.readuntil(b"\r\n\r\nok")
        others = [await world.connect() for _ in range(3)]
        for _, other in others:
            other.write(get())
        while len(ended(world)) < len(others):
            await asyncio.sleep(0)
        for _, other in others:
            other.write(get(b"/more"))
        assert world.listener.connections == 1
        writer.close()
        while world.listener.connections:
            await asyncio.sleep(0)
        assert (await world.ask(get())).startswith(b"HTTP/1.1 200 ")
        for reader, other in others:
            assert (await read(reader)).startswith(b"HTTP/1.1 503 ")
            other.close()
        assert len(world.gateway.requests) == 2


async def test_a_crowd_that_is_turned_away_has_no_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only so many may linger."""
    monkeypatch.setattr(connections, "_MAX_TURNED_AWAY", 1)
    async with World(bounds=Bounds(connections=1)).running() as world:
        _, writer = await world.connect()
        while not world.listener.connections:
            await asyncio.sleep(0)
        said = [await world.connect() for _ in range(4)]
        for reader, other in said:
            assert (await read(reader)).startswith(b"HTTP/1.1 503 ")
            other.close()
        assert ended(world) == ["too_many"] * 4
        writer.close()


async def test_one_address_does_not_take_every_place() -> None:
    """Others are served while it is refused; the log says it once."""
    async with World(bounds=Bounds(per_peer=1)).running() as world:
        _, writer = await world.connect()
        while not world.listener.connections:
            await asyncio.sleep(0)
        for _ in range(3):
            assert (await world.ask()).startswith(b"HTTP/1.1 503 ")
        assert ended(world) == ["too_many_per_address"] * 3
        reader, other = await asyncio.open_connection("127.0.0.1", world.port, local_addr=("127.0.0.2", 0))
        other.write(get())
        assert (await read(reader)).startswith(b"HTTP/1.1 200 ")
        other.close()
        writer.close()


async def test_callers_of_a_socket_are_not_counted_as_one(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The permissions of the socket say who they are."""
    path = tmp_path_factory.mktemp("s") / "proxy.sock"
    async with World(gateway=Gateway(okay), bind=(f"unix:{path}",), bounds=Bounds(per_peer=1)).running() as world:
        writers = []
        for _ in range(3):
            reader, writer = await asyncio.open_unix_connection(str(path))
            writer.write(get(close=False))
            assert (await reader.readuntil(b"\r\n\r\nok")).startswith(b"HTTP/1.1 200 ")
            writers.append(writer)
        assert world.listener.connections == 3
        for writer in writers:
            writer.close()


# TLS


async def test_a_handshake_that_does_not_come_is_given_up() -> None:
    """A caller that connects and says nothing of TLS holds nothing for long."""
    bounds = Bounds(head_time=SOON)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    async with World(bounds=bounds, tls=context).running() as world:
        reader, writer = await world.connect()
        assert await read(reader) == b""
        assert world.listener.connections == 0
        writer.close()


async def test_a_crowd_that_is_refused_is_not_read_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only so many have what they still send thrown away; the others are answered, too, and closed."""
    monkeypatch.setattr(connections, "_MAX_DRAINED", 1)
    access = Access(required=True)
    async with World(access=access).running() as world:
        crowd = [await world.connect() for _ in range(4)]
        for reader, writer in crowd:
            assert isinstance(writer.transport, asyncio.Transport)
            writer.write(get(b"/", b"Content-Length: 90000000", method=b"PUT", body=b"x" * 9_000_000))
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 401 ")
        read_on = [connection for connection in open_connections(world) if not connection._stopped]
        assert len(read_on) == 1
        for _, writer in crowd:
            writer.transport.abort()
        await until_closed(world)


class Two(Access):
    """Knows two clients, by a field."""

    def admit(self, fields: Fields, target: bytes, peer: asyncio.Transport | None) -> Admission:
        """The one that is named."""
        return Admission(Client(dict(fields)[b"X-Name"].decode(), "team"), fields, target)

    async def accept(self, client: Client) -> None:
        """Both may come."""


async def test_a_crowd_of_one_client_holds_up_itself() -> None:
    """However many requests of one come at once, that of another is among the first that are begun."""
    async with World(access=Two(), gateway=Gateway(okay)).running() as world:
        callers = [await world.connect() for _ in range(61)]
        for _ in range(2):  # from connections that are new, then from known ones
            world.gateway.requests.clear()
            for number, (_, writer) in enumerate(callers):
                writer.write(get(b"/me", b"X-Name: " + (b"loud" if number < 60 else b"quiet"), close=False))
            for reader, _ in callers:
                await reader.readuntil(b"\r\n\r\nok")
            names = [request.client.name for request in world.gateway.requests]
            assert len(names) == 61
            assert names.index("quiet") < 61 // 2
        for _, writer in callers:
            writer.close()


async def test_a_crowd_of_strangers_is_refused_some_in_each_turn() -> None:
    """So a turn of the loop lasts no longer, however many there are."""
    async with World(access=Access(required=True)).running() as world:
        callers = [await world.connect() for _ in range(100)]
        for _, writer in callers:
            writer.write(get())
        most = before = 0
        while before < 100:
            await asyncio.sleep(0)
            most, before = max(most, len(world.journals) - before), len(world.journals)
        assert most <= 2 * connections.REQUESTS_BEGUN, "those that are woken and those that come anew"
        for _, writer in callers:
            writer.close()


@pytest.fixture
async def watched() -> AsyncIterator[tuple[DisconnectWatcher, socket.socket, socket.socket, asyncio.Event]]:
    """A socket that is watched, its peer, and what happens when that leaves."""
    departures, gone = DisconnectWatcher(asyncio.get_running_loop()), asyncio.Event()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        departures.watch(ours.fileno(), gone.set)
        yield departures, ours, theirs, gone
        departures.close()


Watched = tuple[DisconnectWatcher, socket.socket, socket.socket, asyncio.Event]


async def test_a_peer_that_leaves_is_noticed_behind_unread_bytes(watched: Watched) -> None:
    """Bytes sent before need not be read first."""
    _, _, theirs, gone = watched
    theirs.send(b"unread")
    theirs.close()
    async with asyncio.timeout(30):
        await gone.wait()


async def test_bytes_alone_are_no_departure(watched: Watched) -> None:
    """A peer that only sends is still there; the one that leaves afterwards is told first."""
    departures, _, theirs, gone = watched
    theirs.send(b"unread")
    other_gone = asyncio.Event()
    ours, other = socket.socketpair()
    with ours, other:
        departures.watch(ours.fileno(), other_gone.set)
        other.close()
        async with asyncio.timeout(30):
            await other_gone.wait()
        assert not gone.is_set()


async def test_what_is_forgotten_is_not_told(watched: Watched) -> None:
    """A socket that is read again, or closed, is no longer watched; forgetting it twice does no harm."""
    departures, ours, theirs, gone = watched
    departures.forget(ours.fileno())
    departures.forget(ours.fileno())
    theirs.close()
    await asyncio.sleep(0)
    assert not gone.is_set()
    departures.watch(ours.fileno(), gone.set)
    async with asyncio.timeout(30):
        await gone.wait()
