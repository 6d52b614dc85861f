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
    """They may come from one machine: who comes within a moment of another is expected beside it."""
    crowd = Crowd()
    for number, now in enumerate((0, AGAIN // 2, AGAIN)):
        assert crowd.expected(now) == number
        assert crowd.tell("same", now, now, 5 * SECOND, SECOND) == 5 * SECOND
    assert crowd.tell("same", 2 * AGAIN, 2 * AGAIN, SECOND, SECOND) == 5 * SECOND - AGAIN
    assert crowd.expected(2 * AGAIN) == 3
    assert crowd.tell("other", 2 * AGAIN, 2 * AGAIN, SECOND, SECOND) == SECOND
    assert crowd.tell(None, 2 * AGAIN, 2 * AGAIN, SECOND, SECOND) == SECOND
    assert crowd.expected(2 * AGAIN) == 5


def test_who_tries_again_is_told_its_own_turn_when_that_has_become_later() -> None:
    """And whoever comes when it was told is one more who is refused."""
    crowd = Crowd()
    assert crowd.tell("a", 0, 0, 5 * SECOND, SECOND) == 5 * SECOND
    assert crowd.tell("a", SECOND, SECOND, 6 * SECOND, SECOND) == 6 * SECOND
    assert crowd.tell("a", 2 * SECOND, 2 * SECOND, SECOND, SECOND) == 5 * SECOND
    assert crowd.expected(4 * SECOND) == 1
    assert crowd.tell("a", 7 * SECOND, 7 * SECOND, SECOND, SECOND) == SECOND
    assert crowd.expected(7 * SECOND) == 1


def test_nobody_is_expected_any_more_when_its_time_has_come() -> None:
    """Whether it has come or not: places become free one after another."""
    crowd = Crowd()
    for number in range(2 * FEW):
        crowd.tell(number, 0, 0, 5 * SECOND, SECOND)
    assert crowd.expected(5 * SECOND - 1) == 2 * FEW
    assert [crowd.expected((5 + seconds) * SECOND) for seconds in (0, FEW, 2 * FEW)] == [FEW, FEW - 1, 0]


def test_so_many_callers_are_remembered() -> None:
    """Those beyond are expected by nobody, and told their time anew each time."""
    crowd = Crowd()
    for number in range(KNOWN + 1):
        crowd.tell(number, 0, 0, 5 * SECOND, 0)
    assert crowd.expected(AGAIN) == KNOWN
    assert crowd.tell(KNOWN - 1, AGAIN, AGAIN, SECOND, 0) == 5 * SECOND - AGAIN
    assert crowd.tell(KNOWN, AGAIN, AGAIN, SECOND, 0) == SECOND
