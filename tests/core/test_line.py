from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.exchange import Lane
from proxy.core.line import LAG
from proxy.core.model import MILLISECOND, SECOND
from tests.core.worlds import World, check_conservation, lane, limit, pool, throttled, unsent


def serve_one_by_one(world: World, number: int, replicas: tuple[str, ...] = ("r",)) -> Counter[str]:
    """Let tokens return one at a time, each replica fetching; who got them."""
    served: Counter[str] = Counter()
    while served.total() < number:
        world.pass_(100 * MILLISECOND)
        for replica in replicas:
            answer = world.call(replica)
            served.update(grant.lane.client for grant in answer.grants)
            world.call(replica, *world.spend(*answer.grants))
    return served


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 300), st.integers(1, 300))
def test_two_that_wait_share_by_weight_within_one_token_each(w1: int, w2: int, n1: int, n2: int) -> None:
    """Law 4: the ratio of weights holds however many requests each has queued."""
    world = World.of(pool(1, limit(1, 50 * MILLISECOND), guard=0))
    world.weights = {"a": w1, "b": w2}
    world.waiting["r"] = {lane("a"): n1 + 400, lane("b"): n2 + 400}
    served = serve_one_by_one(world, 100)
    assert abs(served["a"] / w1 - served["b"] / w2) <= 1 / w1 + 1 / w2


def test_a_client_on_many_replicas_has_one_share() -> None:
    """Ten replicas of one client get together what one replica of another gets."""
    world = World.of(pool(1, limit(1, 50 * MILLISECOND), guard=0))
    spread = tuple(f"r{number}" for number in range(10))
    for replica in spread:
        world.waiting[replica] = {lane("wide"): 100}
    world.waiting["single"] = {lane("narrow"): 100}
    served = serve_one_by_one(world, 80, (*spread, "single"))
    assert abs(served["wide"] - served["narrow"]) <= 2


@pytest.mark.parametrize("lanes", [[(0,), (0, 1)], [(0, 1), (0,)], [(0, 1), (0, 2)], [(0,), (0, 1), (0, 1, 2)]])
def test_lanes_of_one_client_take_turns(lanes: list[tuple[int, ...]]) -> None:
    """None of them starves behind another that needs other limits, and each is told so."""
    world = World.of(
        pool(1, limit(1, 50 * MILLISECOND), limit(1, 60 * MILLISECOND), limit(1, 70 * MILLISECOND), guard=0)
    )
    kinds = [lane("a", limits) for limits in lanes]
    world.waiting["r"] = dict.fromkeys(kinds, 100)
    served: Counter[Lane] = Counter()
    while served.total() < 60:
        world.pass_(100 * MILLISECOND)
        answer = world.call("r")
        served.update(grant.lane for grant in answer.grants)
        assert {min(len(answer.turns[kind].soon), 5) for kind in kinds} == {5}
        world.call("r", *world.spend(*answer.grants))
    assert served == dict.fromkeys(kinds, 60 // len(kinds))


def test_a_lane_has_its_turn_among_those_of_all_replicas() -> None:
    """A client's requests of another kind in one replica are a quarter of its lanes, and get as much."""
    world = World.of(pool(1, limit(1, 50 * MILLISECOND), limit(1, 60 * MILLISECOND), guard=0))
    for replica in ("r1", "r2", "r3"):
        world.waiting[replica] = {lane("a"): 100}
    world.waiting["r4"] = {lane("a", (0, 1)): 100}
    served: Counter[str] = Counter()
    while served.total() < 80:
        world.pass_(100 * MILLISECOND)
        for replica in tuple(world.waiting):
            answer = world.call(replica)
            served[replica] += len(answer.grants)
            world.call(replica, *world.spend(*answer.grants))
    assert max(served.values()) - min(served.values()) <= 2


def test_who_comes_back_after_idling_gets_no_credit() -> None:
    """An hour of absence is not made up for."""
    world = World.of(pool(1, limit(1, 50 * MILLISECOND), guard=0))
    world.waiting["r"] = {lane("a"): 1000, lane("b"): 1}
    serve_one_by_one(world, 200)
    world.waiting["r"][lane("b")] = 500
    served = serve_one_by_one(world, 40)
    assert abs(served["a"] - served["b"]) <= 2


def test_who_was_held_back_by_a_narrow_limit_catches_up_but_starves_nobody() -> None:
    """A lag of at most 64 requests is made up for."""
    world = World.of(pool(1, limit(10, SECOND), limit(1, 100 * SECOND), guard=0))
    world.waiting["r"] = {lane("held", (0, 1)): 500, lane("free"): 5000}
    serve_one_by_one(world, 990)
    world.waiting["r"][lane("held")] = 5000
    served = serve_one_by_one(world, 300)
    assert served["free"] >= 100
    assert served["held"] >= served["free"]


@pytest.mark.parametrize(("w1", "w2"), [(1, 9), (3, 1), (2, 2)])
def test_two_that_are_held_back_together_share_by_weight_all_the_same(w1: int, w2: int) -> None:
    """Law 4: however far a narrow limit leaves them behind the others, neither gains on the other."""
    world = World.of(pool(1, limit(20, SECOND), limit(1, SECOND), guard=0))
    world.weights = {"a": w1, "b": w2}
    both = (0, 1)
    world.waiting["r"] = {lane("a", both): 1000, lane("b", both): 1000, lane("free"): 100_000}
    served: Counter[str] = Counter()
    ahead: list[float] = [0.0]
    for _ in range(40):
        served += serve_one_by_one(world, 20)
        ahead.append(served["a"] / w1 - served["b"] / w2)
    assert served["a"] + served["b"] >= 35, "they do get what there is"
    assert max(ahead) - min(ahead) <= 1 / w1 + 1 / w2 + 1e-9


def test_who_joins_those_that_are_held_back_is_served_with_them() -> None:
    """What the others missed by then is theirs up to the lag that is made up for, and no more."""
    world = World.of(pool(1, limit(20, SECOND), limit(2, SECOND), guard=0))
    both = (0, 1)
    world.waiting["r"] = {lane("early", both): 1000, lane("free"): 100_000}
    serve_one_by_one(world, 300)
    world.waiting["r"][lane("late", both)] = 1000
    served = serve_one_by_one(world, 10 * (LAG + 20))
    assert LAG - 2 <= served["early"] - served["late"] <= LAG + 2
    assert served["late"] >= 8


def test_who_was_shut_out_makes_up_for_a_lag_and_leaves_the_rest_alone() -> None:
    """A limit that was closed for long opens with as many tokens as there are: nobody else starves for it."""
    world = World.of(pool(1, limit(10, SECOND), limit(10, SECOND), guard=0))
    both = (0, 1)
    (probe,) = world.ask(1, lane("held", both)).grants
    world.call("r", throttled(probe, 30 * SECOND, 1))
    world.waiting["r"] = {lane("held", both): 10_000, lane("free"): 100_000}
    served = serve_one_by_one(world, 250)
    while not served["held"]:
        served = serve_one_by_one(world, 1)
    served += serve_one_by_one(world, 150)
    assert LAG - 3 <= served["held"] - served["free"] <= LAG + 3


def test_a_dead_replica_holds_its_place_for_a_moment_only() -> None:
    """Demands lapse when their replica does not come back: the others get its tokens."""
    world = World.of(pool(1, limit(1, SECOND), guard=0))
    world.call("r", *world.spend(*world.ask(1).grants))
    world.ask(5, lane("gone"), "dead")
    world.waiting["r"] = {lane("alive"): 50}
    served = serve_one_by_one(world, 5)
    assert served["alive"] == 5
    assert "dead" not in world.ledger.line._places


def test_tokens_of_another_replica_are_left_for_it_and_it_is_woken() -> None:
    """The caller does not take what falls to others; they are told to come."""
    world = World.of(pool(1, limit(2, 60 * SECOND)))
    first, second = world.ask(2).grants
    world.ask(2, lane("far"), "other")
    world.call("r", unsent(first), unsent(second))
    assert world.wake == ("other",)
    assert len(world.call("other").grants) == 2
    check_conservation(world.ledger)


def test_an_unsent_lease_is_not_charged() -> None:
    """A client whose requests were cancelled loses no share for it."""
    world = World.of(pool(1, limit(1, 50 * MILLISECOND), guard=0))
    world.waiting["r"] = {lane("a"): 100, lane("b"): 100}
    used: Counter[str] = Counter()
    while used.total() < 40:
        world.pass_(100 * MILLISECOND)
        for grant in world.call().grants:
            if grant.lane.client == "a" and world.now % (200 * MILLISECOND) == 0:
                world.call("r", unsent(grant))
            else:
                used[grant.lane.client] += 1
                world.call("r", *world.spend(grant))
    assert abs(used["a"] - used["b"]) <= 2


def test_who_was_served_as_it_came_has_been_served() -> None:
    """What a client got while nobody waited counts as what it got by waiting."""
    world = World.of(pool(1, limit(2, 50 * MILLISECOND), guard=0))
    world.call()
    assert world.ledger.at_once(world.now, "r", world.terms.name, lane("a"), 1)
    world.waiting["r"] = {lane("a"): 1, lane("b"): 1}
    assert [grant.lane.client for grant in world.call().grants] == ["b"]
