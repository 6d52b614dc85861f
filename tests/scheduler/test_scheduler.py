import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from keyturn.core.errors import NoKey, ShuttingDown, StoreLost, TooMany
from keyturn.core.events import Exchanged
from keyturn.core.exchange import HEARTBEAT, ObservedLimit, Spent, Unsent
from keyturn.core.model import MILLISECOND, SECOND, Client, Pool
from keyturn.scheduler import Lease
from keyturn.scheduler.alarm import BATCHING
from keyturn.scheduler.deadlines import FIRST_WORD
from keyturn.scheduler.stock import PLENTY

from tests.core.worlds import limit, pool
from tests.rooms import Room, room
from tests.virtual import micros, run, task_of, virtual

W = 60.13
"""The stretched window of 60 s, in seconds."""


async def use(room_: Room, lease: Lease, trip: float = 0.1) -> None:
    """Send a request under the lease; its answer begins after the trip."""
    with lease:
        await asyncio.sleep(trip)
        lease.spent()


@virtual
async def test_a_token_at_hand_is_handed_over_at_once() -> None:
    """Nobody waits for what is at hand (law 3)."""
    async with room(pool(1, limit(2))) as it:
        began = micros()
        lease = await it.scheduler.lease(it.ticket())
        assert micros() == began
        assert lease.key.name == "k0"
        await use(it, lease)
        await it.settled()
        it.check_empty()


@virtual
async def test_who_waits_is_served_within_50_ms_of_its_tokens_return() -> None:
    """A returning token is granted when it returns (law 3)."""
    async with room(pool(1, limit(1))) as it:
        await use(it, await it.scheduler.lease(it.ticket()))
        counted = micros()
        await use(it, await it.scheduler.lease(it.ticket()))
        assert 0 <= micros() - counted - int(W * SECOND) - 100 * MILLISECOND <= 50 * MILLISECOND


@virtual
async def test_a_cancelled_lease_frees_its_token_for_who_waits() -> None:
    """Unsent tokens go to the next within 50 ms (law 3)."""
    async with room(pool(1, limit(1))) as it:
        lease = await it.scheduler.lease(it.ticket())
        waiting = task_of(it.scheduler.lease(it.ticket()))
        await asyncio.sleep(5)
        began = micros()
        with lease:
            lease.unsent()
        second = await waiting
        assert micros() - began <= 50 * MILLISECOND
        await use(it, second)


@virtual
async def test_tokens_that_come_back_unused_are_not_batched() -> None:
    """During an outage requests give their leases back one after another; each would hold up those behind it."""
    async with room(pool(1, limit(1))) as it:

        async def give_back() -> None:
            with await it.scheduler.lease(it.ticket(wait=10_000 * SECOND)) as lease:
                lease.unsent()

        began = micros()
        await asyncio.gather(*(task_of(give_back()) for _ in range(50)))
        assert micros() - began <= BATCHING


@virtual
async def test_urgency_then_arrival_orders_a_lane() -> None:
    """Within a flow the lower urgency number goes first, equals by arrival (law 5)."""
    async with room(pool(1, limit(1, SECOND))) as it:
        await use(it, await it.scheduler.lease(it.ticket()))
        order: list[str] = []

        async def wait(name: str, urgency: int) -> None:
            lease = await it.scheduler.lease(it.ticket(urgency=urgency))
            order.append(name)
            await use(it, lease)

        names = [("late", 5), ("first", 3), ("second", 3), ("urgent", 0)]
        async with asyncio.TaskGroup() as tasks:
            for name, urgency in names:
                tasks.create_task(wait(name, urgency))
                await asyncio.sleep(0)
        assert order == ["urgent", "first", "second", "late"]


@virtual
async def test_what_comes_back_goes_to_the_head_of_its_lane() -> None:
    """A request that the upstream refused overtakes even more urgent ones of its client."""
    async with room(pool(1, limit(1, SECOND))) as it:
        await use(it, await it.scheduler.lease(it.ticket()))
        order: list[str] = []

        async def wait(name: str, urgency: int, front: bool) -> None:
            lease = await it.scheduler.lease(it.ticket(urgency=urgency), front=front)
            order.append(name)
            await use(it, lease)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(wait("urgent", 0, False))
            tasks.create_task(wait("back", 7, True))
        assert order == ["back", "urgent"]


@virtual
async def test_urgency_takes_nothing_from_another_client() -> None:
    """Two clients share evenly however urgent one's requests are (laws 4 and 5)."""
    async with room(pool(1, limit(1, SECOND))) as it:
        await use(it, await it.scheduler.lease(it.ticket()))
        served: list[str] = []

        async def wait(client: str, urgency: int) -> None:
            lease = await it.scheduler.lease(it.ticket(client, urgency=urgency))
            served.append(client)
            await use(it, lease)

        async with asyncio.TaskGroup() as tasks:
            for client, urgency in [("calm", 7), ("urgent", 0)]:
                for _ in range(10):
                    tasks.create_task(wait(client, urgency))
        assert abs(served[:10].count("calm") - served[:10].count("urgent")) <= 1


@virtual
async def test_a_turn_beyond_the_deadline_is_refused_at_once_with_its_time() -> None:
    """Law 6: refused in the same moment, `Retry-After` is when it could have come."""
    async with room(pool(1, limit(1))) as it:
        await use(it, await it.scheduler.lease(it.ticket()))
        began = micros()
        with pytest.raises(TooMany) as refusal:
            await it.scheduler.lease(it.ticket(wait=30 * SECOND))
        assert micros() - began < 20 * MILLISECOND
        assert refusal.value.reason == "deadline"
        assert refusal.value.retry_after == 61
        assert it.scheduler.waiting == 0


@virtual
async def test_who_honours_retry_after_is_served() -> None:
    """A refused caller that comes back after `Retry-After` gets its lease at once."""
    async with room(pool(1, limit(2))) as it:
        for _ in range(2):
            await use(it, await it.scheduler.lease(it.ticket()), 0.3)
        with pytest.raises(TooMany) as refusal:
            await it.scheduler.lease(it.ticket(wait=0))
        assert refusal.value.retry_after
        await asyncio.sleep(refusal.value.retry_after)
        began = micros()
        await use(it, await it.scheduler.lease(it.ticket(wait=0)), 0)
        assert micros() == began


@virtual
async def test_a_crowd_is_told_when_each_of_them_can_come() -> None:
    """Of many refused at once, those whose turns lie a window further are told so.

    A token that idles until its caller is back at 61 s returns a window after that, not after the estimate.
    """
    async with room(pool(1, limit(2))) as it:
        for _ in range(2):
            await use(it, await it.scheduler.lease(it.ticket()))

        async def told() -> int:
            try:
                await it.scheduler.lease(it.ticket(wait=SECOND))
            except TooMany as refusal:
                return refusal.retry_after or 0
            raise AssertionError

        waits = await asyncio.gather(*(told() for _ in range(6)))
        assert sorted(waits) == [61, 61, 122, 122, 183, 183]


@virtual
async def test_nobody_waits_beyond_its_deadline() -> None:
    """A turn that gets later than was foretold ends at the deadline (law 6)."""
    async with room(pool(1, limit(1))) as it:
        slow = await it.scheduler.lease(it.ticket())
        began = micros()
        with pytest.raises(TooMany):
            await it.scheduler.lease(it.ticket(wait=61 * SECOND))
        assert micros() - began <= 61 * SECOND + MILLISECOND
        with slow:
            slow.spent()


@virtual
async def test_deadlines_hold_while_the_store_is_silent() -> None:
    """Law 6 needs no answer of the store: neither from one that hangs, nor from one that is lost."""
    async with room(pool(1, limit(1))) as it:
        await use(it, await it.scheduler.lease(it.ticket()))
        answering = it.store.exchange

        async def silent(*_: Any) -> Any:
            await asyncio.Event().wait()

        async def lost(*_: Any) -> Any:
            raise StoreLost("gone")

        waiting = task_of(it.scheduler.lease(it.ticket(wait=100 * SECOND)))
        began = micros()
        await asyncio.sleep(1)
        it.store.exchange = lost  # type: ignore[method-assign, assignment]  # a store that is lost
        newcomer = task_of(it.scheduler.lease(it.ticket(wait=50 * SECOND)))
        with pytest.raises(TooMany) as caught:
            await newcomer
        assert caught.value.reason == "store_lost", "nobody is told of a turn that nobody knows"
        assert micros() - began <= 51 * SECOND + MILLISECOND
        it.store.exchange = silent  # type: ignore[method-assign, assignment]  # a store that hangs
        for wait in (0, 2 * SECOND, 3 * SECOND):
            came = micros()
            with pytest.raises(TooMany) as caught:
                async with asyncio.timeout(60):
                    await it.scheduler.lease(it.ticket(wait=wait))
            assert caught.value.reason == "store_lost"
            assert micros() - came <= max(wait, FIRST_WORD) + MILLISECOND
        with pytest.raises(TooMany):
            await waiting
        assert micros() - began <= 100 * SECOND + MILLISECOND
        it.store.exchange = answering  # type: ignore[method-assign]


@virtual
async def test_a_broken_exchange_is_not_kept_quiet() -> None:
    """A bug in the exchange ends in `failure`, so that the process ends and is started anew."""
    async with room(pool(1, limit(1))) as it:

        async def broken(*_: Any) -> Any:
            raise ZeroDivisionError

        answering = it.store.exchange
        it.store.exchange = broken  # type: ignore[method-assign, assignment]  # a store with a bug
        waiting = task_of(it.scheduler.lease(it.ticket()))
        with pytest.raises(ZeroDivisionError):
            await it.scheduler.failure()
        it.store.exchange = answering  # type: ignore[method-assign]
        waiting.cancel()


@virtual
async def test_who_is_pushed_behind_its_deadline_is_told_before_it() -> None:
    """An admitted request whose turn others push too far is refused when that is known (law 6)."""
    async with room(pool(1, limit(1, 10 * SECOND))) as it:
        await use(it, await it.scheduler.lease(it.ticket()))
        began = micros()

        async def patient() -> int:
            with pytest.raises(TooMany):
                await it.scheduler.lease(it.ticket(wait=12 * SECOND))
            return micros() - began

        task = task_of(patient())
        await asyncio.sleep(1)
        urgent = task_of(it.scheduler.lease(it.ticket(urgency=0, wait=300 * SECOND)))
        assert await task < 2 * SECOND
        await use(it, await urgent)


@virtual
async def test_a_full_queue_refuses_at_once() -> None:
    """Every queue has a bound, of the room and of each client."""
    async with room(pool(1, limit(1)), max_waiting=3) as it:
        await use(it, await it.scheduler.lease(it.ticket()))
        waiting = [task_of(it.scheduler.lease(it.ticket())) for _ in range(3)]
        await asyncio.sleep(0.1)
        with pytest.raises(TooMany) as refusal:
            await it.scheduler.lease(it.ticket())
        assert refusal.value.reason == "queue_full"
        assert (refusal.value.retry_after or 0) > 60
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        await it.settled()
        it.check_empty()


@virtual
async def test_a_clients_own_bound_is_kept() -> None:
    """`max_waiting` of a client holds for it alone."""
    async with room(pool(1, limit(1))) as it:
        await use(it, await it.scheduler.lease(it.ticket()))
        ticket = it.ticket("small")
        bounded = type(ticket)(Client("small", max_waiting=0), ticket.demand_class, ticket.deadline)
        with pytest.raises(TooMany) as refusal:
            await it.scheduler.lease(bounded)
        assert refusal.value.reason == "queue_full"


@virtual
async def test_a_pool_without_keys_says_so() -> None:
    """No key: 503 at once, not a hang."""
    async with room(Pool("default", (), (limit(1),))) as it:
        with pytest.raises(NoKey):
            await it.scheduler.lease(it.ticket())


@virtual
async def test_a_drained_room_refuses_who_waits_and_who_comes() -> None:
    """After `refuse_all` everybody gets 503."""
    async with room(pool(1, limit(1))) as it:
        await use(it, await it.scheduler.lease(it.ticket()))
        waiting = task_of(it.scheduler.lease(it.ticket()))
        await asyncio.sleep(0.1)
        it.scheduler.refuse_all()
        with pytest.raises(ShuttingDown):
            await waiting
        with pytest.raises(ShuttingDown):
            await it.scheduler.lease(it.ticket())


@virtual
async def test_leaving_the_queue_frees_the_place_at_once() -> None:
    """A cancelled request is out of the flow in the same tick, and costs no token."""
    async with room(pool(1, limit(1))) as it:
        await use(it, await it.scheduler.lease(it.ticket()))
        waiting = task_of(it.scheduler.lease(it.ticket()))
        await asyncio.sleep(1)
        assert it.scheduler.waiting == 1
        waiting.cancel()
        await asyncio.sleep(0)
        assert it.scheduler.waiting == 0
        await it.settled()
        assert len(it.store.granted) == 1
        it.check_empty()


@virtual
async def test_a_waiter_that_dies_in_the_tick_of_its_grant_gives_the_lease_back() -> None:
    """Cancelled after the hand-over and before it ran: the token returns unsent."""
    async with room(pool(1, limit(1))) as it:
        waiting = task_of(it.scheduler.lease(it.ticket()))
        while not it.store.granted:
            await asyncio.sleep(0)
        assert not waiting.done()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await it.settled()
        assert it.store.settled == [Unsent("1")]
        it.check_empty()


@virtual
async def test_a_grant_for_a_lane_that_emptied_meanwhile_goes_back() -> None:
    """The store's answer may come after the waiter left: the lease is given back."""
    async with room(pool(1, limit(1))) as it:
        gate = asyncio.Event()
        inner = it.store.exchange

        async def slow(*args: Any) -> Any:
            answer = await inner(*args)
            await gate.wait()
            return answer

        it.store.exchange = slow  # type: ignore[method-assign, assignment]  # a store that answers late
        waiting = task_of(it.scheduler.lease(it.ticket()))
        while not it.store.granted:
            await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        gate.set()
        await it.settled()
        assert it.store.settled == [Unsent("1")]
        it.check_empty()


@virtual
async def test_a_lease_is_stale_after_use_by() -> None:
    """A paused process does not send on an old lease (law 10)."""
    async with room(pool(1, limit(1))) as it:
        with await it.scheduler.lease(it.ticket()) as lease:
            assert lease.fresh()
            await asyncio.sleep(1)
            assert not lease.fresh()
            lease.unsent()


@virtual
async def test_a_lease_that_nobody_settled_counts_as_lost() -> None:
    """Leaving the block without a settlement is the worst case: counted `settle_bound` from now (law 2)."""
    async with room(pool(1, limit(1))) as it:
        with await it.scheduler.lease(it.ticket()):
            pass
        await it.settled()
        (settlement,) = it.store.settled
        assert isinstance(settlement, Spent)
        assert -10 * SECOND <= settlement.age <= -8 * SECOND
        it.check_empty()


@virtual
async def test_a_request_in_flight_keeps_its_token_until_its_answer() -> None:
    """An upstream that stands still never has more than the limit unanswered, however long that lasts (law 1)."""
    async with room(pool(1, limit(1))) as it:
        waiting = []
        with await it.scheduler.lease(it.ticket()) as lease:
            lease.written()
            waiting.append(task_of(it.scheduler.lease(it.ticket(wait=1_000 * SECOND))))
            await asyncio.sleep(200)
            assert not it.store.settled
            assert not waiting[0].done()
            lease.spent()
            answered = micros()
        await use(it, await waiting[0])
        assert 60 * SECOND <= micros() - answered <= 61 * SECOND
        await it.settled()
        it.check_empty()


@virtual
async def test_a_request_that_ends_without_an_answer_counts_from_its_end() -> None:
    """The upstream may have taken it in until then, `settle_bound` after it was written or not."""
    async with room(pool(1, limit(1))) as it:
        with await it.scheduler.lease(it.ticket()) as lease:
            lease.written()
            await asyncio.sleep(200)
            ended = micros()
        await it.settled()
        (limit_,) = it.store.revision.limits
        returns = it.store.state.tokens.returns[limit_.id]
        assert returns.first() == (ended + limit_.window, f"!{lease.id}@k0")
        it.check_empty()


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(0, 5), st.booleans()), max_size=40))
def test_any_pattern_of_cancellations_leaves_nothing_behind(callers: list[tuple[int, float, bool]]) -> None:
    """Whenever callers leave, in the end nobody waits and every token is accounted for (law 2)."""

    async def scenario() -> None:
        async with room(pool(2, limit(2, 3 * SECOND))) as it:

            async def call(client: int, patience: float, sends: bool) -> None:
                try:
                    async with asyncio.timeout(patience):
                        with await it.scheduler.lease(it.ticket(f"c{client}", wait=10 * SECOND)) as lease:
                            if sends:
                                await asyncio.sleep(0.2)
                                lease.spent()
                            else:
                                lease.unsent()
                except (TimeoutError, TooMany):
                    pass

            await asyncio.gather(*(call(*caller) for caller in callers))
            await it.settled()
            it.check_empty()

    run(scenario())


@virtual
async def test_who_comes_when_there_is_plenty_is_served_without_an_exchange() -> None:
    """It is counted, told and settled as everybody is."""
    async with room(pool(2, limit(100))) as it:
        await use(it, await it.scheduler.lease(it.ticket()))
        await it.settled()
        exchanges = len(it.recorder.events)
        await use(it, await it.scheduler.lease(it.ticket()), 0)
        lease = it.scheduler.try_lease(it.ticket("b"))
        assert lease is not None
        assert it.scheduler.in_flight == 1
        assert [budget.available for _, budget in it.scheduler.standing("b", "GET", "/")] == [197]
        assert {level.client: level.waiting for level in it.scheduler.levels()} == {"a": 0, "b": 0}
        await use(it, lease)
        await it.settled()
        told = [event for event in it.recorder.events[exchanges:] if isinstance(event, Exchanged)]
        assert sum(event.grants for event in told) == 2
        it.check_empty()


@virtual
async def test_nobody_is_served_by_what_was_told_long_ago() -> None:
    """Who comes after a while has to ask, and so has who comes when little is left, or others wait."""
    async with room(pool(2, limit(PLENTY // 2))) as it:
        await use(it, await it.scheduler.lease(it.ticket()), 0)
        assert it.scheduler.try_lease(it.ticket()) is None
    async with room(pool(2, limit(100))) as it:
        await use(it, await it.scheduler.lease(it.ticket()), 0)
        await it.settled()
        await asyncio.sleep(1)
        assert it.scheduler.try_lease(it.ticket()) is None
        await use(it, await it.scheduler.lease(it.ticket()), 0)
        waiting = task_of(it.scheduler.lease(it.ticket()))
        await asyncio.sleep(0)
        assert it.scheduler.try_lease(it.ticket()) is None
        await use(it, await waiting)


@virtual
async def test_who_is_served_at_once_is_spoken_of_until_it_is_settled() -> None:
    """A replica that holds a lease gives a sign of life (law 2), however it has got it."""
    async with room(pool(2, limit(100))) as it:
        await use(it, await it.scheduler.lease(it.ticket()))
        await it.settled()
        await use(it, await it.scheduler.lease(it.ticket()), 0)
        lease = it.scheduler.try_lease(it.ticket())
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
        async with room(pool(1, limit(100))) as it:
            await use(it, await it.scheduler.lease(it.ticket()))
            await it.settled()
            await use(it, await it.scheduler.lease(it.ticket()), 0)
            with await it.scheduler.lease(it.ticket()) as lease:
                if told == "foreign":
                    lease.spent((ObservedLimit(0, 0, 30 * SECOND),))
                else:
                    lease.throttled(30 * SECOND, (0,))
            with pytest.raises(TooMany):
                await it.scheduler.lease(it.ticket(wait=0))
