import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from keyturn.core.allowances import Allowance
from keyturn.core.exchange import ObservedLimit
from keyturn.core.http import Fields
from keyturn.core.model import SECOND, Limit, Micros
from keyturn.core.moments import MAX_DISTANCE
from keyturn.core.policy import Rule
from keyturn.core.signals import Route, Signals, Throttle, read

SAMPLES = sorted((Path(__file__).parent.parent / "samples").glob("*.http"))

DATE = (b"Date", b"Tue, 22 Jun 2021 19:51:24 GMT")
NOW = 1_624_391_484
WRONG_WALL: Micros = 86_400 * 365 * 60 * SECOND
"""A local clock that is decades off."""

DURATIONS = frozenset(("wait", "over_within", "reset", "window"))


@dataclass(frozen=True)
class Sample:
    """A recorded answer, and what it is expected to mean."""

    status: int
    fields: Fields
    body: bytes
    expected: Signals


def load(path: Path) -> Sample:
    """Read a sample: head lines that begin with `#` are expectations, then the answer follows."""
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
    told = next(note for note in notes if note.startswith("expect:")).removeprefix("expect:")
    return Sample(int(answer[0].split()[1]), fields, body, expected(json.loads(told)))


def expected(told: dict[str, Any]) -> Signals:
    """Return the value object that a sample describes: durations in seconds, omitted fields by default."""
    allowances = tuple(Allowance(**durations(one)) for one in told.pop("allowances", ()))
    ignored = tuple(told.pop("ignored", ()))
    return Signals(allowances=allowances, ignored=ignored, **durations(told))


def durations(told: dict[str, Any]) -> dict[str, Any]:
    """Return seconds as microseconds."""
    return {key: round(value * SECOND) if key in DURATIONS and value else value for key, value in told.items()}


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_recorded_answers(path: Path) -> None:
    """Each recorded answer is read as its head says, by any local clock."""
    sample = load(path)
    found = read(sample.status, sample.fields, WRONG_WALL, sample.body)
    assert sorted(found.ignored) == sorted(sample.expected.ignored)
    assert Signals(**{**fields_of(found), "ignored": sample.expected.ignored}) == sample.expected


def fields_of(signals: Signals) -> dict[str, Any]:
    """Return the fields of a value object."""
    return {name: getattr(signals, name) for name in Signals.__dataclass_fields__}


def test_without_a_date_the_local_clock_serves() -> None:
    """Without a `Date`, instants are read against the local clock."""
    wall = NOW * SECOND + 250_000
    fields = ((b"X-RateLimit-Reset", b"%d" % (NOW + 10)),)
    assert read(429, fields, wall).wait == 11 * SECOND - 250_000
    assert read(429, (*fields, (b"Date", b"some day")), wall).wait == 11 * SECOND - 250_000


def test_an_instruction_beats_a_description() -> None:
    """An explicit wait counts more than a window's reset."""
    fields = ((b"X-RateLimit-Remaining", b"0"), (b"X-RateLimit-Reset", b"60"), (b"Retry-After", b"2"))
    assert read(429, fields, 0).wait == 2 * SECOND


def test_the_latest_of_several_instructions_counts() -> None:
    """The latest of several instructions in fields, text and details counts."""
    message = f"Please retry at {(NOW + 7) * 1000}"
    body = json.dumps({"error": {"name": "x", "message": message, "details": {"retryAfter": 5}}}).encode()
    assert read(429, (DATE, (b"Retry-After", b"6")), WRONG_WALL, body).wait == 7 * SECOND
    assert read(429, (DATE, (b"Retry-After", b"6"), (b"RetryAfter", b"9")), WRONG_WALL, body).wait == 9 * SECOND


def test_the_latest_of_several_used_up_budgets_counts() -> None:
    """The latest reset of several exhausted limits counts."""
    fields = (
        (b"X-RateLimit-Limit", b"60"), (b"X-RateLimit-Remaining", b"0"), (b"X-RateLimit-Reset", b"20"),
        (b"RateLimit", b'"burst";r=0;t=7'), (b"RateLimit-Policy", b'"burst";q=10;w=10'),
    )  # fmt: skip
    assert read(429, fields, 0).wait == 20 * SECOND


@pytest.mark.parametrize(
    "value", [-5, 2_678_401, True, [5], {"s": 5}, float("nan"), float("inf"), 1e300, "\ud800", "soon"]
)
def test_details_that_are_no_wait_are_told(value: object) -> None:
    """Details that hold no wait are reported, whatever JSON they are."""
    body = json.dumps({"error": {"name": "x", "message": "", "details": {"retryAfter": value}}}).encode()
    found = read(429, (DATE,), WRONG_WALL, body)
    assert (found.wait, found.ignored) == (None, ("body",))


@given(
    st.integers(200, 599),
    st.lists(
        st.tuples(
            st.sampled_from([b"Date", b"Retry-After", b"X-RateLimit-Reset", b"RateLimit", b"Age", b"Content-Encoding"]),
            st.binary(max_size=30) | st.from_regex(rb"\A(\d{0,14}|gzip|deflate|limit=\d{1,3}, reset=\d)\Z"),
        ),
        max_size=6,
    ),
    st.binary(max_size=200),
)
def test_no_answer_raises(status: int, fields: list[tuple[bytes, bytes]], body: bytes) -> None:
    """Any answer is read without failing, and its wait is in range or missing."""
    wait = read(status, tuple(fields), NOW * SECOND, body).wait
    assert wait is None or 0 <= wait <= MAX_DISTANCE


# Limits of a request

MINUTE = Limit(60, 60 * SECOND)
BURST = Limit(10, 10 * SECOND, (Rule.parse("GET /collections"),))
TWIN = Limit(10, 60 * SECOND, (Rule.parse("GET /collections"),))
LIMITS = (MINUTE, BURST, TWIN, Limit(300, 60 * SECOND))


def used_up(size: int | None, left: int | None = 0) -> Signals:
    """Return a 429 that describes one limit."""
    return Signals("limit", SECOND, (Allowance(size, left),))


@pytest.mark.parametrize(
    ("signals", "of", "kind", "closed"),
    [
        (used_up(60), (0, 1, 2), "window", (0,)),
        (used_up(10), (0, 1, 2), "window", (1, 2)),
        (used_up(300), (0, 1), "window", (0, 1)),
        (used_up(None), (0, 1), "window", (0, 1)),
        (Signals("limit"), (0, 1), "window", (0, 1)),
        (Signals("limit", 3_660 * SECOND), (0, 1), "window", (0, 1)),
        (Signals("limit", 604_800 * SECOND), (0, 1), "endpoint", ()),
        (Signals("limit", 604_800 * SECOND, (Allowance(60, 0),)), (0, 1), "window", (0,)),
        (used_up(60, left=30), (0, 1), "endpoint", ()),
        (used_up(5), (0, 1), "endpoint", ()),
        (used_up(10), (0,), "endpoint", ()),
        (Signals("limit", SECOND, (Allowance(300, 250), Allowance(10, 0))), (0, 1), "window", (1,)),
        (Signals("plan"), (0, 1), "plan", ()),
        (used_up(60), (), "window", ()),
    ],
)
def test_what_a_refusal_closes(signals: Signals, of: tuple[int, ...], kind: str, closed: tuple[int, ...]) -> None:
    """A refusal closes the limits whose size it names as exhausted, never for a narrower one."""
    found = signals.throttle(of, LIMITS)
    assert found == Throttle(found.kind, signals.wait, closed)
    assert found.kind == kind


@pytest.mark.parametrize(
    ("allowance", "of", "seen"),
    [
        (Allowance(60, 7, 30 * SECOND), (0, 1), (ObservedLimit(0, 7, 30 * SECOND),)),
        (Allowance(60, 7), (0, 1), (ObservedLimit(0, 7, 60 * SECOND),)),
        (Allowance(60, 7, 30 * SECOND, 60 * SECOND), (0, 1), (ObservedLimit(0, 7, 30 * SECOND),)),
        (Allowance(60, 7, 30 * SECOND, 3_600 * SECOND), (0, 1), ()),
        (Allowance(60, 7, 900 * SECOND), (0, 1), ()),
        (Allowance(10, 7, 5 * SECOND), (1, 2), ()),
        (Allowance(10, 7, 30 * SECOND), (1, 2), (ObservedLimit(2, 7, 30 * SECOND),)),
        (Allowance(10, 7, 5 * SECOND, 10 * SECOND), (0, 1, 2), (ObservedLimit(1, 7, 5 * SECOND),)),
        (Allowance(59, 7, 30 * SECOND), (0,), ()),
        (Allowance(60, None, 30 * SECOND), (0,), ()),
        (Allowance(None, 7, 30 * SECOND), (0,), ()),
    ],
)
def test_what_is_seen_of_others_spending(
    allowance: Allowance, of: tuple[int, ...], seen: tuple[ObservedLimit, ...]
) -> None:
    """An answer tells what is left of the one limit that it surely means (law 9)."""
    assert Signals(allowances=(allowance,)).seen(of, LIMITS) == seen
    assert Signals(allowances=(allowance,), own=False).seen(of, LIMITS) == ()


@pytest.mark.parametrize(
    ("allowance", "of", "lower"),
    [
        (Allowance(30, 7, 30 * SECOND), (0,), (0, 30)),
        (Allowance(30, 7, 30 * SECOND, 60 * SECOND), (0,), (0, 30)),
        (Allowance(30, 7, 10 * SECOND, 10 * SECOND), (0,), None),
        (Allowance(60, 7, 30 * SECOND), (0,), None),
        (Allowance(300, 7, 30 * SECOND), (0,), None),
        (Allowance(10, 7, 5 * SECOND), (0, 1), None),
        (Allowance(5, 3, 5 * SECOND), (1,), None),
        (Allowance(30, 7, 30 * SECOND), (0, 3), None),
    ],
)
def test_what_is_told_lower_than_configured(
    allowance: Allowance, of: tuple[int, ...], lower: tuple[int, int] | None
) -> None:
    """A lower limit is told below the only limit that the answer can mean, never above it (law 9)."""
    assert Signals(allowances=(allowance,)).lower(of, LIMITS) == lower
    assert Signals(allowances=(allowance,), own=False).lower(of, LIMITS) is None


def test_requests_of_one_shape_share_a_route() -> None:
    """A route is the method and the shape of the path, without identifiers."""
    assert Route.of("GET", "/workspaces/1") == Route.of("HEAD", "/workspaces/2/") != Route.of("GET", "/workspaces")
    assert Route.of("PUT", "/workspaces/1") != Route.of("GET", "/workspaces/1")
    assert Route.of("GET", None) == Route.of("GET", "/")
