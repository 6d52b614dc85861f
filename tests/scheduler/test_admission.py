import asyncio
from collections.abc import Callable

import pytest
from keyturn.core.errors import ShuttingDown, TooMany
from keyturn.core.exchange import EstimatedWaits
from keyturn.core.health import KeyHealth
from keyturn.core.model import SECOND, Client, Micros
from keyturn.scheduler import Lease
from keyturn.scheduler.admission import (
    MAX_NEWCOMERS,
    REVIEW_INTERVAL,
    Deadlines,
    QueueBounds,
    queue_full,
    store_silent,
    too_late,
    whole_seconds,
)
from keyturn.scheduler.key_rotation import KeyRotation
from keyturn.scheduler.queues import Queues
from keyturn.scheduler.waiter import Queue, Waiter

from tests.core.worlds import flow, limit, pool
from tests.schedulers import RunningScheduler, running_scheduler, waiting
from tests.virtual import micros, task_of, virtual


def ticket(it: RunningScheduler, most: int | None, *, wait: int = 1_000_000 * SECOND, name: str = "small") -> Waiter:
    """A request of a client of which at most `most` requests may wait."""
    return it.request(name, wait=wait, max_waiting=most)


async def come(it: RunningScheduler, number: int, most: int | None) -> list["asyncio.Task[Lease]"]:
    """So many come at once."""
    tasks = [task_of(it.scheduler.lease(ticket(it, most))) for _ in range(number)]
    await asyncio.sleep(0.1)
    return tasks


def refused(tasks: list["asyncio.Task[Lease]"]) -> list[bool]:
    """The requests refused because too many wait; none is refused for another reason."""
    found = []
    for task in tasks:
        problem = task.exception() if task.done() else None
        assert problem is None or (isinstance(problem, TooMany) and problem.reason == "queue_full")
        found.append(problem is not None)
    return found


def end(tasks: list["asyncio.Task[Lease]"]) -> None:
    """All go."""
    for task in tasks:
        if not task.done():
            task.cancel()
        elif not task.exception():
            task.result().unsent()
            task.result().close()


@pytest.mark.parametrize(("most", "served", "stay"), [(2, 6, 2), (0, 6, 0), (None, 6, 4)])
def test_what_a_token_is_at_hand_for_does_not_wait(most: int | None, served: int, stay: int) -> None:
    """However many come at once; of the others the first may stay, and the rest hears when to come back."""

    @virtual
    async def scenario() -> None:
        async with running_scheduler(pool(1, limit(6))) as it:
            tasks = await come(it, 10, most)
            assert refused(tasks) == [False] * (served + stay) + [True] * (10 - served - stay)
            assert sum(task.done() and not task.exception() for task in tasks) == served
            problem = tasks[-1].exception() if tasks[-1].done() else None
            assert problem is None or (isinstance(problem, TooMany) and 60 <= (problem.retry_after or 0) <= 62)
            end(tasks)

    scenario()


@virtual
async def test_who_comes_behind_others_that_wait_is_refused_at_once() -> None:
    """Without an exchange; those that wait in another flow are no reason to refuse what could be served."""
    async with running_scheduler(pool(1, limit(1), limit(1, 60 * SECOND, "GET /narrow"))) as it:
        tasks = await come(it, 3, 2)
        with pytest.raises(TooMany) as refusal:
            await it.scheduler.lease(ticket(it, 2))
        assert refusal.value.reason == "queue_full"
        end(tasks)


@virtual
async def test_all_together_are_bounded() -> None:
    """Whosever they are; and so are newcomers, of whom it is not known yet whether they have to wait."""
    async with running_scheduler(pool(1, limit(1)), max_waiting=3) as it:
        tasks = await come(it, 8, None)
        assert refused(tasks) == [False] * 4 + [True] * 4
        end(tasks)
    async with running_scheduler(pool(1, limit(1)), max_waiting=3) as it:
        tasks = [task_of(it.scheduler.lease(ticket(it, None))) for _ in range(MAX_NEWCOMERS + 10)]
        for _ in range(3):
            await asyncio.sleep(0)
        assert sum(refused(tasks)) >= 10
        await asyncio.sleep(0.1)
        assert it.scheduler.waiting == 3
        end(tasks)


async def come_back(it: RunningScheduler, most: int, after: float) -> int:
    """One of a crowd of which so many may wait; how often it is refused, and comes back as it was told."""
    await asyncio.sleep(after)
    refusals = 0
    while True:
        try:
            lease = await it.scheduler.lease(ticket(it, most))
        except TooMany as refusal:
            refusals += 1
            await asyncio.sleep(refusal.retry_after or 0)
        else:
            with lease:
                await asyncio.sleep(0.05)
                lease.spent()
            return refusals


@pytest.mark.parametrize("over", [0, 1], ids="over {} s".format)
@pytest.mark.parametrize("most", [0, 10])
@virtual
async def test_a_crowd_that_may_not_wait_comes_back_to_be_served(most: int, over: int) -> None:
    """A request refused because too many wait is told when a token would be available to it."""
    async with running_scheduler(pool(1, limit(10, 3 * SECOND))) as it:
        began = micros()
        refusals = await asyncio.gather(*(task_of(come_back(it, most, over * one / 200)) for one in range(200)))
        assert max(refusals) <= 1
        assert micros() - began <= 90 * SECOND


@virtual
async def test_a_full_queue_is_noticed_before_a_body_is_read() -> None:
    """As `lease` would, and without a trace of a request that may come."""
    async with running_scheduler(pool(1, limit(1), limit(1, 60 * SECOND, "GET /narrow"))) as it:
        it.scheduler.admit(ticket(it, 0))
        tasks = await come(it, 2, 2)
        it.scheduler.admit(ticket(it, 2))
        tasks += await come(it, 1, 2)
        with pytest.raises(TooMany) as refusal:
            it.scheduler.admit(ticket(it, 2))
        assert (refusal.value.reason, it.scheduler.waiting) == ("queue_full", 2)
        it.scheduler.admit(ticket(it, 2, name="another"))
        it.scheduler.close()
        with pytest.raises(ShuttingDown):
            it.scheduler.admit(ticket(it, None))
        await asyncio.gather(*tasks, return_exceptions=True)
        end([task for task in tasks if not task.exception()])


POOL = pool(1, limit(1, 2 * SECOND))


class JudgedQueue:
    """One queue, its deadlines, and what was refused."""

    def __init__(self, *patience: Micros) -> None:
        self.queue = Queue(flow())
        self.refused: list[tuple[int, int | None]] = []
        """The arrival and the `Retry-After` of each."""
        self.freed = 0
        keys = KeyRotation(POOL, KeyHealth(POOL, micros()))
        bounds = QueueBounds(Queues(), keys, 1000)
        self.deadlines = Deadlines(micros, bounds, self._refuse, self._free)
        self.come(*patience)

    def come(self, *patience: Micros) -> None:
        """Requests come that may wait so long."""
        for number, wait in enumerate(patience):
            waiter = waiting(Client("a"), number, micros() + wait)
            self.queue.add(waiter)
            self.deadlines.watch(waiter)

    def _refuse(self, waiter: Waiter, refusal: TooMany) -> None:
        self.queue.remove(waiter)
        self.refused.append((waiter.order[2], refusal.retry_after))

    def _free(self) -> None:
        self.freed += 1

    def told(self, *turns: Micros) -> None:
        """The store has told the turns of all who wait."""
        for waiter in self.queue.waiters:
            waiter.announced = True
        self.queue.demanded = len(self.queue.waiters)
        self.deadlines.store_answered(micros())
        self.queue.take_estimates(EstimatedWaits(turns), micros())
        self.deadlines.judge(self.queue, micros())


def in_loop(test: Callable[[], None]) -> Callable[[], None]:
    """Run it with a loop that has a clock."""

    @virtual
    async def scenario() -> None:
        test()

    return scenario


@in_loop
def test_whose_turn_comes_too_late_is_refused_at_once() -> None:
    """Positions count among those who stay; what is told counts those refused before, for they come back, too."""
    it = JudgedQueue(5 * SECOND, SECOND, SECOND, 60 * SECOND)
    it.told(SECOND, 4 * SECOND, 7 * SECOND, 10 * SECOND)
    assert it.refused == [(1, 4), (2, 7)]
    assert it.freed == 1
    assert len(it.queue.waiters) == 2


@in_loop
def test_who_is_not_known_to_the_store_is_not_judged() -> None:
    """Its turn is not among those that were told."""
    it = JudgedQueue(0)
    it.queue.take_estimates(EstimatedWaits((9 * SECOND,)), micros())
    it.deadlines.judge(it.queue, micros())
    assert it.refused == []


@in_loop
def test_whose_turn_is_now_but_who_was_not_served_is_looked_at_again_at_once() -> None:
    """The store deals so many tokens at a time, and tells whoever is left of a turn only when all are dealt."""
    it = JudgedQueue(SECOND, SECOND)
    it.told(0, 0)
    assert it.refused == []
    it.told(30 * SECOND, 33 * SECOND)
    assert it.refused == [(0, 30), (1, 33)]


@virtual
async def test_all_are_looked_at_again_every_so_often() -> None:
    """Turns get later when others come first."""
    it = JudgedQueue(20 * SECOND)
    it.told(10 * SECOND)
    it.told(30 * SECOND)
    assert it.refused == []
    await asyncio.sleep(REVIEW_INTERVAL / SECOND)
    it.told(30 * SECOND)
    assert it.refused == [(0, 30)]


@virtual
async def test_nobody_waits_past_its_deadline() -> None:
    """Whether its turn was told or not; who has left is left alone."""
    it = JudgedQueue(5 * SECOND, 5 * SECOND)
    it.told(4 * SECOND, 4 * SECOND)
    it.queue.waiters[1].future.cancel()
    silent, lost = JudgedQueue(3 * SECOND, 0), JudgedQueue(0)
    lost.deadlines.store_lost([lost.queue])
    await asyncio.sleep(0.001)
    assert lost.refused == [(0, 1)]
    await asyncio.sleep(6)
    assert it.refused == [(0, 1)]
    assert silent.refused == [(1, 1), (0, 1)]


@virtual
async def test_who_is_refused_later_is_told_a_later_moment() -> None:
    """A crowd comes back as one otherwise; a place ends at its time, whether its caller comes or not."""
    it = JudgedQueue()
    for seconds in (5, 8, 11):
        it.come(0)
        it.told(5 * SECOND)
        assert it.refused[-1] == (0, seconds)
    await asyncio.sleep(11)
    it.come(0)
    it.told(5 * SECOND)
    assert it.refused[-1] == (0, 5)


@virtual
async def test_requests_whose_deadlines_pass_together_come_back_one_after_another() -> None:
    """Their turns came later than was told; they keep places like those refused at once."""
    it = JudgedQueue(5 * SECOND, 5 * SECOND)
    it.told(4 * SECOND, 4 * SECOND)
    await asyncio.sleep(6)
    assert it.refused == [(0, 1), (1, 4)]


def test_whole_seconds_are_rounded_up() -> None:
    """A request that returns at the told time is not too early, and none is told to return at once."""
    assert [whole_seconds(delay) for delay in (-5, 0, 1, SECOND, SECOND + 1)] == [1, 1, 1, 1, 2]


def test_what_is_told() -> None:
    """The reason as a metric's label, and the time."""
    assert (too_late(7 * SECOND).reason, too_late(7 * SECOND).retry_after) == ("deadline", 7)
    assert (store_silent().reason, store_silent().retry_after) == ("store_lost", 1)
    full = queue_full("ci", 12, 7 * SECOND)
    assert (full.reason, full.retry_after) == ("queue_full", 7)
    assert "12 requests of ci" in full.message
    assert queue_full("ci", 12, 0).retry_after == 1
