import asyncio
from dataclasses import replace
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from proxy.core.errors import TooMany
from proxy.core.model import SECOND, Micros
from proxy.dispatch.promises import AGAIN, FEW, KNOWN, LATEST, MOST, Crowd, pace, spread
from tests.core.worlds import limit, pool
from tests.rooms import Room, room
from tests.virtual import task_of, virtual

delays = st.integers(1, 1000 * SECOND)


def test_a_pace_is_that_of_the_tightest_limit_shared_with_who_waits() -> None:
    """Over all quotas that serve; by weight; what has no limit has no pace."""
    of = pool(3, limit(60), limit(2, 10 * SECOND, "GET /x"))
    slack = of.stretched(of.limits[1]) - 10 * SECOND + SECOND + SECOND // 4
    assert pace(of, (0,), 1, (1, 1)) * 60 // SECOND == 61
    assert pace(of, (0, 1), 3, (1, 1)) == (10 * SECOND + slack) // 6
    assert pace(of, (0, 1), 3, (2, 3)) == (10 * SECOND + slack) * 3 // 12
    assert pace(of, (0, 1), 0, (1, 1)) == (10 * SECOND + slack) // 2
    assert pace(of, (), 3, (1, 1)) == 0


@given(delays, st.integers(-1000 * SECOND, 100_000 * SECOND), st.integers(0, 10 * SECOND), st.integers(0, 200))
def test_nobody_is_told_too_early_or_for_ever(turn: Micros, first: Micros, pace: Micros, crowd: int) -> None:
    """Its own turn at the least, a place behind all of the crowd, never more than `MOST` paces or `LATEST` later."""
    told, latest = spread(turn, first, pace, crowd), turn + min(MOST * pace, LATEST)
    assert turn <= told <= latest
    if crowd < FEW:
        assert told == turn
    else:
        assert told >= min(first + pace * crowd, latest)


async def ask(it: Room, caller: str = "") -> int | None:
    """A request that takes no time to wait; after how long it is to come back, if it was not served."""
    try:
        lease = await it.dispatch.lease(replace(it.ticket("crowd", wait=0), peer=caller, path="/"))
    except TooMany as refusal:
        return refusal.retry_after
    with lease:
        await asyncio.sleep(0.05)
        lease.spent()
    return None


async def come_back(it: Room, number: int) -> list[int]:
    """One of a crowd, which comes back when it was told; what it was told."""
    told: list[int] = []
    await asyncio.sleep(number / 10)
    while (seconds := await ask(it)) is not None:
        told.append(seconds)
        await asyncio.sleep(seconds)
    return told


@virtual
async def test_a_crowd_that_comes_back_as_it_was_told_is_served() -> None:
    """Each is refused once at the most, whenever it came, and the tokens do not lie idle for long meanwhile."""
    async with room(pool(2, limit(5, 10 * SECOND))) as it:
        crowd = [task_of(come_back(it, number)) for number in range(40)]
        told = await asyncio.gather(*crowd)
        assert [len(one) for one in told] == [0] * 10 + [1] * 30
        assert max(one[0] for one in told[10:]) <= 45, "thirty tokens lie 10 s apart, less what is allowed for rounding"


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
    """They may come from one machine: who comes within a moment of another has a place of its own."""
    crowd = Crowd()
    for number, now in enumerate((0, AGAIN // 2, AGAIN)):
        assert crowd.place("same", now) == number
        crowd.expect("same", number, now, SECOND)
    assert crowd.place("same", 2 * AGAIN) == 2
    assert crowd.place("other", 2 * AGAIN) == crowd.place(None, 2 * AGAIN) == 3
    assert crowd.expected(SECOND)
    assert not crowd.expected(SECOND + AGAIN)
    assert crowd.place("same", SECOND + AGAIN) == 0


def test_so_many_callers_are_remembered() -> None:
    """Those beyond have new places each time; those that are known keep theirs."""
    crowd = Crowd()
    for number in range(KNOWN + 1):
        crowd.expect(number, number, 0, SECOND)
    assert crowd.place(KNOWN - 1, AGAIN) == KNOWN - 1
    assert crowd.place(KNOWN, AGAIN) == KNOWN + 1
    crowd.expect(0, 0, AGAIN, SECOND)
    assert crowd.place(0, 2 * AGAIN) == 0
