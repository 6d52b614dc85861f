import asyncio
from dataclasses import dataclass

import pytest
from keyturn.core.errors import Broken
from keyturn.joining import fanout
from keyturn.joining.fanout import PART_OVERHEAD, SLOW_READER_GRACE, Fanout, FanoutBudget, FanoutReader, FellBehind

from tests.joining.steps import counting
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


def sharing(source: Source, *, bound: int = 2**20, kept: FanoutBudget | None = None) -> Fanout:
    """The source for several readers; `bound`: bytes of data in parts of ten that one answer keeps."""
    return Fanout(source, kept or FanoutBudget(), bound=costs(bound))


def costs(data: int) -> int:
    """The bytes accounted for when they arrive in parts of ten."""
    return data + data // 10 * PART_OVERHEAD


async def whole(reader: FanoutReader, pause: float = 0.0) -> bytes:
    """Read to the end, with a pause after each part."""
    data = b""
    while part := await reader.read():
        data += part
        await asyncio.sleep(pause)
    return data


@virtual
async def test_every_reader_gets_every_byte() -> None:
    """In order, whatever its pace."""
    shared = sharing(Source([b"a", b"bc", b"d"]))
    readings = [task_of(whole(shared.reader(), pause)) for pause in (0.0, 1.0, 7.0)]
    await shared.pump()
    assert await asyncio.gather(*readings) == [b"abcd"] * 3


@virtual
async def test_a_slow_reader_stops_nobody_below_the_bound() -> None:
    """The others are through while it has not begun."""
    shared = sharing(Source([b"x" * 10] * 5), bound=50)
    quick, slow = shared.reader(), shared.reader()
    pump = task_of(shared.pump())
    assert await whole(quick) == b"x" * 50
    await pump
    assert await whole(slow) == b"x" * 50


@virtual
async def test_a_reader_that_stands_still_is_cut_off_and_the_others_read_on() -> None:
    """They wait for it no longer than the answer had taken without it, and the grace; memory holds a part more."""
    source, kept, cut = Source([b"x" * 10] * 50), FanoutBudget(), []
    shared = sharing(source, bound=100, kept=kept)
    quick, stuck = shared.reader(), shared.reader(lambda: cut.append("stuck"))
    began = asyncio.get_running_loop().time()
    pump, reading = task_of(shared.pump()), task_of(whole(quick))
    assert len(await stuck.read()) == 10
    await asyncio.sleep(0.15)
    assert (source.reads, kept.size, cut) == (12, costs(110), [])
    assert await reading == b"x" * 500
    await pump
    assert cut == ["stuck"]
    assert kept.size == 0
    waited = asyncio.get_running_loop().time() - began - 51 * 0.01
    assert waited == pytest.approx(12 * 0.01 + SLOW_READER_GRACE)
    with pytest.raises(FellBehind):
        await stuck.read()


@virtual
async def test_a_reader_half_as_fast_as_the_fastest_is_safe() -> None:
    """The source gives a part each 10 ms, the slow reader takes one each 20 ms."""
    shared = sharing(Source([b"x" * 10] * 500), bound=100)
    readings = [task_of(whole(shared.reader(), pause)) for pause in (0.0, 0.02)]
    await shared.pump()
    assert [len(data) for data in await asyncio.gather(*readings)] == [5000, 5000]


@virtual
async def test_slow_readers_one_after_another_hold_nobody_up_for_longer_than_one() -> None:
    """The time that the others wait is that of the answer, not of each slow reader."""
    shared = sharing(Source([b"x" * 10] * 100), bound=100)
    quick = shared.reader()
    stuck = [shared.reader() for _ in range(20)]
    for number, reader in enumerate(stuck):
        task_of(some(reader, number))
    began = asyncio.get_running_loop().time()
    reading = task_of(whole(quick))
    await shared.pump()
    assert len(await reading) == 1000
    without = 101 * 0.01
    assert asyncio.get_running_loop().time() - began <= 2 * without + SLOW_READER_GRACE + 0.001
    for reader in stuck:
        with pytest.raises(FellBehind):
            await reader.read()


async def some(reader: FanoutReader, parts: int) -> None:
    """Read so many parts, and no more."""
    for _ in range(parts):
        await reader.read()


@virtual
async def test_all_answers_together_have_a_bound() -> None:
    """Beyond it the answer that keeps most loses its slowest reader at once; others keep theirs."""
    kept = FanoutBudget(costs(300))
    large, small = (sharing(Source([b"x" * 10] * parts), kept=kept) for parts in (50, 20))
    readers = [(fanout.reader(), fanout.reader()) for fanout in (large, small)]
    pumps = [task_of(fanout.pump()) for fanout in (large, small)]
    readings = [task_of(whole(quick)) for quick, _ in readers]
    assert [len(data) for data in await asyncio.gather(*readings)] == [500, 200]
    await asyncio.gather(*pumps)
    with pytest.raises(FellBehind):
        await readers[0][1].read()
    assert kept.size == costs(200)
    assert len(await whole(readers[1][1])) == 200
    assert kept.size == 0


@virtual
async def test_readers_that_keep_up_are_never_cut_for_room() -> None:
    """Readers of the same pace are never behind, however little may be kept."""
    shared = sharing(Source([b"x" * 10] * 50), kept=FanoutBudget(5), bound=0)
    readings = [task_of(whole(shared.reader())) for _ in range(3)]
    await shared.pump()
    assert [len(data) for data in await asyncio.gather(*readings)] == [500] * 3


@virtual
async def test_work_grows_with_the_readers_and_not_with_their_square() -> None:
    """Each part that a reader takes costs the same, be there one reader or hundreds."""
    steps = {number: await work(number) for number in (50, 400)}
    assert 50 < steps[50] < steps[400] < 10 * steps[50]


async def work(readers: int) -> int:
    """The steps in which so many readers read 20 parts."""
    source = sharing(Source([b"x" * 10] * 20))
    readings = [task_of(whole(source.reader())) for _ in range(readers)]
    with counting(fanout) as steps:
        await source.pump()
        await asyncio.gather(*readings)
    return steps.number


@virtual
async def test_nothing_is_read_ahead_of_all_readers() -> None:
    """Somebody has to want it, so readers that all stand still fill no memory."""
    source = Source([b"x"] * 50)
    shared = sharing(source)
    reader = shared.reader()
    pump = task_of(shared.pump())
    await reader.read()
    await asyncio.sleep(60)
    assert source.reads == 1
    reader.abort()
    await pump


@virtual
async def test_who_leaves_holds_nobody_back() -> None:
    """Data that only the departed reader had not read is dropped; with the last reader the pump ends."""
    source = Source([b"x" * 10] * 50)
    shared = sharing(source, bound=100)
    quick, slow = shared.reader(), shared.reader()
    pump, reading = task_of(shared.pump()), task_of(whole(quick))
    await asyncio.sleep(0.15)
    assert source.reads == 11
    await slow.discard()
    assert await reading == b"x" * 500
    await pump


@virtual
async def test_an_early_end_is_seen_by_all() -> None:
    """A truncated answer stays truncated for each of them, behind what did come."""
    shared = sharing(Source([b"a"], breaks=True))
    readers = [shared.reader(), shared.reader()]
    pump = task_of(shared.pump())
    for reader in readers:
        assert await reader.read() == b"a"
    for reader in readers:
        with pytest.raises(Broken, match="broke off"):
            await reader.read()
    await pump


@virtual
async def test_an_ended_pump_leaves_nobody_waiting() -> None:
    """The remaining readers get a broken answer."""
    shared = sharing(Source([b"a"] * 9))
    reader = shared.reader()
    pump, reading = task_of(shared.pump()), task_of(whole(reader))
    await asyncio.sleep(0.025)
    pump.cancel()
    with pytest.raises(Broken):
        await reading
