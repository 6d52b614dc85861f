import asyncio

import pytest
from keyturn.app.controls import Controls
from keyturn.core.errors import NoKey
from keyturn.core.events import KeySwitched
from keyturn.telemetry import LogLevel

from tests.core.worlds import limit, pool
from tests.rooms import Room, room
from tests.virtual import micros, task_of, virtual


def controls_of(it: Room) -> Controls:
    """Of a process with one pool."""
    return Controls({"default": it.scheduler}, LogLevel("info"), it.recorder, micros)


@virtual
async def test_a_paused_key_is_not_leased_until_it_is_resumed() -> None:
    """Requests go out with the others, and wait for them; with the first word of the resumption they go on."""
    async with room(pool(2, limit(1))) as it:
        controls = controls_of(it)
        assert controls.pause("default", "k0")
        with await it.scheduler.lease(it.ticket()) as lease:
            lease.spent()
            assert lease.key.name == "k1"
        waiting = task_of(it.scheduler.lease(it.ticket()))
        await asyncio.sleep(30)
        assert not waiting.done()
        resumed = micros()
        assert controls.resume("default", "k0")
        with await waiting as lease:
            lease.spent()
            assert (lease.key.name, micros()) == ("k0", resumed)
        switched = [event for event in it.recorder.events if isinstance(event, KeySwitched)]
        assert switched == [KeySwitched("default", "k0", paused=paused) for paused in (True, False)]


@virtual
async def test_with_all_keys_paused_nobody_is_kept_waiting() -> None:
    """Who waits is refused with 503 noKeyAvailable at once, as is whoever comes."""
    async with room(pool(1, limit(1))) as it:
        with await it.scheduler.lease(it.ticket()) as lease:
            lease.spent()
        waiting = task_of(it.scheduler.lease(it.ticket()))
        controls_of(it).pause("default", "k0")
        for task in (waiting, it.scheduler.lease(it.ticket())):
            with pytest.raises(NoKey) as refused:
                await task
            assert (refused.value.status, refused.value.name) == (503, "noKeyAvailable")
            assert "paused" in refused.value.message


@virtual
async def test_what_is_not_there_is_not_switched() -> None:
    """Neither another pool nor another key."""
    async with room(pool(1)) as it:
        controls = controls_of(it)
        for switch in (controls.pause, controls.resume):
            assert not switch("default", "k9")
            assert not switch("other", "k0")
        assert not controls.log("loud")
        assert it.recorder.events == []
