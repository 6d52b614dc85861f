import asyncio
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.bodies import ReplayBody, Shelf


class Stream:
    """A body that comes in chunk by chunk and is read once."""

    def __init__(self, *chunks: bytes, length: int | None = None) -> None:
        self.length = length
        self._left = list(chunks)

    def chunks(self) -> AsyncIterator[bytes]:
        """Itself."""
        return self

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if not self._left:
            raise StopAsyncIteration
        return self._left.pop(0)


async def read(body: ReplayBody, most: int | None = None) -> list[bytes]:
    """The chunks, at most so many."""
    found: list[bytes] = []
    chunks = body.chunks()
    while most is None or len(found) < most:
        chunk = await anext(chunks, None)
        if chunk is None:
            break
        found.append(chunk)
    return found


@given(
    chunks=st.lists(st.binary(min_size=1, max_size=9), max_size=8),
    first=st.integers(0, 9),
    second=st.integers(0, 9),
    spool=st.integers(0, 60),
)
def test_every_reading_begins_at_the_beginning(chunks: list[bytes], first: int, second: int, spool: int) -> None:
    """As long as a body is replayable, each reading yields all of it, however far the earlier ones came."""

    async def scenario() -> None:
        body = ReplayBody(Stream(*chunks), spool)
        for most in (first, second, None):
            expected = chunks if most is None else chunks[:most]
            assert await read(body, most) == expected
            assert body.replayable is (sum(map(len, expected)) <= spool)
            if not body.replayable:
                with pytest.raises(RuntimeError):
                    body.chunks()
                return

    asyncio.run(scenario())


async def test_a_long_body_is_not_kept() -> None:
    """Beyond the spool a body streams through, and nothing of it stays in memory."""
    body = ReplayBody(Stream(*[bytes(1000)] * 10), spool=2500)
    assert b"".join(await read(body)) == bytes(10_000)
    assert not body.replayable
    assert body._kept == []


async def test_the_length_is_the_bodys_own() -> None:
    """What is announced to the upstream does not change by replaying."""
    assert ReplayBody(Stream(length=5)).length == 5
    assert ReplayBody(Stream()).length is None


async def test_a_cancelled_reading_loses_nothing() -> None:
    """A reading that is cancelled while it waits leaves the rest to the next."""
    arrived = asyncio.Event()

    class Slow(Stream):
        async def __anext__(self) -> bytes:
            await arrived.wait()
            return await super().__anext__()

    body = ReplayBody(Slow(b"a", b"b"))
    reading = asyncio.create_task(read(body))  # noqa: TID251  # a bare task is what the test is about
    await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    arrived.set()
    assert body.replayable
    assert await read(body) == [b"a", b"b"]


async def test_a_generator_that_failed_is_not_read_on() -> None:
    """A generator ends with its error: a body made of one is not replayable afterwards."""

    class Failing:
        length = None

        async def chunks(self) -> AsyncIterator[bytes]:
            yield b"a"
            raise ConnectionResetError

    body = ReplayBody(Failing())
    with pytest.raises(ConnectionResetError):
        await read(body)
    assert not body.replayable


async def test_all_bodies_together_have_one_shelf() -> None:
    """What finds no room is sent once only; what is forgotten makes room again, however often it is forgotten."""
    shelf = Shelf(2500)
    first, second, third = (ReplayBody(Stream(*[bytes(1000)] * 2), shelf=shelf) for _ in range(3))
    assert len(await read(first)) == 2
    assert len(await read(second)) == 2
    assert (first.replayable, second.replayable, shelf.room) == (True, False, 500)
    for _ in range(2):
        first.forget()
        second.forget()
    assert shelf.room == 2500
    assert len(await read(third)) == 2
    assert third.replayable
