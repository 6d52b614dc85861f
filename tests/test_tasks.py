import asyncio
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from keyturn.tasks import STEP_ENTRIES, encoded_in_steps, finish, in_steps, spawn

Owner = set[asyncio.Task[Any]]


async def forever() -> None:
    """Work that ends only when it is cancelled."""
    await asyncio.Event().wait()


async def test_an_owner_holds_a_task_until_it_ends() -> None:
    """Nothing else keeps a task alive; afterwards the owner is empty."""
    owner: Owner = set()
    gate = asyncio.Event()
    task = spawn(gate.wait(), name="gate", owner=owner)
    assert owner == {task}
    assert task.get_name() == "gate"
    gate.set()
    assert await task is True
    await asyncio.sleep(0)
    assert owner == set()


async def test_finish_cancels_and_waits() -> None:
    """When it returns, every task has run its way out."""
    owner: Owner = set()
    ended = []

    async def work(name: str) -> None:
        try:
            await forever()
        finally:
            await asyncio.sleep(0)
            ended.append(name)

    for name in "ab":
        spawn(work(name), name=name, owner=owner)
    await asyncio.sleep(0)
    await finish(owner)
    assert sorted(ended) == ["a", "b"]
    assert owner == set()


async def test_finish_before_a_task_has_begun() -> None:
    """It never runs."""
    owner: Owner = set()
    task = spawn(forever(), name="never", owner=owner)
    await finish(owner)
    assert task.cancelled()


async def test_finish_raises_nothing_that_tasks_raised() -> None:
    """A task that breaks on its way out does not keep the others from ending."""
    owner: Owner = set()

    async def broken() -> None:
        try:
            await forever()
        finally:
            raise RuntimeError("on the way out")

    spawn(broken(), name="broken", owner=owner)
    other = spawn(forever(), name="other", owner=owner)
    await asyncio.sleep(0)
    await finish(owner)
    assert other.cancelled()


async def test_finish_ends_what_is_spawned_on_the_way_out() -> None:
    """Work that a dying task hands on does not survive its owner."""
    owner: Owner = set()

    async def parent() -> None:
        try:
            await forever()
        finally:
            spawn(forever(), name="child", owner=owner)

    spawn(parent(), name="parent", owner=owner)
    await asyncio.sleep(0)
    await finish(owner)
    assert [task.get_name() for task in asyncio.all_tasks() if task.get_name() in ("parent", "child")] == []
    assert owner == set()


async def test_a_task_may_finish_its_own_owner() -> None:
    """It is spared; the others end."""
    owner: Owner = set()
    other = spawn(forever(), name="other", owner=owner)
    closer = spawn(finish(owner), name="closer", owner=owner)
    await closer
    assert other.cancelled()
    assert not closer.cancelled()


async def test_finish_of_nothing() -> None:
    """An owner without tasks is finished at once."""
    await finish(set())


async def test_finish_may_be_cancelled() -> None:
    """A task that waits for others to end can be cancelled; the others have been cancelled by then."""
    owner: Owner = set()
    gate = asyncio.Event()

    async def slow() -> None:
        try:
            await forever()
        finally:
            await gate.wait()

    spawn(slow(), name="slow", owner=owner)
    await asyncio.sleep(0)
    closers: Owner = set()
    closer = spawn(finish(owner), name="closer", owner=closers)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    closer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closer
    gate.set()
    await finish(owner)


async def test_a_task_that_breaks_is_not_forgotten(caplog: pytest.LogCaptureFixture) -> None:
    """Nobody awaits it, so the loop reports it when it is gone."""
    owner: Owner = set()

    async def broken() -> None:
        raise RuntimeError("unseen")

    with caplog.at_level(logging.ERROR, "asyncio"):
        spawn(broken(), name="broken", owner=owner)
        for _ in range(3):
            await asyncio.sleep(0)
        assert owner == set()
    assert "unseen" in caplog.text


async def test_long_work_leaves_the_loop_its_turns() -> None:
    """No more than some entries are worked out between two of them, however many there are."""
    most = worked = 0

    def entries() -> Iterator[str]:
        nonlocal worked, most
        for number in range(10 * STEP_ENTRIES + 1):
            worked += 1
            most = max(most, worked)
            yield str(number)

    loop = asyncio.get_running_loop()
    handle = loop.call_soon(int)

    def turn() -> None:
        nonlocal worked, handle
        worked = 0
        handle = loop.call_soon(turn)

    turn()
    expected = [str(number) for number in range(10 * STEP_ENTRIES + 1)]
    assert await in_steps(entries()) == expected
    assert await encoded_in_steps(entries()) == "".join(expected).encode()
    handle.cancel()
    assert most <= STEP_ENTRIES
