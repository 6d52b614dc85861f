import asyncio
from dataclasses import dataclass

import pytest

from proxy.core.errors import Broken
from proxy.joining.fanout import Fanout, Reader
from tests.virtual import task_of, virtual


@dataclass
class Source:
    """A body in parts; `breaks`: its end is none."""

    parts: list[bytes]
    breaks: bool = False
    reads: int = 0

    async def read(self) -> bytes:
        self.reads += 1
        await asyncio.sleep(0.01)
        if self.parts:
            return self.parts.pop(0)
        if self.breaks:
            raise Broken("The upstream broke off.")
        return b""

    async def discard(self) -> None:
        self.parts.clear()

    def abort(self) -> None:
        self.parts.clear()


async def whole(reader: Reader, pause: float = 0.0) -> bytes:
    """Read to the end, with a pause after each part."""
    data = b""
    while part := await reader.read():
        data += part
        await asyncio.sleep(pause)
    return data


@virtual
async def test_every_reader_gets_every_byte() -> None:
    """In order, whatever its pace."""
    fanout = Fanout(Source([b"a", b"bc", b"d"]))
    readings = [task_of(whole(fanout.reader(), pause)) for pause in (0.0, 1.0, 7.0)]
    await fanout.pump()
    assert await asyncio.gather(*readings) == [b"abcd"] * 3


@virtual
async def test_a_slow_reader_stops_nobody_below_the_bound() -> None:
    """The others are through while it has not begun."""
    fanout = Fanout(Source([b"x" * 10] * 5), bound=100)
    quick, slow = fanout.reader(), fanout.reader()
    pump = task_of(fanout.pump())
    assert await whole(quick) == b"x" * 50
    await pump
    assert await whole(slow) == b"x" * 50


@virtual
async def test_beyond_the_bound_the_slowest_sets_the_pace() -> None:
    """Memory holds no more than the bound and one part."""
    source = Source([b"x" * 10] * 50)
    fanout = Fanout(source, bound=100)
    quick, slow = fanout.reader(), fanout.reader()
    pump, reading = task_of(fanout.pump()), task_of(whole(quick))
    await asyncio.sleep(60)
    assert source.reads == 10
    assert not reading.done()
    assert await whole(slow) == await reading == b"x" * 500
    await pump


@virtual
async def test_nothing_is_read_ahead_of_all_readers() -> None:
    """Somebody has to want it, so readers that all stand still fill no memory."""
    source = Source([b"x"] * 50)
    fanout = Fanout(source)
    reader = fanout.reader()
    pump = task_of(fanout.pump())
    await reader.read()
    await asyncio.sleep(60)
    assert source.reads == 1
    reader.abort()
    await pump


@virtual
async def test_who_leaves_holds_nobody_back() -> None:
    """What only it had not read is let go; with the last reader the pump ends."""
    source = Source([b"x" * 10] * 50)
    fanout = Fanout(source, bound=100)
    quick, slow = fanout.reader(), fanout.reader()
    pump, reading = task_of(fanout.pump()), task_of(whole(quick))
    await asyncio.sleep(60)
    await slow.discard()
    assert await reading == b"x" * 500
    await pump


@virtual
async def test_an_early_end_is_seen_by_all() -> None:
    """A truncated answer stays truncated for each of them, behind what did come."""
    fanout = Fanout(Source([b"a"], breaks=True))
    readers = [fanout.reader(), fanout.reader()]
    pump = task_of(fanout.pump())
    for reader in readers:
        assert await reader.read() == b"a"
    for reader in readers:
        with pytest.raises(Broken, match="broke off"):
            await reader.read()
    await pump


@virtual
async def test_an_ended_pump_leaves_nobody_waiting() -> None:
    """Whoever still reads meets a broken answer."""
    fanout = Fanout(Source([b"a"] * 9))
    reader = fanout.reader()
    pump, reading = task_of(fanout.pump()), task_of(whole(reader))
    await asyncio.sleep(0.025)
    pump.cancel()
    with pytest.raises(Broken):
        await reading
