from hypothesis import given
from hypothesis import strategies as st
from keyturn.core.model import SECOND
from keyturn.core.recent import MINUTE, Count, Recent


def test_the_last_minute_passes() -> None:
    """What is a minute old counts in all only."""
    recent = Recent()
    recent.add("a", 0)
    recent.add("a", 30 * SECOND)
    recent.add("b", 30 * SECOND)
    assert recent.counts(59 * SECOND) == {"a": Count(2, 2), "b": Count(1, 1)}
    assert recent.counts(60 * SECOND) == {"a": Count(2, 1), "b": Count(1, 1)}
    assert recent.counts(200 * SECOND) == {"a": Count(2, 0), "b": Count(1, 0)}


def test_nothing_is_told_of_what_never_happened() -> None:
    """Not even with 0."""
    assert Recent().counts(0) == {}


@given(st.lists(st.integers(0, 3 * MINUTE), max_size=60), st.integers(0, MINUTE))
def test_the_minute_is_that_before_the_question(seconds: list[int], later: int) -> None:
    """By whole seconds, and nothing older is kept."""
    recent = Recent()
    moments = sorted(seconds)
    for moment in moments:
        recent.add("a", moment * SECOND)
    now = (moments[-1] if moments else 0) + later
    counted = recent.counts(now * SECOND).get("a", Count())
    assert counted == Count(len(moments), sum(moment > now - MINUTE for moment in moments))
    assert len(recent._slices) <= MINUTE
