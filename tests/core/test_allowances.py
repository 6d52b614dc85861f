from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from keyturn.core.allowances import Allowance, AllowanceReader, layout_of, plain, said
from keyturn.core.http import Fields
from keyturn.core.model import SECOND


def reader(fields: Iterable[tuple[bytes, bytes]]) -> AllowanceReader:
    """Return a reader of an answer made at the beginning of the epoch."""
    return AllowanceReader(said(tuple(fields), layout_of(tuple(fields))), 0)


COUNTS = st.integers(1, 10_000)
SECONDS = st.integers(0, 3_600)


@given(COUNTS, COUNTS, SECONDS, SECONDS)
def test_all_syntaxes_say_the_same(size: int, spent: int, reset: int, window: int) -> None:
    """The fields of every draft give the same limit, remaining and reset."""
    left = max(0, size - spent)
    forms: list[list[tuple[bytes, bytes]]] = [
        [
            (b"RateLimit-Limit", b"%d, %d;w=%d" % (size, size, window)),
            (b"RateLimit-Remaining", b"%d" % left),
            (b"RateLimit-Reset", b"%d" % reset),
        ],
        [
            (b"X-Rate-Limit-Limit", b" %d " % size),
            (b"x-ratelimit-remaining", b"%d" % left),
            (b"X-RateLimit-Reset", b"%d" % reset),
            (b"ratelimit-policy", b"%d;w=%d, 1000000;w=1" % (size, window)),
        ],
        [
            (b"RateLimit", b"limit=%d, remaining=%d, reset=%d" % (size, left, reset)),
            (b"RateLimit-Policy", b"%d;w=%d" % (size, window)),
        ],
        [
            (b"RateLimit", b'"default";r=%d;t=%d' % (left, reset)),
            (b"RateLimit-Policy", b'"other";q=1;w=1, "default";q=%d;w=%d;qu="requests"' % (size, window)),
        ],
    ]
    expected = Allowance(size, left, reset * SECOND, window * SECOND if window else None)
    for form in forms:
        assert reader(form).allowances() == (expected,), form


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"RateLimit", b"limit=60, =5"),
        (b"RateLimit", b'"default";r=1;;t=2'),
        (b"RateLimit", b"Limit=60"),
        (b"RateLimit-Policy", b'"default;q=1'),
        (b"X-RateLimit-Limit", b"sixty"),
        (b"X-RateLimit-Limit", b"-1"),
        (b"X-RateLimit-Limit", b"9999999999999999"),
        (b"X-RateLimit-Remaining", b"5.5"),
        (b"X-RateLimit-Remaining", "٣".encode()),
        (b"RateLimit-Reset", b"tomorrow"),
        (b"Retry-After", b"soon"),
        (b"X-Something-Remaining-Month", b"x"),
    ],
)
def test_a_mistake_is_told_by_its_fields_name(name: bytes, value: bytes) -> None:
    """A malformed field is ignored as a whole and reported by its name."""
    it = reader([(name, value)])
    assert it.allowances() == ()
    assert list(it.instructions()) == []
    assert it.month_left() is None
    (told,) = it.ignored
    assert told in name.decode().lower()


def test_impossible_numbers_are_not_believed() -> None:
    """A limit of zero requests, or more remaining than the limit, is ignored."""
    it = reader([(b"RateLimit-Limit", b"0"), (b"RateLimit-Remaining", b"0"), (b"RateLimit", b"limit=5, remaining=6")])
    assert it.allowances() == (Allowance(None, 0), Allowance(5))
    assert it.ignored == ["limit", "remaining"]


def test_two_policies_of_one_size_leave_the_window_open() -> None:
    """Two policies of one size leave the window unknown."""
    fields = [(b"RateLimit-Limit", b"10"), (b"RateLimit-Policy", b"10;w=10, 10;w=60")]
    assert reader(fields).allowances() == (Allowance(10),)


def test_the_month_with_fewest_left_counts() -> None:
    """The monthly plan with fewest requests left counts, since each can stop a team."""
    assert reader([(b"X-RateLimit-Remaining-Month", b"50"), (b"Calls-Remaining-Month", b"7")]).month_left() == 7


def test_only_fields_that_speak_of_limits_are_looked_at() -> None:
    """Fields that are not about limits are not parsed."""
    fields = ((b"ETag", b"x"), (b"X-RateLimited", b"1"), (b"Content-Length", b"5"))
    assert said(fields, layout_of(fields)) == {}


NAMES = st.sampled_from([
    b"Retry-After", b"RetryAfter", b"X-RateLimit-RetryAfter", b"X-RateLimit-Reset", b"RateLimit-Reset",
    b"X-RateLimit-Limit", b"RateLimit-Limit", b"RateLimit-Remaining", b"RateLimit", b"RateLimit-Policy",
    b"X-Y-Remaining-Month",
])  # fmt: skip
VALUES = st.binary(max_size=60) | st.from_regex(
    rb'\A(?:[-+]?\d{0,20}(\.\d*)?|("[^"]*"?|limit|reset=|remaining=|;[rtqw]=|;qu=|\d{1,3}|[,; "\\()?:@%]){0,8})\Z'
)


@given(st.lists(st.tuples(NAMES, VALUES), max_size=6))
def test_no_fields_raise(fields: Fields) -> None:
    """No field of an upstream makes the reader fail, and what is read is within bounds."""
    it = reader(fields)
    for allowance in it.allowances():
        assert allowance.size is None or allowance.size > 0
        assert allowance.left is None or 0 <= allowance.left <= (allowance.size or 10**9)
        assert allowance.reset is None or allowance.reset >= 0
    assert all(wait >= 0 for wait in it.instructions())
    assert (it.month_left() or 0) >= 0


NUMBERS = st.one_of(
    st.integers(0, 70).map(str), st.integers(0, 10**16).map(str), st.sampled_from(("", " 5", "-1", "x", "5.5"))
)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                ("X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset", "RateLimit-Limit", "Age", "Date")
            ),
            NUMBERS,
        ),
        max_size=5,
    ),
    st.integers(0, 2 * 10**15),
)
def test_what_is_plain_is_read_as_all_else(told: list[tuple[str, str]], now: int) -> None:
    """The fast path reads plain fields as the full parser does, and leaves all others to it."""
    plain_ones = [("X-RateLimit-Limit", "60"), ("X-RateLimit-Remaining", "59"), ("X-RateLimit-Reset", "30")]
    for texts in (told, plain_ones, [*plain_ones[:2], *told], [*plain_ones, *told]):
        fields = tuple((name.encode(), value.encode()) for name, value in texts)
        layout = layout_of(fields)
        found, reader = plain(fields, layout, now), AllowanceReader(said(fields, layout), now)
        if found is not None:
            assert reader.allowances() == (found,)
            assert (reader.instructions(), reader.month_left(), reader.ignored) == ([], None, [])
    only = tuple((name.encode(), value.encode()) for name, value in plain_ones)
    assert plain(only, layout_of(only), now) is not None
