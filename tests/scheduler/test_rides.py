import asyncio

import pytest
from keyturn.core.exchange import ExchangeResult, FlowDemand, Settlement, Spent
from keyturn.core.model import MILLISECOND, SECOND, Micros
from keyturn.scheduler.rides import FLUSH, RIDE, Rides

from tests.core.worlds import limit, pool
from tests.rooms import Room, room
from tests.virtual import micros, task_of, virtual

USUAL = pool(1, limit(60))


def after(*gaps: Micros) -> tuple[Rides, Micros]:
    """Rides of a room to which requests came in these intervals, and the instant of the last."""
    rides, now = Rides(USUAL), 1_000 * SECOND
    rides.came(now)
    for gap in gaps:
        now += gap
        rides.came(now)
    return rides, now


def test_nobody_waits_for_a_request_that_hardly_comes() -> None:
    """When requests are rare, or none has come yet, what was spent goes by itself."""
    assert Rides(USUAL).wait(SECOND, waiting=False) == FLUSH
    for gaps in ((), (10 * SECOND,) * 9, (3 * SECOND,) * 9):
        rides, now = after(*gaps)
        assert rides.wait(now + SECOND // 10, waiting=False) == FLUSH


def test_while_requests_keep_coming_the_next_one_is_waited_for() -> None:
    """At one in a second for up to two seconds, at ten in a second for some intervals."""
    rides, now = after(*[SECOND] * 20)
    assert rides.wait(now + SECOND // 10, waiting=False) == RIDE
    rides, now = after(*[SECOND // 10] * 40)
    assert SECOND // 10 < rides.wait(now + 50 * MILLISECOND, waiting=False) < SECOND // 2


def test_who_is_overdue_is_not_waited_for() -> None:
    """A stream that has ended is not mistaken for one that goes on."""
    rides, now = after(*[SECOND // 10] * 40)
    assert rides.wait(now + SECOND, waiting=False) == FLUSH


def test_a_token_is_told_of_long_before_it_returns() -> None:
    """A quarter of the shortest window is the most."""
    rides, now = after(*[SECOND // 3] * 20)
    rides.adopt(pool(1, limit(60), limit(5, 2 * SECOND)))
    assert rides.wait(now, waiting=False) == SECOND // 2
    rides.adopt(USUAL)
    assert rides.wait(now, waiting=False) > SECOND


def test_a_turn_is_waited_for_as_long_as_a_request() -> None:
    """Whoever waits calls when its turn is due, whether requests keep coming or not."""
    rides, now = after()
    assert rides.wait(now, waiting=True) == RIDE
    rides.adopt(pool(1, limit(5, SECOND)))
    assert rides.wait(now + 60 * SECOND, waiting=True) == SECOND // 4


async def request(it: Room, trip: float) -> None:
    """One request whose answer begins after so many seconds."""
    with await it.scheduler.lease(it.ticket()) as lease:
        await asyncio.sleep(trip)
        lease.spent()


class Counted:
    """A store in front of a room's own, at the end of a network, that notes when it is called and with what."""

    def __init__(self, it: Room) -> None:
        self.calls: list[tuple[Micros, tuple[Settlement, ...]]] = []
        self._exchange = it.store.exchange
        it.store.exchange = self.exchange  # type: ignore[method-assign]
        it.store.try_grant = lambda *_: None  # type: ignore[method-assign]

    async def exchange(
        self, settlements: tuple[Settlement, ...], demands: tuple[FlowDemand, ...], *, partial: bool = False
    ) -> ExchangeResult:
        self.calls.append((micros(), settlements))
        await asyncio.sleep(0.002)
        return await self._exchange(settlements, demands, partial=partial)


@pytest.mark.parametrize(("rate", "most"), [(1, 1.1), (10, 1.1), (1000, 0.1)])
def test_a_request_costs_one_round_trip_and_many_less(rate: int, most: float) -> None:
    """While requests keep coming, settlements ride along; the busier it is, the more share one round trip."""

    @virtual
    async def scenario() -> None:
        async with room(pool(1, limit(100_000))) as it:
            counted = Counted(it)
            for number in (50, 10 * min(rate, 50)):
                counted.calls.clear()
                tasks: list[asyncio.Task[None]] = []
                for _ in range(number):
                    tasks.append(task_of(request(it, 0.05 + len(tasks) % 10 / 100)))
                    await asyncio.sleep(1 / rate)
                calls = len(counted.calls)
                await asyncio.gather(*tasks)
            assert calls <= most * number

    scenario()


@virtual
async def test_a_token_that_returns_costs_one_round_trip() -> None:
    """While requests wait and none come, what was spent is told by the call at the next turn."""
    async with room(pool(1, limit(20, 10 * SECOND))) as it:
        tasks = []
        for number in range(80):
            tasks.append(task_of(request(it, 0.05 + number * 7 % 20 / 100)))
            await asyncio.sleep(0.5 if number < 20 else 0)
        counted = Counted(it)
        await asyncio.sleep(20)
        assert sum(task.done() for task in tasks) >= 55
        assert len(counted.calls) <= 1.1 * 40
        await asyncio.gather(*tasks)


@virtual
async def test_an_idle_proxy_tells_at_once() -> None:
    """A request now and then is settled within 20 ms of its answer."""
    async with room(USUAL) as it:
        counted = Counted(it)
        for _ in range(3):
            await request(it, 0.2)
            answered = micros()
            await asyncio.sleep(30)
            told = [instant for instant, settlements in counted.calls if any(isinstance(s, Spent) for s in settlements)]
            assert told[-1] - answered <= FLUSH
