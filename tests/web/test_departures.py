import asyncio
import socket
from collections.abc import AsyncIterator

import pytest
from keyturn.web.departures import Departures


@pytest.fixture
async def watched() -> AsyncIterator[tuple[Departures, socket.socket, socket.socket, asyncio.Event]]:
    """A socket that is watched, its peer, and what happens when that leaves."""
    departures, gone = Departures(asyncio.get_running_loop()), asyncio.Event()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        departures.watch(ours.fileno(), gone.set)
        yield departures, ours, theirs, gone
        departures.close()


Watched = tuple[Departures, socket.socket, socket.socket, asyncio.Event]


async def test_a_peer_that_leaves_is_noticed_behind_unread_bytes(watched: Watched) -> None:
    """What it has sent before need not be read for that."""
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
