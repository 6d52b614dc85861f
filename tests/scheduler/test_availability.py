import asyncio

from keyturn.core.exchange import DemandClass, EstimatedWaits, LimitTokens, ObservedLimit
from keyturn.core.model import SECOND, Client
from keyturn.core.recent import Count
from keyturn.scheduler import Waiter
from keyturn.scheduler.availability import (
    MAX_AVAILABILITY_AGE,
    PLENTIFUL,
    AvailabilityCache,
    general_limits,
    next_token,
    share_of,
)
from keyturn.scheduler.waiter import Queue

from tests.core.worlds import flow, limit, pool
from tests.schedulers import running_scheduler
from tests.virtual import micros, task_of, virtual


def test_there_is_plenty_while_what_was_told_is_fresh() -> None:
    """Nothing is served by what was told long ago, or not at all."""
    cache = AvailabilityCache()
    assert not cache.is_plentiful((), SECOND)
    cache.update((LimitTokens(100, PLENTIFUL, 0), LimitTokens(100, PLENTIFUL - 1, 0)), SECOND)
    assert cache.is_plentiful((0,), SECOND + MAX_AVAILABILITY_AGE)
    assert not cache.is_plentiful((0,), SECOND + MAX_AVAILABILITY_AGE + 1)
    assert not cache.is_plentiful((0, 1), SECOND)
    cache.forget()
    assert not cache.is_plentiful((0,), SECOND)


def test_nobody_is_served_by_what_is_known_to_be_wrong() -> None:
    """Until the next exchange, which tells of what an answer has told."""
    cache = AvailabilityCache()
    cache.update((LimitTokens(100, PLENTIFUL, 0),), SECOND)
    cache.doubted = True
    assert not cache.is_plentiful((0,), SECOND)
    cache.update((LimitTokens(100, PLENTIFUL, 0),), SECOND)
    assert cache.is_plentiful((0,), SECOND)


def test_what_is_taken_is_not_at_hand_any_more() -> None:
    """A grant without an exchange shows as taken, and is counted with the next exchange."""
    cache = AvailabilityCache()
    cache.update((LimitTokens(100, 90, 0), LimitTokens(50, 40, SECOND)), SECOND)
    cache.take((1,))
    cache.take((0, 1))
    assert cache.tokens(2 * SECOND) == [LimitTokens(100, 89, 0), LimitTokens(50, 38, 0)]
    assert cache.update((), 3 * SECOND) == 2
    assert cache.update((), 3 * SECOND) == 0
    assert cache.tokens(3 * SECOND) == []


def test_tokens_that_were_left() -> None:
    """Tokens are shown for each limit asked for; nothing is known before the first exchange."""
    cache = AvailabilityCache()
    assert not cache.is_left((0,))
    cache.update((LimitTokens(5, 1, 0), LimitTokens(5, 0, 9)), 0)
    assert [cache.is_left(limits) for limits in ((0,), (1,), (0, 1), ())] == [True, False, False, True]


@virtual
async def test_a_lane_is_seen_with_its_length_its_oldest_and_its_next_turn() -> None:
    """The estimated wait is the one of the last snapshot, less the time since."""
    async with running_scheduler(pool(1, limit(1))) as it:
        with await it.scheduler.lease(it.request("b")) as lease:
            lease.spent()
        assert it.scheduler.view.queues() == []
        waiting = [task_of(it.scheduler.lease(it.request())) for _ in range(3)]
        await asyncio.sleep(20)
        (seen,) = it.scheduler.view.queues()
        assert (seen.client, seen.limits, seen.pinned, seen.waiting) == ("a", (0,), None, 3)
        assert seen.oldest == 20 * SECOND
        assert seen.estimated_wait is not None
        assert 39 * SECOND < seen.estimated_wait < 41 * SECOND
        for task in waiting:
            task.cancel()


@virtual
async def test_a_new_request_would_wait_behind_those_of_its_client() -> None:
    """Without any, for the next token; nothing while one is at hand."""
    async with running_scheduler(pool(1, limit(1))) as it:
        for client in ("a", "b"):
            with await it.scheduler.lease(it.request(client)) as lease:
                lease.spent()
        await it.settled()
        idle = {level.client: level.estimated_wait for level in it.scheduler.view.levels()}
        assert idle["a"] == idle["b"]
        assert 57 * SECOND < (idle["a"] or 0) < 61 * SECOND
        waiting = [task_of(it.scheduler.lease(it.request())) for _ in range(2)]
        await asyncio.sleep(1)
        busy = {level.client: level.estimated_wait for level in it.scheduler.view.levels()}
        assert (busy["a"] or 0) > 110 * SECOND > 61 * SECOND > (busy["b"] or 0)
        for task in waiting:
            task.cancel()
        await asyncio.sleep(70)
        assert {level.estimated_wait for level in it.scheduler.view.levels()} == {0}


@virtual
async def test_leases_are_counted_by_client() -> None:
    """For the shares of the last minute."""
    async with running_scheduler(pool(1, limit(5))) as it:
        for client in ("a", "b", "a"):
            with await it.scheduler.lease(it.request(client)) as lease:
                lease.spent()
        assert it.scheduler.view.granted.counts(micros()) == {"a": Count(2, 2), "b": Count(1, 1)}
        await asyncio.sleep(61)
        assert it.scheduler.view.granted.counts(micros())["a"] == Count(2, 0)


@virtual
async def test_a_pinned_lane_is_one_of_its_own() -> None:
    """It names the quota that it insists on."""
    async with running_scheduler(pool(2, limit(1))) as it:
        ticket = Waiter(Client("a"), DemandClass((0,), "k1"), micros() + 300 * SECOND, pinned="k1")
        with await it.scheduler.lease(ticket) as lease:
            lease.spent()
        waiting = task_of(it.scheduler.lease(ticket))
        await asyncio.sleep(1)
        assert [seen.pinned for seen in it.scheduler.view.queues()] == ["k1"]
        waiting.cancel()


def test_a_turn_that_is_not_foretold_is_unknown() -> None:
    """The store says so with no estimate at all; one that is overdue is now."""
    queue = Queue(flow(), estimates=EstimatedWaits())
    assert queue.estimate(0, 0) is None
    queue.take_estimates(EstimatedWaits((5 * SECOND,)), 0)
    assert queue.estimate(0, 2 * SECOND) == 3 * SECOND
    assert queue.estimate(0, 9 * SECOND) == 0


def test_limits_with_a_match_do_not_count_for_a_new_request() -> None:
    """It is told what any request would wait."""
    pool_ = pool(1, limit(5), limit(1, 10 * SECOND, "GET /collections"), limit(3, 20 * SECOND))
    tokens = (LimitTokens(5, 1, 50 * SECOND), LimitTokens(1, 0, 9 * SECOND), LimitTokens(3, 0, 8 * SECOND))
    assert general_limits(pool_) == (0, 2)
    assert next_token(pool_, tokens) == 8 * SECOND
    assert next_token(pool_, tokens[:2]) == 0
    assert next_token(pool_, ()) == 0


def test_what_is_left_is_shared_where_others_wait_for_it() -> None:
    """By weight, one request at the least; nobody waits for a limit of which tokens are available."""
    busy, idle = LimitTokens(180, 0, 9 * SECOND), LimitTokens(10, 4, SECOND)
    assert share_of(busy, (1, 3)) == LimitTokens(60, 0, 9 * SECOND)
    assert share_of(idle, (1, 3)) == idle
    assert share_of(busy, (2, 2)) == busy
    assert share_of(busy, (1, 1000)).size == 1


def test_an_answer_that_tells_of_clearly_less_contradicts_the_cache() -> None:
    """A twentieth of the limit is nothing yet; a limit that is not known neither."""
    cache = AvailabilityCache()
    cache.update((LimitTokens(100, 50, 0),), SECOND)
    assert cache.contradicted_by((ObservedLimit(0, 43, SECOND),), 1)
    assert not cache.contradicted_by((ObservedLimit(0, 44, SECOND),), 1)
    assert not cache.contradicted_by((ObservedLimit(0, 22, SECOND), ObservedLimit(1, 0, SECOND)), 2)


def test_a_debugger_shows_what_is_left() -> None:
    """Of each limit."""
    cache = AvailabilityCache()
    cache.update((LimitTokens(100, 90, 0),), SECOND)
    cache.take((0,))
    assert repr(cache) == "<AvailabilityCache [89] available>"
    cache.doubted = True
    assert repr(cache) == "<AvailabilityCache [89] available, doubted>"


@virtual
async def test_a_share_is_by_the_weights_of_who_waits() -> None:
    """A client's own requests are not others, and who has left or was served counts no more."""
    async with running_scheduler(pool(1, limit(6))) as it:

        def size(client: str) -> int:
            ((_, budget),) = it.scheduler.view.limits_left(client, "GET", "/")
            return budget.size

        for _ in range(6):
            with await it.scheduler.lease(it.request("a", weight=2)) as lease:
                lease.spent()
        await it.settled()
        assert size("a") == 6
        waiting = [task_of(it.scheduler.lease(it.request("a", weight=2))) for _ in range(2)]
        waiting.append(task_of(it.scheduler.lease(it.request("b"))))
        await asyncio.sleep(1)
        assert (size("a"), size("b"), size("stranger")) == (4, 2, 1)
        waiting[2].cancel()
        await asyncio.sleep(1)
        assert size("a") == 6
        for task in waiting:
            task.cancel()
