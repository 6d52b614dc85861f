from hypothesis import given
from hypothesis import strategies as st
from keyturn.core.model import SECOND
from keyturn.core.recent import CAUSE_QUIET, MAX_CAUSES, MINUTE, Count, RecentCauses, RecentCounts


def test_the_last_minute_passes() -> None:
    """Events older than a minute count in the total only."""
    recent = RecentCounts()
    recent.add("a", 0)
    recent.add("a", 30 * SECOND)
    recent.add("b", 30 * SECOND)
    assert recent.counts(59 * SECOND) == {"a": Count(2, 2), "b": Count(1, 1)}
    assert recent.counts(60 * SECOND) == {"a": Count(2, 1), "b": Count(1, 1)}
    assert recent.counts(200 * SECOND) == {"a": Count(2, 0), "b": Count(1, 0)}


def test_nothing_is_told_of_what_never_happened() -> None:
    """Events that never happened are not listed."""
    assert RecentCounts().counts(0) == {}


@given(st.lists(st.integers(0, 3 * MINUTE), max_size=60), st.integers(0, MINUTE))
def test_the_minute_is_that_before_the_question(seconds: list[int], later: int) -> None:
    """The last minute is counted in whole seconds, and older ones are dropped."""
    recent = RecentCounts()
    moments = sorted(seconds)
    for moment in moments:
        recent.add("a", moment * SECOND)
    now = (moments[-1] if moments else 0) + later
    counted = recent.counts(now * SECOND).get("a", Count())
    assert counted == Count(len(moments), sum(moment > now - MINUTE for moment in moments))
    assert len(recent._slices) <= MINUTE


def test_a_cause_is_told_once() -> None:
    """A cause is reported once as long as it goes on; another one is reported by itself."""
    causes = RecentCauses()
    assert causes.is_new("a", 0)
    for number in range(1, 9):
        assert not causes.is_new("a", number * (CAUSE_QUIET - 1))
    assert causes.is_new("b", 0)


def test_a_cause_that_was_over_is_news() -> None:
    """A cause that was over is reported again."""
    causes = RecentCauses()
    causes.is_new("a", 0)
    assert causes.is_new("a", CAUSE_QUIET)


def test_what_is_kept_is_bounded() -> None:
    """The number of causes is bounded; the one met longest ago goes first."""
    causes = RecentCauses()
    for number in range(MAX_CAUSES):
        causes.is_new(number, 0)
    causes.is_new(0, 1)
    causes.is_new("one more", 2)
    assert not causes.is_new(0, 3)
    assert causes.is_new(1, 3)
