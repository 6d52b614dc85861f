from dataclasses import replace

from keyturn.core.levels import Levels
from keyturn.telemetry import Metrics

from tests.telemetry.samples import LEVELS, value


def test_gauges_are_of_the_moment_of_the_scrape() -> None:
    """Between scrapes they cost nothing, and what is gone is not told any more."""
    metrics = Metrics()
    assert value(metrics, "tokens_available", LEVELS, pool="default", quota="k0", limit="60/60s") == 17
    assert value(metrics, "tokens_limit", LEVELS, pool="default", quota="k0", limit="60/60s") == 60
    assert value(metrics, "waiting", LEVELS, pool="default", client="ci") == 3
    assert value(metrics, "in_flight", LEVELS, pool="default") == 7
    later = Levels((), (), (), store_up=False, degraded=2.5)
    assert value(metrics, "waiting", later, pool="default", client="ci") is None
    assert (value(metrics, "store_up", later), value(metrics, "degraded_seconds_total", later)) == (0, 2.5)


def test_a_turn_that_nobody_knows_is_not_told() -> None:
    """An absent series is honest; a 0 would be a promise."""
    metrics = Metrics()
    turns = {
        client: value(metrics, "estimated_wait_seconds", LEVELS, pool="default", client=client)
        for client in ("ci", "portal", "new")
    }
    assert turns == {"ci": 1.5, "portal": 0, "new": None}


def test_a_key_is_in_exactly_one_state() -> None:
    """The series of the others stand at 0, so that a change is seen at once."""
    metrics = Metrics()
    for key, current in (("k0", "ready"), ("k1", "quarantined")):
        states = {
            state: value(metrics, "key_state", LEVELS, pool="default", key=key, state=state)
            for state in ("ready", "parked", "quarantined", "paused")
        }
        assert states == {state: int(state == current) for state in states}


def test_the_month_s_rest_is_told_of_keys_whose_upstream_tells_it() -> None:
    """Others have no such series."""
    metrics = Metrics()
    assert value(metrics, "month_remaining", LEVELS, pool="default", key="k0") == 812
    assert value(metrics, "month_remaining", LEVELS, pool="default", key="k1") is None


def test_a_limit_is_told_where_the_upstream_permits_more() -> None:
    """Others have no such series."""
    metrics = Metrics()
    assert value(metrics, "upstream_limit", LEVELS, pool="default", limit="60/60s") == 300
    assert value(metrics, "upstream_limit", replace(LEVELS, higher=()), pool="default", limit="60/60s") is None
