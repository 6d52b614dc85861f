import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from keyturn.practice.arrivals import most_within
from keyturn.practice.settings import WindowKind
from keyturn.practice.windows import Window, admit_all, window_of

KINDS: tuple[WindowKind, ...] = ("fixed", "first", "rolling")
ROUNDING = 1 + 1e-12
limits = st.integers(1, 8)
lengths = st.one_of(st.sampled_from([0.1, 1.0, 6.0, 60.0]), st.floats(0.01, 100.0))
steps = st.lists(
    st.one_of(st.just(0.0), st.floats(0.0, 5.0), st.sampled_from([0.1, 1.0, 6.0, 59.9, 60.0])), max_size=120
)
starts = st.floats(0.0, 1e7)


def instants_of(start: float, gaps: list[float]) -> list[float]:
    """Generate instants that never go backwards."""
    instants = []
    for gap in gaps:
        start += gap
        instants.append(start)
    return instants


def admitted(window: Window, instants: list[float]) -> list[float]:
    """Return the instants that the window admits."""
    return [instant for instant in instants if window.admit(instant).allowed]


@given(limits, lengths, starts, steps)
def test_rolling_never_over(limit: int, length: float, start: float, gaps: list[float]) -> None:
    """A rolling window admits at most its limit in any half-open interval of its length."""
    window = window_of("rolling", limit, length)
    assert most_within(admitted(window, instants_of(start, gaps)), length) <= limit


@given(limits, lengths, starts, steps)
def test_fixed_never_over(limit: int, length: float, start: float, gaps: list[float]) -> None:
    """A fixed window admits exactly its limit between two multiples of its length, if enough come."""
    instants = instants_of(start, gaps)

    def index(instant: float) -> int:
        guess = int(instant // length)
        return next(k for k in (guess + 1, guess, guess - 1) if k * length <= instant)

    came = Counter(map(index, instants))
    passed = Counter(map(index, admitted(window_of("fixed", limit, length), instants)))
    assert passed == {k: min(count, limit) for k, count in came.items()}


@given(st.integers(1, 10**6), lengths)
def test_fixed_boundaries(index: int, length: float) -> None:
    """A fixed window begins at the exact multiple of its length, despite rounding."""
    boundary = index * length
    before = math.nextafter(boundary, -math.inf)
    assert window_of("fixed", 1, length).look(before).reset == boundary
    assert window_of("fixed", 1, length).look(boundary).reset == (index + 1) * length


@given(limits, lengths, starts, steps)
def test_first_never_over(limit: int, length: float, start: float, gaps: list[float]) -> None:
    """A first-request window admits at most its limit for its length after the first request."""
    left = admitted(window_of("first", limit, length), instants_of(start, gaps))
    while left:
        inside = [instant for instant in left if instant < left[0] + length]
        assert len(inside) <= limit
        left = left[len(inside) :]


@given(st.sampled_from(KINDS), limits, lengths, starts, steps)
def test_retry_is_true(kind: WindowKind, limit: int, length: float, start: float, gaps: list[float]) -> None:
    """A request at the retry instant is admitted, and none earlier."""
    window = window_of(kind, limit, length)
    now = start
    for gap in gaps:
        now += gap
        verdict = window.admit(now)
        assert verdict.allowed or now < verdict.retry <= (now + length) * ROUNDING
        if not verdict.allowed:
            assert not window.look(math.nextafter(verdict.retry, -math.inf)).allowed
            now = verdict.retry
            assert window.admit(now).allowed


@given(st.sampled_from(KINDS), limits, lengths, starts, steps)
def test_verdict_is_consistent(kind: WindowKind, limit: int, length: float, start: float, gaps: list[float]) -> None:
    """A preview equals the decision and takes nothing; remaining and reset are within bounds."""
    window = window_of(kind, limit, length)
    for now in instants_of(start, gaps):
        look, verdict = window.look(now), window.admit(now)
        assert look.allowed == verdict.allowed == (look.remaining > 0)
        assert verdict.remaining == max(look.remaining - 1, 0)
        assert (verdict.limit, verdict.window) == (limit, length)
        assert now < verdict.reset <= (now + length) * ROUNDING


@pytest.mark.parametrize(
    ("kind", "burst_at", "passes_at"), [("fixed", 119.0, 120.0), ("first", 119.0, 179.0), ("rolling", 119.0, 179.0)]
)
def test_where_a_window_ends(kind: WindowKind, burst_at: float, passes_at: float) -> None:
    """A fixed window ends at a multiple of its length, the others one length after the first request."""
    window = window_of(kind, 2, 60.0)
    assert admitted(window, [burst_at] * 3) == [burst_at] * 2
    assert window.admit(burst_at).retry == passes_at
    assert not window.admit(passes_at - 0.001).allowed
    assert window.admit(passes_at).allowed


def test_first_and_rolling_differ() -> None:
    """A first-request window returns all places at once, a rolling one each in its own time."""
    first, rolling = window_of("first", 2, 10.0), window_of("rolling", 2, 10.0)
    for window in (first, rolling):
        assert admitted(window, [0.0, 9.0]) == [0.0, 9.0]
    assert admitted(first, [10.0, 10.0]) == [10.0, 10.0]
    assert admitted(rolling, [10.0, 10.0]) == [10.0]


@given(st.sampled_from(KINDS), steps)
def test_together_all_or_none(kind: WindowKind, gaps: list[float]) -> None:
    """A request under two limits takes a place in both or none, and is told the tighter one."""
    wide, narrow = window_of(kind, 4, 60.0), window_of(kind, 2, 10.0)
    for now in instants_of(0.0, gaps):
        before = (wide.look(now), narrow.look(now))
        verdict = admit_all((wide, narrow), now)
        taken = 1 if verdict.allowed else 0
        assert [wide.look(now).remaining, narrow.look(now).remaining] == [look.remaining - taken for look in before]
        assert verdict.allowed == all(look.allowed for look in before)
        assert verdict.retry == (now if taken else max(look.retry for look in before if not look.allowed))
