"""Turns beyond the horizon, held against a forecast that has none: which deals on until nobody waits any more."""

import copy
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core import forecast, outlook
from proxy.core.exchange import Lane, Turns
from proxy.core.model import MILLISECOND, SECOND, Micros
from tests.core.worlds import World, lane, limit, pool

Crowd = dict[str, tuple[int, list[int]]]
"""Clients: the weight of each, and how many requests wait in each replica."""


def crowds(clients: int, requests: int, replicas: int) -> st.SearchStrategy[Crowd]:
    """So many of each at the most."""
    client = st.tuples(st.integers(1, 10), st.lists(st.integers(1, requests), min_size=1, max_size=replicas))
    return st.dictionaries(st.integers(1, 99).map("c{}".format), client, min_size=1, max_size=clients)


def busy(crowd: Crowd, quotas: int, size: int, gap: Micros, passes: Micros) -> World:
    """A world in which every token was spent, one after another, when they come, and some time has passed since."""
    world = World.of(pool(quotas, limit(size, 10 * SECOND)))
    for _ in range(quotas * size):
        world.pass_(gap)
        world.call("r0", *world.spend(*world.ask(1, lane("before"), "r0").grants))
    for client, (weight, waiting) in crowd.items():
        world.weights[client] = weight
        for number, requests in enumerate(waiting):
            world.waiting[f"r{number}"][lane(client)] = requests
    replicas = sorted(world.waiting)
    for replica in replicas:
        world.call(replica)
    for _ in range(3):  # some are served; what falls to others is lent
        world.pass_(passes)
        for replica in replicas:
            world.call(replica, *world.spend(*[grant for grant in world.out.values() if grant.lease[-1] in "13579"]))
    return world


def told_and_true(world: World, replica: str) -> list[tuple[Lane, Turns, Turns]]:
    """What each lane of a replica is told, and what it would be told if all were dealt one by one."""
    endless = copy.deepcopy(world)
    told = world.call(replica).turns
    with patch.object(forecast, "HORIZON", 10**9), patch.object(forecast, "EVENTS", 10**9):
        true = endless.call(replica).turns
    return [(lane_, turns, true[lane_]) for lane_, turns in told.items()]


def pairs(told: Turns, true: Turns) -> list[tuple[Micros, Micros]]:
    """Each turn that is told, and when it really comes."""
    return [(delay, true.soon[position]) for position, delay in (*enumerate(told.soon), *told.later)]


@given(
    crowds(clients=40, requests=60, replicas=4),
    st.integers(1, 3),
    st.integers(1, 60),
    st.sampled_from([0, MILLISECOND, 60 * MILLISECOND]),
    st.sampled_from([0, 100 * MILLISECOND, 4 * SECOND]),
)
def test_turns_are_those_of_dealing_on(crowd: Crowd, quotas: int, size: int, gap: Micros, passes: Micros) -> None:
    """Under one limit and with few clients, every turn that is told is the instant at which it comes: no token off."""
    world = busy(crowd, quotas, size, gap, passes)
    for replica in sorted(world.waiting):
        for _, told, true in told_and_true(world, replica):
            assert all(delay == really for delay, really in pairs(told, true))


@given(
    crowds(clients=40, requests=20, replicas=6),
    st.integers(1, 60),
    st.sampled_from([0, 60 * MILLISECOND]),
    st.tuples(st.integers(1, 20), st.integers(1, 40), st.integers(1, 3)),
)
def test_turns_are_not_too_early_where_many_wait(
    crowd: Crowd, size: int, gap: Micros, looked: tuple[int, int, int]
) -> None:
    """Clients that are not looked at one by one are taken to come first, and to have no more than they have."""
    rivals, crowded, alike = looked
    world = busy(crowd, 1, size, gap, 100 * MILLISECOND)
    with (
        patch.object(outlook, "RIVALS", rivals),
        patch.object(outlook, "CROWDED", crowded),
        patch.object(outlook, "ALIKE", alike),
    ):
        for replica in sorted(world.waiting):
            rows = told_and_true(world, replica)
            for _, told, true in rows:
                assert all(really <= delay for delay, really in pairs(told, true))


def test_who_waits_with_few_requests_is_soon_out_of_the_way() -> None:
    """A client of low weight is told what it gets once the heavy ones are done, not its share of now for ever."""
    crowd: Crowd = {f"c{number}": (3, [7, 7, 7]) for number in range(29)}
    crowd["light"] = (1, [3, 3, 3])
    world = busy(crowd, 2, 60, 80 * MILLISECOND, 0)
    [(told, true)] = [row[1:] for row in told_and_true(world, "r2") if row[0] == lane("light")]
    assert [true.at(position) for position in range(3)] == [told.at(position) for position in range(3)]
    assert (told.at(2) or 0) < 70 * SECOND


@pytest.mark.parametrize("replicas", [2, 40])
def test_lanes_of_one_client_take_turns(replicas: int) -> None:
    """Of one client alone each replica's lane has its turn after that of every other one, however many they are."""
    world = busy({"a": (1, [10] * replicas)}, 1, 60, 100 * MILLISECOND, 0)
    for replica in ("r0", f"r{replicas - 1}"):
        [(_, told, true)] = told_and_true(world, replica)
        for delay, really in pairs(told, true):
            assert really <= delay <= really + (replicas > outlook.ALIKE) * 10 * SECOND
