import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.errors import TooMany
from proxy.core.exchange import Kind
from proxy.core.model import SECOND, Micros
from proxy.dispatch.promises import AGAIN, FEW, KNOWN, LATE, LATEST, TRIP, TRUST, Crowd, Pace, pace, spread
from tests.core.worlds import limit, pool
from tests.rooms import Room, room
from tests.virtual import micros, task_of, virtual

delays = st.integers(1, 1000 * SECOND)


PACE = Pace(1, SECOND)


def test_a_pace_is_that_of_the_slowest_limit_shared_with_who_waits() -> None:
    """Over all quotas that serve; by weight, with a longer window where a share is no whole token."""
    of = pool(3, limit(60), limit(2, 10 * SECOND, "GET /x"))
    minute, ten = (of.stretched(one) + TRIP for one in of.limits)
    assert pace(of, Kind((0,)), 1, (1, 1), 1) == Pace(60, minute)
    assert pace(of, Kind((0, 1)), 3, (1, 1), 5) == Pace(6, ten, 5)
    assert pace(of, Kind((0, 1), "k1"), 3, (1, 1), 1) == Pace(2, ten)
    assert pace(of, Kind((0, 1)), 3, (2, 3), 1) == Pace(4, ten)
    assert pace(of, Kind((0, 1)), 0, (1, 1), 1) == Pace(2, ten)
    assert pace(of, Kind((1,)), 1, (1, 5), 1) == Pace(1, ten * 5 // 2)
    assert pace(of, Kind(()), 3, (1, 1), 1).window == 0


dues = st.lists(st.integers(0, 1000 * SECOND), max_size=200).map(sorted)
paces = st.builds(Pace, st.integers(1, 100), st.integers(0, 100 * SECOND))


@given(delays, dues, paces, st.booleans())
def test_nobody_is_told_too_early_or_for_ever(turn: Micros, due: list[Micros], pace: Pace, together: bool) -> None:
    """Its own turn at the least, no more in a window than get a token, never more than `LATEST` later."""
    told = spread(turn, 0, due, pace, together=together)
    assert turn <= told <= turn + LATEST
    if len(due) < FEW or not pace.window:
        assert told == turn
    elif told < turn + LATEST:
        assert sum(1 for other in due if other > told - pace.window) < pace.tokens


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


TOLD = 2 * FEW


@pytest.mark.parametrize(
    ("replicas", "come", "vain", "apart"),
    [
        pytest.param(1, TOLD, 0, 1, id="all come"),
        pytest.param(1, 0, 0, 1 / ((TRUST + TOLD) // TRUST), id="few come"),
        pytest.param(5, 0, 0, 1, id="few come, and others may come elsewhere"),
        pytest.param(1, TOLD, TOLD, 1, id="all come, and in vain, where nobody else refuses"),
        pytest.param(3, TOLD, TOLD, 3, id="all come, and in vain, for others were refused elsewhere"),
        pytest.param(3, TOLD, (TRUST + TOLD) // 2, 2, id="half of them in vain"),
    ],
)
def test_a_lane_reckons_with_those_who_come_back_and_are_served(
    replicas: int, come: int, vain: int, apart: float
) -> None:
    """Of a crowd that was told; who comes a moment late has come back."""
    crowd, behind, pace = Crowd(), 100 * SECOND, Pace(1, SECOND, replicas)
    for one in range(TOLD):
        crowd.tell(one, 0, 0, SECOND, pace)
    assert [crowd.come(one, behind) for one in range(come)] == [True] * come
    assert not crowd.come("somebody", behind)
    for _ in range(vain):
        crowd.again()
    assert crowd.expected(behind + LATE) == 0
    told = [crowd.tell(("new", one), behind, behind, SECOND, pace) for one in range(FEW + 1)]
    assert told == [SECOND] * FEW + [SECOND + FEW * SECOND * apart]


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


def test_a_crowd_that_asks_the_like_at_once_is_one_all_the_same() -> None:
    """They may come from one machine: who comes within a moment of another is expected beside it."""
    crowd = Crowd()
    for number, now in enumerate((0, AGAIN // 2, AGAIN)):
        assert crowd.expected(now) == number
        assert crowd.tell("same", now, now, 5 * SECOND, PACE) == 5 * SECOND
    assert crowd.tell("same", 2 * AGAIN, 2 * AGAIN, SECOND, PACE) == 5 * SECOND - AGAIN
    assert crowd.expected(2 * AGAIN) == 3
    assert crowd.tell("other", 2 * AGAIN, 2 * AGAIN, SECOND, PACE) == SECOND
    assert crowd.tell(None, 2 * AGAIN, 2 * AGAIN, SECOND, PACE) == SECOND
    assert crowd.expected(2 * AGAIN) == 5


def test_who_tries_again_is_told_its_own_turn_when_that_has_become_later() -> None:
    """And whoever comes when it was told is one more who is refused."""
    crowd = Crowd()
    assert crowd.tell("a", 0, 0, 5 * SECOND, PACE) == 5 * SECOND
    assert crowd.tell("a", SECOND, SECOND, 6 * SECOND, PACE) == 6 * SECOND
    assert crowd.tell("a", 2 * SECOND, 2 * SECOND, SECOND, PACE) == 5 * SECOND
    assert crowd.expected(4 * SECOND) == 1
    assert crowd.tell("a", 7 * SECOND, 7 * SECOND, SECOND, PACE) == SECOND
    assert crowd.expected(7 * SECOND) == 1


def test_nobody_is_expected_any_more_when_its_time_has_come() -> None:
    """Whether it has come or not: places become free one after another."""
    crowd = Crowd()
    for number in range(2 * FEW):
        crowd.tell(number, 0, 0, 5 * SECOND, PACE)
    assert crowd.expected(5 * SECOND - 1) == 2 * FEW
    assert [crowd.expected((5 + seconds) * SECOND) for seconds in (0, FEW, 2 * FEW)] == [FEW, FEW - 1, 0]


def test_so_many_callers_are_remembered() -> None:
    """Those beyond are expected by nobody, and told their time anew each time."""
    crowd = Crowd()
    for number in range(KNOWN + 1):
        crowd.tell(number, 0, 0, 5 * SECOND, Pace(1, 0))
    assert crowd.expected(AGAIN) == KNOWN
    assert crowd.tell(KNOWN - 1, AGAIN, AGAIN, SECOND, Pace(1, 0)) == 5 * SECOND - AGAIN
    assert crowd.tell(KNOWN, AGAIN, AGAIN, SECOND, Pace(1, 0)) == SECOND
