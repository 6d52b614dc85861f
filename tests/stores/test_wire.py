import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from proxy.stores.addresses import Login, Node
from proxy.stores.wire import Refused, Wire, dial
from proxy.tasks import finish, spawn


class Script:
    """A server that says what it is told to, whatever it is asked."""

    def __init__(self) -> None:
        self.asked = b""
        self.said: list[asyncio.StreamWriter] = []
        self.node = Node("", 0)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.said.append(writer)
        while data := await reader.read(1000):
            self.asked += data
        writer.close()

    def say(self, data: bytes) -> None:
        self.said[-1].write(data)


@pytest.fixture
async def script() -> AsyncIterator[Script]:
    """A server under the test's command."""
    one = Script()
    server = await asyncio.start_server(one.serve, "127.0.0.1", 0)
    one.node = Node("127.0.0.1", server.sockets[0].getsockname()[1])
    yield one
    server.close()
    for writer in one.said:
        writer.close()
    await server.wait_closed()


async def until(condition: Any) -> None:
    """Wait for something that has to happen soon."""
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)


async def ended(wire: Wire) -> None:
    """See that a connection ends."""
    async with asyncio.timeout(30):
        await wire.ended
    assert not wire.alive


async def test_an_answer_may_come_in_pieces(script: Script) -> None:
    """A call waits for all of it; strings are bytes, and an error is raised."""
    tasks: set[asyncio.Task[Any]] = set()
    wire = await dial(script.node, Login(), None)
    call = spawn(wire.call("GET", 5, b"\x00"), name="call", owner=tasks)
    await until(lambda: script.asked)
    assert script.asked == b"*3\r\n$3\r\nGET\r\n$1\r\n5\r\n$1\r\n\x00\r\n"
    script.say(b"*2\r\n$1\r\n")
    await asyncio.sleep(0)
    script.say(b"a\r\n:0\r\n")
    assert await call == [b"a", 0]
    call = spawn(wire.call("GET"), name="call", owner=tasks)
    await until(lambda: script.asked.endswith(b"GET\r\n"))
    script.say(b"-NOAUTH no\r\n")
    with pytest.raises(Refused, match="NOAUTH no") as caught:
        await call
    assert caught.value.code == "NOAUTH"
    assert wire.alive
    wire.abort()
    await ended(wire)


async def test_who_stops_waiting_takes_the_connection_down(script: Script) -> None:
    """So no late answer reaches another call, and the next one fails before anything is written."""
    tasks: set[asyncio.Task[Any]] = set()
    wire = await dial(script.node, Login(), None)
    spawn(wire.call("PING"), name="call", owner=tasks)
    await until(lambda: script.asked)
    await finish(tasks)
    assert not wire.alive
    with pytest.raises(ConnectionResetError):
        await wire.call("PING")
    await ended(wire)


@pytest.mark.parametrize("noise", [b"+OK\r\n", b"HTTP/1.1 400 Bad Request\r\n"])
async def test_what_nobody_asked_for_ends_the_connection(script: Script, noise: bytes) -> None:
    """Whose the next answer is could not be known; nor what is no Redis."""
    wire = await dial(script.node, Login(), None)
    await until(lambda: script.said)
    script.say(noise)
    await ended(wire)


async def test_the_end_of_a_connection_is_known_at_once(script: Script) -> None:
    """Whoever waits on it fails, and it says that it is dead before anybody writes to it."""
    tasks: set[asyncio.Task[Any]] = set()
    wire = await dial(script.node, Login(), None)
    call = spawn(wire.call("PING"), name="call", owner=tasks)
    await until(lambda: script.asked)
    script.said[-1].close()
    with pytest.raises(ConnectionError):
        await call
    await ended(wire)


async def test_messages_are_heard_beside_answers(script: Script) -> None:
    """A subscribed connection still answers its own questions."""
    heard: list[int] = []
    tasks: set[asyncio.Task[Any]] = set()
    wire = await dial(script.node, Login(), None, lambda: heard.append(1))
    call = spawn(wire.call("SUBSCRIBE", "c"), name="call", owner=tasks)
    await until(lambda: script.asked)
    message = b"*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$1\r\nx\r\n"
    script.say(message + b"*3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n" + message)
    assert await call == [b"subscribe", b"c", 1]
    await until(lambda: len(heard) == 2)
    wire.abort()
    await ended(wire)
