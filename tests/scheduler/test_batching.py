import asyncio

import pytest
import uvloop
from keyturn.core.exchange import ExchangeResult, FlowDemand, Settlement, Spent
from keyturn.core.model import MILLISECOND, SECOND, Micros
from keyturn.scheduler.batching import (
    BATCHING,
    FEW_IN_FLIGHT,
    FLUSH,
    MAX_SETTLEMENT_DELAY,
    SettlementBatching,
    WakeUpTimer,
)

from tests.core.worlds import limit, pool
from tests.schedulers import RunningScheduler, running_scheduler
from tests.virtual import micros, task_of, virtual


@virtual
async def test_the_earliest_time_counts() -> None:
    """It goes off once for all that asked, at the earliest time of theirs."""
    timer, began = WakeUpTimer(), micros()
    for delay in (9, 3, 5):
        timer.fire_within(delay * SECOND)
    await timer.wait()
    assert micros() - began == 3 * SECOND
    timer.fire_within(4 * SECOND)
    await timer.wait()
    assert micros() - began == 7 * SECOND


@virtual
async def test_it_rings_at_once() -> None:
    """An earlier wake-up replaces a later one."""
    timer, began = WakeUpTimer(), micros()
    timer.fire_within(9 * SECOND)
    timer.fire()
    timer.fire_within(SECOND)
    await timer.wait()
    assert micros() == began
    timer.fire_within(20 * SECOND)
    await timer.wait()
    assert micros() - began == 20 * SECOND


@virtual
async def test_it_can_be_stopped() -> None:
    """Nothing goes off any more."""
    timer = WakeUpTimer()
    timer.fire_within(SECOND)
    timer.cancel()
    timer.fire_within(3 * SECOND)
    began = micros()
    await timer.wait()
    assert micros() - began == 3 * SECOND


def test_timers_of_uvloop() -> None:
    """Two immediate wake-ups are one, on the event loop that serves."""

    async def main() -> None:
        timer = WakeUpTimer()
        for delay in (0, 0, SECOND):
            timer.fire_within(delay)
        async with asyncio.timeout(60):
            await timer.wait()

    uvloop.run(main())


@virtual
async def test_what_is_due_at_some_time_is_left_alone() -> None:
    """A request for any wake-up neither hastens nor delays one that is set."""
    timer, began = WakeUpTimer(), micros()
    timer.ensure_within(3 * SECOND)
    timer.ensure_within(SECOND)
    await timer.wait()
    assert micros() - began == 3 * SECOND
    timer.fire()
    timer.ensure_within(SECOND)
    await timer.wait()
    assert micros() - began == 3 * SECOND + BATCHING


@virtual
async def test_it_goes_off_at_most_once_in_a_while() -> None:
    """At once after a pause, then `BATCHING` apart, however often and by whomever it is asked meanwhile."""
    timer = WakeUpTimer()
    for pause in (0, BATCHING, SECOND):
        await asyncio.sleep(pause / SECOND)
        began = micros()
        times = []
        for _ in range(3):
            timer.fire()
            await timer.wait()
            times.append(micros() - began)
            timer.fire_within(BATCHING // 2)
            timer.fire()
        assert times == [0, BATCHING, 2 * BATCHING]
        await timer.wait()


@virtual
async def test_it_can_be_hurried() -> None:
    """Then it goes off at once, however recently it did; the next time is reckoned from then."""
    timer, began = WakeUpTimer(), micros()
    for _ in range(3):
        timer.fire()
        timer.fire_now()
        await timer.wait()
    assert micros() == began
    timer.fire()
    await timer.wait()
    assert micros() - began == BATCHING


@virtual
async def test_it_does_not_wait_for_others_where_few_are_in_flight() -> None:
    """A caller that sends one request after the other loses no time."""
    timer, began = WakeUpTimer(), micros()
    for in_flight in (0, FEW_IN_FLIGHT - 1, FEW_IN_FLIGHT):
        timer.fire(in_flight)
        await timer.wait()
    assert micros() - began == BATCHING


@virtual
async def test_the_store_asks_for_what_is_there_already() -> None:
    """It need not be shared with others: a burst of returning tokens takes several exchanges."""
    timer, began = WakeUpTimer(), micros()
    for delay in (0, MILLISECOND, 2 * MILLISECOND):
        timer.wake(delay)
        await timer.wait()
    assert micros() - began == MILLISECOND + BATCHING


USUAL = pool(1, limit(60))


def after(*gaps: Micros) -> tuple[SettlementBatching, Micros]:
    """SettlementBatching of a room to which requests came in these intervals, and the instant of the last."""
    batching, now = SettlementBatching(USUAL), 1_000 * SECOND
    batching.arrived(now)
    for gap in gaps:
        now += gap
        batching.arrived(now)
    return batching, now


def test_nobody_waits_for_a_request_that_hardly_comes() -> None:
    """When requests are rare, or none has come yet, what was spent goes by itself."""
    assert SettlementBatching(USUAL).delay(SECOND, waiting=False) == FLUSH
    for gaps in ((), (10 * SECOND,) * 9, (3 * SECOND,) * 9):
        batching, now = after(*gaps)
        assert batching.delay(now + SECOND // 10, waiting=False) == FLUSH


def test_while_requests_keep_coming_the_next_one_is_waited_for() -> None:
    """At one in a second for up to two seconds, at ten in a second for some intervals."""
    batching, now = after(*[SECOND] * 20)
    assert batching.delay(now + SECOND // 10, waiting=False) == MAX_SETTLEMENT_DELAY
    batching, now = after(*[SECOND // 10] * 40)
    assert SECOND // 10 < batching.delay(now + 50 * MILLISECOND, waiting=False) < SECOND // 2


def test_who_is_overdue_is_not_waited_for() -> None:
    """A stream that has ended is not mistaken for one that goes on."""
    batching, now = after(*[SECOND // 10] * 40)
    assert batching.delay(now + SECOND, waiting=False) == FLUSH


def test_a_token_is_told_of_long_before_it_returns() -> None:
    """A quarter of the shortest window is the most."""
    batching, now = after(*[SECOND // 3] * 20)
    batching.adopt(pool(1, limit(60), limit(5, 2 * SECOND)))
    assert batching.delay(now, waiting=False) == SECOND // 2
    batching.adopt(USUAL)
    assert batching.delay(now, waiting=False) > SECOND


def test_a_turn_is_waited_for_as_long_as_a_request() -> None:
    """A waiting replica calls when its estimate is due, whether requests keep coming or not."""
    batching, now = after()
    assert batching.delay(now, waiting=True) == MAX_SETTLEMENT_DELAY
    batching.adopt(pool(1, limit(5, SECOND)))
    assert batching.delay(now + 60 * SECOND, waiting=True) == SECOND // 4


async def request(it: RunningScheduler, trip: float) -> None:
    """One request whose answer begins after so many seconds."""
    with await it.scheduler.lease(it.request()) as lease:
        await asyncio.sleep(trip)
        lease.spent()


class Counted:
    """A store in front of a room's own, at the end of a network, that notes when it is called and with what."""

    def __init__(self, it: RunningScheduler) -> None:
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
        async with running_scheduler(pool(1, limit(100_000))) as it:
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
    async with running_scheduler(pool(1, limit(20, 10 * SECOND))) as it:
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
    async with running_scheduler(USUAL) as it:
        counted = Counted(it)
        for _ in range(3):
            await request(it, 0.2)
            answered = micros()
            await asyncio.sleep(30)
            told = [instant for instant, settlements in counted.calls if any(isinstance(s, Spent) for s in settlements)]
            assert told[-1] - answered <= FLUSH
