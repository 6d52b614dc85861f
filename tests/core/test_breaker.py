import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from proxy.core.breaker import (
    FAILURES,
    FAILURES_TOLD,
    FIRST,
    LONGEST,
    PATIENCE,
    SLOWEST,
    SPREAD,
    SUSTAINED,
    Breaker,
)
from proxy.core.model import SECOND, Micros

NOW: Micros = 1_000 * SECOND


def opened(**told: Micros) -> Breaker:
    """A breaker that has just opened at `NOW`."""
    breaker = Breaker()
    for number in range(FAILURES - 1):
        assert not breaker.failed(NOW - SUSTAINED + number, 0.0)
    assert breaker.failed(NOW, 0.0, **told)
    return breaker


def test_it_opens_on_a_row_of_failures() -> None:
    """Not on fewer, and not on those that came all together."""
    breaker = Breaker()
    for _ in range(3 * FAILURES):
        assert not breaker.failed(NOW, 0.0)
    assert breaker.enter(NOW) == "through"
    assert breaker.failed(NOW + SUSTAINED, 0.0)
    assert breaker.enter(NOW + SUSTAINED) == "shut"


def test_any_answer_ends_the_row() -> None:
    """A part of the upstream that works is not left alone."""
    breaker = Breaker()
    for number in range(10 * FAILURES):
        assert not breaker.failed(NOW + number * SECOND, 0.0)
        if number % (FAILURES - 1) == 0:
            assert not breaker.succeeded()


def test_what_the_upstream_says_of_itself_needs_fewer() -> None:
    """It knows best."""
    for told in ({"wait": 20 * SECOND}, {"over_within": 300 * SECOND}):
        breaker = Breaker()
        for number in range(FAILURES_TOLD - 1):
            assert not breaker.failed(NOW + number * SECOND, 0.0, **told)
        assert breaker.failed(NOW + 9 * SECOND, 0.0, **told)


def test_no_trial_before_the_upstreams_time() -> None:
    """`Retry-After` is honoured, as long as it can be meant seriously."""
    assert opened(wait=77 * SECOND).wait(NOW) == 77 * SECOND
    assert opened(wait=86_400 * SECOND).wait(NOW) == LONGEST


def test_one_trial_at_a_time() -> None:
    """Its answer closes, its failure doubles the wait, its silence makes room for another."""
    breaker = opened()
    assert breaker.wait(NOW) == FIRST
    begin = NOW + FIRST
    assert breaker.wait(begin) is None
    assert breaker.enter(begin) == "trial"
    assert breaker.enter(begin + SECOND) == "shut"
    assert breaker.wait(begin + SECOND) == SECOND
    assert breaker.enter(begin + PATIENCE) == "trial"
    assert not breaker.failed(begin + PATIENCE, 0.0)
    assert breaker.wait(begin + PATIENCE) == 2 * FIRST
    assert breaker.enter(begin + PATIENCE + 2 * FIRST) == "trial"
    assert breaker.succeeded()
    assert breaker.closed
    assert not breaker.succeeded()


def test_a_trial_whose_caller_left_tells_nothing() -> None:
    """The next request is one in its place."""
    breaker = opened()
    assert breaker.enter(NOW + FIRST) == "trial"
    breaker.leave()
    assert breaker.enter(NOW + FIRST) == "trial"


@pytest.mark.parametrize(
    ("over_within", "first", "slowest"), [(None, FIRST, SLOWEST), (300 * SECOND, 15 * SECOND, 60 * SECOND)]
)
def test_trials_are_spread(over_within: Micros | None, first: Micros, slowest: Micros) -> None:
    """Twice as far apart each time; over the time that an outage usually takes, if that is told."""
    breaker, now, apart = opened(**({} if over_within is None else {"over_within": over_within})), NOW, []
    for _ in range(12):
        wait = breaker.wait(now)
        assert wait is not None
        apart.append(wait)
        now += wait
        assert breaker.enter(now) == "trial"
        breaker.failed(now, 0.0, over_within=over_within)
    assert apart == [min(slowest, first * 2**number) for number in range(12)]


def test_what_fails_late_changes_nothing() -> None:
    """Requests that were out when it opened are no trials; only what they tell counts."""
    breaker = opened()
    assert not breaker.failed(NOW + 1, 1.0)
    assert breaker.wait(NOW) == FIRST
    breaker.failed(NOW + 1, 0.0, wait=20 * SECOND)
    assert breaker.wait(NOW + 1) == 20 * SECOND


class Outages(RuleBasedStateMachine):
    """Any order of failures, answers, trials and time."""

    def __init__(self) -> None:
        super().__init__()
        self.breaker = Breaker()
        self.now = NOW
        self.row: list[Micros] = []
        self.trials: list[Micros] = []

    @rule(milliseconds=st.sampled_from([0, 1, 500, 1_000, 2_000, 31_000, 400_000]))
    def pass_(self, milliseconds: int) -> None:
        self.now += milliseconds * 1_000

    @rule(
        chance=st.floats(0, 1),
        wait=st.none() | st.integers(0, 900).map(lambda s: s * SECOND),
        over_within=st.none() | st.integers(1, 900).map(lambda s: s * SECOND),
        times=st.integers(1, 9),
    )
    def fail(self, chance: float, wait: Micros | None, over_within: Micros | None, times: int) -> None:
        for _ in range(times):
            was_closed = self.breaker.closed
            self.row.append(self.now)
            news = self.breaker.failed(self.now, chance, wait=wait, over_within=over_within)
            assert news == (was_closed and not self.breaker.closed)
            if news:
                assert len(self.row) >= FAILURES_TOLD
                assert self.now - self.row[0] >= SUSTAINED
            if was_closed and len(self.row) >= FAILURES and self.now - self.row[0] >= SUSTAINED:
                assert not self.breaker.closed
        self.trials.clear()

    @rule()
    def answer(self) -> None:
        was_closed = self.breaker.closed
        assert self.breaker.succeeded() != was_closed
        assert self.breaker.closed
        self.row.clear()
        self.trials.clear()

    @rule()
    def leave(self) -> None:
        self.breaker.leave()
        self.trials.clear()

    @rule()
    def enter(self) -> None:
        wait = self.breaker.wait(self.now)
        entry = self.breaker.enter(self.now)
        assert (entry == "shut") == (wait is not None)
        if entry == "trial":
            assert not self.trials or self.now >= self.trials[-1] + PATIENCE
            self.trials.append(self.now)

    @precondition(lambda self: not self.breaker.closed)
    @invariant()
    def it_is_tried_again(self) -> None:
        """Nothing keeps it open for longer than the longest time without a trial."""
        wait = self.breaker.wait(self.now)
        assert wait is None or 0 < wait <= max(LONGEST, int(SLOWEST * (1 + SPREAD)))
        assert self.breaker.wait(self.now + max(LONGEST, PATIENCE)) is None


def test_any_course_of_outages() -> None:
    """Whatever happens in whatever order."""
    run_state_machine_as_test(Outages)
