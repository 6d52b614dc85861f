import asyncio
from typing import Any

import pytest
from keyturn.core.errors import StoreLost, TooMany
from keyturn.core.events import Exchanged
from keyturn.core.exchange import HEARTBEAT, ObservedLimit, Spent, Unsent
from keyturn.core.model import MILLISECOND, SECOND
from keyturn.scheduler import Lease, Waiter
from keyturn.scheduler.admission import FIRST_ANSWER
from keyturn.scheduler.availability import PLENTIFUL
from keyturn.scheduler.batching import BATCHING
from keyturn.scheduler.exchange_loop import FORESIGHT_WAITING

from tests.core.worlds import limit, pool
from tests.schedulers import RunningScheduler, running_scheduler
from tests.virtual import micros, task_of, virtual


async def use(it: RunningScheduler, lease: Lease, trip: float = 0.1) -> None:
    """Send a request under the lease; its answer begins after the trip."""
    with lease:
        await asyncio.sleep(trip)
        lease.spent()


@virtual
async def test_tokens_that_come_back_unused_are_not_batched() -> None:
    """During an outage requests give their leases back one after another; each would hold up those behind it."""
    async with running_scheduler(pool(1, limit(1))) as it:

        async def give_back() -> None:
            with await it.scheduler.lease(it.request(wait=10_000 * SECOND)) as lease:
                lease.unsent()

        began = micros()
        await asyncio.gather(*(task_of(give_back()) for _ in range(50)))
        assert micros() - began <= BATCHING


@virtual
async def test_deadlines_hold_while_the_store_is_silent() -> None:
    """Law 6 needs no answer of the store: neither from one that hangs, nor from one that is lost."""
    async with running_scheduler(pool(1, limit(1))) as it:
        await use(it, await it.scheduler.lease(it.request()))
        answering = it.store.exchange

        async def silent(*_: Any, **__: Any) -> Any:
            await asyncio.Event().wait()

        async def lost(*_: Any, **__: Any) -> Any:
            raise StoreLost("gone")

        waiting = task_of(it.scheduler.lease(it.request(wait=100 * SECOND)))
        began = micros()
        await asyncio.sleep(1)
        it.store.exchange = lost  # type: ignore[method-assign]  # a store that is lost
        newcomer = task_of(it.scheduler.lease(it.request(wait=50 * SECOND)))
        with pytest.raises(TooMany) as caught:
            await newcomer
        assert caught.value.reason == "store_lost", "nobody is told of a turn that nobody knows"
        assert micros() - began <= 51 * SECOND + MILLISECOND
        it.store.exchange = silent  # type: ignore[method-assign]  # a store that hangs
        for wait in (0, 2 * SECOND, 3 * SECOND):
            came = micros()
            with pytest.raises(TooMany) as caught:
                async with asyncio.timeout(60):
                    await it.scheduler.lease(it.request(wait=wait))
            assert caught.value.reason == "store_lost"
            assert micros() - came <= max(wait, FIRST_ANSWER) + MILLISECOND
        with pytest.raises(TooMany):
            await waiting
        assert micros() - began <= 100 * SECOND + MILLISECOND
        it.store.exchange = answering  # type: ignore[method-assign]


@virtual
async def test_a_broken_exchange_is_not_kept_quiet() -> None:
    """A bug in the exchange ends in `failure`, so that the process ends and is started anew."""
    async with running_scheduler(pool(1, limit(1))) as it:

        async def broken(*_: Any, **__: Any) -> Any:
            raise ZeroDivisionError

        answering = it.store.exchange
        it.store.exchange = broken  # type: ignore[method-assign]  # a store with a bug
        waiting = task_of(it.scheduler.lease(it.request()))
        with pytest.raises(ZeroDivisionError):
            await it.scheduler.failure()
        it.store.exchange = answering  # type: ignore[method-assign]
        waiting.cancel()


@virtual
async def test_a_grant_for_a_lane_that_emptied_meanwhile_goes_back() -> None:
    """The store's answer may come after the waiter left: the lease is given back."""
    async with running_scheduler(pool(1, limit(1))) as it:
        gate = asyncio.Event()
        inner = it.store.exchange

        async def slow(*args: Any, **more: Any) -> Any:
            answer = await inner(*args, **more)
            await gate.wait()
            return answer

        it.store.exchange = slow  # type: ignore[method-assign]  # a store that answers late
        waiting = task_of(it.scheduler.lease(it.request()))
        while not it.store.granted:
            await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        gate.set()
        await it.settled()
        assert it.store.settled == [Unsent("1")]
        it.check_empty()


@virtual
async def test_a_lease_that_nobody_settled_counts_as_lost() -> None:
    """Leaving the block without a settlement is the worst case: counted `settle_bound` from now (law 2)."""
    async with running_scheduler(pool(1, limit(1))) as it:
        with await it.scheduler.lease(it.request()):
            pass
        await it.settled()
        (settlement,) = it.store.settled
        assert isinstance(settlement, Spent)
        assert -10 * SECOND <= settlement.age <= -8 * SECOND
        it.check_empty()


@virtual
async def test_who_comes_when_there_is_plenty_is_served_without_an_exchange() -> None:
    """It is counted, told and settled as everybody is."""
    async with running_scheduler(pool(2, limit(100))) as it:
        await use(it, await it.scheduler.lease(it.request()))
        await it.settled()
        exchanges = len(it.recorder.events)
        await use(it, await it.scheduler.lease(it.request()), 0)
        lease = it.scheduler.try_lease(it.request("b"))
        assert lease is not None
        assert it.scheduler.in_flight == 1
        assert [budget.available for _, budget in it.scheduler.view.limits_left("b", "GET", "/")] == [197]
        assert {level.client: level.waiting for level in it.scheduler.view.levels()} == {"a": 0, "b": 0}
        await use(it, lease)
        await it.settled()
        told = [event for event in it.recorder.events[exchanges:] if isinstance(event, Exchanged)]
        assert sum(event.grants for event in told) == 2
        it.check_empty()


@virtual
async def test_nobody_is_served_by_what_was_told_long_ago() -> None:
    """A newcomer needs an exchange after a pause, when few tokens are left, or when others wait."""
    async with running_scheduler(pool(2, limit(PLENTIFUL // 2))) as it:
        await use(it, await it.scheduler.lease(it.request()), 0)
        assert it.scheduler.try_lease(it.request()) is None
    async with running_scheduler(pool(2, limit(100))) as it:
        await use(it, await it.scheduler.lease(it.request()), 0)
        await it.settled()
        await asyncio.sleep(1)
        assert it.scheduler.try_lease(it.request()) is None
        await use(it, await it.scheduler.lease(it.request()), 0)
        waiting = task_of(it.scheduler.lease(it.request()))
        await asyncio.sleep(0)
        assert it.scheduler.try_lease(it.request()) is None
        await use(it, await waiting)


@virtual
async def test_who_is_served_at_once_is_spoken_of_until_it_is_settled() -> None:
    """A replica that holds a lease gives a sign of life (law 2), however it has got it."""
    async with running_scheduler(pool(2, limit(100))) as it:
        await use(it, await it.scheduler.lease(it.request()))
        await it.settled()
        await use(it, await it.scheduler.lease(it.request()), 0)
        lease = it.scheduler.try_lease(it.request())
        assert lease is not None
        with lease:
            await it.settled()
            before = len(it.recorder.events)
            await asyncio.sleep(60)
            assert len(it.recorder.events) >= before + 60 * SECOND // HEARTBEAT - 1
            lease.spent()


@virtual
async def test_what_an_answer_has_told_counts_for_who_comes_next() -> None:
    """Plenty is at hand as far as the store knows; but others spend (law 9), or a 429 closed the key."""
    for told in ("foreign", "refused"):
        async with running_scheduler(pool(1, limit(100))) as it:
            await use(it, await it.scheduler.lease(it.request()))
            await it.settled()
            await use(it, await it.scheduler.lease(it.request()), 0)
            with await it.scheduler.lease(it.request()) as lease:
                if told == "foreign":
                    lease.spent((ObservedLimit(0, 0, 30 * SECOND),))
                else:
                    lease.throttled(30 * SECOND, (0,))
            with pytest.raises(TooMany):
                await it.scheduler.lease(it.request(wait=0))


async def crowd(it: RunningScheduler, number: int) -> "list[asyncio.Task[Lease]]":
    """Spend the only token, and let so many requests of other clients wait."""
    await use(it, await it.scheduler.lease(it.request()))
    tasks = [task_of(it.scheduler.lease(it.request(f"c{one}", wait=10**6 * SECOND))) for one in range(number)]
    await asyncio.sleep(0.1)
    return tasks


async def end(tasks: "list[asyncio.Task[Lease]]") -> None:
    """All of them leave."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@virtual
async def test_hopeless_newcomers_of_a_crowd_are_refused_without_an_exchange() -> None:
    """A recent snapshot tells that they cannot be served in time, whether others of their flow wait or not."""
    async with running_scheduler(pool(1, limit(1))) as it:
        tasks = await crowd(it, FORESIGHT_WAITING)
        exchanges = len(it.recorder.events)
        for client in ("a", "c0", "new"):
            with pytest.raises(TooMany) as refusal:
                await it.scheduler.lease(it.request(client, wait=SECOND))
            assert refusal.value.reason == "deadline"
            assert (refusal.value.retry_after or 0) > 60
            with pytest.raises(TooMany):
                it.scheduler.admit(it.request(client, wait=0))
        assert len(it.recorder.events) == exchanges
        await end(tasks)


@virtual
async def test_newcomers_that_may_be_served_take_part_in_an_exchange() -> None:
    """So do those that wait for a slot, all while little waits, and all while the store has not been told something."""
    async with running_scheduler(pool(1, limit(1))) as it:
        tasks = await crowd(it, FORESIGHT_WAITING)
        loop, now = it.scheduler._loop, micros()

        def foreseen(request: Waiter) -> bool:
            request.order = (True, 3, 999)
            return loop.foresee(request, now) is not None

        assert foreseen(it.request("new", wait=0))
        assert not foreseen(it.request("new", wait=10**5 * SECOND))
        assert not foreseen(it.request("new", wait=0, max_in_flight=0))
        it.scheduler._availability.doubted = True
        assert not foreseen(it.request("new", wait=0))
        it.scheduler._availability.doubted = False
        await end(tasks[:1])
        assert not foreseen(it.request("new", wait=0))
        await end(tasks)
