import gzip
import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import formatdate
from math import ceil, floor
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.core.http import Fields
from proxy.core.model import MILLISECOND, SECOND, Limit, Micros
from proxy.core.policy import Rule
from proxy.core.signals import BODY_LIMIT, LONGEST, Throttle, announced_wait, sent_at, throttle

SAMPLES = sorted((Path(__file__).parent.parent / "samples").glob("*.http"))

NOW = 1_624_391_484
"""Epoch seconds of `DATE`."""
DATE = (b"Date", b"Tue, 22 Jun 2021 19:51:24 GMT")

WRONG_WALL: Micros = 86_400 * 365 * 60 * SECOND
"""A local clock that is decades off."""

NAMES = st.sampled_from([
    b"Date", b"Retry-After", b"RetryAfter", b"X-RateLimit-RetryAfter", b"X-RateLimit-Reset", b"RateLimit-Reset",
    b"X-RateLimit-Limit", b"RateLimit-Remaining", b"RateLimit", b"RateLimit-Policy", b"Content-Encoding",
])  # fmt: skip
VALUES = st.binary(max_size=60) | st.from_regex(
    rb'\A(?:[-+]?\d{0,20}(\.\d*)?|("[^"]*"?|limit|reset=|;[rtq]=|\d{1,3}|[,; "\\]){0,8}|gzip|deflate)\Z'
)


@dataclass(frozen=True)
class Sample:
    """A recorded answer, and what it is expected to say."""

    status: int
    fields: Fields
    body: bytes
    expected: dict[str, str]

    @property
    def wait(self) -> Micros | None:
        """The wait in microseconds."""
        text = self.expected["wait"]
        return None if text == "none" else round(float(text) * SECOND)

    @property
    def limit(self) -> int | None:
        """The size of the limit that was hit."""
        text = self.expected["limit"]
        return None if text == "none" else int(text)


def read(path: Path) -> Sample:
    """Head lines that begin with `#` tell what to expect; the answer follows, its body until the end."""
    lines = path.read_text(encoding="utf-8").splitlines()
    notes = [line[1:].strip() for line in lines if line.startswith("#")]
    answer = [line for line in lines if not line.startswith("#")]
    blank = answer.index("")
    fields = tuple(
        (name.encode(), value.strip().encode()) for name, _, value in (line.partition(":") for line in answer[1:blank])
    )
    body = "\n".join(answer[blank + 1 :]).encode()
    if "encode: gzip" in notes:
        body = gzip.compress(body, mtime=0)
    expected = next(note for note in notes if note.startswith("expect:")).removeprefix("expect:").split()
    return Sample(int(answer[0].split()[1]), fields, body, dict(pair.split("=") for pair in expected))


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_recorded_answers(path: Path) -> None:
    """Each recorded answer is read as its head says, whatever the local clock shows."""
    sample = read(path)
    if sample.status == 429:
        expected = Throttle(sample.wait, "plan" if sample.expected["kind"] == "plan" else "window", sample.limit)
        assert throttle(sample.fields, sample.body, WRONG_WALL) == expected
    else:
        assert announced_wait(sample.fields, WRONG_WALL) == sample.wait


def error(message: str = "", **more: object) -> bytes:
    """A body in the API's own shape."""
    return json.dumps({"error": {"name": "rateLimited", "message": message, **more}}).encode()


INSTANTS = st.integers(0, SECOND - 1).map(lambda part: NOW * SECOND + part)
"""Moments of answering within one second, in epoch microseconds."""
WAITS = st.integers(0, 40 * 60 * SECOND)


@pytest.mark.parametrize("round_", [floor, ceil])
@pytest.mark.parametrize("name", [b"X-RateLimit-Reset", b"RateLimit-Reset", b"x-ratelimit-reset"])
@given(INSTANTS, WAITS)
def test_a_reset_in_epoch_seconds_is_never_read_early(
    name: bytes, round_: Callable[[float], int], now: Micros, wait: Micros
) -> None:
    """However the server rounds, the wait covers its instant; on top comes a second for each rounding."""
    told = round_((now + wait) / SECOND)
    found = announced_wait((DATE, (name, b"%d" % told)), WRONG_WALL)
    assert found is not None
    assert wait <= found <= wait + (2 if round_ is floor else 3) * SECOND


@given(INSTANTS, WAITS)
def test_epoch_milliseconds_are_read_to_within_the_date(now: Micros, wait: Micros) -> None:
    """The message's instant is exact: only the answer's `Date` is rounded."""
    told = ceil((now + wait) / MILLISECOND)
    found = throttle((DATE,), error(f"Rate Limit exceeded. Please retry at {told}"), WRONG_WALL).wait
    assert found is not None
    assert wait <= found <= wait + SECOND + MILLISECOND


@given(WAITS)
def test_delays_are_taken_at_their_word(wait: Micros) -> None:
    """Seconds in any of the fields and in the details are seconds from the answer."""
    seconds = wait // SECOND
    for name in (b"Retry-After", b"retryafter", b"X-RateLimit-RetryAfter", b"X-RateLimit-Reset", b"RateLimit-Reset"):
        assert announced_wait(((name, b" %d " % seconds),), WRONG_WALL) == seconds * SECOND
    for details in (seconds, float(seconds), str(seconds)):
        assert throttle((), error(details={"retryAfter": details}), WRONG_WALL).wait == seconds * SECOND
    for value in (b"limit=60, remaining=0, reset=%d", b'"default";r=0;t=%d', b'"a, b";r=0;pk=:cA==:; t=%d'):
        assert announced_wait(((b"RateLimit", value % seconds),), WRONG_WALL) == seconds * SECOND


@given(st.integers(0, 30 * 86_400))
def test_dates_are_read_against_the_answers_own(seconds: int) -> None:
    """`Retry-After` as a date, in the form that is sent and in the two obsolete ones."""
    instant = NOW + seconds
    fixed = formatdate(instant, usegmt=True)
    day, number, month, year, time, _ = fixed.split()
    old = (f"{day} {number}-{month}-{year[2:]} {time} GMT", f"{day[:3]} {month} {int(number):2d} {time} {year}")
    for text in (fixed, *old):
        assert announced_wait((DATE, (b"Retry-After", text.encode())), WRONG_WALL) == seconds * SECOND


def test_without_a_date_the_local_clock_serves() -> None:
    """Instants are then read against the wall."""
    wall = NOW * SECOND + 250_000
    fields = ((b"X-RateLimit-Reset", b"%d" % (NOW + 10)),)
    assert announced_wait(fields, wall) == 11 * SECOND - 250_000
    assert announced_wait((*fields, (b"Date", b"some day")), wall) == 11 * SECOND - 250_000


def test_fractions_are_rounded_up() -> None:
    """Some servers tell more than whole seconds; an epoch with a fraction was not rounded to the second."""
    assert announced_wait(((b"Retry-After", b"0.65"),), 0) == 650_000
    assert announced_wait((DATE, (b"X-RateLimit-Reset", b"%d.25" % (NOW + 3))), 0) == 3_250_000
    assert announced_wait(((b"Retry-After", b"0.0000001"),), 0) == 1


@pytest.mark.parametrize(
    "value",
    [
        b"", b"soon", b"-5", b"+5", b"1e3", b"5s", b"0x10", b"5, 6", b"\xb2", b"1_000", "٣".encode(),
        b"9" * 15, b"9" * 5000,
        b"2678401", b"999999999", b"1624391400", b"1624391483999", b"1824391484", b"Tue, 22 Jun 2021 19:51:23 GMT",
        b"Tue, 22 Jun 2021 25:61:61 GMT", b"Tue, 99 Jun 2021 19:51:24 GMT", b"Fri, 22 Jun 2029 19:51:24 GMT",
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", [b"Retry-After", b"X-RateLimit-Reset"])
def test_what_is_malformed_past_or_absurd_is_as_good_as_not_said(name: bytes, value: bytes) -> None:
    """It counts for nothing, alone or beside a good one."""
    assert announced_wait((DATE, (name, value)), WRONG_WALL) is None
    assert announced_wait((DATE, (name, value), (b"RetryAfter", b"3")), WRONG_WALL) == 3 * SECOND


@pytest.mark.parametrize(
    "value", [-5, 2_678_401, True, None, [5], {"s": 5}, float("nan"), float("inf"), 1e300, "\ud800"]
)
def test_details_that_are_no_wait_are_not_read(value: object) -> None:
    """Whatever JSON may hold in its place."""
    assert throttle((DATE,), error(details={"retryAfter": value}), WRONG_WALL).wait is None


def test_the_longest_wait_is_31_days() -> None:
    """As long as a month's plan can take."""
    assert announced_wait(((b"Retry-After", b"%d" % (LONGEST // SECOND)),), 0) == LONGEST


def test_an_instruction_beats_a_description() -> None:
    """In a rolling window the next request may go long before the whole window has passed."""
    fields = ((b"X-RateLimit-Remaining", b"0"), (b"X-RateLimit-Reset", b"60"), (b"Retry-After", b"2"))
    assert announced_wait(fields, 0) == 2 * SECOND


def test_the_latest_of_several_instructions_counts() -> None:
    """Fields, text and details: who comes at the latest of them comes too early for none."""
    body = error(f"Please retry at {(NOW + 7) * 1000}", details={"retryAfter": 5})
    assert throttle((DATE, (b"Retry-After", b"6")), body, WRONG_WALL).wait == 7 * SECOND
    assert throttle((DATE, (b"Retry-After", b"6"), (b"RetryAfter", b"9")), body, WRONG_WALL).wait == 9 * SECOND


def test_what_has_requests_left_was_not_hit() -> None:
    """Neither its reset nor its size is taken from a refusal that another limit caused."""
    fields = ((b"X-RateLimit-Limit", b"300"), (b"X-RateLimit-Remaining", b"250"), (b"X-RateLimit-Reset", b"34"))
    assert throttle(fields, b"", 0) == Throttle(None, "window")


def test_the_latest_of_several_used_up_budgets_counts() -> None:
    """Both must have something again; which of the two refused is not known."""
    fields = (
        (b"X-RateLimit-Limit", b"60"), (b"X-RateLimit-Remaining", b"0"), (b"X-RateLimit-Reset", b"20"),
        (b"RateLimit", b'"burst";r=0;t=7'), (b"RateLimit-Policy", b'"burst";q=10;w=10'),
    )  # fmt: skip
    assert throttle(fields, b"", 0) == Throttle(20 * SECOND, "window")


def test_nothing_said_is_no_wait() -> None:
    """The caller then falls back on the windows that it knows."""
    assert throttle((), b"", 0) == Throttle(None, "window")
    assert announced_wait((DATE,), 0) is None


@pytest.mark.parametrize("coding", [b"gzip", b"X-GZIP ", b"deflate"])
def test_compressed_errors_are_read(coding: bytes) -> None:
    """The caller's `Accept-Encoding` went upstream as it came."""
    plain = error(details={"retryAfter": 5})
    body = zlib.compress(plain) if coding == b"deflate" else gzip.compress(plain)
    assert throttle(((b"Content-Encoding", coding),), body, 0).wait == 5 * SECOND


def test_a_bomb_is_not_unpacked() -> None:
    """No more than `BODY_LIMIT` bytes come out of a compressed body."""
    body = gzip.compress(b" " * (BODY_LIMIT * 1000) + error(details={"retryAfter": 5}))
    assert throttle(((b"Content-Encoding", b"gzip"),), body, 0).wait is None


@pytest.mark.parametrize(
    "body", [b"Please RETRY AT 1624391490000.", b'["Please retry at 1624391490000"]', b'{"error": "x']
)
def test_a_body_that_is_no_error_object_is_read_as_text(body: bytes) -> None:
    """Plain text, another JSON value, JSON that was cut off."""
    assert throttle((DATE,), body, 0).wait == (6 * SECOND if b"1624391490000" in body else None)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["error", "name", "title", "message", "detail", "details", "retryAfter"]), inner, max_size=4
        )
    ),
    max_leaves=8,
).map(lambda value: json.dumps(value).encode())


@given(st.lists(st.tuples(NAMES | st.binary(max_size=20), VALUES), max_size=8), st.binary(max_size=300) | JSON)
@example([(b"Date", b"," * 100)], b"[" * 60_000)
@example([(b"Content-Encoding", b"gzip")], gzip.compress(b"{}")[:-9])
@example([(b"RateLimit", b'"\\' * 8000)], b'{"error": {"message": "retry at \xff1624391490000"}}')
def test_no_bytes_raise(fields: list[tuple[bytes, bytes]], body: bytes) -> None:
    """Whatever an upstream sends, the answer is a wait in range or none."""
    told = throttle(tuple(fields), body, NOW * SECOND)
    for wait in (told.wait, announced_wait(tuple(fields), NOW * SECOND)):
        assert wait is None or 0 <= wait <= LONGEST


@given(st.text(max_size=40) | st.binary(max_size=40).map(lambda raw: raw.decode("latin-1")))
@example("Tue, 22 Jun 2021 19:51:24 +99999999999999")
@example(" ")
def test_no_date_raises(text: str) -> None:
    """A date is read or it is not."""
    date = sent_at(((b"Date", text.encode(errors="replace")),))
    assert date is None or isinstance(date, int)


MINUTE = Limit(60, 60 * SECOND)
BURST = Limit(10, 10 * SECOND, (Rule.parse("GET /collections"),))
LIMITS = (MINUTE, BURST, Limit(10, 60 * SECOND, (Rule.parse("GET /collections"),)), Limit(20, 60 * SECOND))


@pytest.mark.parametrize(
    ("size", "of", "closed"),
    [(60, (0, 1, 2), (0,)), (10, (0, 1, 2), (1, 2)), (300, (0, 1), (0, 1)), (None, (0, 1), (0, 1))],
)
def test_which_limits_a_refusal_closes(size: int | None, of: tuple[int, ...], closed: tuple[int, ...]) -> None:
    """Those of the request that have the named size; when none has, any of them may be full, so all."""
    assert Throttle(SECOND, "window", size).parks(of, LIMITS) == closed
