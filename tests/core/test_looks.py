import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.buckets import Buckets
from proxy.core.exchange import Spent
from proxy.core.letters import need, terms_of
from proxy.core.looks import BucketLook, Taken, look, looks
from proxy.core.model import SECOND, Micros
from tests.core.worlds import BOUND, limit, pool

TERMS = terms_of(pool(2, limit(3)), BOUND)
WINDOW: Micros = TERMS.limits[0].window


@pytest.fixture
def buckets() -> Buckets:
    """Of two quotas with three tokens each."""
    made = Buckets()
    made.learn(TERMS)
    return made


def take(buckets: Buckets, lease: str, now: Micros, quota: str = "k0") -> None:
    """Put a token in use."""
    ids = tuple(limit.id for limit in TERMS.limits)
    buckets.take(lease, need(TERMS.name, ids, None), quota, now=now, replica="r", client="a")


def test_all_is_at_hand_before_anything_is_sent(buckets: Buckets) -> None:
    """Of buckets that nobody has asked for yet, too."""
    assert look(buckets, TERMS, 0) == (BucketLook("k0", 0, 3, 0, ()), BucketLook("k1", 0, 3, 0, ()))
    assert look(Buckets(), TERMS, 0) == look(buckets, TERMS, 0)


def test_a_token_is_in_use_then_cools_then_is_back(buckets: Buckets) -> None:
    """Its delay is what is left of the window since it was counted."""
    take(buckets, "l1", 0)
    assert look(buckets, TERMS, SECOND)[0] == BucketLook("k0", 0, 2, 1, ())
    buckets.settle(2 * SECOND, Spent("l1", SECOND), (TERMS.limits[0].id,), TERMS.name)
    assert look(buckets, TERMS, 3 * SECOND)[0] == BucketLook("k0", 0, 2, 0, (WINDOW - 2 * SECOND,))
    assert look(buckets, TERMS, SECOND + WINDOW)[0] == BucketLook("k0", 0, 3, 0, ())


def test_what_the_upstream_closed_returns_when_it_opens(buckets: Buckets) -> None:
    """Tokens that nobody took are no use while their bucket is closed."""
    take(buckets, "l1", 0)
    buckets.park("k0", [TERMS.limits[0].id], 10 * SECOND)
    closed, open_ = look(buckets, TERMS, 4 * SECOND)
    assert closed == BucketLook("k0", 0, 0, 1, (6 * SECOND, 6 * SECOND))
    assert open_.at_hand == 3
    assert look(buckets, TERMS, 10 * SECOND)[0].at_hand == 2


quotas = st.sampled_from(["k0", "k1", "k7"])
delays = st.integers(0, WINDOW)


@given(st.lists(quotas, max_size=8), st.lists(st.tuples(delays, quotas), max_size=8), st.lists(quotas, max_size=2))
def test_tokens_are_neither_lost_nor_made(
    in_use: list[str], cooling: list[tuple[Micros, str]], shut: list[str]
) -> None:
    """At hand, in use and cooling are the size of the limit, or what is out if that is more than its size."""
    rows = [Taken(tuple(in_use), tuple(sorted(cooling)), tuple((SECOND, quota) for quota in shut))]
    for bucket in looks(TERMS, rows):
        out = in_use.count(bucket.quota) + [quota for _, quota in cooling].count(bucket.quota)
        assert bucket.at_hand + bucket.in_use + len(bucket.cooling) == max(3, out)
        assert list(bucket.cooling) == sorted(bucket.cooling)
