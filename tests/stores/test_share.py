import asyncio
from bisect import bisect_left
from itertools import pairwise
from random import Random

import pytest
from keyturn.core.exchange import LEASE_LIFETIME, Flow, FlowDemand, Spent, Throttled, Unsent
from keyturn.core.messages import HeldLease, Revision, revision_of
from keyturn.core.model import MILLISECOND, SECOND, Micros
from keyturn.stores.share import Share

from tests.core.worlds import BOUND, flow, limit, pool
from tests.virtual import micros, virtual

LIMIT, WINDOW = 20, 10 * SECOND

BEYOND = WINDOW + LEASE_LIFETIME + BOUND
"""Time after which nothing that was spent before the loss counts any more."""

LONG_AGO = BEYOND + SECOND
"""Age of a loss after which all tokens have returned."""


def revision_for(quotas: int = 2, requests: int = LIMIT) -> Revision:
    """Return a pool of keys with so many requests in `WINDOW`."""
    return revision_of(pool(quotas, limit(requests, WINDOW), guard=0), LEASE_LIFETIME + BOUND)


def held_of(revision: Revision, name: str, spent: list[tuple[str, Micros]]) -> tuple[HeldLease, ...]:
    """Return leases of a replica, by quota and the time since they were granted and counted."""
    windows = tuple((one.id, one.window) for one in revision.limits)
    return tuple(HeldLease(f"{name}{i}", quota, "a", windows, age, age) for i, (quota, age) in enumerate(spent))


class Alone:
    """A replica that has lost the store and goes on with its share.

    `spent` is what it had spent at the loss, by quota and age; `age` is how long the store has been lost.
    """

    def __init__(
        self, name: str, spent: list[tuple[str, Micros]], replicas: int, revision: Revision, age: Micros = 0
    ) -> None:
        self.sent = [(quota, micros() - passed) for quota, passed in spent]
        held = held_of(revision, name, spent)
        self.share = Share(revision, replica=name, replicas=replicas, held=held, age=age, clock=micros)
        self._settled: tuple[Spent, ...] = ()

    async def turn(self, waiting: int = 50, of: Flow | None = None) -> None:
        """Send all that may be sent now; answers come at once."""
        while True:
            answer = await self.share.exchange(self._settled, (FlowDemand(of or flow(), 1, waiting),))
            self._settled = tuple(Spent(grant.lease, 0) for grant in answer.grants)
            self.sent += [(grant.quota, micros()) for grant in answer.grants]
            if not answer.grants:
                return


async def pass_(duration: Micros, *replicas: Alone, step: float = 0.05) -> None:
    """Let time pass; each replica sends whenever it may, checked every so many seconds."""
    end = micros() + duration
    while micros() < end:
        for replica in replicas:
            await replica.turn()
        await asyncio.sleep(step)


def worst(revision: Revision, *replicas: Alone) -> int:
    """Return the most requests on one key in any window."""
    most = 0
    for quota in revision.quotas:
        instants = sorted(instant for one in replicas for key, instant in one.sent if key == quota)
        most = max([most, *(bisect_left(instants, at + WINDOW) - i for i, at in enumerate(instants))])
    return most


@pytest.mark.parametrize("seed", range(10))
def test_all_replicas_together_keep_every_limit(seed: int) -> None:
    """Replicas with shares keep every limit, whatever each had spent before the loss (law 1)."""

    @virtual
    async def scenario() -> None:
        random = Random(seed)
        size, replicas_number = random.choice([1, 3, LIMIT, 60]), random.randint(1, 8)
        revision, names = revision_for(random.randint(1, 2), size), [f"r{n}" for n in range(replicas_number)]
        weights = [random.choice([0, 1, 3, 9]) for _ in names[1:]] + [1]
        spent: dict[str, list[tuple[str, Micros]]] = {name: [] for name in names}
        for quota in revision.quotas:
            for _ in range(size):
                if random.random() < 0.8:
                    spent[random.choices(names, weights)[0]].append((quota, random.randrange(WINDOW // 2)))
        noticed = [random.randrange(2 * SECOND) for _ in names]
        replicas = [
            Alone(name, spent[name], len(names), revision, age) for name, age in zip(names, noticed, strict=True)
        ]
        await pass_(2 * BEYOND, *replicas, step=0.2)
        assert worst(revision, *replicas) <= size
        late = [instant for one in replicas for _, instant in one.sent if instant > micros() - WINDOW]
        if size >= len(names):
            assert len(late) >= 0.4 * len(revision.quotas) * size * 0.9, "the shares are used in the end"
        else:
            assert not late, "a limit that cannot be divided waits for the store"

    scenario()


@virtual
async def test_in_the_first_window_only_its_own_tokens_return() -> None:
    """In the first window only a replica's own tokens return, then it has its share."""
    idle = Alone("a", [], 2, revision_for())
    await pass_(BEYOND - SECOND // 10, idle)
    assert idle.sent == []
    await pass_(WINDOW, idle)
    assert 0.7 * LIMIT <= len(idle.sent) <= LIMIT


@virtual
async def test_a_loss_that_has_lasted_counts_from_its_begin() -> None:
    """The first window counts from the loss, not from the first request after it."""
    late = Alone("a", [], 2, revision_for(), age=LONG_AGO)
    await pass_(SECOND, late)
    assert late.sent


@virtual
async def test_its_own_tokens_return_to_it() -> None:
    """A replica uses its own tokens as they return, although nothing else is available."""
    one = Alone("a", [("k0", age * SECOND) for age in range(8)], 2, revision_for(1))
    before = len(one.sent)
    await pass_(WINDOW - SECOND, one)
    assert 4 <= len(one.sent) - before <= 8


@virtual
async def test_more_than_its_share_does_not_return_to_it() -> None:
    """A replica that had spent more than its share gets back its share."""
    one = Alone("a", [("k0", 0)] * (LIMIT - 1), 4, revision_for(1))
    await pass_(WINDOW, one)
    assert len(one.sent) == LIMIT - 1
    await pass_(WINDOW, one)
    assert 0 < len(one.sent) - (LIMIT - 1) <= LIMIT // 4


@virtual
async def test_a_token_that_comes_back_unsent_is_used_at_once() -> None:
    """A lease from before the loss that ends unsent is used at once."""
    revision = revision_for(1)
    windows = ((revision.limits[0].id, revision.limits[0].window),)
    held = tuple(HeldLease(f"r{number}", "k0", "a", windows, SECOND, None) for number in range(2))
    share = Share(revision, replica="r", replicas=2, held=held, age=0, clock=micros)
    assert not (await share.exchange((), (FlowDemand(flow(), 1, 9),))).grants
    assert len((await share.exchange((Unsent("r0"),), (FlowDemand(flow(), 1, 9),))).grants) == 1
    await asyncio.sleep(WINDOW / SECOND + 1)
    answer = await share.exchange((Spent("r1", WINDOW + SECOND),), (FlowDemand(flow(), 1, 9),))
    assert len(answer.grants) == 1


@virtual
async def test_a_token_of_a_short_window_returns_to_all() -> None:
    """Under a short limit a token that returned belongs to all, although its lease is outstanding under another."""
    revision = revision_of(
        pool(1, limit(90, 60 * SECOND), limit(30, 5 * SECOND, "GET /me"), guard=0), LEASE_LIFETIME + BOUND
    )
    held = held_of(revision, "a", [("k0", 20 * SECOND)] * 10)
    share = Share(revision, replica="a", replicas=3, held=held, age=0, clock=micros)
    for _ in range(2):
        answer = await share.exchange((), (FlowDemand(flow("a", (0, 1)), 1, 9),))
        assert answer.grants == ()
        await asyncio.sleep(1)


@virtual
async def test_requests_go_out_evenly() -> None:
    """Requests are paced, not sent as fast as tokens allow."""
    one = Alone("a", [], 2, revision_for(), age=LONG_AGO)
    await pass_(3 * WINDOW, one)
    instants = [instant for _, instant in one.sent]
    gaps = [after - before for before, after in pairwise(instants)]
    assert len(gaps) > LIMIT
    assert min(gaps) > WINDOW / LIMIT


@virtual
async def test_waiting_requests_have_estimates() -> None:
    """Waiting requests get estimates by pace and weight."""
    one = Alone("a", [], 2, revision_for(1), age=LONG_AGO)
    answer = await one.share.exchange((), (FlowDemand(flow("a"), 1, 4), FlowDemand(flow("b"), 3, 4)))
    assert len(answer.grants) == 1
    assert answer.again is not None
    assert MILLISECOND <= answer.again <= SECOND
    slow, fast = answer.estimates[flow("a")].at(3), answer.estimates[flow("b")].at(3)
    assert slow is not None
    assert fast is not None
    assert fast < slow


@virtual
async def test_a_request_is_served_at_its_estimate() -> None:
    """A waiting request is served at its estimate, not before."""
    one = Alone("a", [], 2, revision_for(1), age=LONG_AGO).share
    for _ in range(3):
        answer = await one.exchange((), (FlowDemand(flow(), 1, 9),))
        assert len(answer.grants) == 1
        first = answer.estimates[flow()].at(0)
        assert first is not None
        assert answer.again == min(first, SECOND)
        await asyncio.sleep((first - MILLISECOND) / SECOND)
        assert not (await one.exchange((), (FlowDemand(flow(), 1, 9),))).grants
        await asyncio.sleep(2 * MILLISECOND / SECOND)


@virtual
async def test_its_calls_are_as_rare_as_what_it_waits_for() -> None:
    """A replica that cannot send calls a few times a second at most."""
    few = Alone("a", [("k0", 0)], 2, revision_for(1, 1), age=LONG_AGO).share
    closed = Alone("b", [], 1, revision_for(1), age=LONG_AGO).share
    (grant,) = (await closed.exchange((), (FlowDemand(flow(), 1, 9),))).grants
    await closed.exchange((Throttled(grant.lease, 0, 2 * SECOND, (0,)),), (FlowDemand(flow(), 1, 9),))
    for share in (few, closed):
        until, calls = micros() + 10 * SECOND, 0
        while micros() < until:
            calls += 1
            again = (await share.exchange((), (FlowDemand(flow(), 1, 9),))).again
            assert again is not None
            await asyncio.sleep(again / SECOND)
        assert calls <= 20


def fleet(size: int, revision: Revision) -> list[Alone]:
    """Return replicas that had spent nothing, and lost the store long ago."""
    return [Alone(f"r{number:03}", [], size, revision, age=LONG_AGO) for number in range(size)]


@virtual
async def test_a_limit_of_fewer_requests_than_replicas_waits() -> None:
    """A limit that cannot be divided waits without an estimate; others go on."""
    revision = revision_of(
        pool(1, limit(60, 60 * SECOND), limit(2, 5 * SECOND, "GET /me"), guard=0), LEASE_LIFETIME + BOUND
    )
    replica = Alone("a", [("k0", 0)], 3, revision, age=0)
    both, wide = flow("a", (0, 1)), flow("b")
    got: list[str] = []
    end = micros() + 600 * SECOND
    while micros() < end:
        answer = await replica.share.exchange((), (FlowDemand(both, 1, 9), FlowDemand(wide, 1, 9)))
        assert answer.estimates[both].at(0) is None
        got += [grant.flow.client for grant in answer.grants]
        await replica.share.exchange(tuple(Spent(grant.lease, 0) for grant in answer.grants), ())
        await asyncio.sleep(0.1)
    assert set(got) == {"b"}
    assert 120 <= len(got) <= 600 * 0.9 / 3


@virtual
async def test_a_limit_of_as_many_requests_as_replicas_is_divided() -> None:
    """With as many requests as replicas each has one token of each key."""
    revision = revision_for(1, 4)
    replicas = fleet(4, revision)
    await pass_(6 * WINDOW, *replicas, step=0.25)
    assert worst(revision, *replicas) <= 4
    assert all(replica.sent for replica in replicas)


@virtual
async def test_a_flow_that_insists_on_a_key_waits_for_that_one() -> None:
    """A pinned flow waits for its own key while others are served, also for an unused key."""
    replica = fleet(3, revision_for(3))[0]
    pinned, others = flow("a", pinned="k2"), flow("b")
    got: list[tuple[str, str]] = []
    end = micros() + 12 * BEYOND
    while micros() < end:
        answer = await replica.share.exchange((), (FlowDemand(pinned, 1, 9), FlowDemand(others, 1, 9)))
        got += [(grant.flow.client, grant.quota) for grant in answer.grants]
        await asyncio.sleep(0.2)
    assert {quota for client, quota in got if client == "a"} == {"k2"}
    assert {quota for client, quota in got if client == "b"} >= {"k0", "k1"}
    answer = await replica.share.exchange((), (FlowDemand(flow("a", pinned="gone"), 1, 1),))
    assert len(answer.grants) == 1, "as the shared store would: somebody asks after a key that is out of use"


@virtual
async def test_flows_of_a_client_take_turns() -> None:
    """A client's pinned and unpinned flows take turns."""
    replica = fleet(2, revision_for(1))[0]
    flows = [flow("a"), flow("a", pinned="k0")]
    for waiting in (flows, flows[::-1]):
        got: list[Flow] = []
        demands = tuple(FlowDemand(one, 1, 99) for one in waiting)
        ended: tuple[Spent, ...] = ()
        end = micros() + 10 * WINDOW
        while micros() < end:
            answer = await replica.share.exchange(ended, demands)
            got += [grant.flow for grant in answer.grants]
            ended = tuple(Spent(grant.lease, 0) for grant in answer.grants)
            await asyncio.sleep(0.25)
        assert len(got) > 10
        assert abs(got.count(flows[0]) - got.count(flows[1])) <= 1


@virtual
async def test_a_replica_that_knows_of_no_others_goes_on_at_once() -> None:
    """A replica alone goes on at once; one that never reached the store begins with a probe."""
    revision = revision_of(pool(1, limit(10)), BOUND)
    for heard, granted in ((True, [1, 1]), (False, [1, 0])):
        share = Share(revision, replica="r", replicas=1, held=(), age=0, clock=micros, heard=heard)
        told = []
        for _ in range(2):
            told.append(len((await share.exchange((), (FlowDemand(flow(), 1, 9),))).grants))
            await asyncio.sleep(8)
        assert told == granted
