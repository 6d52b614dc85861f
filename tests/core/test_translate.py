import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from keyturn.core.events import RequestLog
from keyturn.core.exchange import LimitTokens
from keyturn.core.http import Fields
from keyturn.core.model import MILLISECOND, SECOND, Limit
from keyturn.core.policy import Rule
from keyturn.core.translate import rates, server_timing, to_caller, whole_seconds

WALL = 1_624_391_484 * SECOND + 300_000
LOG = RequestLog(id="r-1", key="team-a", queued=1_250_000, upstream=56_789)
MINUTE = Limit(60, 60 * SECOND)
BURST = Limit(10, 2500 * MILLISECOND, (Rule.parse("GET /collections"),))
NO_LIMITS: Fields = ()

UPSTREAM: Fields = (
    (b"Date", b"Tue, 22 Jun 2021 19:51:24 GMT"),
    (b"Set-Cookie", b"a=1"),
    (b"X-RateLimit-Limit", b"60"),
    (b"Set-Cookie", b"b=2"),
    (b"x-ratelimit-REMAINING", b"59"),
    (b"X-RateLimit-Reset", b"1624391544"),
    (b"X-RateLimit-RetryAfter", b"3"),
    (b"X-RateLimit-Remaining-Month", b"912"),
    (b"RateLimit", b"limit=60, remaining=59, reset=60"),
    (b"RateLimit-Policy", b"60;w=60"),
    (b"ratelimit-limit", b"60"),
    (b"Via", b"1.1 nginx"),
    (b"X-Request-Id", b"theirs"),
    (b"Keyturn-Key", b"forged"),
    (b"ETag", b'W/"17b-x"'),
)


def rates_now(*limits: tuple[Limit, LimitTokens]) -> Fields:
    """Return what is left of those limits."""
    return rates(limits, WALL)


def of(fields: Fields, name: bytes) -> list[bytes]:
    """Return all values of a field."""
    return [value for field, value in fields if field.lower() == name.lower()]


def test_the_upstreams_fields_stay_in_their_order_and_ours_follow() -> None:
    """The upstream's fields stay byte for byte, without those about one key, and ours follow."""
    assert to_caller(UPSTREAM, LOG, NO_LIMITS, None) == (
        (b"Date", b"Tue, 22 Jun 2021 19:51:24 GMT"),
        (b"Set-Cookie", b"a=1"),
        (b"Set-Cookie", b"b=2"),
        (b"Via", b"1.1 nginx"),
        (b"ETag", b'W/"17b-x"'),
        (b"Via", b"1.1 keyturn"),
        (b"X-Request-Id", b"r-1"),
        (b"Keyturn-Key", b"team-a"),
        (b"Server-Timing", b"queue;dur=1250.0, upstream;dur=56.8"),
    )


WAITS: Fields = ((b"Retry-After", b"Tue, 22 Jun 2021 19:52:24 GMT"), (b"RetryAfter", b"60"), (b"retry-after", b"61"))


def test_one_retry_after_replaces_every_form_of_a_wait() -> None:
    """One `Retry-After` replaces every form of a wait."""
    fields = to_caller((*WAITS, *UPSTREAM), LOG, NO_LIMITS, 61)
    assert [(name, value) for name, value in fields if b"after" in name.lower()] == [(b"Retry-After", b"61")]


def test_without_a_wait_of_ours_the_upstreams_stays() -> None:
    """`Retry-After` on a 202 or a 301 stays; `RetryAfter` never does."""
    fields = to_caller(WAITS, LOG, NO_LIMITS, None)
    assert fields[:3] == (WAITS[0], WAITS[2], (b"Via", b"1.1 keyturn"))


def test_of_a_refusal_only_what_could_be_read_is_told() -> None:
    """A malformed, absurd or past wait of a refusal is dropped."""
    fields = to_caller((*WAITS, (b"Retry-After", b"-5")), LOG, NO_LIMITS, None, refused=True)
    assert [name for name, _ in fields if b"after" in name.lower()] == []


def test_a_month_is_of_one_plan() -> None:
    """Fields about a monthly plan are dropped, whatever their prefix."""
    fields = ((b"X-Limit-Month", b"9"), (b"remaining-month", b"9"), (b"X-Reset-Month", b"9"), (b"X-Month", b"9"))
    assert to_caller(fields, LOG, NO_LIMITS, None)[0] == (b"X-Month", b"9")


def test_the_rate_fields_speak_for_the_pool() -> None:
    """Rate fields give size, remaining and reset of the pool, in both families, rounded up."""
    fields = to_caller(UPSTREAM, LOG, rates_now((MINUTE, LimitTokens(180, 17, 31_200_000))), None)
    assert fields[-5:] == (
        (b"X-RateLimit-Limit", b"180"),
        (b"X-RateLimit-Remaining", b"17"),
        (b"X-RateLimit-Reset", b"1624391516"),
        (b"RateLimit-Policy", b'"60/60s";q=180;w=60'),
        (b"RateLimit", b'"60/60s";r=17;t=32'),
    )
    assert len(of(fields, b"X-RateLimit-Limit")) == len(of(fields, b"RateLimit")) == 1


def test_of_several_limits_all_are_listed_and_the_tightest_is_shown_alone() -> None:
    """`RateLimit` lists all limits, `X-RateLimit-*` the tightest."""
    fields = to_caller((), LOG, rates_now((MINUTE, LimitTokens(60, 4, 9)), (BURST, LimitTokens(10, 3, SECOND))), None)
    assert of(fields, b"X-RateLimit-Limit") == [b"10"]
    assert of(fields, b"RateLimit-Policy") == [b'"60/60s";q=60;w=60, "10/2500ms";q=10;w=3']
    assert of(fields, b"RateLimit") == [b'"60/60s";r=4;t=1, "10/2500ms";r=3;t=1']
    fields = to_caller(
        (), LOG, rates_now((BURST, LimitTokens(10, 0, SECOND)), (MINUTE, LimitTokens(60, 0, 9 * SECOND))), None
    )
    assert of(fields, b"X-RateLimit-Limit") == [b"60"]
    assert of(fields, b"X-RateLimit-Reset") == [b"1624391494"]


def test_nothing_left_is_never_less_than_nothing() -> None:
    """Remaining is never negative."""
    fields = to_caller((), LOG, rates_now((MINUTE, LimitTokens(60, -2, -5))), None)
    assert of(fields, b"X-RateLimit-Remaining") == [b"0"]
    assert of(fields, b"RateLimit") == [b'"60/60s";r=0;t=0']


def test_a_changed_limit_shows_at_once() -> None:
    """A changed limit shows at once, although fields are cached."""
    for size in (60, 120):
        fields = to_caller((), LOG, rates_now((MINUTE, LimitTokens(size, 1, 0))), None)
        assert of(fields, b"RateLimit-Policy") == [b'"60/60s";q=%d;w=60' % size]


ITEM = rb'"[ !#-\[\]-~]+"(;[a-z]+=\d{1,15})+'


@given(st.lists(st.tuples(st.integers(1, 999), st.integers(1, 10**9), st.integers(-5, 999), st.integers(-5, 10**12))))
def test_the_rate_fields_are_structured_lists(rows: list[tuple[int, int, int, int]]) -> None:
    """Rate fields are structured lists of strings with non-negative integers (RFC 9651)."""
    limits = [(Limit(size, window), LimitTokens(size, hand, returns)) for size, window, hand, returns in rows]
    fields = to_caller((), LOG, rates(limits, WALL), None)
    for name in (b"RateLimit", b"RateLimit-Policy"):
        for value in of(fields, name):
            assert re.fullmatch(ITEM + rb"(, " + ITEM + rb")*", value)
            assert value.count(b", ") == len(rows) - 1
            assert b";w=0" not in value


OTHER_NAMES = st.binary(max_size=12).filter(
    lambda name: not re.search(rb"rate-?limit|retry-?after|x-request-id|keyturn-key|-month", name, re.IGNORECASE)
)


@given(st.lists(st.tuples(OTHER_NAMES, st.binary(max_size=12)), max_size=12), st.none() | st.integers(0, 99))
def test_nothing_but_the_names_in_question_is_touched(
    fields: list[tuple[bytes, bytes]], retry_after: int | None
) -> None:
    """All other fields of the upstream come first and in order."""
    kept = to_caller(tuple(fields), LOG, NO_LIMITS, retry_after)
    assert kept[: len(fields)] == tuple(fields)


@pytest.mark.parametrize(("micros", "seconds"), [(-1, 0), (0, 0), (1, 1), (SECOND, 1), (SECOND + 1, 2)])
def test_whole_seconds_are_rounded_up(micros: int, seconds: int) -> None:
    """Seconds are rounded up, so a caller that waits as told is not early."""
    assert whole_seconds(micros) == seconds


def test_server_timing_is_in_milliseconds() -> None:
    """`Server-Timing` is in milliseconds, by its specification."""
    assert server_timing(0, 1_234_567) == b"queue;dur=0.0, upstream;dur=1234.6"
