import asyncio
from collections.abc import Sequence
from typing import Any

from keyturn.app.placing import Placing
from keyturn.core.errors import StoreLost
from keyturn.core.model import SECOND, Key, Pool, Secret
from keyturn.core.placements import STOP, Placement, Revision
from keyturn.stores.placements import LocalPlacements
from keyturn.tasks import finish, spawn

from tests.core.worlds import limit
from tests.rooms import Room, room
from tests.virtual import micros, task_of, virtual

KEY = Key.alone("k", Secret("x"))
HERE = Pool("default", (KEY,), (limit(1),))
ELSEWHERE = Pool("other", (KEY,), (limit(1),))
BOUND = 10 * SECOND
SPAN = HERE.stretched(HERE.limits[0]) + SECOND + BOUND


def placing(it: Room, placements: Any) -> Placing:
    """The placing of a process with one pool."""
    return Placing(placements, {"default": it.scheduler}, BOUND, micros)


class _Lost:
    """Revisions in a store that does not answer."""

    async def name(self, placement: Placement) -> tuple[Revision, Sequence[Revision]]:
        raise StoreLost("gone")


@virtual
async def test_a_key_that_came_from_another_pool_rests_and_requests_wait() -> None:
    """Until what was sent with it there counts no longer; the status says why."""
    async with room(HERE) as it:
        process, tasks = placing(it, LocalPlacements(micros)), set[asyncio.Task[Any]]()
        await process.prepare((replace_pool("default"), ELSEWHERE))
        moved = micros()
        process.apply(await process.prepare((HERE,)))
        spawn(process.run(), name="place keys", owner=tasks)
        waiting = task_of(it.scheduler.lease(it.ticket(wait=200 * SECOND)))
        await asyncio.sleep(1)
        (look,) = it.scheduler.health.snapshots(micros())
        assert (look.state, look.until) == ("parked", moved + SPAN + STOP)
        assert look.reason == "its requests in the pool other still count"
        with await waiting as lease:
            lease.spent()
        assert SPAN + STOP <= micros() - moved < SPAN + STOP + 3 * SECOND
        assert [look.state for look in it.scheduler.health.snapshots(micros())] == ["ready"]
        await finish(tasks)


def replace_pool(name: str) -> Pool:
    """A pool of that name with another key."""
    return Pool(name, (Key.alone("l", Secret("y")),), (limit(1),))


@virtual
async def test_without_the_store_no_key_rests() -> None:
    """A start does not wait for it, and what was known stays."""
    async with room(HERE) as it:
        process, tasks = placing(it, _Lost()), set[asyncio.Task[Any]]()
        assert await process.prepare((HERE,)) == {}
        spawn(process.run(), name="place keys", owner=tasks)
        await asyncio.sleep(10)
        with await it.scheduler.lease(it.ticket()) as lease:
            lease.spent()
        await finish(tasks)


@virtual
async def test_what_was_heard_of_an_earlier_configuration_is_dropped() -> None:
    """It says nothing about the pools that were prepared meanwhile."""
    async with room(HERE) as it:
        registry = LocalPlacements(micros)
        process = placing(it, _Slow(registry))
        late = task_of(process.prepare((ELSEWHERE,)))
        await asyncio.sleep(0)
        assert set(await process.prepare((HERE,))) == {KEY.identity}
        assert await late == {}


class _Slow:
    """Revisions that are told of a moment later, the first ones latest."""

    def __init__(self, registry: LocalPlacements) -> None:
        self.registry = registry
        self.pauses = iter((2, 1))

    async def name(self, placement: Placement) -> tuple[Revision, Sequence[Revision]]:
        told = await self.registry.name(placement)
        await asyncio.sleep(next(self.pauses))
        return told
