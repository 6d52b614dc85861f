from keyturn.core.lessons import CONFIRMATIONS, MAX_LONGER, NARROWER, Higher, Lessons
from keyturn.core.model import SECOND, Limit
from keyturn.core.signals import Route

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


LIMITS = (Limit(60, 60 * SECOND), Limit(10, 10 * SECOND))


def test_a_higher_limit_is_told_once_after_two_confirmations() -> None:
    """With the setting that would make it so; of different sizes the smallest."""
    lessons = Lessons()
    assert [lessons.above(0, size) for size in (300, 200, 300, 300, 300)] == [False, False, True, False, False]
    assert list(lessons.higher(LIMITS)) == [Higher(0, "60/60s", 60, 200)]
    (higher,) = lessons.higher(LIMITS)
    assert higher.setting("default") == "pools.default.limits[0].requests: 200"


def test_a_limit_as_it_is_configured_ends_the_higher_one() -> None:
    """Or a smaller one; it is shown again when it is confirmed again, and said once."""
    lessons = Lessons()
    for end in (lambda: lessons.agreed("k0", [0]), lambda: lessons.told("k0", 0, 30, ME)):
        for _ in range(CONFIRMATIONS):
            lessons.above(0, 300)
        end()
        assert not lessons.above(0, 300)
        assert list(lessons.higher(LIMITS)) == []
        end()
    assert [lessons.above(0, 300) for _ in range(4)] == [False, False, True, False]
    lessons.agreed("k0", [0])
    assert not any(lessons.above(0, 300) for _ in range(4))
    assert [one.told for one in lessons.higher(LIMITS)] == [300]


def test_the_size_of_a_longer_window_is_no_higher_limit() -> None:
    """Its reset looks like one of a short window in the end; what is remembered of them is bounded."""
    lessons = Lessons()
    assert not any(lessons.above(0, 1000) for _ in range(2))
    assert not lessons.above(None, 1000)
    assert not any(lessons.above(0, 1000) for _ in range(9))
    for size in range(2 * MAX_LONGER):
        lessons.above(None, 2000 + size)
    assert len(lessons._longer) == MAX_LONGER


def test_a_limit_that_was_lowered_is_not_told_to_be_higher() -> None:
    """What counts then is what is configured, not what was concluded."""
    lessons = Lessons()
    for route in (ME, ENVIRONMENT, ME):
        lessons.told("k0", 0, 4, route)
    assert not any(lessons.above(0, 60) for _ in range(9))
