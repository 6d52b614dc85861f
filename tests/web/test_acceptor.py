import asyncio
import errno
import logging
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
import uvloop
from aiohttp import web
from keyturn.web import acceptor
from keyturn.web.acceptor import Acceptor
from keyturn.web.bounds import Bounds
from keyturn.web.connections import MADE, Connections

LOOPS = pytest.mark.parametrize("loop", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])


async def nothing(_: web.BaseRequest) -> web.StreamResponse:
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

        taking = Acceptor(self.sock, Connections(nothing, Bounds(), None), Made, {})
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
    monkeypatch.setattr(acceptor, "ACCEPTED", 300)

    async def scenario() -> None:
        door = Door()
        door.knock(300)
        async with door.attended():
            await door.until(300)
        assert max(door.in_turn.values()) <= 2 * MADE, "those that are woken and those that come anew"
        assert len(door.in_turn) <= 300 // MADE + 2

    loop(scenario())


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the loopback has one address")
@LOOPS
def test_a_crowd_of_one_address_holds_up_itself(loop: Callable[[Any], None]) -> None:
    """Who connects behind it from elsewhere is among the next that are taken."""

    async def scenario() -> None:
        door = Door()
        door.knock(acceptor.ACCEPTED - 1)
        door.knock(1, "127.0.0.2")
        async with door.attended():
            await door.until(acceptor.ACCEPTED)
            peers = [transport.get_extra_info("peername")[0] for transport in door.made]
            assert peers.index("127.0.0.2") <= MADE + 1

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
    monkeypatch.setattr(acceptor, "MOST_WAITING", 8)
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
    monkeypatch.setattr(acceptor, "_AGAIN", 0.0)
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
    """What waits in the kernel then is lost; nothing is left behind."""
    door = Door(errno.EMFILE)
    door.knock(1)
    async with door.attended() as taking:
        await taking.close()
        assert not door.made
        assert door.sock.fileno() < 0
