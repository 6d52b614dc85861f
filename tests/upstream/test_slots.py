import asyncio

from keyturn.tasks import finish, spawn
from keyturn.upstream.slots import Slots


class Street:
    """Slots of which the test takes and frees some."""

    def __init__(self, most: int) -> None:
        self.taken = 0
        self.slots = Slots(most, lambda: self.taken)
        self.order: list[int] = []
        self.tasks: set[asyncio.Task[object]] = set()

    def come(self, number: int) -> asyncio.Task[object]:
        """Somebody waits in line."""
        return spawn(self._wait(number), name=str(number), owner=self.tasks)

    async def _wait(self, number: int) -> None:
        await self.slots.wait()
        self.taken += 1
        self.order.append(number)

    def free(self) -> None:
        """Somebody is done."""
        self.taken -= 1
        self.slots.freed()


async def turns(number: int = 5) -> None:
    """Let everything happen that is due."""
    for _ in range(number):
        await asyncio.sleep(0)


async def test_they_are_given_in_the_order_of_arrival() -> None:
    """Never more than there are, and nobody comes before those in line."""
    it = Street(2)
    for number in range(4):
        it.come(number)
    await turns()
    assert it.order == [0, 1]
    assert it.slots.full
    it.free()
    assert it.slots.full, "it is promised"
    await turns()
    assert (it.order, it.taken) == ([0, 1, 2], 2)
    it.free()
    it.free()
    await turns()
    assert (it.order, it.taken, it.slots.full) == ([0, 1, 2, 3], 1, False)


async def test_who_leaves_passes_it_on() -> None:
    """Also in the very tick in which it was told."""
    it = Street(1)
    it.taken = 1
    before, told, next_one = it.come(0), it.come(1), it.come(2)
    await turns()
    before.cancel()
    await turns()
    it.free()
    told.cancel()
    await asyncio.gather(told, return_exceptions=True)
    await next_one
    assert (it.order, it.slots.full) == ([2], True)
    await finish(it.tasks)


async def test_who_left_in_the_tick_of_its_turn_is_passed_over() -> None:
    """The slot goes to the next."""
    it = Street(1)
    it.taken = 1
    leaving, staying = it.come(0), it.come(1)
    await turns()
    leaving.cancel()
    it.free()
    await turns()
    assert leaving.cancelled()
    assert staying.done()
    assert (it.order, it.slots.full) == ([1], True)
