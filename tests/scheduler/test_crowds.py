"""Crowds through the waiting room: requests refused together come back as they were told, and are served."""

import asyncio

import pytest
from keyturn.core.errors import TooMany
from keyturn.core.model import SECOND

from tests.core.worlds import limit, pool
from tests.schedulers import RunningScheduler, running_scheduler
from tests.virtual import micros, task_of, virtual


async def ask(it: RunningScheduler, client: str = "crowd", wait: int = 0) -> int | None:
    """A request that may wait so long; after how long it is to come back, if it was not served."""
    try:
        lease = await it.scheduler.lease(it.request(client, wait=wait))
    except TooMany as refusal:
        return refusal.retry_after
    with lease:
        await asyncio.sleep(0.05)
        lease.spent()
    return None


async def come_back(it: RunningScheduler, after: float, client: str = "crowd") -> list[int]:
    """One of a crowd, which comes back when it was told; what it was told."""
    told: list[int] = []
    await asyncio.sleep(after)
    while (seconds := await ask(it, client)) is not None:
        told.append(seconds)
        await asyncio.sleep(seconds)
    return told


@virtual
async def test_a_crowd_that_comes_back_as_it_was_told_is_served() -> None:
    """Each is refused once at the most, whenever it came, and the tokens do not lie idle for long meanwhile."""
    async with running_scheduler(pool(2, limit(5, 10 * SECOND))) as it:
        told = await asyncio.gather(*(task_of(come_back(it, number / 10)) for number in range(40)))
        assert [len(one) for one in told] == [0] * 10 + [1] * 30
        assert max(one[0] for one in told[10:]) <= 45, "thirty tokens lie 10 s apart, less what is allowed for rounding"


@pytest.mark.parametrize("over", [0, 1, 5], ids="over {} s".format)
@pytest.mark.parametrize("number", [20, 50, 200])
@virtual
async def test_a_large_crowd_that_comes_back_as_it_was_told_is_served(number: int, over: int) -> None:
    """Each is refused once at the most, whether they come at once or one after another, and few tokens lie idle.

    When ten come back with each whole second, three seconds and a bit become four. While tokens return and newcomers
    still come, those take them (law 6), so up to a window's worth of the crowd come in vain.
    """
    async with running_scheduler(pool(1, limit(10, 3 * SECOND))) as it:
        began = micros()
        told = await asyncio.gather(*(task_of(come_back(it, over * one / number)) for one in range(number)))
        assert sum(1 for one in told if len(one) > 1) <= (10 if over == 5 else 0)
        assert micros() - began <= (over + 4 * number / 10) * SECOND


@virtual
async def test_what_a_crowd_was_told_refuses_nobody() -> None:
    """Law 6: with places kept for a whole crowd, a request whose own turn is in time waits for it and is served."""
    async with running_scheduler(pool(1, limit(1, 10 * SECOND))) as it:
        told = [await ask(it) for _ in range(20)]
        assert told[0] is None
        assert told[1] == 11
        assert (told[-1] or 0) > 180
        began = micros()
        assert await ask(it, wait=12 * SECOND) is None
        assert micros() - began <= 11 * SECOND


@virtual
async def test_nobody_is_told_more_than_300_s_beyond_its_own_estimate() -> None:
    """However large the crowd is."""
    async with running_scheduler(pool(1, limit(1, 10 * SECOND))) as it:
        told = [await ask(it) or 0 for _ in range(1200)]
        assert 300 < max(told) <= 10 + 300 + 1


@virtual
async def test_crowds_of_several_clients_share_what_there_is() -> None:
    """Each queue gets the part of its client's weight, so most come back once, and all are served in time."""
    async with running_scheduler(pool(1, limit(10, 3 * SECOND))) as it:
        began = micros()
        tasks = [task_of(come_back(it, one / 200, "abc"[one % 3])) for one in range(200)]
        told = await asyncio.gather(*tasks)
        assert max(len(one) for one in told) <= 3
        assert micros() - began <= 90 * SECOND
