from hypothesis import given
from hypothesis import strategies as st
from keyturn.core.model import SECOND
from keyturn.web.status.replica_status import SLICES, Returning, calendar

durations = st.integers(-10, 100 * SECOND)


def test_the_calendar_counts_tokens_by_slices_of_the_window() -> None:
    """An entry's time is that at which the last of its tokens is back."""
    found = calendar([0, 1 * SECOND, 4 * SECOND, 6 * SECOND, 59 * SECOND, 600 * SECOND], 60 * SECOND)
    assert found == (
        Returning(4 * SECOND, 3),
        Returning(6 * SECOND, 1),
        Returning(59 * SECOND, 1),
        Returning(600 * SECOND, 1),
    )


@given(st.lists(durations, max_size=200), st.integers(0, 61 * SECOND))
def test_the_calendar_is_short_and_loses_no_token(delays: list[int], window: int) -> None:
    """However large the limit is, and whenever its tokens return."""
    found = calendar(delays, window)
    assert sum(entry.tokens for entry in found) == len(delays)
    assert len(found) <= SLICES + 1
    assert list(found) == sorted(found, key=lambda entry: entry.within)
    assert len({entry.within for entry in found}) == len(found)
    if delays:
        assert found[-1].within == max(0, *delays, 0)
