from hypothesis import given
from hypothesis import strategies as st
from keyturn.core.inferred_limits import (
    BUSY_RECHECK,
    CONFIRMATIONS,
    DEFAULT_WAIT,
    MAX_LIMITED_ROUTES,
    MAX_LONGER_SIZES,
    NARROWER_ROUTES,
    PLAN_RECHECK,
    ROUTE_GUARD,
    ROUTE_LIMIT_KEPT,
    HigherLimit,
    LimitInference,
    RouteChoice,
    RouteLimits,
)
from keyturn.core.model import MILLISECOND, SECOND, Limit, Micros
from keyturn.core.signals import Route

ME, ENVIRONMENT = Route.of("GET", "/me"), Route.of("GET", "/environments/1")


def test_two_confirmations_are_needed() -> None:
    """A smaller limit is believed after three answers, not all from one route."""
    inference = LimitInference()
    assert not inference.told_lower("k0", 0, 60, ME)
    assert not inference.told_lower("k0", 0, 60, ENVIRONMENT)
    assert inference.told_lower("k0", 0, 60, ME)


def test_one_route_is_no_witness_for_the_others() -> None:
    """Answers from one route do not confirm a limit, since it may be that route's own."""
    inference = LimitInference()
    assert not any(inference.told_lower("k0", 0, 10, ME) for _ in range(10 * CONFIRMATIONS))
    assert inference.told_lower("k0", 0, 10, ENVIRONMENT)


def test_the_configured_limit_ends_an_inference() -> None:
    """An answer with the configured limit ends the inference of a smaller one."""
    inference = LimitInference()
    for _ in range(5):
        assert not inference.told_lower("k0", 0, 10, ME)
        assert not inference.told_lower("k0", 0, 10, ENVIRONMENT)
        inference.agreed("k0", [0])


def test_the_larger_of_two_numbers_counts() -> None:
    """The larger of two smaller sizes counts."""
    inference = LimitInference()
    assert not inference.told_lower("k0", 0, 10, ME)
    assert not inference.told_lower("k0", 0, 60, ENVIRONMENT)
    assert not inference.told_lower("k0", 0, 10, ME)
    assert not inference.told_lower("k0", 0, 60, ME)
    assert inference.told_lower("k0", 0, 60, ME)


def test_quotas_and_limits_are_told_apart() -> None:
    """Each quota and limit needs confirmations of its own."""
    inference = LimitInference()
    for quota, limit in (("k0", 0), ("k1", 0), ("k0", 1)):
        assert not inference.told_lower(quota, limit, 60, ME)
        assert not inference.told_lower(quota, limit, 60, ENVIRONMENT)


def test_endpoints_with_limits_of_their_own_tell_nothing() -> None:
    """Endpoints that the API documents to have limits of their own confirm nothing."""
    inference = LimitInference()
    assert Route.of("GET", "/workspaces/1") in NARROWER_ROUTES
    assert not any(inference.told_lower("k0", 0, 10, route) for _ in range(3) for route in sorted(NARROWER_ROUTES))


LIMITS = (Limit(60, 60 * SECOND), Limit(10, 10 * SECOND))


def test_a_higher_limit_is_told_once_after_two_confirmations() -> None:
    """A higher limit is reported once with its setting; of different sizes the smallest counts."""
    inference = LimitInference()
    assert [inference.told_higher(0, size) for size in (300, 200, 300, 300, 300)] == [False, False, True, False, False]
    assert list(inference.higher(LIMITS)) == [HigherLimit(0, "60/60s", 60, 200)]
    (higher,) = inference.higher(LIMITS)
    assert higher.setting("default") == "pools.default.limits[0].requests: 200"


def test_a_limit_as_it_is_configured_ends_the_higher_one() -> None:
    """The configured limit or a smaller one ends a report, which may come back but is logged once."""
    inference = LimitInference()
    for end in (lambda: inference.agreed("k0", [0]), lambda: inference.told_lower("k0", 0, 30, ME)):
        for _ in range(CONFIRMATIONS):
            inference.told_higher(0, 300)
        end()
        assert not inference.told_higher(0, 300)
        assert list(inference.higher(LIMITS)) == []
        end()
    assert [inference.told_higher(0, 300) for _ in range(4)] == [False, False, True, False]
    inference.agreed("k0", [0])
    assert not any(inference.told_higher(0, 300) for _ in range(4))
    assert [one.reported for one in inference.higher(LIMITS)] == [300]


def test_the_size_of_a_longer_window_is_no_higher_limit() -> None:
    """A longer window near its end is not taken for a higher limit, and memory of sizes is bounded."""
    inference = LimitInference()
    assert not any(inference.told_higher(0, 1000) for _ in range(2))
    assert not inference.told_higher(None, 1000)
    assert not any(inference.told_higher(0, 1000) for _ in range(9))
    for size in range(2 * MAX_LONGER_SIZES):
        inference.told_higher(None, 2000 + size)
    assert len(inference._longer_sizes) == MAX_LONGER_SIZES


def test_a_limit_that_was_lowered_is_not_told_to_be_higher() -> None:
    """Higher is measured against the configured limit, not against an inferred one."""
    inference = LimitInference()
    for route in (ME, ENVIRONMENT, ME):
        inference.told_lower("k0", 0, 4, route)
    assert not any(inference.told_higher(0, 60) for _ in range(9))


LIST, ONE = Route.of("GET", "/collections"), Route.of("GET", "/collections/1")
BOTH = ("k0", "k1")
NOW: Micros = 1_000 * SECOND


def test_what_did_not_show_does_not_hold_anybody_up() -> None:
    """A route limit holds back neither another route nor another quota."""
    limits = RouteLimits()
    assert limits.choose(LIST, BOTH, NOW) == RouteChoice()
    limits.refused(LIST, "k0", NOW, 7 * SECOND, 10, None)
    assert limits.choose(ONE, BOTH, NOW) == RouteChoice()
    assert limits.choose(LIST, ("k1",), NOW) == RouteChoice()
    assert not limits.took(LIST, "k1")


def test_the_other_quota_serves_meanwhile() -> None:
    """Another quota serves meanwhile; if both are closed, the first that opens does."""
    limits = RouteLimits()
    until = limits.refused(LIST, "k0", NOW, 7 * SECOND, 10, None)
    assert until == NOW + 7 * SECOND + ROUTE_GUARD
    assert {limits.choose(LIST, BOTH, NOW) for _ in range(4)} == {RouteChoice("k1")}
    limits.refused(LIST, "k1", NOW, None, 10, None)
    assert limits.choose(LIST, BOTH, NOW) == RouteChoice(later=until)
    assert limits.choose(LIST, ("k1",), NOW) == RouteChoice(later=NOW + DEFAULT_WAIT + ROUTE_GUARD)
    assert {limits.choose(LIST, BOTH, NOW + 20 * SECOND) for _ in range(4)} == {RouteChoice("k0"), RouteChoice("k1")}


def test_without_a_size_one_goes_at_a_time() -> None:
    """Without a known size one request goes at a time, and the others wait for it."""
    limits = RouteLimits()
    now = limits.refused(LIST, "k0", NOW, 2 * SECOND, None, None)
    assert limits.choose(LIST, ("k0",), now) == RouteChoice("k0")
    assert limits.took(LIST, "k0")
    assert limits.choose(LIST, ("k0",), now) == RouteChoice(later=now + BUSY_RECHECK)
    limits.ended(LIST, "k0", now + SECOND, counted=True)
    assert limits.choose(LIST, ("k0",), now + SECOND) == RouteChoice(later=now + 3 * SECOND + ROUTE_GUARD)
    limits.took(LIST, "k0")
    limits.ended(LIST, "k0", now + 4 * SECOND, counted=False)
    assert limits.choose(LIST, ("k0",), now + 4 * SECOND) == RouteChoice("k0"), "what was not sent costs nothing"


def test_a_refusal_is_never_shortened() -> None:
    """The later of two closing times counts."""
    limits = RouteLimits()
    until = limits.refused(LIST, "k0", NOW, 9 * SECOND, 10, None)
    assert limits.refused(LIST, "k0", NOW + SECOND, SECOND, 10, None) == until


def test_it_is_forgotten_in_time() -> None:
    """A route limit is forgotten after a while, but not while its requests are in flight."""
    limits = RouteLimits()
    until = limits.refused(LIST, "k0", NOW, SECOND, 10, None)
    limits.took(LIST, "k0")
    assert limits.choose(LIST, ("k0",), until + ROUTE_LIMIT_KEPT) == RouteChoice("k0")
    limits.ended(LIST, "k0", until, counted=False)
    assert limits.choose(LIST, ("k0",), until + ROUTE_LIMIT_KEPT) == RouteChoice()
    assert len(limits) == 0


def test_a_plan_that_is_used_up_is_avoided_and_asked_again() -> None:
    """An exhausted plan is avoided and tried again later; without another one the upstream answers."""
    limits = RouteLimits()
    limits.used_up(LIST, "k0", NOW, 604_800 * SECOND)
    assert limits.choose(LIST, BOTH, NOW) == RouteChoice("k1")
    limits.used_up(LIST, "k1", NOW, None)
    assert limits.choose(LIST, BOTH, NOW) == RouteChoice()
    assert limits.choose(LIST, BOTH, NOW + PLAN_RECHECK) == RouteChoice()
    assert len(limits) == 0
    limits.used_up(LIST, "k0", NOW, 9 * SECOND)
    assert limits.choose(LIST, BOTH, NOW + 9 * SECOND) == RouteChoice()


def test_what_is_kept_is_bounded() -> None:
    """The number of route limits is bounded; the one refused longest ago goes first."""
    limits = RouteLimits()
    for number in range(MAX_LIMITED_ROUTES + 1):
        limits.refused(Route("GET", f"r{number}", 1), "k0", NOW, SECOND, 1, None)
    assert len(limits) == MAX_LIMITED_ROUTES
    assert limits.choose(Route("GET", "r0", 1), ("k0",), NOW) == RouteChoice()
    assert limits.choose(Route("GET", "r1", 1), ("k0",), NOW).later is not None


@given(
    st.integers(1, 5),
    st.integers(1, 20),
    st.lists(st.tuples(st.integers(0, 4_000), st.integers(0, 900), st.booleans()), max_size=80),
)
def test_never_more_than_showed(size: int, window: int, requests: list[tuple[int, int, bool]]) -> None:
    """After a refusal no window counts more requests than the limit's size, at any moment of their trips."""
    limits = RouteLimits()
    now = limits.refused(LIST, "k0", NOW, 0, size, window * SECOND)
    trips: list[tuple[Micros, Micros]] = []
    for pause, trip, sent in requests:
        now += pause * MILLISECOND
        if limits.choose(LIST, ("k0",), now).quota is None:
            continue
        limits.took(LIST, "k0")
        limits.ended(LIST, "k0", now + trip * MILLISECOND, counted=sent)
        if sent:
            trips.append((now, now + trip * MILLISECOND))
    for _, start in trips:
        assert sum(1 for begin, end in trips if end >= start and begin < start + window * SECOND) <= size
