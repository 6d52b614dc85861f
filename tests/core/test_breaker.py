from itertools import product

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from keyturn.core.breaker import (
    EARLY,
    FAILURES,
    FAILURES_TOLD,
    FIRST,
    GRACE,
    LONGEST,
    MAX_PARTS,
    PATIENCE,
    SLOWEST,
    SPREAD,
    SUSTAINED,
    Breaker,
    Failure,
    Scope,
    Trial,
)
from keyturn.core.model import SECOND, Micros

NOW: Micros = 1_000 * SECOND
PLAIN = Failure("504")


def told(wait: Micros | None = None, over_within: Micros | None = None) -> Failure:
    """The upstream says itself that it is out of order."""
    return Failure("503", wait=wait, over_within=over_within)


def fail(breaker: Breaker, now: Micros, *whose: str, failure: Failure = PLAIN, trial: Trial | None = None) -> bool:
    """A failure without any chance."""
    return breaker.failed(now, 0.0, failure, *whose, trials=() if trial is None else (trial,))


def opened(failure: Failure = PLAIN, whose: tuple[tuple[str, ...], ...] = ((),)) -> Breaker:
    """A breaker that has just opened at `NOW`, by failures of these in turn."""
    breaker = Breaker(Scope())
    for number in range(FAILURES - 1):
        assert not fail(breaker, NOW - SUSTAINED + number, *whose[number % len(whose)])
    assert fail(breaker, NOW, *whose[-1], failure=failure)
    return breaker


def trial(breaker: Breaker, now: Micros, part: str | None = None) -> Trial:
    """A request that is sent as the trial."""
    assert breaker.wait(now, part) is None
    found = breaker.enter(now, part)
    assert found is not None
    return found


def test_it_opens_on_a_row_of_failures() -> None:
    """Not on fewer, and not on those that came all together."""
    breaker = Breaker(Scope())
    for _ in range(3 * FAILURES):
        assert not fail(breaker, NOW)
    assert breaker.wait(NOW) is None
    assert breaker.enter(NOW) is None
    assert fail(breaker, NOW + SUSTAINED)
    assert breaker.wait(NOW + SUSTAINED) == FIRST
    assert breaker.view() == (Scope(), NOW + SUSTAINED, "504", NOW + SUSTAINED + FIRST)


def test_any_answer_ends_the_row() -> None:
    """A part of the upstream that works is not left alone."""
    breaker = Breaker(Scope())
    for number in range(10 * FAILURES):
        assert not fail(breaker, NOW + number * SECOND)
        if number % (FAILURES - 1) == 0:
            assert not breaker.succeeded()
            assert breaker.idle


def test_what_the_upstream_says_of_itself_needs_fewer() -> None:
    """It knows best."""
    for failure in (told(wait=20 * SECOND), told(over_within=300 * SECOND)):
        breaker = Breaker(Scope())
        for number in range(FAILURES_TOLD - 1):
            assert not fail(breaker, NOW + number * SECOND, failure=failure)
        assert fail(breaker, NOW + 9 * SECOND, failure=failure)


@pytest.mark.parametrize("failure", [PLAIN, told(wait=5 * SECOND)])
def test_what_fails_alone_does_not_open_it(failure: Failure) -> None:
    """However often: each counts for half of a row at most; it opens with a second client on a second route."""
    for others in ("ax", "ay", "bx"):
        breaker = Breaker(Scope())
        for number in range(9 * FAILURES):
            assert not fail(breaker, NOW + number * SECOND, "a", "x", failure=failure)
            assert not fail(breaker, NOW + number * SECOND, *others, failure=failure)
    breaker = Breaker(Scope())
    found = [fail(breaker, NOW + number * SECOND, *"ax" if number % 2 else "by") for number in range(FAILURES)]
    assert found == [False] * (FAILURES - 1) + [True]


def test_every_course_of_few_failures() -> None:
    """In any order of failures it takes two clients and two routes, or failures to connect."""
    possible = [*product("ab", "xy"), ()]
    for length in (2, 3):
        for course in product(possible, repeat=length):
            breaker = Breaker(Scope())
            for step in range(4 * FAILURES):
                fail(breaker, NOW + step * SECOND, *course[step % length])
            several = len({whose[0] for whose in course if whose}) > 1 and len({one[1] for one in course if one}) > 1
            assert breaker.closed or several or () in course, course
            assert not breaker.closed or not several or length > 2, course


def test_no_trial_before_the_upstreams_time() -> None:
    """`Retry-After` is honoured, as long as it can be meant seriously."""
    assert opened(told(wait=77 * SECOND)).wait(NOW) == 77 * SECOND
    assert opened(told(wait=86_400 * SECOND)).wait(NOW) == LONGEST


def test_one_trial_at_a_time() -> None:
    """Its answer closes, its failure doubles the wait, its silence makes room for another."""
    breaker = opened()
    assert breaker.wait(NOW) == FIRST
    begin = NOW + FIRST
    silent = trial(breaker, begin)
    assert breaker.wait(begin + SECOND) == SECOND
    last = trial(breaker, begin + PATIENCE)
    fail(breaker, begin + PATIENCE, trial=silent)
    assert breaker.wait(begin + PATIENCE) is not None, "what was given up is not what is waited for"
    fail(breaker, begin + PATIENCE, trial=last)
    assert not breaker.trying
    assert breaker.wait(begin + PATIENCE) == 2 * FIRST
    trial(breaker, begin + PATIENCE + 2 * FIRST)
    assert breaker.succeeded()
    assert breaker.closed
    assert not breaker.succeeded()


def test_a_trial_whose_caller_left_tells_nothing() -> None:
    """The next request is one in its place."""
    breaker = opened()
    first = trial(breaker, NOW + FIRST)
    breaker.leave(first)
    second = trial(breaker, NOW + FIRST + 1)
    breaker.leave(first)
    assert breaker.trying
    breaker.leave(second)
    assert not breaker.trying


@pytest.mark.parametrize(
    ("over_within", "first", "slowest"), [(None, FIRST, SLOWEST), (300 * SECOND, 15 * SECOND, 60 * SECOND)]
)
def test_trials_are_spread(over_within: Micros | None, first: Micros, slowest: Micros) -> None:
    """Twice as far apart each time; over the time that an outage usually takes, if that is told."""
    failure = told(over_within=over_within)
    breaker, now, apart = opened(failure), NOW, []
    for _ in range(12):
        wait = breaker.wait(now)
        assert wait is not None
        apart.append(wait)
        now += wait
        fail(breaker, now, failure=failure, trial=trial(breaker, now))
    assert apart == [min(slowest, first * 2**number) for number in range(12)]


def test_what_fails_late_changes_nothing() -> None:
    """Requests that were in flight when it opened are no trials; only what they tell counts."""
    breaker = opened()
    assert not breaker.failed(NOW + 1, 1.0, PLAIN, trials=())
    assert breaker.wait(NOW) == FIRST
    fail(breaker, NOW + 1, failure=told(wait=20 * SECOND))
    assert breaker.wait(NOW + 1) == 20 * SECOND


# Whose trial it is

TWO = (("a", "x"), ("b", "y"))


def test_one_that_has_not_failed_is_tried_at_once() -> None:
    """It waits neither for the time nor for another's trial; its failure does not prolong the outage."""
    breaker = opened(whose=TWO)
    assert breaker.wait(NOW, "a") == FIRST
    early = trial(breaker, NOW, "c")
    assert breaker.wait(NOW, "c") == FIRST + GRACE, "one request of it"
    fail(breaker, NOW + 1, "c", "z", trial=early)
    assert breaker.wait(NOW + 1, "a") == FIRST - 1
    slow = trial(breaker, NOW + FIRST, "a")
    assert breaker.wait(NOW + FIRST, "b") == SECOND
    trial(breaker, NOW + FIRST, "d")
    fail(breaker, NOW + FIRST + 1, "a", "x", trial=slow)
    assert breaker.trying
    assert breaker.succeeded()


def test_early_trials_are_few() -> None:
    """Of many clients that come while it is open."""
    breaker = opened(whose=TWO)
    early = 0
    for number in range(10 * EARLY):
        if breaker.wait(NOW, str(number)) is None:
            early += 1
            fail(breaker, NOW, str(number), "z", trial=trial(breaker, NOW, str(number)))
    assert early == EARLY


def test_no_early_trial_when_nothing_is_reached() -> None:
    """Then it does not matter whose request it is; once something is reached, it does again."""
    breaker = opened(Failure("refused", "way"))
    assert breaker.wait(NOW, "c") == FIRST
    now = NOW + FIRST
    fail(breaker, now, "a", "x", trial=trial(breaker, now, "a"))
    assert breaker.wait(now, "c") is None


def test_trials_take_turns() -> None:
    """However loud one is, the others have theirs: who had one comes later than who had none."""
    breaker, now = opened(whose=TWO), NOW
    turns: list[str] = []
    for _ in range(6):
        now += breaker.wait(now, "a") or 0
        loud = breaker.wait(now, "b")
        part = "b" if loud is None and "b" not in turns[-1:] else "a"
        turns.append(part)
        fail(breaker, now, part, "x", trial=trial(breaker, now, part))
        other = "b" if part == "a" else "a"
        assert (breaker.wait(now, part) or 0) - (breaker.wait(now, other) or 0) in (0, GRACE)
    assert set(turns) == {"a", "b"}


def test_one_that_is_alone_is_not_held_back() -> None:
    """There is nobody who could have the trial in its place; of two, the one has it at last if the other stays away."""
    for whose, later in (((("a", "x"),), 0), (TWO, GRACE)):
        breaker = Breaker(Scope())
        for number in range(FAILURES):
            fail(breaker, NOW - SUSTAINED + number, *(whose[number % len(whose)] if later else ()))
        assert fail(breaker, NOW, *(whose[-1] if later else ()))
        part = "a" if later else None
        fail(breaker, NOW + FIRST, *("a", "x") if later else (), trial=trial(breaker, NOW + FIRST, part))
        assert breaker.wait(NOW + FIRST, part) == 2 * FIRST + later
        trial(breaker, NOW + 3 * FIRST + later, part)


def test_it_remembers_so_many_only() -> None:
    """However many clients fail, and try."""
    breaker = Breaker(Scope())
    for number in range(10 * MAX_PARTS):
        fail(breaker, NOW + number * SECOND, f"c{number}", f"r{number}")
    now = NOW + 20 * MAX_PARTS * SECOND
    for number in range(10 * MAX_PARTS):
        now += breaker.wait(now, f"d{number}") or 0
        fail(breaker, now, f"d{number}", "x", trial=trial(breaker, now, f"d{number}"))
    assert len(breaker._failing) <= MAX_PARTS + EARLY
    assert len(breaker._tried) <= MAX_PARTS
    assert len(breaker._shares) <= 2 * FAILURES * FAILURES_TOLD


class Outages(RuleBasedStateMachine):
    """Any order of failures, answers, trials and time."""

    def __init__(self) -> None:
        super().__init__()
        self.breaker = Breaker(Scope())
        self.now = NOW
        self.row: list[Micros] = []
        self.trials: list[Trial] = []

    @rule(milliseconds=st.sampled_from([0, 1, 500, 1_000, 2_000, 31_000, 400_000]))
    def pass_(self, milliseconds: int) -> None:
        self.now += milliseconds * 1_000

    @rule(
        chance=st.floats(0, 1),
        wait=st.none() | st.integers(0, 900).map(lambda s: s * SECOND),
        over_within=st.none() | st.integers(1, 900).map(lambda s: s * SECOND),
        whose=st.sampled_from([(), ("a", "x"), ("a", "y"), ("b", "x"), ("b", "y"), ("c", "z")]),
        is_trial=st.booleans(),
        times=st.integers(1, 9),
    )
    def fail(
        self,
        chance: float,
        wait: Micros | None,
        over_within: Micros | None,
        whose: tuple[str, ...],
        is_trial: bool,
        times: int,
    ) -> None:
        for _ in range(times):
            was_closed = self.breaker.closed
            self.row.append(self.now)
            trials = (self.trials.pop(),) if self.trials and is_trial else ()
            failure = Failure("5xx", wait=wait, over_within=over_within)
            news = self.breaker.failed(self.now, chance, failure, *whose, trials=trials)
            assert news == (was_closed and not self.breaker.closed)
            if news:
                assert len(self.row) >= FAILURES_TOLD
                assert self.now - self.row[0] >= SUSTAINED

    @rule()
    def answer(self) -> None:
        was_closed = self.breaker.closed
        assert self.breaker.succeeded() != was_closed
        assert self.breaker.idle
        self.row.clear()
        self.trials.clear()

    @precondition(lambda self: self.trials)
    @rule()
    def leave(self) -> None:
        self.breaker.leave(self.trials.pop())

    @rule(part=st.sampled_from([None, "a", "b", "c", "d"]))
    def enter(self, part: str | None) -> None:
        if self.breaker.wait(self.now, part) is not None:
            return
        found = self.breaker.enter(self.now, part)
        assert (found is None) == self.breaker.closed
        if found is not None:
            last = self.trials[-1:]
            assert found.early or not last or self.now >= last[0].since + PATIENCE
            self.trials.append(found)

    @precondition(lambda self: not self.breaker.closed)
    @invariant()
    def it_is_tried_again(self) -> None:
        """Nothing keeps it open for longer than the longest time without a trial."""
        for part in (None, "a", "d"):
            wait = self.breaker.wait(self.now, part)
            assert wait is None or 0 < wait <= max(LONGEST, int(SLOWEST * (1 + SPREAD))) + GRACE
            assert self.breaker.wait(self.now + max(LONGEST, PATIENCE) + GRACE, part) is None


def test_any_course_of_outages() -> None:
    """Whatever happens in whatever order."""
    run_state_machine_as_test(Outages)
