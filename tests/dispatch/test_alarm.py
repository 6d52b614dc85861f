import asyncio

import uvloop

from proxy.core.model import SECOND
from proxy.dispatch.alarm import Alarm
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
async def test_it_is_set_until_it_has_gone_off() -> None:
    """Whether it is set at all is told: at once, for later, or not."""
    alarm = Alarm()
    told = [alarm.is_set]
    alarm.within(SECOND)
    told.append(alarm.is_set)
    await alarm.heard()
    told.append(alarm.is_set)
    alarm.ring()
    told.append(alarm.is_set)
    assert told == [False, True, False, True]
