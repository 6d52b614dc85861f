from copy import deepcopy
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from keyturn.core.exchange import FlowDemand, ObservedLimit, Spent
from keyturn.core.flows import UNIT
from keyturn.core.messages import LimitReturns, WaitingFlow, revision_of
from keyturn.core.model import MILLISECOND, SECOND, Micros
from keyturn.core.snapshots import FLOWS, NEXT_RETURNS, SAMPLE_DISTANCE, SAMPLES, snapshot
from keyturn.core.tokens import SERVICE_START

from tests.core.worlds import World, flow, know, limit, pool, throttled

W = 60 * SECOND + 130 * MILLISECOND


def test_a_snapshot_changes_nothing() -> None:
    """A snapshot changes nothing, and an unknown revision has none."""
    world = World.of(pool(2, limit(2)))
    world.call("r", *world.spend(*world.ask(7).grants[:2]))
    before = deepcopy(world.state.tokens.taken), list(world.state.queue.ready), dict(world.state.queue.totals)
    world.pass_(2 * W)
    assert world.snapshot() == world.snapshot()
    assert before == (world.state.tokens.taken, list(world.state.queue.ready), world.state.queue.totals)
    with pytest.raises(KeyError):
        snapshot(world.state, world.now, "other", ())


def test_what_is_available_in_use_and_cooling() -> None:
    """Available, in use and cooling tokens are told with their delays, as of the state's own time."""
    world = World.of(pool(2, limit(2)))
    grants = world.ask(3).grants
    assert world.snapshot().limits == (LimitReturns(1, 0, 3),)
    for grant in grants[:2]:
        world.call("r", *world.spend(grant))
        world.pass_(SECOND)
    assert world.snapshot().limits == (LimitReturns(1, 2, 1, (W - 2 * SECOND, W - SECOND)),)
    assert world.snapshot().dealt == 3


@given(st.integers(1, 400), st.sampled_from([1, 60, 120]))
def test_the_first_returns_are_told_one_by_one_and_the_rest_by_samples(number: int, apart: int) -> None:
    """The last is among the samples; between two of them tokens return evenly, give or take `SAMPLE_DISTANCE`."""
    world = World.of(pool(1, limit(400)))
    grants = world.ask(number).grants + world.call().grants
    delays = []
    for grant in grants:
        world.call("r", *world.spend(grant))
        delays.append(world.now + W)
        world.pass_(apart * MILLISECOND)
    (told,) = world.snapshot().limits
    expected = [delay - world.now for delay in delays]
    assert told.cooling == len(expected)
    assert list(told.next) == expected[:NEXT_RETURNS]
    assert list(told.ranks) == sorted(told.ranks)
    assert all(expected[rank] == delay for rank, delay in told.ranks)
    if number > NEXT_RETURNS:
        assert told.ranks[-1][0] == number - 1
        assert len(told.ranks) <= 7, "few are needed where tokens return evenly"
        assert deviation(told, expected) <= SAMPLE_DISTANCE


def deviation(told: LimitReturns, expected: list[Micros]) -> Micros:
    """How far a return is from the straight line between the samples around it, at the most."""
    points = [(len(told.next) - 1, told.next[-1]), *told.ranks]
    worst = 0
    for (low, early), (high, late) in pairwise(points):
        for rank in range(low, high + 1):
            worst = max(worst, abs(expected[rank] - early - (late - early) * (rank - low) // (high - low)))
    return worst


@given(st.lists(st.integers(NEXT_RETURNS, 200), min_size=2, max_size=5))
def test_samples_lie_where_bursts_end(bursts: list[int]) -> None:
    """Samples tell bursts of tokens, seconds apart, to the microsecond."""
    world = World.of(pool(1, limit(sum(bursts))))
    expected = []
    grants = list(world.ask(1).grants)
    world.call("r", *world.spend(grants.pop()))
    delays = [world.now + W]
    bursts[0] -= 1
    for size in bursts:
        grants += world.ask(size).grants
        while len(grants) < size:
            grants += world.call().grants
        world.call("r", *world.spend(*grants[:size]))
        delays += [world.now + W] * size
        grants = grants[size:]
        world.pass_(5 * SECOND)
    expected = [delay - world.now for delay in delays]
    (told,) = world.snapshot().limits
    assert len(told.ranks) <= SAMPLES
    points = [*enumerate(told.next), *told.ranks]
    assert all(high - low == 1 or late == early for (low, early), (high, late) in pairwise(points)), (
        "each step between two bursts is found"
    )
    assert all(expected[rank] == delay for rank, delay in told.ranks)


def test_tokens_of_a_closed_quota_return_when_it_opens() -> None:
    """Tokens of a closed quota return no earlier than it opens."""
    world = World.of(pool(2, limit(3)))
    first, second = world.ask(2).grants
    world.call("r", throttled(first, 20 * SECOND))
    assert second.quota != first.quota
    (told,) = world.snapshot((0, first.quota)).limits
    assert (told.available, told.cooling, told.in_use) == (2, 3, 1)
    assert told.next == (20 * SECOND, 20 * SECOND, W)
    ((_, _, own),) = world.snapshot((0, first.quota)).pinned
    assert (own.available, own.cooling, own.next) == (0, 3, (20 * SECOND, 20 * SECOND, W))


def test_a_quota_that_a_flow_insists_on_is_told_by_itself() -> None:
    """A pinned quota's own tokens are told apart, with those that others spent."""
    world = World.of(pool(2, limit(3)))
    (grant,) = world.ask(1, flow("a", (0,), "k1")).grants
    world.ask(1, flow("a", (0,), "k1"))
    world.ask(2, flow("b", (0,), "k0"))
    world.call("r", Spent(grant.lease, 0, (ObservedLimit(0, 0, 5 * SECOND),)))
    assert world.snapshot((0, "k1")).pinned == ((0, "k1", LimitReturns(0, 2, 1, (5 * SECOND, W))),)


def test_the_flows_that_wait() -> None:
    """Waiting flows are listed over all replicas, lowest start tag first."""
    world = World.of(pool(1, limit(1), limit(5)))
    world.weights["heavy"] = 4
    world.ask(3, flow("a"))
    world.ask(2, flow("a"), "s")
    world.ask(2, flow("heavy", (0, 1), "k0"))
    assert world.snapshot().flows == (
        WaitingFlow("heavy", (0, 1), "k0", 0, UNIT // 4, 2),
        WaitingFlow("a", (0,), None, UNIT, UNIT, 4, queues=2),
    )
    assert (world.snapshot().others, world.snapshot().others_weight) == (0, 0)


def test_flows_beyond_a_bound_are_counted_only() -> None:
    """Flows beyond the bound are only counted, with their requests."""
    world = World.of(pool(1, limit(1)))
    world.ask(1)
    world.send("r", (), tuple([FlowDemand(flow(f"c{number}"), 1, 2) for number in range(FLOWS + 10)]))
    told = world.snapshot()
    assert len(told.flows) == FLOWS
    assert (told.others, told.others_weight) == (2 * 10, 10)


def test_each_class_has_an_equal_part_of_the_flows_that_are_told() -> None:
    """A class of few flows is told in full, and leaves the rest of its part to others behind it."""
    world = World.of(pool(1, limit(1), limit(1)))
    world.ask(1)
    few = [FlowDemand(flow(f"c{number}"), 1, 2) for number in range(3)]
    many = [FlowDemand(flow(f"d{number}", (0, 1)), 1, 2) for number in range(2 * FLOWS)]
    world.send("r", (), (*few, *many))
    told = world.snapshot()
    assert [sum(1 for one in told.flows if one.limits == limits) for limits in ((0,), (0, 1))] == [3, FLOWS - 3]
    assert (told.others, told.others_weight) == (2 * (FLOWS + 3), FLOWS + 3)


def test_flows_of_other_revisions_count_under_the_limits_that_both_have() -> None:
    """Flows of other revisions count under common limits, by the asking revision's indices."""
    narrow, wide, other = limit(1, 10 * SECOND, "GET /a"), limit(1), limit(1, 20 * SECOND)
    world = World.of(pool(1, narrow, wide))
    mine = world.revision
    world.ask(2, flow("mine", (0, 1)))
    world.revision = revision_of(pool(1, wide, other), mine.bound)
    world.send("s", (), (FlowDemand(flow("theirs", (0,)), 1, 3), FlowDemand(flow("else", (1,)), 1, 2)))
    know(world.state)
    world.revision = mine
    assert {(flow.client, flow.limits, flow.waiting) for flow in world.snapshot().flows} == {
        ("mine", (0, 1), 1),
        ("theirs", (1,), 3),
    }


def test_the_usual_time_from_a_grant_to_the_counting_of_its_request() -> None:
    """The usual service time follows measurements gradually."""
    world = World.of(pool(1, limit(60)))
    assert world.snapshot().service == SERVICE_START
    for _ in range(40):
        (grant,) = world.ask(1).grants
        world.pass_(SECOND)
        world.call("r", *world.spend(grant))
    assert abs(world.snapshot().service - SECOND) < 10 * MILLISECOND
