import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from itertools import pairwise
from random import Random

import pytest

from proxy.core.errors import TooMany
from proxy.core.model import SECOND
from proxy.core.promises import FEW
from tests.core.worlds import limit, pool
from tests.rooms import Room, room
from tests.virtual import micros, task_of, virtual


async def ask(it: Room, caller: str = "", client: str = "crowd") -> int | None:
    """A request that takes no time to wait; after how long it is to come back, if it was not served."""
    try:
        lease = await it.dispatch.lease(replace(it.ticket(client, wait=0), peer=caller, path="/"))
    except TooMany as refusal:
        return refusal.retry_after
    with lease:
        await asyncio.sleep(0.05)
        lease.spent()
    return None


async def come_back(it: Room, number: int, after: float, client: str = "crowd") -> list[int]:
    """One of a crowd, which comes back when it was told; what it was told."""
    told: list[int] = []
    await asyncio.sleep(after)
    while (seconds := await ask(it, f"10.0.0.{number}", client)) is not None:
        told.append(seconds)
        await asyncio.sleep(seconds)
    return told


@virtual
async def test_a_crowd_that_comes_back_as_it_was_told_is_served() -> None:
    """Each is refused once at the most, whenever it came, and the tokens do not lie idle for long meanwhile."""
    async with room(pool(2, limit(5, 10 * SECOND))) as it:
        crowd = [task_of(come_back(it, number, number / 10)) for number in range(40)]
        told = await asyncio.gather(*crowd)
        assert [len(one) for one in told] == [0] * 10 + [1] * 30
        assert max(one[0] for one in told[10:]) <= 45, "thirty tokens lie 10 s apart, less what is allowed for rounding"


@pytest.mark.parametrize("over", [0, 1, 5], ids="over {} s".format)
@pytest.mark.parametrize("number", [20, 50, 200])
@virtual
async def test_a_large_crowd_that_comes_back_as_it_was_told_is_served(number: int, over: int) -> None:
    """Each is refused once at the most, whether they come at once or one after another, and few tokens lie idle.

    When ten come back with each whole second, three seconds and a bit become four. While tokens come back one after
    another, the first few are told their own turn, so some of them come in vain.
    """
    async with room(pool(1, limit(10, 3 * SECOND))) as it:
        began = micros()
        told = await asyncio.gather(*(task_of(come_back(it, one, over * one / number)) for one in range(number)))
        assert sum(1 for one in told if len(one) > 1) <= (FEW if over == 5 else 0)
        assert micros() - began <= (over + 4 * number / 10) * SECOND


@virtual
async def test_crowds_of_several_clients_share_what_there_is() -> None:
    """Each lane reckons with the others: nobody comes back as often as it would alone, and all are served in time."""
    async with room(pool(1, limit(10, 3 * SECOND))) as it:
        began = micros()
        tasks = [task_of(come_back(it, one, one / 200, "abc"[one % 3])) for one in range(200)]
        told = await asyncio.gather(*tasks)
        assert max(len(one) for one in told) <= 3
        assert micros() - began <= 90 * SECOND


async def come_back_anywhere(rooms: Sequence[Room], number: int, random: Random) -> int:
    """One of a crowd, which comes to any replica; how often it was refused."""
    refusals = 0
    await asyncio.sleep(number / 200)
    while (seconds := await ask(random.choice(rooms), f"10.0.0.{number}")) is not None:
        refusals += 1
        await asyncio.sleep(seconds)
    return refusals


@virtual
async def test_a_crowd_that_comes_to_several_replicas_is_not_told_thrice_the_tokens_for_long() -> None:
    """They do not know of each other's refusals, but learn how many came in vain."""
    of, random = pool(1, limit(10, 3 * SECOND)), Random(1)
    async with room(of) as first, AsyncExitStack() as others:
        memory = first.store.memory
        rooms = [first, *[await others.enter_async_context(room(of, memory=memory, replica=name)) for name in "st"]]
        began = micros()
        refusals = await asyncio.gather(*(task_of(come_back_anywhere(rooms, one, random)) for one in range(200)))
        assert sum(refusals) <= 2 * 200
        assert micros() - began <= 100 * SECOND


async def pass_by(it: Room, number: int, told: list[int]) -> None:
    """Who is refused, and does not come back."""
    told.append(await ask(it, f"10.0.{number}.0") or 0)


@virtual
async def test_who_does_not_come_back_pushes_nobody_back_for_long() -> None:
    """Thrice as many come as there are tokens, each of them once: after a while they are told their own turn."""
    async with room(pool(1, limit(10, 10 * SECOND))) as it:
        told: list[int] = []
        for number in range(900):
            task_of(pass_by(it, number, told))
            await asyncio.sleep(1 / 3)
        assert max(told[:180]) <= 60
        assert max(told[270:]) <= 11


async def try_again(it: Room, tries: int) -> list[int | None]:
    """A caller that heeds nothing and comes once a second; what it was told."""
    told = []
    for _ in range(tries):
        told.append(await ask(it, "10.0.0.1"))
        await asyncio.sleep(0.95)
    return told


@virtual
async def test_who_tries_again_and_again_is_told_its_own_turn() -> None:
    """However often it tries: the time gets shorter from one try to the next until it is served, never longer."""
    async with room(pool(1, limit(1, 20 * SECOND))) as it:
        told = await try_again(it, 90)
        assert told.count(None) == 5
        for before, after in pairwise(told):
            assert before is None or after is None or after <= before
        assert max(seconds or 0 for seconds in told) <= 21


@virtual
async def test_who_tries_again_and_again_pushes_nobody_back() -> None:
    """Somebody else who comes meanwhile is told a time that is its own, or that of a few."""
    async with room(pool(1, limit(1, 20 * SECOND))) as it:
        poller = task_of(try_again(it, 60))
        await asyncio.sleep(30.5)
        seconds = await ask(it, "10.0.0.2")
        await poller
        assert seconds is not None
        assert seconds <= 21
