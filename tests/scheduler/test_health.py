"""The waiting room while keys die and come back, and limits turn out lower than they were thought to be."""

import asyncio

import pytest
from keyturn.core.errors import NoKey, TooMany
from keyturn.core.exchange import DemandClass, Unsent
from keyturn.core.model import SECOND, Client
from keyturn.scheduler import INTERNAL, Displaced, Waiter

from tests.core.worlds import limit, pool
from tests.schedulers import RunningScheduler, running_scheduler
from tests.virtual import micros, task_of, virtual


def pinned(quota: str, key: str | None = None, *, own: bool = False) -> Waiter:
    """A request that insists on a quota."""
    return Waiter(INTERNAL if own else Client("a"), DemandClass((0,), quota), micros() + 120 * SECOND, 3, key)


async def quotas(it: RunningScheduler, number: int) -> list[str]:
    """The quotas of the next leases, which come back unsent."""
    leases = [await it.scheduler.lease(it.request()) for _ in range(number)]
    for lease in leases:
        lease.unsent()
        lease.close()
    return sorted({lease.quota for lease in leases})


@virtual
async def test_nothing_is_granted_on_a_dead_quota() -> None:
    """Others serve, and when it is alive again it serves with them."""
    async with running_scheduler(pool(2, limit(5))) as it:
        assert await quotas(it, 4) == ["k0", "k1"]
        it.scheduler.health.rejected("k0", micros(), "401", 0.0)
        it.scheduler.apply_health()
        assert await quotas(it, 5) == ["k1"]
        it.scheduler.health.accepted("k0", micros())
        it.scheduler.apply_health()
        assert await quotas(it, 4) == ["k0", "k1"]
        await it.settled()
        it.check_empty()


@virtual
async def test_the_last_keys_death_is_told_at_once() -> None:
    """To those who wait and to those who come: no hang (503)."""
    async with running_scheduler(pool(1, limit(1))) as it:
        lease = await it.scheduler.lease(it.request())
        waiting = task_of(it.scheduler.lease(it.request()))
        await asyncio.sleep(0.1)
        it.scheduler.health.rejected("k0", micros(), "401", 0.0)
        it.scheduler.apply_health()
        began = micros()
        for request in (waiting, it.scheduler.lease(it.request())):
            with pytest.raises(NoKey) as told:
                await request
            assert told.value.retry_after == 16
        assert micros() == began
        lease.unsent()
        lease.close()
        await it.settled()
        it.check_empty()


@virtual
async def test_while_the_only_key_is_asked_after_requests_wait() -> None:
    """Found alive it serves them; if that takes too long, they are refused at their deadline (law 6)."""
    async with running_scheduler(pool(1, limit(5))) as it:
        it.scheduler.health.begin_check("k0", micros())
        it.scheduler.apply_health()
        waiting = task_of(it.scheduler.lease(it.request()))
        hasty = task_of(it.scheduler.lease(it.request(wait=SECOND)))
        insisting = task_of(it.scheduler.lease(pinned("k0", "k0")))
        hasty_too = task_of(
            it.scheduler.lease(Waiter(Client("b"), DemandClass((0,), "k0"), micros() + SECOND, 3, "k0"))
        )
        await asyncio.sleep(5)
        assert it.scheduler.waiting == 2
        for request in (hasty, hasty_too):
            with pytest.raises(TooMany):
                await request
        it.scheduler.health.accepted("k0", micros())
        it.scheduler.apply_health()
        for lease in (await waiting, await insisting):
            lease.unsent()
            lease.close()
        await it.settled()
        it.check_empty()


@virtual
async def test_the_proxy_asks_after_a_dead_key_under_its_own_lease() -> None:
    """Nobody else gets it, and its flow is none of the callers'."""
    async with running_scheduler(pool(1, limit(5))) as it:
        it.scheduler.health.rejected("k0", micros(), "401", 0.0)
        it.scheduler.apply_health()
        lease = await it.scheduler.lease(pinned("k0", "k0", own=True), front=True)
        assert lease.key.name == "k0"
        with lease:
            lease.spent()
        assert it.scheduler.view.levels() == []
        await it.settled()
        it.check_empty()


@virtual
async def test_a_grant_that_comes_too_late_for_its_key_goes_back() -> None:
    """A lease dealt before the store knew of a dead key returns unsent, and its request waits on."""
    async with running_scheduler(pool(2, limit(1))) as it:
        it.scheduler.health.rejected("k0", micros(), "401", 0.0)
        it.scheduler._keys.refresh()  # the store does not know yet
        lease = await it.scheduler.lease(it.request())
        assert lease.quota == "k1"
        assert len(it.store.granted) == 2
        assert it.store.settled == [Unsent(it.store.granted[0])]
        lease.unsent()
        lease.close()
        await it.settled()
        it.check_empty()


@virtual
async def test_who_was_sent_to_a_quota_that_died_may_go_elsewhere() -> None:
    """A request that insists on no key but was put into a quota's flow is told so."""
    async with running_scheduler(pool(2, limit(1))) as it:
        first = await it.scheduler.lease(pinned("k0"))
        waiting = task_of(it.scheduler.lease(pinned("k0")))
        await asyncio.sleep(0.1)
        it.scheduler.health.rejected("k0", micros(), "401", 0.0)
        it.scheduler.apply_health()
        with pytest.raises(Displaced):
            await waiting
        first.unsent()
        first.close()
        await it.settled()
        it.check_empty()


@virtual
async def test_a_lowered_limit_holds_from_the_next_exchange_on() -> None:
    """Only downwards (law 9): what is out counts, and a larger number changes nothing."""
    async with running_scheduler(pool(1, limit(5))) as it:
        leases = [await it.scheduler.lease(it.request())]
        it.scheduler.lower_limit(0, 3)
        it.scheduler.lower_limit(0, 4)
        assert it.scheduler.pool.limits[0].requests == 3
        assert it.scheduler.pool.limits[0].name == "5/60s"
        leases += [await it.scheduler.lease(it.request()) for _ in range(2)]
        with pytest.raises(TooMany):
            await it.scheduler.lease(it.request(wait=SECOND))
        for lease in leases:
            with lease:
                lease.spent()
        await it.settled()
        it.check_empty()
