from hypothesis import given
from hypothesis import strategies as st
from keyturn.core.exchange import HEARTBEAT, EstimatedWaits, heartbeat
from keyturn.core.model import SECOND


def test_the_first_positions_are_told_one_by_one() -> None:
    """The first positions are exact."""
    assert [EstimatedWaits((5, 9)).at(position) for position in range(2)] == [5, 9]


def test_positions_between_samples_are_interpolated() -> None:
    """Between two samples the estimate is interpolated; the last exact position counts as a sample."""
    turns = EstimatedWaits((10, 20), ((5, 50), (9, 90)))
    assert [turns.at(position) for position in (1, 3, 5, 7, 9)] == [20, 35, 50, 70, 90]


def test_beyond_the_last_sample_the_last_estimate_counts() -> None:
    """A position beyond the last sample gets the latest known estimate."""
    assert EstimatedWaits((10,), ((5, 50),)).at(500) == 50
    assert EstimatedWaits((10,)).at(3) == 10


def test_without_any_token_there_is_no_estimate() -> None:
    """When no token is expected, the estimate is `None`."""
    assert EstimatedWaits().at(0) is None


@given(
    st.lists(st.integers(0, 10**9), max_size=5).map(sorted),
    st.lists(st.tuples(st.integers(5, 500), st.integers(10**9, 10**10)), max_size=6, unique_by=lambda item: item[0]),
)
def test_estimates_never_decrease_with_the_position(soon: list[int], later: list[tuple[int, int]]) -> None:
    """Estimates never decrease with the position."""
    positions, delays = [position for position, _ in sorted(later)], sorted(delay for _, delay in later)
    turns = EstimatedWaits(tuple(soon), tuple(zip(positions, delays, strict=True)))
    told = [turn for turn in (turns.at(position) for position in range(600)) if turn is not None]
    assert told == sorted(told)


def test_heartbeats_come_twice_within_the_time_of_death() -> None:
    """A heartbeat is due every two seconds, or twice within the time after which a silent replica is dead."""
    assert heartbeat(11 * SECOND) == HEARTBEAT
    assert heartbeat(3 * SECOND) == 3 * SECOND // 2
    assert heartbeat(11 * SECOND, 5 * SECOND) == 5 * SECOND


def test_between_two_samples_the_later_is_the_latest() -> None:
    """The upper bound between two samples is the later one, since tokens return in bursts."""
    turns = EstimatedWaits((1, 2), ((3, 10), (5, 50)))
    assert [turns.at(position) for position in range(7)] == [1, 2, 6, 10, 30, 50, 50]
    assert [turns.latest(position) for position in range(7)] == [1, 2, 10, 10, 50, 50, 50]
    assert EstimatedWaits().latest(0) is None
