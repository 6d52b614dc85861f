"""How long a caller may take over an answer, on virtual time."""

import asyncio

from keyturn.web.pace import SLOWEST, Pace

from tests.virtual import virtual

PATIENCE = 60.0


class Taker:
    """Bytes that wait for a caller, who takes so many a second."""

    def __init__(self, speed: float) -> None:
        loop = asyncio.get_running_loop()
        self.now, self.began, self.speed = loop.time, loop.time(), speed
        self.given = 1 << 40
        self.cut: list[tuple[float, bool]] = []
        self.pace = Pace(loop, PATIENCE, self.left, self.too_slow)

    def left(self) -> int:
        """What it has not taken yet."""
        return self.given - int((self.now() - self.began) * self.speed)

    def too_slow(self, some: bool) -> None:
        """Remember it."""
        self.cut.append((self.now() - self.began, some))


@virtual
async def test_who_takes_nothing_is_waited_for_so_long() -> None:
    """The patience, once."""
    taker = Taker(0)
    taker.pace.wait()
    await asyncio.sleep(10 * PATIENCE)
    assert taker.cut == [(PATIENCE, False)]


@virtual
async def test_who_takes_too_little_is_waited_for_little_longer() -> None:
    """Half of what buys a second each second: twice as long or a moment more; a byte now and then buys nothing."""
    for speed, longest in ((SLOWEST / 2, 2.1), (1, 1.1)):
        taker = Taker(speed)
        taker.pace.wait()
        await asyncio.sleep(10 * PATIENCE)
        ((after, some),) = taker.cut
        assert some
        assert 1 <= after / PATIENCE <= longest


@virtual
async def test_who_takes_enough_is_never_cut() -> None:
    """However long its answer is."""
    taker = Taker(SLOWEST + 1)
    taker.pace.wait()
    await asyncio.sleep(1000 * PATIENCE)
    assert not taker.cut
    taker.pace.stop()


@virtual
async def test_only_waiting_for_the_caller_counts() -> None:
    """The upstream may take its time; but pauses of one answer add up, and the next begins anew."""
    taker = Taker(0)
    for _ in range(3):
        taker.pace.wait()
        await asyncio.sleep(PATIENCE * 0.3)
        taker.pace.go_on()
        await asyncio.sleep(PATIENCE * 5)
    assert not taker.cut
    taker.pace.begin()
    taker.pace.wait()
    await asyncio.sleep(PATIENCE * 0.9)
    taker.pace.go_on()
    taker.pace.wait()
    await asyncio.sleep(PATIENCE * 0.2)
    assert len(taker.cut) == 1
