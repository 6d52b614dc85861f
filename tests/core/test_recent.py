from hypothesis import given
from hypothesis import strategies as st
from keyturn.core.model import SECOND
from keyturn.core.recent import CAUSE_QUIET, MAX_CAUSES, MINUTE, Count, RecentCauses, RecentCounts


def test_the_last_minute_passes() -> None:
    """What is a minute old counts in all only."""
    recent = RecentCounts()
    recent.add("a", 0)
    recent.add("a", 30 * SECOND)
    recent.add("b", 30 * SECOND)
    assert recent.counts(59 * SECOND) == {"a": Count(2, 2), "b": Count(1, 1)}
    assert recent.counts(60 * SECOND) == {"a": Count(2, 1), "b": Count(1, 1)}
    assert recent.counts(200 * SECOND) == {"a": Count(2, 0), "b": Count(1, 0)}


def test_nothing_is_told_of_what_never_happened() -> None:
    """Not even with 0."""
    assert RecentCounts().counts(0) == {}


@given(st.lists(st.integers(0, 3 * MINUTE), max_size=60), st.integers(0, MINUTE))
def test_the_minute_is_that_before_the_question(seconds: list[int], later: int) -> None:
    """By whole seconds, and nothing older is kept."""
    recent = RecentCounts()
    moments = sorted(seconds)
    for moment in moments:
        recent.add("a", moment * SECOND)
    now = (moments[-1] if moments else 0) + later
    counted = recent.counts(now * SECOND).get("a", Count())
    assert counted == Count(len(moments), sum(moment > now - MINUTE for moment in moments))
    assert len(recent._slices) <= MINUTE


def test_a_cause_is_told_once() -> None:
    """As long as it is met again and again; another one is told by itself."""
    causes = RecentCauses()
    assert causes.is_new("a", 0)
    for number in range(1, 9):
        assert not causes.is_new("a", number * (CAUSE_QUIET - 1))
    assert causes.is_new("b", 0)


def test_a_cause_that_was_over_is_news() -> None:
    """Whoever looks at the log then wants to know of it."""
    causes = RecentCauses()
    causes.is_new("a", 0)
    assert causes.is_new("a", CAUSE_QUIET)


def test_what_is_kept_is_bounded() -> None:
    """The cause met longest ago goes first."""
    causes = RecentCauses()
    for number in range(MAX_CAUSES):
        causes.is_new(number, 0)
    causes.is_new(0, 1)
    causes.is_new("one more", 2)
    assert not causes.is_new(0, 3)
    assert causes.is_new(1, 3)
