import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from keyturn.app.resources import TRIM_INTERVAL, TRIM_THRESHOLD, trim_in_thread, trim_memory_periodically
from keyturn.tasks import finish, spawn

from tests.process import house
from tests.virtual import run


def limits_of(pid: int) -> dict[str, list[str]]:
    """The soft and the hard limits of a process, by their names."""
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()
    return {line[:26].strip(): line[26:].split()[:2] for line in lines}


@pytest.mark.skipif(not Path("/proc/self/limits").exists(), reason="this system tells of limits in another way")
async def test_a_process_leaves_no_core_dump_and_opens_what_it_may(tmp_path: Path) -> None:
    """The keys are in its memory; ten thousand callers need as many files."""
    async with house(tmp_path) as home:
        limits = limits_of(home.keyturn.process.pid)
    assert limits["Max core file size"] == ["0", "0"]
    soft, hard = limits["Max open files"]
    assert soft == hard or int(soft) >= 2**20


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
        spawn(trim_memory_periodically(most, lambda: found["now"], note), name="trimming", owner=tasks)
        for _ in numbers:
            await asyncio.sleep(TRIM_INTERVAL)
            await asyncio.sleep(0)
        await finish(tasks)

    run(main())
    return found["trims"]


def test_memory_is_given_back_behind_a_crowd() -> None:
    """Once, when half of it has gone, however long that takes; the rest is the next crowd."""
    assert trims([(1000, 1000), (1000, 900), (900, 400), (400, 400), (0, 0), (0, 0)]) == 2


def test_a_crowd_that_came_and_went_between_two_looks_counts() -> None:
    """Memory that is in use stays."""
    assert trims([(5, 5), (1000, 0), (0, 0)]) == 1


def test_a_few_are_no_crowd() -> None:
    """Nothing is done for them."""
    assert trims([(TRIM_THRESHOLD - 1, 5), (0, 0)]) == 0


async def test_every_system_can_be_asked() -> None:
    """Where the C library cannot, nothing happens."""
    await trim_in_thread()
