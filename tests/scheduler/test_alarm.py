import asyncio

import uvloop
from keyturn.core.model import MILLISECOND, SECOND
from keyturn.scheduler.alarm import BATCHING, FEW, Alarm

from tests.virtual import micros, virtual


@virtual
async def test_the_earliest_time_counts() -> None:
    """It goes off once for all that asked, at the earliest time of theirs."""
    alarm, began = Alarm(), micros()
    for delay in (9, 3, 5):
        alarm.within(delay * SECOND)
    await alarm.heard()
    assert micros() - began == 3 * SECOND
    alarm.within(4 * SECOND)
    await alarm.heard()
    assert micros() - began == 7 * SECOND


@virtual
async def test_it_rings_at_once() -> None:
    """What is due now does not wait for what was due later, which is forgotten."""
    alarm, began = Alarm(), micros()
    alarm.within(9 * SECOND)
    alarm.ring()
    alarm.within(SECOND)
    await alarm.heard()
    assert micros() == began
    alarm.within(20 * SECOND)
    await alarm.heard()
    assert micros() - began == 20 * SECOND


@virtual
async def test_it_can_be_stopped() -> None:
    """Nothing goes off any more."""
    alarm = Alarm()
    alarm.within(SECOND)
    alarm.stop()
    alarm.within(3 * SECOND)
    began = micros()
    await alarm.heard()
    assert micros() - began == 3 * SECOND


def test_timers_of_uvloop() -> None:
    """What is due at once, and once more at once, is one, on the event loop that serves."""

    async def main() -> None:
        alarm = Alarm()
        for delay in (0, 0, SECOND):
            alarm.within(delay)
        async with asyncio.timeout(60):
            await alarm.heard()

    uvloop.run(main())


@virtual
async def test_what_is_due_at_some_time_is_left_alone() -> None:
    """Who only wants it to go off at all neither hastens nor delays it."""
    alarm, began = Alarm(), micros()
    alarm.sooner_or_later(3 * SECOND)
    alarm.sooner_or_later(SECOND)
    await alarm.heard()
    assert micros() - began == 3 * SECOND
    alarm.ring()
    alarm.sooner_or_later(SECOND)
    await alarm.heard()
    assert micros() - began == 3 * SECOND + BATCHING


@virtual
async def test_it_goes_off_at_most_once_in_a_while() -> None:
    """At once after a pause, then `BATCHING` apart, however often and by whomever it is asked meanwhile."""
    alarm = Alarm()
    for pause in (0, BATCHING, SECOND):
        await asyncio.sleep(pause / SECOND)
        began = micros()
        times = []
        for _ in range(3):
            alarm.ring()
            await alarm.heard()
            times.append(micros() - began)
            alarm.within(BATCHING // 2)
            alarm.ring()
        assert times == [0, BATCHING, 2 * BATCHING]
        await alarm.heard()


@virtual
async def test_it_can_be_hurried() -> None:
    """Then it goes off at once, however recently it did; the next time is reckoned from then."""
    alarm, began = Alarm(), micros()
    for _ in range(3):
        alarm.ring()
        alarm.hurry()
        await alarm.heard()
    assert micros() == began
    alarm.ring()
    await alarm.heard()
    assert micros() - began == BATCHING


@virtual
async def test_it_does_not_wait_for_others_where_few_are_in_flight() -> None:
    """A caller that sends one request after the other loses no time."""
    alarm, began = Alarm(), micros()
    for in_flight in (0, FEW - 1, FEW):
        alarm.ring(in_flight)
        await alarm.heard()
    assert micros() - began == BATCHING


@virtual
async def test_the_store_asks_for_what_is_there_already() -> None:
    """It need not be shared with others: a burst of returning tokens takes several exchanges."""
    alarm, began = Alarm(), micros()
    for delay in (0, MILLISECOND, 2 * MILLISECOND):
        alarm.wake(delay)
        await alarm.heard()
    assert micros() - began == MILLISECOND + BATCHING
