from hypothesis import given
from hypothesis import strategies as st
from keyturn.core.bucket_snapshots import BucketSnapshot, LimitUsage, bucket_snapshots, buckets_of
from keyturn.core.messages import revision_of
from keyturn.core.model import SECOND, Micros
from keyturn.core.state import SharedState

from tests.core.worlds import BOUND, World, flow, limit, pool, throttled

REVISION = revision_of(pool(2, limit(3)), BOUND)
WINDOW: Micros = REVISION.limits[0].window


def test_all_is_available_before_anything_is_sent() -> None:
    """All tokens are available at first, also of buckets that were never used."""
    assert bucket_snapshots(SharedState(), REVISION, 0) == (
        BucketSnapshot("k0", 0, 3, 0, ()),
        BucketSnapshot("k1", 0, 3, 0, ()),
    )


def test_a_token_is_in_use_then_cools_then_is_back() -> None:
    """A cooling token's delay is what is left of the window since it was counted."""
    world = World.of(pool(2, limit(3)))
    (grant,) = world.ask(1, flow("a", (0,), "k0")).grants
    assert bucket_snapshots(world.state, world.revision, world.now)[0] == BucketSnapshot("k0", 0, 2, 1, ())
    world.call("r", *world.spend(grant))
    assert bucket_snapshots(world.state, world.revision, world.now + SECOND)[0] == BucketSnapshot(
        "k0", 0, 2, 0, (WINDOW - SECOND,)
    )
    assert bucket_snapshots(world.state, world.revision, world.now + WINDOW)[0] == BucketSnapshot("k0", 0, 3, 0, ())


def test_what_the_upstream_closed_returns_when_it_opens() -> None:
    """Available tokens of a closed bucket count as returning when it opens."""
    world = World.of(pool(2, limit(3)))
    grants = world.ask(2, flow("a", (0,), "k0")).grants
    world.call("r", throttled(grants[0], 10 * SECOND))
    closed, other = bucket_snapshots(world.state, world.revision, world.now + 4 * SECOND)
    assert closed == BucketSnapshot("k0", 0, 0, 1, (6 * SECOND, WINDOW - 4 * SECOND))
    assert other.available == 3
    assert bucket_snapshots(world.state, world.revision, world.now + 10 * SECOND)[0].available == 1


def test_a_quota_that_rests_is_closed_under_all_its_limits() -> None:
    """A resting quota is closed under all its limits."""
    world = World.of(pool(2, limit(3), limit(2, 10 * SECOND)))
    world.state.tokens.rest("k0", world.now + 5 * SECOND)
    told = {(one.quota, one.limit): one for one in bucket_snapshots(world.state, world.revision, world.now)}
    assert told["k0", 0].cooling == (5 * SECOND,) * 3
    assert told["k0", 1].cooling == (5 * SECOND,) * 2
    assert told["k1", 1].available == 2


def test_another_revision_has_other_limits() -> None:
    """Revisions share taken tokens; each has available ones by its own limit."""
    world = World.of(pool(1, limit(3)))
    world.ask(2)
    for number, available in ((9, 7), (1, 0)):
        (told,) = bucket_snapshots(world.state, revision_of(pool(1, limit(number)), BOUND), world.now)
        assert (told.available, told.in_use) == (available, 2)


quotas = st.sampled_from(["k0", "k1", "k7"])
delays = st.integers(-SECOND, WINDOW)


@given(st.lists(quotas, max_size=8), st.lists(st.tuples(delays, quotas), max_size=8), st.lists(quotas, max_size=2))
def test_tokens_are_neither_lost_nor_made(
    in_use: list[str], cooling: list[tuple[Micros, str]], shut: list[str]
) -> None:
    """Available, in use and cooling add up to the limit, or to the taken tokens if these are more."""
    taken = tuple([(quota, [*in_use, *[one for _, one in cooling]].count(quota)) for quota in ("k0", "k1")])
    row = LimitUsage(taken, tuple(sorted(cooling)), tuple([(SECOND, quota) for quota in shut]))
    for told in buckets_of(REVISION, [row]):
        out = in_use.count(told.quota) + [quota for delay, quota in cooling if delay > 0].count(told.quota)
        assert told.available + told.in_use + len(told.cooling) == max(3, out)
        assert list(told.cooling) == sorted(told.cooling)
        assert told.quota not in shut or not told.available


def test_a_closed_bucket_whose_quota_rests_opens_with_the_later() -> None:
    """A closed bucket of a resting quota opens at the later of both times."""
    for closed in (((9, "k0"), (4, "k0")), ((4, "k0"), (9, "k0"))):
        first, _ = buckets_of(REVISION, [LimitUsage((("k0", 0), ("k1", 0)), (), closed)])
        assert first.cooling == (9, 9, 9)
