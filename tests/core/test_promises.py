import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.exchange import Kind
from proxy.core.model import SECOND, Micros
from proxy.core.promises import AGAIN, FEW, KNOWN, LATE, LATEST, TRIP, TRUST, Crowd, Pace, pace, spread
from tests.core.worlds import limit, pool

delays = st.integers(1, 1000 * SECOND)


PACE = Pace(1, SECOND)


def test_a_pace_is_that_of_the_slowest_limit_shared_with_who_waits() -> None:
    """Over all quotas that serve; by weight, with a longer window where a share is no whole token."""
    of = pool(3, limit(60), limit(2, 10 * SECOND, "GET /x"))
    minute, ten = (of.stretched(one) + TRIP for one in of.limits)
    assert pace(of, Kind((0,)), 1, (1, 1), 1) == Pace(60, minute)
    assert pace(of, Kind((0, 1)), 3, (1, 1), 5) == Pace(6, ten, 5)
    assert pace(of, Kind((0, 1), "k1"), 3, (1, 1), 1) == Pace(2, ten)
    assert pace(of, Kind((0, 1)), 3, (2, 3), 1) == Pace(4, ten)
    assert pace(of, Kind((0, 1)), 0, (1, 1), 1) == Pace(2, ten)
    assert pace(of, Kind((1,)), 1, (1, 5), 1) == Pace(1, ten * 5 // 2)
    assert pace(of, Kind(()), 3, (1, 1), 1).window == 0


dues = st.lists(st.integers(0, 1000 * SECOND), max_size=200).map(sorted)
paces = st.builds(Pace, st.integers(1, 100), st.integers(0, 100 * SECOND))


@given(delays, dues, paces, st.booleans())
def test_nobody_is_told_too_early_or_for_ever(turn: Micros, due: list[Micros], pace: Pace, together: bool) -> None:
    """Its own turn at the least, no more in a window than get a token, never more than `LATEST` later."""
    told = spread(turn, 0, due, pace, together=together)
    assert turn <= told <= turn + LATEST
    if len(due) < FEW or not pace.window:
        assert told == turn
    elif told < turn + LATEST:
        assert sum(1 for other in due if other > told - pace.window) < pace.tokens


TOLD = 2 * FEW


@pytest.mark.parametrize(
    ("replicas", "come", "vain", "apart"),
    [
        pytest.param(1, TOLD, 0, 1, id="all come"),
        pytest.param(1, 0, 0, 1 / ((TRUST + TOLD) // TRUST), id="few come"),
        pytest.param(5, 0, 0, 1, id="few come, and others may come elsewhere"),
        pytest.param(1, TOLD, TOLD, 1, id="all come, and in vain, where nobody else refuses"),
        pytest.param(3, TOLD, TOLD, 3, id="all come, and in vain, for others were refused elsewhere"),
        pytest.param(3, TOLD, (TRUST + TOLD) // 2, 2, id="half of them in vain"),
    ],
)
def test_a_lane_reckons_with_those_who_come_back_and_are_served(
    replicas: int, come: int, vain: int, apart: float
) -> None:
    """Of a crowd that was told; who comes a moment late has come back."""
    crowd, behind, pace = Crowd(), 100 * SECOND, Pace(1, SECOND, replicas)
    for one in range(TOLD):
        crowd.tell(one, 0, 0, SECOND, pace)
    assert [crowd.come(one, behind) for one in range(come)] == [True] * come
    assert not crowd.come("somebody", behind)
    for _ in range(vain):
        crowd.again()
    assert crowd.expected(behind + LATE) == 0
    told = [crowd.tell(("new", one), behind, behind, SECOND, pace) for one in range(FEW + 1)]
    assert told == [SECOND] * FEW + [SECOND + FEW * SECOND * apart]


def test_a_crowd_that_asks_the_like_at_once_is_one_all_the_same() -> None:
    """They may come from one machine: who comes within a moment of another is expected beside it."""
    crowd = Crowd()
    for number, now in enumerate((0, AGAIN // 2, AGAIN)):
        assert crowd.expected(now) == number
        assert crowd.tell("same", now, now, 5 * SECOND, PACE) == 5 * SECOND
    assert crowd.tell("same", 2 * AGAIN, 2 * AGAIN, SECOND, PACE) == 5 * SECOND - AGAIN
    assert crowd.expected(2 * AGAIN) == 3
    assert crowd.tell("other", 2 * AGAIN, 2 * AGAIN, SECOND, PACE) == SECOND
    assert crowd.tell(None, 2 * AGAIN, 2 * AGAIN, SECOND, PACE) == SECOND
    assert crowd.expected(2 * AGAIN) == 5


def test_who_tries_again_is_told_its_own_turn_when_that_has_become_later() -> None:
    """And whoever comes when it was told is one more who is refused."""
    crowd = Crowd()
    assert crowd.tell("a", 0, 0, 5 * SECOND, PACE) == 5 * SECOND
    assert crowd.tell("a", SECOND, SECOND, 6 * SECOND, PACE) == 6 * SECOND
    assert crowd.tell("a", 2 * SECOND, 2 * SECOND, SECOND, PACE) == 5 * SECOND
    assert crowd.expected(4 * SECOND) == 1
    assert crowd.tell("a", 7 * SECOND, 7 * SECOND, SECOND, PACE) == SECOND
    assert crowd.expected(7 * SECOND) == 1


def test_nobody_is_expected_any_more_when_its_time_has_come() -> None:
    """Whether it has come or not: places become free one after another."""
    crowd = Crowd()
    for number in range(2 * FEW):
        crowd.tell(number, 0, 0, 5 * SECOND, PACE)
    assert crowd.expected(5 * SECOND - 1) == 2 * FEW
    assert [crowd.expected((5 + seconds) * SECOND) for seconds in (0, FEW, 2 * FEW)] == [FEW, FEW - 1, 0]


def test_so_many_callers_are_remembered() -> None:
    """Those beyond are expected by nobody, and told their time anew each time."""
    crowd = Crowd()
    for number in range(KNOWN + 1):
        crowd.tell(number, 0, 0, 5 * SECOND, Pace(1, 0))
    assert crowd.expected(AGAIN) == KNOWN
    assert crowd.tell(KNOWN - 1, AGAIN, AGAIN, SECOND, Pace(1, 0)) == 5 * SECOND - AGAIN
    assert crowd.tell(KNOWN, AGAIN, AGAIN, SECOND, Pace(1, 0)) == SECOND


def test_nobody_is_known_for_ever() -> None:
    """However often callers try again, and each time their turn has become a little later."""
    crowd, now = Crowd(), 0
    for number in range(3 * KNOWN):
        now += AGAIN
        crowd.tell(number % 7, now, now, 1000 * SECOND + number, PACE)
    assert crowd.awaits
    assert len(crowd._awaited) == 7, "one entry for each who is known"
    crowd.expected(now + 2000 * SECOND)
    assert not crowd.awaits
