"""The outcome depends on a caller's bytes alone, not on how they are divided into pieces."""

import asyncio
import re
from typing import Any

import pytest
from keyturn.core.http import Answer, Request
from keyturn.web.connection import CallerConnection
from keyturn.web.connections import Connections
from keyturn.web.overload import Bounds

from tests.vectors.document import SECTIONS
from tests.vectors.table import every, filled
from tests.web.callers import Gateway, World, an_answer, receive

TURNS = 3
"""Turns of the event loop between two pieces, after which a woken handler waits again."""
LONG = 1000
"""Bytes beyond which a vector is about size."""
LENGTHS = (1, 2, 5, 11)
_ANSWERED = re.compile(rb"(?:\A|\n|ok)HTTP/1\.1 ([2-5]\d\d) ")

VECTORS = {
    vector.name: filled(vector, b"token").replace(b"@W", b"")
    for case, vector in every(SECTIONS)
    if not vector.answering and len(vector.sent) < LONG
}


class Wire(asyncio.Transport):
    """A transport that accepts everything at once."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.ended = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return the peer's address."""
        return ("192.0.2.1", 1) if name == "peername" else default

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Keep the bytes."""
        assert not self.ended
        self.written += bytes(data)

    def can_write_eof(self) -> bool:
        """Return true, as for TCP."""
        return True

    def write_eof(self) -> None:
        """Note the end."""
        self.ended = True

    def close(self) -> None:
        """Note the end."""
        self.ended = True

    abort = close

    def is_closing(self) -> bool:
        """Return whether it has ended."""
        return self.ended

    def get_write_buffer_size(self) -> int:
        """Return 0: nothing waits."""
        return 0

    def pause_reading(self) -> None:
        """Do nothing: everything is read."""

    def resume_reading(self) -> None:
        """Do nothing."""


async def turns(number: int) -> None:
    """Run everything that is ready."""
    for _ in range(number):
        await asyncio.sleep(0)


async def outcome(world: World, pieces: list[bytes]) -> tuple[object, ...]:
    """Return the answers, whether the connection ends, and what is forwarded to the upstream."""
    requests: list[tuple[str, bytes, object, bytes | None]] = []

    async def reply(request: Request) -> Answer:
        body = None if request.body is None else b"".join([part async for part in request.body.chunks()])
        requests.append((request.method, request.target, request.fields, body))
        return an_answer(b"ok")

    world.gateway.reply = reply
    wire = Wire()
    connection = CallerConnection(Connections(Bounds(), world), world.forward)
    connection.connection_made(wire)
    for piece in pieces:
        if not wire.ended:
            receive(connection, piece)
            await turns(TURNS)
    await turns(10 * TURNS)
    connection.connection_lost(None)
    await turns(TURNS)
    return _ANSWERED.findall(wire.written), wire.ended, requests


@pytest.mark.parametrize("name", VECTORS)
async def test_pieces_make_no_difference(name: str) -> None:
    """Pieces of any size give the same outcome."""
    data = VECTORS[name]
    async with World(gateway=Gateway()).running() as world:
        whole = await outcome(world, [data])
        for length in LENGTHS:
            pieces = [data[start : start + length] for start in range(0, len(data), length)]
            assert await outcome(world, pieces) == whole, length
