"""Another configuration while requests wait and are under way."""

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from keyturn.core.errors import BadRequest, NoKey, Refusal, TooMany, Unauthenticated
from keyturn.core.exchange import DemandClass, ObservedLimit, Throttled, Unsent
from keyturn.core.model import MILLISECOND, SECOND, Client, Key, Limit, Micros, Pool, Secret
from keyturn.practice.gate import most_within
from keyturn.scheduler import Lease, Moved, Waiter

from tests.core.worlds import BOUND, limit, pool
from tests.schedulers import RunningScheduler, running_scheduler
from tests.virtual import micros, run, task_of, virtual

CLIENTS = {name: Client(name) for name in "abc"}


def adopt(
    it: RunningScheduler, pool_: Pool, clients: Mapping[str, Client] = CLIENTS, max_waiting: int = 10_000
) -> None:
    """Another configuration."""
    it.scheduler.adopt(pool_, clients, max_waiting=max_waiting)


def request(
    client: str = "a",
    path: str = "/me",
    *,
    wait: Micros = 300 * SECOND,
    pinned: str | None = None,
    limits: tuple[int, ...] = (0,),
) -> Waiter:
    """A request that falls under the first limit, or those given, as yet."""
    demand_class = DemandClass(limits, pinned)
    return Waiter(CLIENTS[client], demand_class, micros() + wait, pinned=pinned, method="GET", path=path)


async def used_up(it: RunningScheduler) -> None:
    """Spend the only token."""
    with await it.scheduler.lease(request()) as lease:
        lease.spent()


@virtual
async def test_who_waits_keeps_its_place() -> None:
    """In the same order, and with the same deadline."""
    async with running_scheduler(pool(1, limit(1, SECOND))) as it:
        await used_up(it)
        served: list[int] = []

        async def wait(number: int) -> None:
            with await it.scheduler.lease(request()) as lease:
                served.append(number)
                lease.spent()

        waiting = [task_of(wait(number)) for number in range(3)]
        late = task_of(it.scheduler.lease(request(wait=100 * MILLISECOND)))
        await asyncio.sleep(0.5)
        adopt(it, pool(1, limit(1, SECOND), guard=0))
        assert it.scheduler.waiting == 3
        await asyncio.gather(*waiting)
        assert served == [0, 1, 2]
        assert isinstance(late.exception(), TooMany)
        await it.settled()
        it.check_empty()


@virtual
async def test_who_waits_falls_under_the_limits_that_hold_now() -> None:
    """A limit that is new counts what waits already; one that is gone holds nobody up."""
    both = (limit(9, SECOND), limit(1, 60 * SECOND, "GET /narrow"))
    async with running_scheduler(pool(1, limit(1))) as it:
        await used_up(it)
        waiting = [task_of(it.scheduler.lease(request(path="/narrow"))) for _ in range(3)]
        await asyncio.sleep(1)
        adopt(it, pool(1, *both))
        await asyncio.sleep(1)
        first, *others = waiting
        with first.result() as lease:
            assert lease.limits == (0, 1)
            lease.spent()
        assert not any(other.done() for other in others)
        adopt(it, pool(1, both[0]))
        for lease in await asyncio.gather(*others):
            lease.close()


@virtual
async def test_who_cannot_be_served_any_more_hears_why() -> None:
    """Its client is gone or uses another pool, its key is gone, or the pool has none left."""
    async with running_scheduler(pool(2, limit(1))) as it:
        for _ in range(2):
            await used_up(it)
        gone, elsewhere, pinned, plain = (
            task_of(it.scheduler.lease(one)) for one in (request("b"), request("c"), request(pinned="k1"), request())
        )
        await asyncio.sleep(1)
        adopt(it, pool(1, limit(1)), {"a": CLIENTS["a"], "c": Client("c", pool="other")})
        for task, error in ((gone, Unauthenticated), (elsewhere, Moved), (pinned, BadRequest)):
            with pytest.raises(error):
                await task
        assert it.scheduler.waiting == 1
        adopt(it, pool(0, limit(1)))
        with pytest.raises(NoKey):
            await plain
        assert it.scheduler.waiting == 0
        assert {level.client for level in it.scheduler.view.levels()} == {"a"}


@virtual
async def test_who_leaves_in_the_same_tick_is_gone() -> None:
    """However its request would have been judged."""
    for clients in (CLIENTS, {}):
        async with running_scheduler(pool(1, limit(1))) as it:
            await used_up(it)
            leaving = task_of(it.scheduler.lease(request()))
            await asyncio.sleep(1)
            leaving.cancel()
            adopt(it, pool(1, limit(1)), clients)
            with pytest.raises(asyncio.CancelledError):
                await leaving
            assert it.scheduler.waiting == 0


@virtual
async def test_a_rotated_secret_is_used_from_the_next_lease_on() -> None:
    """Outstanding leases keep their key, and quotas what was spent."""
    async with running_scheduler(pool(1, limit(2))) as it:
        first = await it.scheduler.lease(request())
        rotated = replace(it.scheduler.pool, keys=(Key("k0", Secret("new"), "k0"),))
        adopt(it, rotated)
        second = await it.scheduler.lease(request())
        assert [lease.key.secret.reveal() for lease in (first, second)] == ["s-k0", "new"]
        with first, second:
            first.spent()
            second.spent()
        with pytest.raises(TooMany):
            await it.scheduler.lease(request(wait=30 * SECOND))


@virtual
async def test_a_key_that_comes_back_finds_its_window_as_it_was() -> None:
    """Spent tokens of a name stay spent, and outstanding leases may end meanwhile."""
    async with running_scheduler(pool(2, limit(1))) as it:
        leases = [await it.scheduler.lease(request()) for _ in range(2)]
        adopt(it, pool(0, limit(1)))
        for lease in leases:
            with lease:
                lease.spent()
        await it.settled()
        adopt(it, pool(2, limit(1)))
        with pytest.raises(TooMany):
            await it.scheduler.lease(request(wait=30 * SECOND))
        it.check_empty()


@virtual
async def test_a_limit_that_is_raised_or_lowered_counts_what_was_spent() -> None:
    """Two of three are spent: of one, none is left; of four, two."""
    async with running_scheduler(pool(1, limit(3))) as it:
        for _ in range(2):
            await used_up(it)
        await it.settled()
        adopt(it, pool(1, limit(1)))
        with pytest.raises(TooMany):
            await it.scheduler.lease(request(wait=30 * SECOND))
        adopt(it, pool(1, limit(4)))
        for _ in range(2):
            await used_up(it)
        with pytest.raises(TooMany):
            await it.scheduler.lease(request(wait=30 * SECOND))


@virtual
async def test_what_an_answer_says_of_a_limit_is_about_that_limit() -> None:
    """Wherever it stands by now; what is about a limit that is gone is nothing any more."""
    narrow, wide = limit(5, 10 * SECOND, "GET /narrow"), limit(9)
    async with running_scheduler(pool(1, wide, narrow)) as it:
        leases = [await it.scheduler.lease(request(path="/narrow", limits=(0, 1))) for _ in range(3)]
        adopt(it, pool(1, limit(7, 2 * SECOND), narrow))
        closed, seen, gone = leases
        with closed, seen, gone:
            closed.throttled(20 * SECOND, (0, 1))
            seen.spent((ObservedLimit(0, 1, SECOND), ObservedLimit(1, 4, SECOND)))
            gone.throttled(20 * SECOND, (0,))
        await it.settled()
        adopt(it, pool(1, narrow))
        told = {settlement.lease: settlement for settlement in it.store.settled}
        throttled = told[closed.id]
        assert isinstance(throttled, Throttled)
        assert throttled.limits == (1,)
        assert [type(told[lease.id]).__name__ for lease in (seen, gone)] == ["Spent", "Spent"]
        assert [one.limit for one in told[seen.id].observed] == [1]  # type: ignore[union-attr]  # as it was told


@virtual
async def test_what_was_asked_for_before_goes_back() -> None:
    """Grants of an exchange under way are of the limits as they were: nobody gets them."""
    async with running_scheduler(pool(1, limit(1))) as it:
        gate = asyncio.Event()
        inner = it.store.exchange

        async def slow(*args: Any, **more: Any) -> Any:
            answer = await inner(*args, **more)
            await gate.wait()
            return answer

        it.store.exchange = slow  # type: ignore[method-assign]  # a store that answers late
        waiting = task_of(it.scheduler.lease(request()))
        while not it.store.granted:
            await asyncio.sleep(0)
        adopt(it, pool(1, limit(2, SECOND)))
        it.store.exchange = inner  # type: ignore[method-assign]
        gate.set()
        lease = await waiting
        assert it.store.settled == [Unsent("1")]
        lease.unsent()
        lease.close()
        await it.settled()
        it.check_empty()


@virtual
async def test_bounds_and_weights_hold_from_now_on() -> None:
    """For who comes; who waits keeps its place however many may wait."""
    async with running_scheduler(pool(1, limit(1, SECOND))) as it:
        await used_up(it)
        served: list[str] = []

        async def wait(client: str) -> None:
            with await it.scheduler.lease(request(client)) as lease:
                served.append(client)
                lease.spent()

        waiting = [task_of(wait(client)) for client in "ab" for _ in range(9)]
        await asyncio.sleep(0.5)
        adopt(it, it.scheduler.pool, {**CLIENTS, "a": Client("a", weight=2)}, max_waiting=2)
        with pytest.raises(TooMany, match="wait already"):
            await it.scheduler.lease(request("c"))
        await asyncio.gather(*waiting)
        assert served[:12].count("a") >= 7, "twice as many, within one"


@virtual
async def test_what_comes_back_comes_back_to_what_is_now() -> None:
    """A request that was under way and has to wait again is judged anew."""
    async with running_scheduler(pool(1, limit(2))) as it:
        with await it.scheduler.lease(request("b")) as lease:
            adopt(it, pool(1, limit(2), limit(5, SECOND)), {"a": CLIENTS["a"]})
            lease.unsent()
        with pytest.raises(Unauthenticated):
            await it.scheduler.lease(request("b"), front=True)
        with await it.scheduler.lease(request("a"), front=True) as lease:
            assert lease.limits == (0, 1)
            lease.unsent()


# Law 1, in any sequence of configurations

REAL = limit(3, 2 * SECOND)
"""The upstream's limit on each key; every configuration below is at least as strict."""


@dataclass(frozen=True)
class Edition:
    """A configuration that comes after some time: which keys there are, how they are shared, and the limits."""

    after: float
    keys: frozenset[int]
    shared: frozenset[int]
    requests: int
    window: Micros
    guard: Micros
    narrow: bool
    clients: frozenset[str]

    def pool(self) -> Pool:
        quotas = {number: "shared" if number in self.shared else f"k{number}" for number in sorted(self.keys)}
        keys = [Key(f"k{number}", Secret(f"s{number}"), quota) for number, quota in quotas.items()]
        limits = [Limit(self.requests, self.window)]
        if self.narrow:
            limits.insert(0, limit(1, SECOND, "GET /narrow"))
        return Pool("default", tuple(keys), tuple(limits), self.guard)


editions = st.builds(
    Edition,
    after=st.floats(0, 2),
    keys=st.frozensets(st.integers(0, 2)),
    shared=st.frozensets(st.integers(0, 2)),
    requests=st.integers(1, 3),
    window=st.just(
        REAL.window
    ),  # another one is another limit: what was spent shows in the answer to its probe (law 9)
    guard=st.sampled_from([0, 100 * MILLISECOND]),
    narrow=st.booleans(),
    clients=st.sampled_from([frozenset("abc"), frozenset("ab"), frozenset("ac")]),
)
Caller = tuple[str, float, str, float, str, float, float]
"""Client, coming, path, patience, what becomes of its request, how long its trip is, and when on it that counts."""


def crowd(random: Random) -> list[Caller]:
    """More callers than there are tokens for, all the time."""
    return [
        (
            random.choice("abc"),
            random.uniform(0, 8),
            random.choice(["/me", "/me", "/narrow"]),
            random.choice([0.5, 5.0, 30.0, 30.0]),
            random.choice(["spent"] * 8 + ["unsent", "lost"]),
            random.uniform(0, 0.5),
            random.random(),
        )
        for _ in range(60)
    ]


class Probe:
    """Callers, one configuration after the other, and an upstream that keeps its own books."""

    def __init__(self, it: RunningScheduler, sequence: Sequence[Edition]) -> None:
        self.it = it
        self.sequence = sequence
        self.counted: dict[str, list[float]] = defaultdict(list)
        """When the upstream counted requests, by the secret of the key."""
        self.over = 0
        """Callers that got an answer or heard why not."""

    async def reload(self) -> None:
        for edition in self.sequence:
            await asyncio.sleep(edition.after)
            clients = {name: CLIENTS[name] for name in edition.clients}
            self.it.scheduler.adopt(edition.pool(), clients, max_waiting=100)

    async def call(self, caller: Caller) -> None:
        client, begins, path, patience, outcome, trip, when = caller
        await asyncio.sleep(begins)
        try:
            async with asyncio.timeout(patience + 0.1) as waiting:
                limits = self.it.scheduler.pool.limits_on("GET", path)
                asked = request(client, path, wait=int(patience * SECOND), limits=limits)
                lease = await self.it.scheduler.lease(asked)
                waiting.reschedule(None)
            await self._use(lease, outcome, trip, when)
        except (Refusal, TimeoutError):
            assert not waiting.expired(), "nobody waits past its deadline"
        self.over += 1

    async def _use(self, lease: Lease, outcome: str, trip: float, when: float) -> None:
        with lease:
            if outcome == "unsent" or not lease.fresh():
                lease.unsent()
                return
            lease.written()
            await asyncio.sleep(trip * when)
            self.counted[lease.key.secret.reveal()].append(micros() / SECOND)
            await asyncio.sleep(trip * (1 - when))
            if outcome == "spent":
                lease.spent()


@given(st.lists(editions, min_size=1, max_size=6), st.integers(0, 10**6))
def test_law_1_holds_and_nobody_is_lost_whatever_the_configurations(sequence: list[Edition], seed: int) -> None:
    """No window of the upstream is over its limit, every caller is answered, every token is accounted for."""
    coming = crowd(Random(seed))

    async def scenario() -> None:
        async with running_scheduler(sequence[0].pool()) as it:
            trial = Probe(it, sequence)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(trial.reload())
                for caller in coming:
                    tasks.create_task(trial.call(caller))
            assert trial.over == len(coming)
            for instants in trial.counted.values():
                assert most_within(sorted(instants), REAL.window / SECOND) <= REAL.requests
            await asyncio.sleep(BOUND / SECOND + 3)
            it.check_empty()

    run(scenario())
