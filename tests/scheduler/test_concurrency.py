import asyncio
from collections import Counter
from contextlib import AsyncExitStack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keyturn.core.errors import TooMany
from keyturn.core.exchange import Unsent
from keyturn.core.model import MILLISECOND, SECOND
from keyturn.scheduler import ConcurrencyLimit, Lease, Waiter

from tests.core.worlds import limit, pool
from tests.schedulers import RunningScheduler, running_scheduler
from tests.virtual import micros, run, task_of, virtual

PLENTIFUL = limit(10_000)


async def use(it: RunningScheduler, lease: Lease, trip: float = 0.1) -> None:
    """Send a request under the lease, and read its answer."""
    with lease:
        await asyncio.sleep(trip)
        lease.spent()


async def ask(it: RunningScheduler, ticket: Waiter, trip: float = 0.1) -> None:
    """A request as the gateway sends it."""
    await use(it, it.scheduler.try_lease(ticket) or await it.scheduler.lease(ticket), trip)


def returned(it: RunningScheduler) -> list[Unsent]:
    """Leases that were given back unused."""
    return [one for one in it.store.settled if isinstance(one, Unsent)]


@virtual
async def test_a_client_at_its_cap_waits_without_a_token() -> None:
    """The next request gets one at the moment at which another ends."""
    async with running_scheduler(pool(1, limit(9))) as it:
        first = await it.scheduler.lease(it.request(max_in_flight=1))
        waiting = task_of(it.scheduler.lease(it.request(max_in_flight=1)))
        await asyncio.sleep(5)
        assert it.scheduler.waiting == 1
        assert len(it.store.granted) == 1
        assert it.scheduler.try_lease(it.request(max_in_flight=1)) is None
        ended = micros()
        with first:
            first.spent()
        second = await waiting
        assert micros() - ended <= 50 * MILLISECOND
        await use(it, second)
        await it.settled()
        it.check_empty()


@virtual
async def test_a_caller_that_leaves_gives_back_its_place() -> None:
    """Whether it waits for one, or has just got one."""
    async with running_scheduler(pool(1, PLENTIFUL), limit=ConcurrencyLimit(1)) as it:
        first = await it.scheduler.lease(it.request())
        leaving, staying = (task_of(it.scheduler.lease(it.request())) for _ in range(2))
        await asyncio.sleep(1)
        leaving.cancel()
        with first:
            first.spent()
        await use(it, await staying)
        for turns in range(8):
            last = task_of(it.scheduler.lease(it.request()))
            for _ in range(turns):
                await asyncio.sleep(0)
            last.cancel()
            await asyncio.gather(last, return_exceptions=True)
            if not last.cancelled():
                last.result().close()
            await ask(it, it.request())
        await it.settled()
        it.check_empty()


@virtual
async def test_places_that_are_scarce_are_shared_by_weight() -> None:
    """Though there is a token for everybody, and however many of a client wait; and no lease goes back unused."""
    async with running_scheduler(pool(1, PLENTIFUL), limit=ConcurrencyLimit(2)) as it:
        served: Counter[str] = Counter()

        async def one(client: str, weight: int) -> None:
            await ask(it, it.request(client, weight=weight))
            served[client] += 1

        tasks = [task_of(one(name, weight)) for name, weight in (("a", 1), ("b", 3), ("c", 1)) for _ in range(200)]
        await asyncio.sleep(5.05)
        assert sum(served.values()) == 100
        assert abs(served["b"] - 60) <= 1
        assert abs(served["a"] - served["c"]) <= 1
        assert returned(it) == []
        await asyncio.gather(*tasks)
        await it.settled()
        it.check_empty()


@virtual
async def test_who_waits_for_a_token_keeps_no_place_from_others() -> None:
    """The one place goes to a flow that has tokens, though the other asked first (law 3)."""
    async with running_scheduler(pool(2, limit(2)), limit=ConcurrencyLimit(1)) as it:
        pinned = it.request("a").on_quota("k0")
        for _ in range(2):
            await ask(it, pinned)
        waiting = task_of(ask(it, pinned))
        await asyncio.sleep(1)
        began = micros()
        await ask(it, it.request("b"), trip=0)
        assert micros() - began <= 50 * MILLISECOND
        await waiting
        assert returned(it) == []


@virtual
async def test_rooms_take_turns_in_the_places_that_they_share() -> None:
    """However many wait in one of them."""
    capacity = ConcurrencyLimit(1)
    async with AsyncExitStack() as stack:
        rooms = [
            await stack.enter_async_context(running_scheduler(pool(1, PLENTIFUL), limit=capacity)) for _ in range(2)
        ]
        order: list[int] = []

        async def one(number: int) -> None:
            await ask(rooms[number], rooms[number].request())
            order.append(number)

        tasks = [task_of(one(number)) for number in (0, 0, 0, 0, 0, 0, 1, 1, 1)]
        await asyncio.gather(*tasks)
        assert Counter(order[:7])[1] == 3
        for it in rooms:
            await it.settled()
            it.check_empty()
            assert returned(it) == []


@virtual
async def test_at_its_deadline_a_request_is_told_what_it_waited_for() -> None:
    """Its own client's cap, or the connections of all; and when one is expected to be free."""
    capacity = ConcurrencyLimit(2)
    async with running_scheduler(pool(1, PLENTIFUL), limit=capacity) as it:
        leases = [await it.scheduler.lease(it.request(max_in_flight=1))]
        await asyncio.sleep(20)
        with pytest.raises(TooMany, match=r"1 requests of a are in flight.*`max_in_flight`") as caught:
            await it.scheduler.lease(it.request(wait=0, max_in_flight=1))
        assert (caught.value.reason, caught.value.retry_after) == ("max_in_flight", 20)
        await asyncio.sleep(1)
        leases.append(await it.scheduler.lease(it.request("b")))
        with pytest.raises(TooMany, match=r"All 2 connections.*`upstream.max_connections`") as caught:
            await it.scheduler.lease(it.request("c", wait=9 * SECOND))
        assert caught.value.reason == "max_connections"
        assert caught.value.retry_after == 20  # as long again as the two have lasted on average
        for lease in leases:
            with lease:
                lease.spent()
        await ask(it, it.request("c", wait=0))


@virtual
async def test_nobody_is_refused_at_once_for_want_of_a_place() -> None:
    """One may end at any time: the token's turn alone decides early, for as many as asked for one."""
    async with running_scheduler(pool(1, limit(1))) as it:
        await ask(it, it.request())
        holding = task_of(it.scheduler.lease(it.request("b", max_in_flight=1)))
        await asyncio.sleep(1)
        began = micros()
        with pytest.raises(TooMany) as caught:
            await it.scheduler.lease(it.request("b", wait=2 * SECOND, max_in_flight=1))
        assert caught.value.reason == "deadline"
        assert micros() - began == 2 * SECOND
        await use(it, await holding)


events = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 200), st.integers(0, 400)), min_size=1, max_size=60)


@settings(max_examples=50)
@given(events, st.integers(1, 4), st.integers(1, 3))
def test_places_are_never_more_than_there_are_and_none_idles(
    arrivals: list[tuple[str, int, int]], most: int, cap: int
) -> None:
    """For any arrivals and service times all are served, none later than needed, and no lease is returned."""

    async def scenario() -> None:
        in_flight: Counter[str] = Counter()
        waiting: Counter[str] = Counter()
        clients = {name: cap if name != "c" else None for name in "abc"}

        def idles() -> bool:
            free = sum(in_flight.values()) < most
            return free and any(waiting[name] and in_flight[name] < (clients[name] or most) for name in clients)

        async def one(name: str, come: int, trip: int) -> None:
            await asyncio.sleep(come / 1000)
            ticket = it.request(name, max_in_flight=clients[name])
            waiting[name] += 1
            lease = it.scheduler.try_lease(ticket) or await it.scheduler.lease(ticket)
            waiting[name] -= 1
            with lease:
                in_flight[name] += 1
                assert sum(in_flight.values()) <= most
                assert in_flight[name] <= (clients[name] or most)
                await asyncio.sleep(trip / 1000)
                lease.spent()
                in_flight[name] -= 1

        async def watch() -> None:
            while True:
                await asyncio.sleep(0.007)
                if idles():
                    await asyncio.sleep(0.05)
                    assert not idles() or sum(in_flight.values()) == 0

        async with running_scheduler(pool(1, PLENTIFUL), limit=ConcurrencyLimit(most)) as it:
            watching = task_of(watch())
            await asyncio.gather(*[one(*arrival) for arrival in arrivals])
            watching.cancel()
            await it.settled()
            it.check_empty()
            assert returned(it) == []

    run(scenario())
