import pytest
from keyturn.core.breaker import Scope
from keyturn.core.model import SECOND, Micros
from keyturn.core.signals import Route
from keyturn.core.throttles import (
    MAX_EARLY_PROBES,
    MAX_PROBE_INTERVAL,
    MAX_REFUSED_ROUTES,
    PROBE_PATIENCE,
    REFUSALS_WITHIN,
    RELAPSE,
    SETTLING,
    Throttles,
)

NOW: Micros = 1_000 * SECOND
X, Y = Route.of("GET", "/x"), Route.of("GET", "/y")


def closed() -> Throttles:
    """Return a pool of ten quotas, three of which were just refused."""
    throttles = Throttles()
    assert [throttles.refused(quota, 10, X, NOW) for quota in "abc"] == [False, False, True]
    return throttles


def test_a_quota_that_is_refused_again_and_again_is_closed_for_longer() -> None:
    """Repeated refusals close a quota for longer; those in flight together count once; an answer resets."""
    throttles, now, found = Throttles(), NOW, []
    for _ in range(8):
        wait = throttles.at_least("a", now, 0)
        assert throttles.at_least("a", now, 0) == wait
        found.append(wait // SECOND)
        now += wait + SETTLING
    assert found == [0, 1, 3, 7, 15, 31, 31, 31]
    throttles.answered("a", now)
    assert throttles.idle
    assert throttles.at_least("a", now, 5 * SECOND) == 5 * SECOND


@pytest.mark.parametrize(("of", "named", "needed"), [(10, False, 3), (10, True, 10), (2, False, 2), (2, True, 2)])
def test_several_quotas_at_once_close_the_pool(of: int, named: bool, needed: int) -> None:
    """Three refused quotas close the pool, or all of them if the answers name a limit of the key."""
    throttles = Throttles()
    found = [throttles.refused(str(number), of, X, NOW + number, named=named) for number in range(needed)]
    assert found == [False] * (needed - 1) + [True]
    assert throttles.together == needed
    snapshot = throttles.snapshot()
    assert snapshot is not None
    assert (snapshot.scope, snapshot.cause, snapshot.until) == (
        Scope(),
        f"429 for {needed} keys at once",
        NOW + needed - 1 + SECOND,
    )


def test_one_quota_alone_closes_nothing() -> None:
    """One quota, refusals over a longer time, or refusals between answers do not close the pool."""
    throttles = Throttles()
    for number in range(99):
        assert not throttles.refused("a", 1, X, NOW + number)
        assert not throttles.refused("a", 10, X, NOW + number)
    for number, quota in enumerate("bcdefg"):
        assert not throttles.refused(quota, 10, X, NOW + number * REFUSALS_WITHIN)
    for quota in "abcdefghij":
        assert not throttles.refused(quota, 10, X, NOW)
        throttles.answered("z", NOW)
    assert not throttles.closed
    assert throttles.snapshot() is None


def test_one_probe_at_a_time_reopens_it() -> None:
    """Probes go one at a time, up to half a minute apart; an answer opens the pool."""
    throttles, now, apart = closed(), NOW, []
    for _ in range(7):
        wait = throttles.wait(now, X)
        assert wait
        apart.append(wait // SECOND)
        now += wait
        assert throttles.wait(now, X) is None
        assert throttles.enter(now)
        assert throttles.wait(now + 1, X) == 0
        assert not throttles.refused("c", 10, X, now, probe=True)
    assert apart == [1, 2, 4, 8, 16, 32, 32]
    now += MAX_PROBE_INTERVAL
    assert throttles.enter(now)
    assert throttles.wait(now + PROBE_PATIENCE, X) is None
    throttles.leave()
    assert throttles.wait(now, X) is None
    assert not throttles.refused("d", 10, X, now), "in flight from before"
    assert throttles.wait(now, X) is None
    assert throttles.answered("d", now)
    assert not throttles.answered("d", now)
    assert not throttles.enter(now)


def test_a_relapse_goes_on_where_it_was() -> None:
    """A pool that closes again soon goes on with the last pause."""
    throttles = closed()
    for later, wait in ((0, 2), (0, 4), (RELAPSE, 1)):
        assert throttles.answered("a", NOW)
        now = NOW + later
        assert [throttles.refused(quota, 10, X, now) for quota in "abc"] == [False, False, True]
        assert throttles.wait(now, X) == wait * SECOND


def test_a_route_that_was_not_refused_is_probed_at_once() -> None:
    """Routes that were not refused are probed at once, one at a time, in bounded number."""
    throttles = closed()
    for number in range(MAX_EARLY_PROBES):
        route = Route.of("GET", f"/{number}")
        assert throttles.wait(NOW, route) is None
        assert throttles.enter(NOW)
        assert throttles.wait(NOW, Y) == 0
        assert not throttles.refused("a", 10, route, NOW, probe=True)
        assert throttles.wait(NOW, route) == SECOND
    assert throttles.wait(NOW, Y) == SECOND
    assert throttles.answered("a", NOW)
    assert throttles.idle


def test_routes_are_remembered_within_bounds() -> None:
    """The number of remembered routes is bounded."""
    throttles = Throttles()
    for number in range(9 * MAX_REFUSED_ROUTES):
        throttles.refused("a", 10, Route.of("GET", f"/{number}"), NOW)
    assert len(throttles._routes) == MAX_REFUSED_ROUTES
