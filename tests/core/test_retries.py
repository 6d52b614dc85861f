from hypothesis import given
from hypothesis import strategies as st
from keyturn.core.model import SECOND
from keyturn.core.retries import BUDGET_WINDOW, MAX_RETRY_PAUSE, MIN_RETRIES, RETRY_PAUSE, RetryBudget, retry_pause

STEPS = st.lists(st.tuples(st.integers(0, 3 * SECOND), st.booleans()), max_size=200)


@given(st.floats(0.01, 2), STEPS)
def test_retries_stay_within_their_share_of_the_last_seconds(ratio: float, steps: list[tuple[int, bool]]) -> None:
    """At every retry, those of the last ten seconds are at most the ratio of their requests, or the floor."""
    budget = RetryBudget(ratio)
    requests: list[int] = []
    retries: list[int] = []
    now = 0
    for span, retry in steps:
        now += span
        if not retry:
            budget.request("a", now)
            requests.append(now)
            continue
        begin = (now // SECOND - BUDGET_WINDOW // SECOND + 1) * SECOND
        came = sum(instant >= begin for instant in requests)
        went = sum(instant >= begin for instant in retries)
        allowed = budget.retry("a", now)
        assert allowed == (went + 1 <= max(MIN_RETRIES, ratio * came + 1e-9))
        if allowed:
            retries.append(now)


def test_few_requests_have_a_floor() -> None:
    """A client with few requests may retry a few times, and no more."""
    budget = RetryBudget(0.2)
    budget.request("a", 0)
    assert [budget.retry("a", 0) for _ in range(MIN_RETRIES + 1)] == [True] * MIN_RETRIES + [False]


def test_the_share_is_whole() -> None:
    """The budget is rounded down: 0.2 of 24 requests are 4 retries, 0.2 of 25 are 5."""
    for requests, retries in ((24, 4), (25, 5)):
        budget = RetryBudget(0.2)
        for _ in range(requests):
            budget.request("a", 0)
        assert sum(budget.retry("a", 0) for _ in range(100)) == retries


def test_what_has_left_the_window_counts_no_more() -> None:
    """Requests and retries that left the window count no more."""
    budget = RetryBudget(0.5)
    for _ in range(20):
        budget.request("a", 0)
    assert sum(budget.retry("a", 9 * SECOND) for _ in range(100)) == 10
    assert sum(budget.retry("a", 10 * SECOND) for _ in range(100)) == 0
    assert sum(budget.retry("a", 19 * SECOND) for _ in range(100)) == MIN_RETRIES


def test_zero_allows_none() -> None:
    """A budget of 0 allows no retry."""
    budget = RetryBudget(0)
    budget.request("a", 0)
    assert not budget.retry("a", 0)


def test_the_cost_does_not_depend_on_the_traffic() -> None:
    """Ten slots are all that is kept, whatever the traffic."""
    budget = RetryBudget(0.1)
    for now in range(0, 100 * SECOND, SECOND // 50):
        budget.request("a", now)
    assert len(budget._clients["a"].slots) == BUDGET_WINDOW // SECOND


def test_a_client_s_retries_are_its_own() -> None:
    """One client's failures take no retries from another, and quiet clients are forgotten."""
    budget = RetryBudget(0.2)
    for number in range(1_000):
        budget.request("a", number)
        budget.retry("a", number)
    budget.request("b", 1_000)
    assert not budget.retry("a", 1_000)
    assert sum(budget.retry("b", 1_000) for _ in range(100)) == MIN_RETRIES
    for number in range(1_000):
        budget.request(f"c{number}", SECOND * number)
    assert len(budget._clients) <= 2 * BUDGET_WINDOW // SECOND


@given(st.integers(1, 100), st.floats(0, 1))
def test_pauses_grow_and_are_drawn(tries: int, chance: float) -> None:
    """Pauses double within bounds, with jitter."""
    assert RETRY_PAUSE[0] <= retry_pause(tries, chance) <= MAX_RETRY_PAUSE
    assert retry_pause(1, chance) <= RETRY_PAUSE[1]
    assert retry_pause(2, chance) == 2 * retry_pause(1, chance)
    assert retry_pause(tries, 0.0) <= retry_pause(tries, chance) <= retry_pause(tries, 1.0)
