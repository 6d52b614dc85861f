import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from keyturn.core.errors import NoKey, ShuttingDown, TooMany
from keyturn.core.exchange import Unsent
from keyturn.core.model import MILLISECOND, SECOND, Pool
from keyturn.scheduler import Lease

from tests.core.worlds import limit, pool
from tests.schedulers import RunningScheduler, running_scheduler
from tests.virtual import micros, run, task_of, virtual

W = 60.13
"""The stretched window of 60 s, in seconds."""


async def use(it: RunningScheduler, lease: Lease, trip: float = 0.1) -> None:
    """Send a request under the lease; its answer begins after the trip."""
    with lease:
        await asyncio.sleep(trip)
        lease.spent()


@virtual
async def test_a_token_at_hand_is_handed_over_at_once() -> None:
    """Nobody waits for what is at hand (law 3)."""
    async with running_scheduler(pool(1, limit(2))) as it:
        began = micros()
        lease = await it.scheduler.lease(it.request())
        assert micros() == began
        assert lease.key.name == "k0"
        await use(it, lease)
        await it.settled()
        it.check_empty()


@virtual
async def test_who_waits_is_served_within_50_ms_of_its_tokens_return() -> None:
    """A returning token is granted when it returns (law 3)."""
    async with running_scheduler(pool(1, limit(1))) as it:
        await use(it, await it.scheduler.lease(it.request()))
        counted = micros()
        await use(it, await it.scheduler.lease(it.request()))
        assert 0 <= micros() - counted - int(W * SECOND) - 100 * MILLISECOND <= 50 * MILLISECOND


@virtual
async def test_a_cancelled_lease_frees_its_token_for_who_waits() -> None:
    """Unsent tokens go to the next within 50 ms (law 3)."""
    async with running_scheduler(pool(1, limit(1))) as it:
        lease = await it.scheduler.lease(it.request())
        waiting = task_of(it.scheduler.lease(it.request()))
        await asyncio.sleep(5)
        began = micros()
        with lease:
            lease.unsent()
        second = await waiting
        assert micros() - began <= 50 * MILLISECOND
        await use(it, second)


@virtual
async def test_urgency_then_arrival_orders_a_lane() -> None:
    """Within a flow the lower urgency number goes first, equals by arrival (law 5)."""
    async with running_scheduler(pool(1, limit(1, SECOND))) as it:
        await use(it, await it.scheduler.lease(it.request()))
        order: list[str] = []

        async def wait(name: str, urgency: int) -> None:
            lease = await it.scheduler.lease(it.request(urgency=urgency))
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
    async with running_scheduler(pool(1, limit(1, SECOND))) as it:
        await use(it, await it.scheduler.lease(it.request()))
        order: list[str] = []

        async def wait(name: str, urgency: int, front: bool) -> None:
            lease = await it.scheduler.lease(it.request(urgency=urgency), front=front)
            order.append(name)
            await use(it, lease)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(wait("urgent", 0, False))
            tasks.create_task(wait("back", 7, True))
        assert order == ["back", "urgent"]


@virtual
async def test_urgency_takes_nothing_from_another_client() -> None:
    """Two clients share evenly however urgent one's requests are (laws 4 and 5)."""
    async with running_scheduler(pool(1, limit(1, SECOND))) as it:
        await use(it, await it.scheduler.lease(it.request()))
        served: list[str] = []

        async def wait(client: str, urgency: int) -> None:
            lease = await it.scheduler.lease(it.request(client, urgency=urgency))
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
    async with running_scheduler(pool(1, limit(1))) as it:
        await use(it, await it.scheduler.lease(it.request()))
        began = micros()
        with pytest.raises(TooMany) as refusal:
            await it.scheduler.lease(it.request(wait=30 * SECOND))
        assert micros() - began < 20 * MILLISECOND
        assert refusal.value.reason == "deadline"
        assert refusal.value.retry_after == 61
        assert it.scheduler.waiting == 0


@virtual
async def test_who_honours_retry_after_is_served() -> None:
    """A refused caller that comes back after `Retry-After` gets its lease at once."""
    async with running_scheduler(pool(1, limit(2))) as it:
        for _ in range(2):
            await use(it, await it.scheduler.lease(it.request()), 0.3)
        with pytest.raises(TooMany) as refusal:
            await it.scheduler.lease(it.request(wait=0))
        assert refusal.value.retry_after
        await asyncio.sleep(refusal.value.retry_after)
        began = micros()
        await use(it, await it.scheduler.lease(it.request(wait=0)), 0)
        assert micros() == began


@virtual
async def test_a_crowd_is_told_when_each_of_them_can_come() -> None:
    """Requests refused at once are told the window in which their own token returns.

    A token that idles until its caller is back at 61 s returns a window after that, not after the estimate.
    """
    async with running_scheduler(pool(1, limit(2))) as it:
        for _ in range(2):
            await use(it, await it.scheduler.lease(it.request()))

        async def told() -> int:
            try:
                await it.scheduler.lease(it.request(wait=SECOND))
            except TooMany as refusal:
                return refusal.retry_after or 0
            raise AssertionError

        waits = await asyncio.gather(*(told() for _ in range(6)))
        assert sorted(waits) == [61, 61, 122, 122, 183, 183]


@virtual
async def test_nobody_waits_beyond_its_deadline() -> None:
    """A turn that gets later than was foretold ends at the deadline (law 6)."""
    async with running_scheduler(pool(1, limit(1))) as it:
        slow = await it.scheduler.lease(it.request())
        began = micros()
        with pytest.raises(TooMany):
            await it.scheduler.lease(it.request(wait=61 * SECOND))
        assert micros() - began <= 61 * SECOND + MILLISECOND
        with slow:
            slow.spent()


@virtual
async def test_who_is_pushed_behind_its_deadline_is_told_before_it() -> None:
    """An admitted request whose turn others push too far is refused when that is known (law 6)."""
    async with running_scheduler(pool(1, limit(1, 10 * SECOND))) as it:
        await use(it, await it.scheduler.lease(it.request()))
        began = micros()

        async def patient() -> int:
            with pytest.raises(TooMany):
                await it.scheduler.lease(it.request(wait=12 * SECOND))
            return micros() - began

        task = task_of(patient())
        await asyncio.sleep(1)
        urgent = task_of(it.scheduler.lease(it.request(urgency=0, wait=300 * SECOND)))
        assert await task < 2 * SECOND
        await use(it, await urgent)


@virtual
async def test_a_full_queue_refuses_at_once() -> None:
    """Every queue has a bound, of the room and of each client."""
    async with running_scheduler(pool(1, limit(1)), max_waiting=3) as it:
        await use(it, await it.scheduler.lease(it.request()))
        waiting = [task_of(it.scheduler.lease(it.request())) for _ in range(3)]
        await asyncio.sleep(0.1)
        with pytest.raises(TooMany) as refusal:
            await it.scheduler.lease(it.request())
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
    async with running_scheduler(pool(1, limit(1))) as it:
        await use(it, await it.scheduler.lease(it.request()))
        with pytest.raises(TooMany) as refusal:
            await it.scheduler.lease(it.request("small", max_waiting=0))
        assert refusal.value.reason == "queue_full"


@virtual
async def test_a_pool_without_keys_says_so() -> None:
    """No key: 503 at once, not a hang."""
    async with running_scheduler(Pool("default", (), (limit(1),))) as it:
        with pytest.raises(NoKey):
            await it.scheduler.lease(it.request())


@virtual
async def test_a_drained_room_refuses_who_waits_and_who_comes() -> None:
    """After `refuse_all` everybody gets 503."""
    async with running_scheduler(pool(1, limit(1))) as it:
        await use(it, await it.scheduler.lease(it.request()))
        waiting = task_of(it.scheduler.lease(it.request()))
        await asyncio.sleep(0.1)
        it.scheduler.close()
        with pytest.raises(ShuttingDown):
            await waiting
        with pytest.raises(ShuttingDown):
            await it.scheduler.lease(it.request())


@virtual
async def test_leaving_the_queue_frees_the_place_at_once() -> None:
    """A cancelled request is out of the flow in the same tick, and costs no token."""
    async with running_scheduler(pool(1, limit(1))) as it:
        await use(it, await it.scheduler.lease(it.request()))
        waiting = task_of(it.scheduler.lease(it.request()))
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
    async with running_scheduler(pool(1, limit(1))) as it:
        waiting = task_of(it.scheduler.lease(it.request()))
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
async def test_a_lease_is_stale_after_use_by() -> None:
    """A paused process does not send on an old lease (law 10)."""
    async with running_scheduler(pool(1, limit(1))) as it:
        with await it.scheduler.lease(it.request()) as lease:
            assert lease.fresh()
            await asyncio.sleep(1)
            assert not lease.fresh()
            lease.unsent()


@virtual
async def test_a_request_in_flight_keeps_its_token_until_its_answer() -> None:
    """An upstream that stands still never has more than the limit unanswered, however long that lasts (law 1)."""
    async with running_scheduler(pool(1, limit(1))) as it:
        waiting = []
        with await it.scheduler.lease(it.request()) as lease:
            lease.written()
            waiting.append(task_of(it.scheduler.lease(it.request(wait=1_000 * SECOND))))
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
    async with running_scheduler(pool(1, limit(1))) as it:
        with await it.scheduler.lease(it.request()) as lease:
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
        async with running_scheduler(pool(2, limit(2, 3 * SECOND))) as it:

            async def call(client: int, patience: float, sends: bool) -> None:
                try:
                    async with asyncio.timeout(patience):
                        with await it.scheduler.lease(it.request(f"c{client}", wait=10 * SECOND)) as lease:
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
