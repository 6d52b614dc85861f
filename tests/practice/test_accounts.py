import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from keyturn.practice import PracticeSettings
from keyturn.practice.accounts import Accounts, Window, admit_all, parse_target, window_of
from keyturn.practice.gate import most_within
from keyturn.practice.settings import WindowKind

from tests.practice.client import KEY, OTHER, UNKNOWN


@pytest.mark.parametrize(
    ("raw", "segments"),
    [
        ("/", ("",)),
        ("/me", ("me",)),
        ("/collections/?name=x", ("collections",)),
        ("/me//", ("me", "")),
        ("/files/a%2F", ("files", "a/")),
        ("/specs/1/files/components%2Fschemas.json", ("specs", "1", "files", "components/schemas.json")),
        ("/collections/a%20b?x=1", ("collections", "a b")),
        ("http://api.getpostman.com/me?x=1", ("me",)),
        ("https://api.getpostman.com", ("",)),
        ("*", ("",)),
    ],
)
def test_segments(raw: str, segments: tuple[str, ...]) -> None:
    """A path is divided before it is decoded, in origin-form and in absolute-form."""
    assert parse_target(raw).segments == segments


@pytest.mark.parametrize(
    ("raw", "key", "shown"),
    [
        ("/me", "", "/me"),
        ("/me?apikey=PMAK-1", "PMAK-1", "/me?apikey=…"),
        ("/me?a=1&apikey=PMAK%2D1&b=2", "PMAK-1", "/me?a=1&apikey=…&b=2"),
        ("/me?%61pikey=PMAK-1", "PMAK-1", "/me?%61pikey=…"),
        ("/me?apikey=one&apikey=two", "one", "/me?apikey=…&apikey=…"),
        ("/me?Apikey=PMAK-1", "", "/me?Apikey=PMAK-1"),
        ("/me?apikey", "", "/me?apikey…"),
    ],
)
def test_key_is_found_and_hidden(raw: str, key: str, shown: str) -> None:
    """The key in a query is found in every spelling and hidden in logs; the rest is unchanged."""
    target = parse_target(raw)
    assert (target.key, target.shown, target.raw) == (key, shown, raw)


KINDS: tuple[WindowKind, ...] = ("fixed", "first", "rolling")
ROUNDING = 1 + 1e-12
limits = st.integers(1, 8)
lengths = st.one_of(st.sampled_from([0.1, 1.0, 6.0, 60.0]), st.floats(0.01, 100.0))
steps = st.lists(
    st.one_of(st.just(0.0), st.floats(0.0, 5.0), st.sampled_from([0.1, 1.0, 6.0, 59.9, 60.0])), max_size=120
)
starts = st.floats(0.0, 1e7)


def instants_of(start: float, gaps: list[float]) -> list[float]:
    """Generate instants that never go backwards."""
    instants = []
    for gap in gaps:
        start += gap
        instants.append(start)
    return instants


def admitted(window: Window, instants: list[float]) -> list[float]:
    """Return the instants that the window admits."""
    return [instant for instant in instants if window.admit(instant).allowed]


@given(limits, lengths, starts, steps)
def test_rolling_never_over(limit: int, length: float, start: float, gaps: list[float]) -> None:
    """A rolling window admits at most its limit in any half-open interval of its length."""
    window = window_of("rolling", limit, length)
    assert most_within(admitted(window, instants_of(start, gaps)), length) <= limit


@given(limits, lengths, starts, steps)
def test_fixed_never_over(limit: int, length: float, start: float, gaps: list[float]) -> None:
    """A fixed window admits exactly its limit between two multiples of its length, if enough come."""
    instants = instants_of(start, gaps)

    def index(instant: float) -> int:
        guess = int(instant // length)
        return next(k for k in (guess + 1, guess, guess - 1) if k * length <= instant)

    came = Counter(map(index, instants))
    passed = Counter(map(index, admitted(window_of("fixed", limit, length), instants)))
    assert passed == {k: min(count, limit) for k, count in came.items()}


@given(st.integers(1, 10**6), lengths)
def test_fixed_boundaries(index: int, length: float) -> None:
    """A fixed window begins at the exact multiple of its length, despite rounding."""
    boundary = index * length
    before = math.nextafter(boundary, -math.inf)
    assert window_of("fixed", 1, length).look(before).reset == boundary
    assert window_of("fixed", 1, length).look(boundary).reset == (index + 1) * length


@given(limits, lengths, starts, steps)
def test_first_never_over(limit: int, length: float, start: float, gaps: list[float]) -> None:
    """A first-request window admits at most its limit for its length after the first request."""
    left = admitted(window_of("first", limit, length), instants_of(start, gaps))
    while left:
        inside = [instant for instant in left if instant < left[0] + length]
        assert len(inside) <= limit
        left = left[len(inside) :]


@given(st.sampled_from(KINDS), limits, lengths, starts, steps)
def test_retry_is_true(kind: WindowKind, limit: int, length: float, start: float, gaps: list[float]) -> None:
    """A request at the retry instant is admitted, and none earlier."""
    window = window_of(kind, limit, length)
    now = start
    for gap in gaps:
        now += gap
        verdict = window.admit(now)
        assert verdict.allowed or now < verdict.retry <= (now + length) * ROUNDING
        if not verdict.allowed:
            assert not window.look(math.nextafter(verdict.retry, -math.inf)).allowed
            now = verdict.retry
            assert window.admit(now).allowed


@given(st.sampled_from(KINDS), limits, lengths, starts, steps)
def test_verdict_is_consistent(kind: WindowKind, limit: int, length: float, start: float, gaps: list[float]) -> None:
    """A preview equals the decision and takes nothing; remaining and reset are within bounds."""
    window = window_of(kind, limit, length)
    for now in instants_of(start, gaps):
        look, verdict = window.look(now), window.admit(now)
        assert look.allowed == verdict.allowed == (look.remaining > 0)
        assert verdict.remaining == max(look.remaining - 1, 0)
        assert (verdict.limit, verdict.window) == (limit, length)
        assert now < verdict.reset <= (now + length) * ROUNDING


@pytest.mark.parametrize(
    ("kind", "burst_at", "passes_at"), [("fixed", 119.0, 120.0), ("first", 119.0, 179.0), ("rolling", 119.0, 179.0)]
)
def test_where_a_window_ends(kind: WindowKind, burst_at: float, passes_at: float) -> None:
    """A fixed window ends at a multiple of its length, the others one length after the first request."""
    window = window_of(kind, 2, 60.0)
    assert admitted(window, [burst_at] * 3) == [burst_at] * 2
    assert window.admit(burst_at).retry == passes_at
    assert not window.admit(passes_at - 0.001).allowed
    assert window.admit(passes_at).allowed


def test_first_and_rolling_differ() -> None:
    """A first-request window returns all places at once, a rolling one each in its own time."""
    first, rolling = window_of("first", 2, 10.0), window_of("rolling", 2, 10.0)
    for window in (first, rolling):
        assert admitted(window, [0.0, 9.0]) == [0.0, 9.0]
    assert admitted(first, [10.0, 10.0]) == [10.0, 10.0]
    assert admitted(rolling, [10.0, 10.0]) == [10.0]


@given(st.sampled_from(KINDS), steps)
def test_together_all_or_none(kind: WindowKind, gaps: list[float]) -> None:
    """A request under two limits takes a place in both or none, and is told the tighter one."""
    wide, narrow = window_of(kind, 4, 60.0), window_of(kind, 2, 10.0)
    for now in instants_of(0.0, gaps):
        before = (wide.look(now), narrow.look(now))
        verdict = admit_all((wide, narrow), now)
        taken = 1 if verdict.allowed else 0
        assert [wide.look(now).remaining, narrow.look(now).remaining] == [look.remaining - taken for look in before]
        assert verdict.allowed == all(look.allowed for look in before)
        assert verdict.retry == (now if taken else max(look.retry for look in before if not look.allowed))


ME = ("GET", "me", 1)
LIST = ("GET", "collections", 1)


def accounts_of(**settings: object) -> Accounts:
    """Return accounts with a limit of three."""
    return Accounts(PracticeSettings(**{"limit": 3, "keys": (KEY, OTHER), **settings}))  # type: ignore[arg-type]


def passed(accounts: Accounts, key: str, endpoint: tuple[str, str, int] = ME, tries: int = 5, now: float = 0.0) -> int:
    """Return how many of some simultaneous requests may pass."""
    account = accounts.find(key)
    assert account is not None
    return sum(account.bucket.admit(endpoint, now).allowed for _ in range(tries))


def test_each_key_has_its_own_bucket() -> None:
    """Without users, each key has a bucket of its own."""
    accounts = accounts_of()
    assert (passed(accounts, KEY), passed(accounts, OTHER)) == (3, 3)


def test_keys_of_a_user_share_a_bucket() -> None:
    """The keys of one user share one limit."""
    accounts = accounts_of(users={KEY: "ann", OTHER: "ann"})
    assert (passed(accounts, KEY, tries=2), passed(accounts, OTHER)) == (2, 1)


def test_only_given_keys_are_accepted() -> None:
    """Only given keys are accepted; with none given any key is that is not empty."""
    assert accounts_of().find(UNKNOWN) is None
    assert accounts_of(keys=None).find(UNKNOWN) is not None
    assert accounts_of(keys=None).find("") is None
    assert accounts_of().find("") is None


def test_names_are_not_secrets() -> None:
    """A given key is named by its number, any other by a fingerprint that stays the same."""
    accounts = accounts_of()
    assert (accounts.name_of(KEY), accounts.name_of(OTHER)) == ("key-1", "key-2")
    assert accounts.name_of(UNKNOWN) == accounts.name_of(UNKNOWN)
    assert accounts.name_of(UNKNOWN).startswith("key-")
    assert UNKNOWN not in accounts.name_of(UNKNOWN)


def test_revoke_and_restore() -> None:
    """A revoked key is refused until it is restored, and keeps its count."""
    accounts = accounts_of()
    assert passed(accounts, KEY, tries=2) == 2
    accounts.revoke(KEY)
    assert accounts.find(KEY) is None
    accounts.restore(KEY)
    assert passed(accounts, KEY) == 1


def test_narrow_limits() -> None:
    """A narrow limit counts beside the wide one, for its endpoint only, when switched on."""
    assert passed(accounts_of(limit=20), KEY, LIST, tries=30) == 20
    narrow = accounts_of(limit=20, narrow=True)
    assert passed(narrow, KEY, LIST, tries=30) == 10
    assert passed(narrow, KEY, ME, tries=30) == 10
    assert passed(narrow, KEY, LIST, now=10.0) == 0
    assert passed(narrow, KEY, LIST, tries=30, now=60.0) == 10


def test_a_plan_is_a_users() -> None:
    """A month's plan counts every request that passes, by all keys of the user."""
    accounts = accounts_of(plan=4, users={KEY: "ann", OTHER: "ann"})
    assert passed(accounts, KEY) == 3
    account = accounts.find(OTHER)
    assert account is not None
    assert account.bucket.plan == 1
    assert passed(accounts, OTHER, now=60.0) == 3
    assert account.bucket.plan == 0


def test_disabled_keys() -> None:
    """A disabled key is known but refused, until it is restored."""
    accounts = accounts_of()
    accounts.disable(KEY)
    assert accounts.find(KEY) is not None
    assert accounts.disabled(KEY)
    assert not accounts.disabled(OTHER)
    accounts.restore(KEY)
    assert not accounts.disabled(KEY)
