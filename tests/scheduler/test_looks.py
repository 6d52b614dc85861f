import asyncio

from keyturn.core.exchange import DemandClass, EstimatedWaits, LimitTokens
from keyturn.core.model import SECOND, Client, Limit
from keyturn.core.recent import Count
from keyturn.scheduler import Ticket
from keyturn.scheduler.lanes import Queue
from keyturn.scheduler.looks import general, left, next_token

from tests.core.worlds import flow, limit, pool
from tests.rooms import room
from tests.virtual import micros, task_of, virtual


@virtual
async def test_a_lane_is_seen_with_its_length_its_oldest_and_its_next_turn() -> None:
    """The turn is what the store foretold, less what has passed since."""
    async with room(pool(1, limit(1))) as it:
        with await it.scheduler.lease(it.ticket("b")) as lease:
            lease.spent()
        assert it.scheduler.lanes() == []
        waiting = [task_of(it.scheduler.lease(it.ticket())) for _ in range(3)]
        await asyncio.sleep(20)
        (seen,) = it.scheduler.lanes()
        assert (seen.client, seen.limits, seen.pinned, seen.waiting) == ("a", (0,), None, 3)
        assert seen.oldest == 20 * SECOND
        assert seen.turn is not None
        assert 39 * SECOND < seen.turn < 41 * SECOND
        for task in waiting:
            task.cancel()


@virtual
async def test_a_new_request_would_wait_behind_those_of_its_client() -> None:
    """Without any, for the next token; nothing while one is at hand."""
    async with room(pool(1, limit(1))) as it:
        for client in ("a", "b"):
            with await it.scheduler.lease(it.ticket(client)) as lease:
                lease.spent()
        await it.settled()
        idle = {level.client: level.turn for level in it.scheduler.levels()}
        assert idle["a"] == idle["b"]
        assert 57 * SECOND < (idle["a"] or 0) < 61 * SECOND
        waiting = [task_of(it.scheduler.lease(it.ticket())) for _ in range(2)]
        await asyncio.sleep(1)
        busy = {level.client: level.turn for level in it.scheduler.levels()}
        assert (busy["a"] or 0) > 110 * SECOND > 61 * SECOND > (busy["b"] or 0)
        for task in waiting:
            task.cancel()
        await asyncio.sleep(70)
        assert {level.turn for level in it.scheduler.levels()} == {0}


@virtual
async def test_leases_are_counted_by_client() -> None:
    """For the shares of the last minute."""
    async with room(pool(1, limit(5))) as it:
        for client in ("a", "b", "a"):
            with await it.scheduler.lease(it.ticket(client)) as lease:
                lease.spent()
        assert it.scheduler.granted.counts(micros()) == {"a": Count(2, 2), "b": Count(1, 1)}
        await asyncio.sleep(61)
        assert it.scheduler.granted.counts(micros())["a"] == Count(2, 0)


@virtual
async def test_a_pinned_lane_is_one_of_its_own() -> None:
    """It names the quota that it insists on."""
    async with room(pool(2, limit(1))) as it:
        ticket = Ticket(Client("a"), DemandClass((0,), "k1"), micros() + 300 * SECOND, pinned="k1")
        with await it.scheduler.lease(ticket) as lease:
            lease.spent()
        waiting = task_of(it.scheduler.lease(ticket))
        await asyncio.sleep(1)
        assert [seen.pinned for seen in it.scheduler.lanes()] == ["k1"]
        waiting.cancel()


def test_a_turn_that_is_not_foretold_is_unknown() -> None:
    """The store says so with no turn at all; one that is overdue is now."""
    queue = Queue(flow(), turns=EstimatedWaits(), told=0)
    assert queue.estimate(0, 0) is None
    queue.turns = EstimatedWaits((5 * SECOND,))
    assert queue.estimate(0, 2 * SECOND) == 3 * SECOND
    assert queue.estimate(0, 9 * SECOND) == 0


def test_limits_with_a_match_do_not_count_for_a_new_request() -> None:
    """It is told what any request would wait."""
    pool_ = pool(1, limit(5), limit(1, 10 * SECOND, "GET /collections"), limit(3, 20 * SECOND))
    budgets = (LimitTokens(5, 1, 50 * SECOND), LimitTokens(1, 0, 9 * SECOND), LimitTokens(3, 0, 8 * SECOND))
    assert general(pool_) == (0, 2)
    assert next_token(pool_, budgets, 2 * SECOND) == 6 * SECOND
    assert next_token(pool_, budgets, 9 * SECOND) == 0
    assert next_token(pool_, (), 0) == 0


def test_what_is_left_is_shared_where_others_wait_for_it() -> None:
    """By weight, one request at the least; nobody waits for a limit with tokens at hand. Time passes meanwhile."""
    busy, idle = Limit(60, 60 * SECOND), Limit(10, 10 * SECOND)
    told = [(busy, LimitTokens(180, 0, 9 * SECOND)), (idle, LimitTokens(10, 4, SECOND))]
    assert left(told, 2 * SECOND, (1, 3)) == [(busy, LimitTokens(60, 0, 7 * SECOND)), (idle, LimitTokens(10, 4, 0))]
    assert left(told, 0, (2, 2)) == told
    assert left(told, 0, (1, 1000))[0][1].size == 1


@virtual
async def test_a_share_is_by_the_weights_of_who_waits() -> None:
    """A client's own requests are not others, and who has left or was served counts no more."""
    async with room(pool(1, limit(6))) as it:

        def size(client: str) -> int:
            ((_, budget),) = it.scheduler.standing(client, "GET", "/")
            return budget.size

        for _ in range(6):
            with await it.scheduler.lease(it.ticket("a", weight=2)) as lease:
                lease.spent()
        await it.settled()
        assert size("a") == 6
        waiting = [task_of(it.scheduler.lease(it.ticket("a", weight=2))) for _ in range(2)]
        waiting.append(task_of(it.scheduler.lease(it.ticket("b"))))
        await asyncio.sleep(1)
        assert (size("a"), size("b"), size("stranger")) == (4, 2, 1)
        waiting[2].cancel()
        await asyncio.sleep(1)
        assert size("a") == 6
        for task in waiting:
            task.cancel()
