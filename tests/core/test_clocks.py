from dataclasses import dataclass, field
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from keyturn.core.clocks import BASELINE, MIN_CLOCK_STEP, StoreClock
from keyturn.core.model import MILLISECOND, SECOND, Micros

WINDOW = 60 * SECOND
CORRECTED = 10 * MILLISECOND
"""A store corrects its clock from here on (`core.state`)."""

GUARD = 130 * MILLISECOND
"""The excess of a stretched window of a minute over the upstream's: 100 ms and 0.05 %."""


START = 5_000 * SECOND


@dataclass
class Play:
    """One replica and one store in real time; each clock has its own rate, and a round trip takes up to 50 ms."""

    rate: float = 1.0
    own_rate: float = 1.0
    gap: Micros = SECOND
    seed: int = 0
    corrects: bool = True
    real: Micros = START
    clock: StoreClock = field(default_factory=StoreClock)
    ahead: list[Micros] = field(default_factory=list)
    steps: list[Micros] = field(default_factory=list)
    offsets: list[tuple[Micros, Micros]] = field(default_factory=list)
    """Real time at which the store answered, and by how much its corrected clock was ahead of it."""
    shift: Micros = 0

    def __post_init__(self) -> None:
        self.clock.window = WINDOW
        self.random = Random(self.seed)

    def own(self) -> Micros:
        return round(self.real * self.own_rate)

    def store(self) -> Micros:
        return START + round((self.real - START) * self.rate) + self.shift

    def exchange(self) -> None:
        """Report the last measurement; the store corrects its clock and responds."""
        sent = self.own()
        self.real += self.random.randrange(25 * MILLISECOND)
        if self.corrects and self.ahead and self.ahead[-1] >= CORRECTED:
            self.shift -= self.ahead[-1]
        instant = self.store()
        self.offsets.append((self.real, instant - self.real))
        self.real += self.random.randrange(25 * MILLISECOND)
        now = self.own()
        self.steps.append(self.clock.stepped(now, instant))
        self.ahead.append(self.clock.ahead(now, instant))
        self.clock.believe(sent, now, instant)

    def run(self, duration: Micros) -> "Play":
        until = self.real + duration
        while self.real < until:
            self.exchange()
            self.real += self.random.randrange(self.gap)
        return self

    def shortened(self) -> Micros:
        """Return the most by which the store's clock shortened a window, or a part of one."""
        pairs = ((one, two) for n, two in enumerate(self.offsets) for one in self.offsets[:n])
        return max(late - early for (before, early), (after, late) in pairs if after - before <= WINDOW)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("rate", "gap"), [(1.009, 2 * SECOND), (1.009, SECOND // 4), (1.083, SECOND // 4)])
def test_windows_are_kept_though_the_clock_runs_fast(rate: float, gap: Micros, seed: int) -> None:
    """Corrections keep every window within its guard, and drift is never taken for a step (law 1)."""
    play = Play(rate, gap=gap, seed=seed).run(120 * SECOND)
    assert play.shortened() < GUARD
    assert set(play.steps) == {0}
    uncorrected = Play(rate, gap=gap, seed=seed, corrects=False).run(120 * SECOND)
    assert uncorrected.shortened() > 3 * GUARD


@pytest.mark.parametrize("rate", [1.009, 1.083])
def test_corrections_do_not_slow_a_clock_below_real_time(rate: float) -> None:
    """No drift is corrected twice: after minutes the store's clock is not behind."""
    play = Play(rate, gap=SECOND // 4).run(180 * SECOND)
    allowed = 180 * SECOND // 2000
    assert play.offsets[-1][1] >= 0
    assert play.offsets[-1][1] <= allowed + 3 * GUARD


@given(
    rate=st.floats(0.9, 1.0005),
    trips=st.lists(
        st.tuples(st.integers(0, 50 * MILLISECOND), st.integers(0, 50 * MILLISECOND), st.integers(0, 20 * SECOND)),
        max_size=30,
    ),
)
def test_a_slow_network_is_not_taken_for_drift(rate: float, trips: list[tuple[Micros, Micros, Micros]]) -> None:
    """A clock that runs at most 0.05 % fast is never corrected, however long round trips take."""
    clock, real = StoreClock(), 0
    clock.window = WINDOW
    for there, back, gap in trips:
        sent = real
        real += there
        instant = int(real * rate)
        real += back
        assert clock.ahead(real, instant) <= 2, "roundings"
        assert clock.stepped(real, instant) == 0
        clock.believe(sent, real, instant)
        real += gap


@pytest.mark.parametrize("own_rate", [0.985, 0.95])
def test_a_slow_own_clock_looks_like_drift_but_not_like_steps(own_rate: float) -> None:
    """A replica's own slow clock begins no new epoch, since only the least drift of all is corrected."""
    play = Play(own_rate=own_rate, corrects=False).run(45 * SECOND)
    assert set(play.steps) == {0}
    assert play.ahead[-1] > 100 * MILLISECOND


def test_drift_is_understated_by_no_more_than_trips_and_tolerance() -> None:
    """Over half a minute a drift of 0.9 % is measured as 270 ms, less round trips and tolerance."""
    play = Play(1.009, corrects=False).run(120 * SECOND)
    half = WINDOW // 2
    least = half * 9 // 1000 - half // 2000 - 50 * MILLISECOND
    assert min(play.ahead[len(play.ahead) // 2 :]) >= least
    assert max(play.ahead) <= (WINDOW + 2 * SECOND) * 9 // 1000


@pytest.mark.parametrize(("window", "reach"), [(SECOND, 10), (20 * SECOND, 10), (60 * SECOND, 30), (3600 * SECOND, 30)])
def test_how_far_back_drift_is_measured(window: Micros, reach: int) -> None:
    """Drift is measured over about a window, at least 10 s and at most 60 s."""
    clock, jump = StoreClock(), 200 * MILLISECOND
    clock.window = window
    clock.believe(0, 0, 0)
    ahead = []
    for second in range(1, 130):
        now = second * SECOND
        ahead.append(clock.ahead(now, now + jump))
        clock.believe(now, now, now + jump)
    shown = [second for second, micros in enumerate(ahead, 1) if micros]
    assert shown == [*range(1, shown[-1] + 1)]
    assert BASELINE[0] <= reach * SECOND <= shown[-1] * SECOND <= BASELINE[1]
    assert shown[-1] == 2 * reach, "two halves"


@pytest.mark.parametrize("between", [0, MILLISECOND, 2 * SECOND, 3600 * SECOND])
def test_a_clock_that_was_set_forward(between: Micros) -> None:
    """A clock was set forward if it gained more than 20 ms and a tenth of the time between two responses."""
    clock, sent = StoreClock(), 7 * SECOND
    clock.believe(sent, sent + MILLISECOND, 100 * SECOND)
    now = sent + between
    most = MIN_CLOCK_STEP + between // 10
    assert clock.stepped(now, 100 * SECOND + between + most) == 0
    assert clock.stepped(now, 100 * SECOND + between + most + 1) == most + 1


def test_a_step_is_measured_from_the_sending_of_the_earlier_request() -> None:
    """A slow response does not make the next one look like a step."""
    clock = StoreClock()
    clock.believe(0, 500 * MILLISECOND, 0)
    assert clock.stepped(501 * MILLISECOND, 500 * MILLISECOND) == 0


def test_a_small_step_is_corrected_as_drift() -> None:
    """A step that is too small for a new epoch still shortens windows."""
    clock = StoreClock()
    clock.believe(0, 0, 0)
    now, jump = 2 * SECOND, 150 * MILLISECOND
    assert clock.stepped(now, now + jump) == 0
    assert clock.ahead(now, now + jump) == jump - now // 2000


def test_a_corrected_clock_is_a_new_reference() -> None:
    """After a correction drift is measured anew, from its first millisecond on."""
    clock = StoreClock()
    clock.believe(0, 0, 0)
    clock.believe(SECOND, SECOND, SECOND - 40 * MILLISECOND)
    assert clock.ahead(2 * SECOND, 2 * SECOND) == 40 * MILLISECOND - SECOND // 2000


def test_a_new_epoch_has_no_references() -> None:
    """A new epoch starts without references, since its clock may be another server's."""
    clock = StoreClock()
    assert clock.stepped(SECOND, 50 * SECOND) == clock.ahead(SECOND, 50 * SECOND) == 0
    clock.believe(SECOND, SECOND, 50 * SECOND)
    clock.restart()
    assert clock.stepped(SECOND, 90 * SECOND) == clock.ahead(SECOND, 90 * SECOND) == 0


def test_the_store_time() -> None:
    """The store's time is the last one received, plus the time since by the replica's own clock (law 7)."""
    clock = StoreClock()
    clock.believe(SECOND, 3 * SECOND, 1_000 * SECOND)
    assert clock.store_time(5 * SECOND) == 1_004 * SECOND
