from proxy.core.calendars import Calendar, quota_of
from proxy.core.model import SECOND

WINDOW = 60 * SECOND
TRIP = SECOND
BOUND = 10 * SECOND
NOW = 1_000 * SECOND


def test_what_is_taken_is_counted_by_quota() -> None:
    """What comes to nothing leaves no entry."""
    calendar = Calendar()
    calendar.take("a", 2)
    calendar.take("a", -1)
    calendar.take("b", 1)
    calendar.take("b", -1)
    assert calendar.taken == {"a": 1}


def test_parked_and_probed_buckets_are_closed() -> None:
    """Whatever they hold."""
    calendar = Calendar()
    calendar.parked.put("a", NOW)
    calendar.probing.put("b", NOW)
    assert [calendar.closed(quota) for quota in "abc"] == [True, True, False]


def test_tokens_of_closed_buckets_cannot_be_had() -> None:
    """Of three quotas with five tokens each; the next token is that of the bucket that opens first, or what returns."""
    calendar, quotas = Calendar(), ("a", "b", "c")
    assert calendar.open_ones(quotas, 5, NOW, 15, 0) == (15, 0)
    calendar.parked.put("a", NOW + 5 * SECOND)
    calendar.parked.put("gone", NOW + SECOND)
    calendar.take("a", 2)
    assert calendar.open_ones(quotas, 5, NOW, 13, 7 * SECOND) == (10, 7 * SECOND)
    assert calendar.open_ones(("a", "b"), 5, NOW, 3, 0) == (0, 5 * SECOND)
    calendar.cooling.put("1@b", NOW + 3 * SECOND)
    assert calendar.open_ones(("a", "b"), 5, NOW, 3, 3 * SECOND) == (0, 3 * SECOND)
    calendar.parked.put("b", NOW + 9 * SECOND)
    assert calendar.open_ones(("a", "b"), 5, NOW, 3, 3 * SECOND) == (0, 5 * SECOND)
    assert calendar.open_ones(("a", "b"), 5, NOW, 0, 7 * SECOND) == (0, 7 * SECOND)


def test_tokens_are_expected_where_they_cool_and_a_window_after_a_usual_trip() -> None:
    """Nothing is expected in the past: what is overdue returns now, what is late on its way a window from now."""
    calendar = Calendar()
    calendar.cooling.put("1@a", NOW - SECOND)
    calendar.cooling.put("2@b", NOW + SECOND)
    calendar.in_use.put("3@a", NOW - 9 * SECOND)
    calendar.in_use.put("4@b", NOW)
    assert list(calendar.returns(NOW, WINDOW, TRIP)) == [
        (NOW, "a"),
        (NOW + SECOND, "b"),
        (NOW + WINDOW, "a"),
        (NOW + TRIP + WINDOW, "b"),
    ]


def test_closed_buckets_are_expected_to_open() -> None:
    """A parked one at the upstream's time; a probed one when its probe is usually over, and not while it is parked."""
    calendar = Calendar()
    calendar.parked.put("a", NOW + 5 * SECOND)
    calendar.parked.put("b", NOW + 9 * SECOND)
    calendar.probing.put("b", NOW)
    calendar.probing.put("c", NOW - 9 * SECOND)
    assert list(calendar.openings(NOW)) == [(NOW + 5 * SECOND, "a")]
    assert sorted(calendar.probed(NOW, TRIP, BOUND)) == [(NOW + TRIP, "c"), (NOW + 9 * SECOND, "b")]


def test_a_probed_bucket_opens_when_its_probe_is_given_up() -> None:
    """However long the usual trip is: what is left of the time that a request may take, not a whole trip."""
    calendar = Calendar()
    calendar.probing.put("a", NOW + SECOND // 10 - BOUND)
    assert list(calendar.probed(NOW, TRIP, BOUND)) == [(NOW + SECOND // 10, "a")]


def test_a_member_names_its_quota() -> None:
    """Behind the lease."""
    assert quota_of("r1-7@team-a") == "team-a"
