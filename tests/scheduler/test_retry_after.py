"""`Retry-After` of a refused caller, compared with an identical request that waits (law 6).

The oracle is the waiting room itself: the same history is played twice on virtual time. In one the request has no time
and is refused; in the other it waits as long as it takes. A `Retry-After` is right when it is not before the moment at
which the second was served, and less than a second after it.

Coming back then succeeds without any wait where nobody else waited behind: a caller that leaves has no place, so who
waits meanwhile takes what would have been its own, and it has to wait for its share again, like anybody who comes.
"""

import asyncio
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st
from keyturn.core.errors import TooMany
from keyturn.core.model import SECOND
from keyturn.core.tokens import SERVICE_START
from keyturn.scheduler import Lease

from tests.core.worlds import limit, pool
from tests.schedulers import RunningScheduler, running_scheduler
from tests.virtual import micros, run, task_of

TRIP = SERVICE_START / SECOND
"""Every answer takes what is expected of one, so forecasts need not guess."""


@dataclass(frozen=True)
class History:
    """Events before the request comes."""

    quotas: int
    size: int
    window: int
    """Seconds."""
    spent: tuple[float, ...]
    """Pauses before requests that are served at once or wait their turn, one after another."""
    others: tuple[tuple[str, int, int], ...]
    """Clients that wait with their weights, and with how many requests."""
    weight: int


counts = st.integers(1, 8)
pauses = st.lists(st.floats(0, 3), max_size=12).map(tuple)
crowds = st.dictionaries(st.sampled_from("abc"), st.tuples(st.integers(1, 3), st.integers(1, 12))).map(
    lambda crowd: tuple((client, *row) for client, row in crowd.items())
)
histories = st.builds(
    History, st.integers(1, 4), counts, st.sampled_from([2, 10, 60]), pauses, crowds, st.integers(1, 3)
)
alone = st.builds(History, st.integers(1, 4), counts, st.sampled_from([2, 10, 60]), pauses, st.just(()), st.just(1))


async def use(lease: Lease) -> None:
    """Send a request."""
    with lease:
        await asyncio.sleep(TRIP)
        lease.spent()


async def serve(it: RunningScheduler, client: str, weight: int) -> None:
    """A request that waits its turn, and is sent."""
    await use(await it.scheduler.lease(it.request(client, weight=weight, wait=10_000 * SECOND)))


async def play(it: RunningScheduler, history: History) -> None:
    """Bring the waiting room to where the request comes: others wait, and nothing is at hand."""
    for _ in range(history.quotas * history.size):
        task_of(serve(it, "caller", 1))
    for pause in history.spent:
        await asyncio.sleep(pause)
        task_of(serve(it, "caller", 1))
    for client, weight, number in history.others:
        for _ in range(number):
            task_of(serve(it, client, weight))
    await asyncio.sleep(TRIP + 0.1)


async def end() -> None:
    """Cancel all requests that still wait."""
    rest = asyncio.all_tasks() - {asyncio.current_task()}
    rest = {task for task in rest if "serve" in repr(task.get_coro())}
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)


async def served(history: History) -> float:
    """Seconds until a patient request is served."""
    async with running_scheduler(pool(history.quotas, limit(history.size, history.window * SECOND))) as it:
        await play(it, history)
        came = micros()
        lease = await it.scheduler.lease(it.request("caller", weight=history.weight, wait=10_000 * SECOND))
        waited = (micros() - came) / SECOND
        lease.unsent()
        lease.close()
        await end()
        return waited


async def told(history: History) -> tuple[int, bool]:
    """The seconds told to an impatient request, and whether coming back then succeeds."""
    async with running_scheduler(pool(history.quotas, limit(history.size, history.window * SECOND))) as it:
        await play(it, history)
        try:
            lease = await it.scheduler.lease(it.request("caller", weight=history.weight, wait=0))
        except TooMany as refusal:
            seconds = refusal.retry_after
            assert seconds is not None
        else:
            lease.unsent()
            lease.close()
            await end()
            return 0, True
        await asyncio.sleep(seconds)
        try:
            lease = await it.scheduler.lease(it.request("caller", weight=history.weight, wait=0))
        except TooMany:
            return seconds, False
        else:
            lease.unsent()
            lease.close()
            return seconds, True
        finally:
            await end()


@given(history=histories)
def test_a_refused_caller_is_told_when_its_turn_would_have_come(history: History) -> None:
    """Not earlier than a patient one is served, and less than a second later, whoever else waits."""
    waited = run(served(history))
    seconds, _ = run(told(history))
    assert waited - 0.05 <= seconds <= waited + 1.05


@given(history=alone)
def test_a_caller_that_comes_back_when_it_was_told_is_served_at_once(history: History) -> None:
    """On an otherwise unchanged system, however many of its own requests waited before it."""
    assert run(told(history))[1]
