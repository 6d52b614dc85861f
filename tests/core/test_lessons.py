from proxy.core.lessons import CONFIRMATIONS, NARROWER, Lessons
from proxy.core.signals import Route

ME, ENVIRONMENT = Route.of("GET", "/me"), Route.of("GET", "/environments/1")


def test_two_confirmations_are_needed() -> None:
    """The third answer is believed, if not all came from one route."""
    lessons = Lessons()
    assert not lessons.told("k0", 0, 60, ME)
    assert not lessons.told("k0", 0, 60, ENVIRONMENT)
    assert lessons.told("k0", 0, 60, ME)


def test_one_route_is_no_witness_for_the_others() -> None:
    """Its limit may be its own."""
    lessons = Lessons()
    assert not any(lessons.told("k0", 0, 10, ME) for _ in range(10 * CONFIRMATIONS))
    assert lessons.told("k0", 0, 10, ENVIRONMENT)


def test_the_limit_as_it_is_configured_ends_the_rumour() -> None:
    """Then the smaller one was narrower."""
    lessons = Lessons()
    for _ in range(5):
        assert not lessons.told("k0", 0, 10, ME)
        assert not lessons.told("k0", 0, 10, ENVIRONMENT)
        lessons.agreed("k0", [0])


def test_the_larger_of_two_numbers_counts() -> None:
    """The smaller one is narrower than that."""
    lessons = Lessons()
    assert not lessons.told("k0", 0, 10, ME)
    assert not lessons.told("k0", 0, 60, ENVIRONMENT)
    assert not lessons.told("k0", 0, 10, ME)
    assert not lessons.told("k0", 0, 60, ME)
    assert lessons.told("k0", 0, 60, ME)


def test_quotas_and_limits_are_told_apart() -> None:
    """Each needs confirmations of its own."""
    lessons = Lessons()
    for quota, limit in (("k0", 0), ("k1", 0), ("k0", 1)):
        assert not lessons.told(quota, limit, 60, ME)
        assert not lessons.told(quota, limit, 60, ENVIRONMENT)


def test_endpoints_with_limits_of_their_own_tell_nothing() -> None:
    """As the API documents them."""
    lessons = Lessons()
    assert Route.of("GET", "/workspaces/1") in NARROWER
    assert not any(lessons.told("k0", 0, 10, route) for _ in range(3) for route in sorted(NARROWER))
