import asyncio
from dataclasses import replace

import pytest
from keyturn.core.errors import ShuttingDown, TooMany
from keyturn.core.model import SECOND, Client
from keyturn.scheduler import Lease, Ticket
from keyturn.scheduler.doors import NEWCOMERS

from tests.core.worlds import limit, pool
from tests.rooms import Room, room
from tests.virtual import micros, task_of, virtual


def ticket(it: Room, most: int | None, *, wait: int = 1_000_000 * SECOND, name: str = "small") -> Ticket:
    """Of a client of which so many may wait."""
    return replace(it.ticket(name, wait=wait), client=Client(name, max_waiting=most))


async def come(it: Room, number: int, most: int | None) -> list["asyncio.Task[Lease]"]:
    """So many come at once."""
    tasks = [task_of(it.scheduler.lease(ticket(it, most))) for _ in range(number)]
    await asyncio.sleep(0.1)
    return tasks


def refused(tasks: list["asyncio.Task[Lease]"]) -> list[bool]:
    """Who was refused because too many wait; nobody for anything else."""
    found = []
    for task in tasks:
        problem = task.exception() if task.done() else None
        assert problem is None or (isinstance(problem, TooMany) and problem.reason == "queue_full")
        found.append(problem is not None)
    return found


def end(tasks: list["asyncio.Task[Lease]"]) -> None:
    """All go."""
    for task in tasks:
        if not task.done():
            task.cancel()
        elif not task.exception():
            task.result().unsent()
            task.result().close()


@pytest.mark.parametrize(("most", "served", "stay"), [(2, 6, 2), (0, 6, 0), (None, 6, 4)])
def test_what_a_token_is_at_hand_for_does_not_wait(most: int | None, served: int, stay: int) -> None:
    """However many come at once; of the others the first may stay, and the rest hears when to come back."""

    @virtual
    async def scenario() -> None:
        async with room(pool(1, limit(6))) as it:
            tasks = await come(it, 10, most)
            assert refused(tasks) == [False] * (served + stay) + [True] * (10 - served - stay)
            assert sum(task.done() and not task.exception() for task in tasks) == served
            problem = tasks[-1].exception() if tasks[-1].done() else None
            assert problem is None or (isinstance(problem, TooMany) and 60 <= (problem.retry_after or 0) <= 62)
            end(tasks)

    scenario()


@virtual
async def test_who_comes_behind_others_that_wait_is_refused_at_once() -> None:
    """Without an exchange; those that wait in another flow are no reason to refuse what could be served."""
    async with room(pool(1, limit(1), limit(1, 60 * SECOND, "GET /narrow"))) as it:
        tasks = await come(it, 3, 2)
        with pytest.raises(TooMany) as refusal:
            await it.scheduler.lease(ticket(it, 2))
        assert refusal.value.reason == "queue_full"
        end(tasks)


@virtual
async def test_all_together_are_bounded() -> None:
    """Whosever they are; and so are newcomers, of whom it is not known yet whether they have to wait."""
    async with room(pool(1, limit(1)), max_waiting=3) as it:
        tasks = await come(it, 8, None)
        assert refused(tasks) == [False] * 4 + [True] * 4
        end(tasks)
    async with room(pool(1, limit(1)), max_waiting=3) as it:
        tasks = [task_of(it.scheduler.lease(ticket(it, None))) for _ in range(NEWCOMERS + 10)]
        for _ in range(3):
            await asyncio.sleep(0)
        assert sum(refused(tasks)) >= 10
        await asyncio.sleep(0.1)
        assert it.scheduler.waiting == 3
        end(tasks)


async def come_back(it: Room, most: int, after: float) -> int:
    """One of a crowd of which so many may wait; how often it is refused, and comes back as it was told."""
    await asyncio.sleep(after)
    refusals = 0
    while True:
        try:
            lease = await it.scheduler.lease(ticket(it, most))
        except TooMany as refusal:
            refusals += 1
            await asyncio.sleep(refusal.retry_after or 0)
        else:
            with lease:
                await asyncio.sleep(0.05)
                lease.spent()
            return refusals


@pytest.mark.parametrize("over", [0, 1], ids="over {} s".format)
@pytest.mark.parametrize("most", [0, 10])
@virtual
async def test_a_crowd_that_may_not_wait_comes_back_to_be_served(most: int, over: int) -> None:
    """Who is refused because too many wait is told when a token is for it, as one that may not wait so long."""
    async with room(pool(1, limit(10, 3 * SECOND))) as it:
        began = micros()
        refusals = await asyncio.gather(*(task_of(come_back(it, most, over * one / 200)) for one in range(200)))
        assert max(refusals) <= 1
        assert micros() - began <= 90 * SECOND


@virtual
async def test_a_full_queue_is_noticed_before_a_body_is_read() -> None:
    """As `lease` would, and without a trace of a request that may come."""
    async with room(pool(1, limit(1), limit(1, 60 * SECOND, "GET /narrow"))) as it:
        it.scheduler.admit(ticket(it, 0))
        tasks = await come(it, 2, 2)
        it.scheduler.admit(ticket(it, 2))
        tasks += await come(it, 1, 2)
        with pytest.raises(TooMany) as refusal:
            it.scheduler.admit(ticket(it, 2))
        assert (refusal.value.reason, it.scheduler.waiting) == ("queue_full", 2)
        it.scheduler.admit(ticket(it, 2, name="another"))
        it.scheduler.refuse_all()
        with pytest.raises(ShuttingDown):
            it.scheduler.admit(ticket(it, None))
        await asyncio.gather(*tasks, return_exceptions=True)
        end([task for task in tasks if not task.exception()])
