import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from keyturn.bodies.budget import CLIENT_SHARE, BodyBudget
from keyturn.tasks import finish, spawn

MOVES = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 40)), max_size=40)


@asynccontextmanager
async def waiting(budget: BodyBudget, *entries: tuple[str, int]) -> AsyncIterator[list[asyncio.Task[Any]]]:
    """Some that wait for room."""
    owner: set[asyncio.Task[Any]] = set()
    tasks = [spawn(budget.wait(client, number), name="wait", owner=owner) for client, number in entries]
    await asyncio.sleep(0)
    try:
        yield tasks
    finally:
        await finish(owner)


@given(MOVES)
def test_nobody_can_take_all(moves: list[tuple[str, int]]) -> None:
    """A client takes at most a quarter of what the others leave, and there is always some left for one more."""
    budget, of = BodyBudget(100), dict.fromkeys("abc", 0)
    for client, number in moves:
        others = sum(of.values()) - of[client]
        assert budget.take(client, number) is (of[client] + number <= (100 - others) / CLIENT_SHARE)
        of[client] += number if budget.used > sum(of.values()) else 0
        assert budget.used == sum(of.values()) < 100
        assert budget.take("new", 0)
    for client, number in of.items():
        budget.change(client, -number)
    assert (budget.used, budget._of) == (0, {})


async def test_who_waits_is_served_in_order() -> None:
    """First come first served within a client, and newcomers of it stand behind; another client does not wait."""
    budget = BodyBudget(100)
    assert budget.take("a", 20)
    async with waiting(budget, ("a", 20), ("a", 5)) as (large, small):
        assert not budget.take("a", 1)
        assert budget.take("b", 10)
        budget.change("a", -10)
        await asyncio.sleep(0)
        assert not large.done()
        budget.change("a", -10)
        await asyncio.sleep(0)
        assert (large.done(), small.done(), budget.used) == (True, False, 30)
        budget.change("a", -20)
        await asyncio.sleep(0)
        assert (small.done(), budget.used, budget._waiting) == (True, 15, {})


async def test_room_of_others_is_room_too() -> None:
    """Memory that one client returns raises the share of another; so does a larger budget."""
    budget = BodyBudget(100)
    budget.change("b", 50)
    async with waiting(budget, ("a", 20)) as (waiter,):
        budget.change("b", -20)
        await asyncio.sleep(0)
        assert not waiter.done()
        budget.change("b", -10)
        await asyncio.sleep(0)
        assert waiter.done()
    async with waiting(budget, ("a", 20)) as (waiter,):
        budget.size = 200
        await asyncio.sleep(0)
        assert waiter.done()


async def test_one_that_gives_up_takes_nothing() -> None:
    """Neither while it waits, nor when its room comes in the same tick; who stood behind it is served."""
    budget = BodyBudget(100)
    assert budget.take("a", 20)
    async with waiting(budget, ("a", 10), ("a", 5)) as (first, second):
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        await asyncio.sleep(0)
        assert (second.done(), budget.used) == (True, 25)
    async with waiting(budget, ("a", 10)) as (late,):
        budget.change("a", -25)
        late.cancel()
        with pytest.raises(asyncio.CancelledError):
            await late
        assert (budget.used, budget._of, budget._waiting) == (0, {}, {})
