from hypothesis import given
from hypothesis import strategies as st
from keyturn.core.backoff import MAX_DELAY, MAX_PLACES, Backoff, Pace
from keyturn.core.model import SECOND, Micros

ONE, TEN = Pace(1, 2 * SECOND), Pace(10, 3 * SECOND)

refusals = st.lists(
    st.tuples(st.integers(0, 5 * SECOND), st.integers(0, 100 * SECOND), st.integers(0, 100 * SECOND)), max_size=60
)
paces = st.lists(st.builds(Pace, st.integers(1, 20), st.integers(1, 100 * SECOND)), max_size=2)


@given(refusals, paces)
def test_no_more_come_back_within_a_period_than_there_are_tokens(
    history: list[tuple[Micros, Micros, Micros]], paces: list[Pace]
) -> None:
    """No request is told a time before its own estimate, nor much more than `MAX_DELAY` after it."""
    backoff, now = Backoff(), 0
    times: list[Micros] = []
    for passed, own, more in history:
        now += passed
        places = backoff.places(now)
        times = [time for time in times if time > now]
        told = backoff.keep(own, own + more, now, paces)
        assert own <= told < own + MAX_DELAY + SECOND or told == SECOND
        if told < own + MAX_DELAY:
            for tokens, period in paces:
                assert places < tokens or sum(now + told - period < time for time in times) < tokens
        times.append(now + told)


def test_requests_refused_together_are_told_apart() -> None:
    """With two tokens at each estimate, two requests are told each time, in whole seconds."""
    backoff, pace = Backoff(), Pace(2, 1_600_000)
    estimates = [1_100_000] * 2 + [2_700_000] * 2 + [4_300_000] * 2
    assert [backoff.keep(1_100_000, behind, 0, [pace]) // SECOND for behind in estimates] == [2, 2, 4, 4, 6, 6]


def test_a_place_ends_at_its_time() -> None:
    """A place ends at its time, whether its caller comes back or not."""
    backoff = Backoff()
    for _ in range(3):
        backoff.keep(SECOND, SECOND, 0, [ONE])
    assert backoff.places(0) == 3
    assert [backoff.places(SECOND * now) for now in (1, 5)] == [0, 0]


def test_places_are_bounded() -> None:
    """Requests refused beyond the bound keep no place and are told the same time."""
    backoff = Backoff()
    for _ in range(MAX_PLACES):
        backoff.keep(SECOND, SECOND, 0, [TEN])
    last = MAX_DELAY + SECOND
    assert [backoff.keep(SECOND, SECOND, 0, [TEN]) for _ in range(3)] == [last] * 3
    assert backoff.places(0) == MAX_PLACES


def test_a_caller_that_tries_again_and_again_puts_itself_back_late() -> None:
    """Eight refusals in a row are told the same time, further ones later times."""
    backoff = Backoff()
    told = [backoff.keep(60 * SECOND, 60 * SECOND, now, [Pace(1, 60 * SECOND)]) for now in range(0, 9_000, 900)]
    assert told[:8] == [60 * SECOND] * 8
    assert told[-1] > 60 * SECOND
