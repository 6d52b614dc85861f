from collections.abc import Callable
from email.utils import formatdate
from math import ceil, floor

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from keyturn.core.model import MILLISECOND, SECOND, Micros
from keyturn.core.moments import MAX_DISTANCE, ROUNDING, date, wait

NOW = 1_624_391_484
"""Epoch seconds of an answer's `Date`, which is rounded down."""

INSTANTS = st.integers(0, SECOND - 1).map(lambda part: NOW * SECOND + part)
"""Moments of answering within one second, in epoch microseconds."""
WAITS = st.integers(0, 40 * 60 * SECOND)


@pytest.mark.parametrize("round_", [floor, ceil])
@given(INSTANTS, WAITS)
def test_an_instant_in_epoch_seconds_is_never_read_early(
    round_: Callable[[float], int], now: Micros, span: Micros
) -> None:
    """A wait covers its instant however servers round: a second is added for each rounding."""
    told = round_((now + span) / SECOND)
    found = wait(b"%d" % told, NOW * SECOND)
    assert found is not None
    assert span <= found <= span + ROUNDING + (SECOND if round_ is ceil else 0)


@given(INSTANTS, WAITS)
def test_epoch_milliseconds_are_read_to_within_the_date(now: Micros, span: Micros) -> None:
    """An instant in milliseconds is exact, except for the rounded `Date` of the answer."""
    found = wait(b"%d" % ceil((now + span) / MILLISECOND), NOW * SECOND)
    assert found is not None
    assert span <= found <= span + SECOND + MILLISECOND


@given(st.integers(0, MAX_DISTANCE // SECOND))
def test_delays_are_taken_at_their_word(seconds: int) -> None:
    """A delay counts in seconds from the answer."""
    assert wait(b" %d " % seconds, NOW * SECOND) == wait(b"%d" % seconds, 0) == seconds * SECOND


@given(st.integers(0, 30 * 86_400))
def test_dates_are_read_against_the_answers_own(seconds: int) -> None:
    """HTTP dates are read in the current form and in the two obsolete ones, against `Date`."""
    fixed = formatdate(NOW + seconds, usegmt=True)
    day, number, month, year, time, _ = fixed.split()
    old = (f"{day} {number}-{month}-{year[2:]} {time} GMT", f"{day[:3]} {month} {int(number):2d} {time} {year}")
    for text in (fixed, *old):
        assert wait(text.encode(), NOW * SECOND) == seconds * SECOND


def test_fractions_are_rounded_up() -> None:
    """Fractions of seconds are accepted and rounded up."""
    assert wait(b"0.65", 0) == 650_000
    assert wait(b"%d.25" % (NOW + 3), NOW * SECOND) == 3_250_000
    assert wait(b"0.0000001", 0) == 1


@pytest.mark.parametrize("text", [b"1624391400", b"1624391483999", b"Tue, 22 Jun 2021 19:51:23 GMT"])
def test_what_is_over_is_no_wait(text: bytes) -> None:
    """An instant before the answer is no wait."""
    assert wait(text, NOW * SECOND) is None


@pytest.mark.parametrize(
    "text",
    [
        b"", b"soon", b"-5", b"+5", b"1e3", b"5s", b"0x10", b"5, 6", b"\xb2", b"1_000", "٣".encode(),
        b"9" * 15, b"9" * 5000,
        b"2678401", b"999999999", b"1824391484", b"1500000000",
        b"Tue, 22 Jun 2021 25:61:61 GMT", b"Tue, 99 Jun 2021 19:51:24 GMT", b"Fri, 22 Jun 2029 19:51:24 GMT",
    ],
)  # fmt: skip
def test_what_is_malformed_or_absurd_is_refused(text: bytes) -> None:
    """Malformed moments, and those farther away than any window, are ignored."""
    with pytest.raises(ValueError):
        wait(text, NOW * SECOND)


@given(st.text(max_size=40) | st.binary(max_size=40).map(lambda raw: raw.decode("latin-1")))
@example("Tue, 22 Jun 2021 19:51:24 +99999999999999")
@example(" ")
@example("," * 100)
def test_no_date_raises(text: str) -> None:
    """Any text is read as a date or ignored."""
    assert isinstance(date(text.encode(errors="replace")), int | None)
