from random import Random

import pytest

from proxy.core.model import SECOND
from tests.core.worlds import limit, pool
from tests.simulation.town import TRIPS, Town, live
from tests.virtual import run


def check(town: Town) -> None:
    """Laws 1, 3 and 6 as the upstream, the buckets and the callers saw them."""
    for key in town.counted:
        assert town.worst(key, town.pool.limits[0].window) <= town.pool.limits[0].requests, "law 1"
    assert town.throttled == 0, "no 429 because of us"
    assert town.idled < 0.05, "law 3"
    assert max(town.late, default=0) <= 1_000, "law 6: nobody waits beyond its deadline"


@pytest.mark.parametrize(("trip", "minutes"), [("heavy", 60), ("jittered", 15), ("constant", 15)])
def test_fifty_clients_keep_the_laws(trip: str, minutes: int) -> None:
    """Laws 1, 2, 3 and 6 hold for an hour of pollers, crawlers, pipelines and people who hang up."""
    town = Town(pool(3, limit(60)), Random(7), TRIPS[trip])
    run(live(town, 50, 60 * minutes))
    check(town)
    assert town.used(60 * minutes) >= 0.97, town.outcomes


@pytest.mark.parametrize("seed", range(4))
def test_faults_change_nothing_but_time(seed: int) -> None:
    """Connections that fail or break never break law 1 nor lose a token."""
    town = Town(pool(2, limit(20, 20 * SECOND)), Random(seed), TRIPS["jittered"], faults=0.05)
    run(live(town, 20, 600))
    check(town)
    assert town.outcomes["200"] > 1000
