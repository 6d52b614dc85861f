import asyncio
from collections.abc import Iterator

from keyturn.app.trimming import CROWD, EVERY, trim_aside, trim_behind_crowds
from keyturn.tasks import finish, spawn

from tests.virtual import run


def trims(numbers: list[tuple[int, int]]) -> int:
    """How often memory is given back, when so many connections were open at most, and were open, at each look."""
    looks: Iterator[tuple[int, int]] = iter(numbers)
    found = {"now": 0, "trims": 0}

    def most() -> int:
        peak, found["now"] = next(looks, (0, 0))
        return peak

    async def note() -> None:
        found["trims"] += 1

    async def main() -> None:
        tasks: set[asyncio.Task[None]] = set()
        spawn(trim_behind_crowds(most, lambda: found["now"], note), name="trimming", owner=tasks)
        for _ in numbers:
            await asyncio.sleep(EVERY)
            await asyncio.sleep(0)
        await finish(tasks)

    run(main())
    return found["trims"]


def test_memory_is_given_back_behind_a_crowd() -> None:
    """Once, when half of it has gone, however long that takes; the rest is the next crowd."""
    assert trims([(1000, 1000), (1000, 900), (900, 400), (400, 400), (0, 0), (0, 0)]) == 2


def test_a_crowd_that_came_and_went_between_two_looks_counts() -> None:
    """What it used is still there."""
    assert trims([(5, 5), (1000, 0), (0, 0)]) == 1


def test_a_few_are_no_crowd() -> None:
    """Nothing is done for them."""
    assert trims([(CROWD - 1, 5), (0, 0)]) == 0


async def test_every_system_can_be_asked() -> None:
    """Where the C library cannot, nothing happens."""
    await trim_aside()
