from collections import defaultdict
from random import Random

from hypothesis import given
from hypothesis import strategies as st
from keyturn.core.exchange import LEASE_LIFETIME, Spent
from keyturn.core.messages import Revision, revision_of
from keyturn.core.model import MILLISECOND, SECOND, Key, Limit, Pool, Secret
from keyturn.core.revisions import REVISIONS, Revisions

from tests.core.worlds import BOUND, World, check_conservation, know, limit, pool

SECRETS = [Secret(f"s-k{number}") for number in range(3)]
K = [secret.identity for secret in SECRETS]
WINDOW = 60 * SECOND + 130 * MILLISECOND


def with_quotas(*quotas: str, limits: tuple[Limit, ...] = (limit(3),)) -> Pool:
    """Return a pool of keys `k0`, `k1`, … that count against these quotas; `own` gives a key a quota of its own."""
    keys = [Key(f"k{number}", SECRETS[number], quota) for number, quota in enumerate(quotas)]
    own = [Key.alone(key.name, key.secret) if key.quota == "own" else key for key in keys]
    return Pool("default", tuple(own), limits)


def revision(of: Pool) -> Revision:
    """Return a pool as the store is told of it."""
    return revision_of(of, LEASE_LIFETIME + BOUND)


def test_keys_that_revisions_place_under_different_quotas_make_them_rivals() -> None:
    """Quotas are rivals both ways while a grant of either may count."""
    revisions = Revisions()
    one = revisions.learn(revision(with_quotas("own", "shared", "own")))
    assert one.rivals == {}
    other = revisions.learn(revision(with_quotas("shared", "own", "own", limits=(limit(3, 10 * SECOND),))))
    assert one.rivals == {K[0]: (("shared", one.longest),), "shared": ((K[1], one.longest),)}
    assert other.rivals == {"shared": ((K[0], other.longest),), K[1]: (("shared", other.longest),)}
    assert one.longest == LEASE_LIFETIME + BOUND + WINDOW
    assert [one.owner(key) for key in (K[0], K[1], "stranger")] == [K[0], "shared", None]


def test_a_revision_is_kept_while_anything_that_was_granted_under_it_may_count() -> None:
    """A revision is forgotten when its grants count no more, and with it its rivals."""
    revisions = Revisions()
    old = revisions.learn(revision(with_quotas("own")))
    revisions.use(old.name, 0)
    new = revisions.learn(revision(with_quotas("other")))
    assert revisions.use(new.name, old.longest) == []
    assert new.rivals
    assert revisions.use(new.name, old.longest + 1) == [old.name]
    assert not new.rivals


def test_a_bounded_number_of_revisions_is_remembered() -> None:
    """The number of revisions is bounded; the one used longest ago goes first."""
    revisions, gone = Revisions(), []
    for number in range(REVISIONS + 2):
        gone += revisions.use(revisions.learn(revision(pool(1, limit(number + 1)))).name, number)
    assert gone == [revision(pool(1, limit(number + 1))).name for number in (0, 1)]


def change(world: World, to: Pool) -> None:
    """Let all replicas use another configuration with known buckets."""
    world.revision = revision(to)
    world.send("r")
    know(world.state)


def test_a_grant_on_one_quota_of_a_key_closes_its_others() -> None:
    """A grant on one quota closes its rivals until it counts no more."""
    world = World.of(with_quotas("own", "own"))
    (grant,) = world.ask(1, replica="old").grants
    (other,) = {*K[:2]} - {grant.quota}
    world.revision = revision(with_quotas(*["shared" if key == grant.quota else "own" for key in K[:2]]))
    world.send("new")
    know(world.state)
    assert {one.quota for one in world.ask(9, replica="new").grants} == {other}, "the same key"
    world.pass_(world.revision.bound + WINDOW)
    assert {one.quota for one in world.call("new").grants} == {"shared"}
    check_conservation(world.state)


def test_a_limit_with_another_number_counts_what_was_spent() -> None:
    """A larger limit has more tokens at once, a smaller one fewer once enough have returned."""
    world = World.of(pool(1, limit(3)))
    world.call("r", *world.spend(*world.ask(3).grants))
    change(world, pool(1, limit(5)))
    world.pass_(SECOND)
    assert len(world.ask(9).grants) == 2
    world.waiting.clear()
    change(world, pool(1, limit(2)))
    world.pass_(WINDOW - SECOND)
    assert not world.ask(1).grants, "two are in use"
    check_conservation(world.state)


def test_a_limit_with_another_window_opens_by_its_probe() -> None:
    """A limit with another window opens by a probe, since nothing is known of it (law 8)."""
    world = World.of(pool(1, limit(3)))
    world.revision = revision(pool(1, limit(3, 90 * SECOND)))
    (probe,) = world.ask(3).grants
    assert probe.probe
    assert len(world.call("r", Spent(probe.lease, 0)).grants) == 2


def test_nothing_is_left_of_a_limit_that_is_gone() -> None:
    """A removed limit leaves nothing behind once its last token has returned."""
    world = World.of(pool(1, limit(3)))
    grants = world.ask(2).grants
    change(world, pool(1, limit(3, 20 * SECOND)))
    world.send("r", world.spend(grants[0]))
    world.pass_(WINDOW)
    world.call("r")
    assert set(world.state.tokens.total) == {revision(pool(1, limit(3))).limits[0].id}
    world.pass_(world.revision.bound)
    world.send("s")
    world.pass_(WINDOW)
    world.send("s")
    assert not world.state.tokens.total
    assert not world.state.tokens.taken


REAL = limit(3, 2 * SECOND)
"""The upstream's limit on each key."""

pools = st.builds(
    lambda shared, requests, window: with_quotas(
        *("shared" if number in shared else "own" for number in range(2)), limits=(limit(requests, window),)
    ),
    st.frozensets(st.integers(0, 1)),
    st.integers(1, 3),
    st.just(2 * SECOND),
)


@given(st.lists(pools, min_size=2, max_size=3), st.integers(0, 10**6))
def test_law_1_holds_while_replicas_use_different_revisions(configurations: list[Pool], seed: int) -> None:
    """Whichever replica uses which revision when, no window of a key is over its limit (law 1)."""
    random = Random(seed)
    world = World.of(configurations[0])
    used = dict.fromkeys("abc", configurations[0])
    counted: dict[str, list[int]] = defaultdict(list)
    for _ in range(80):
        world.pass_(random.randint(0, 400) * MILLISECOND * random.choice([1, 1, 1, 20]))
        replica = random.choice("abc")
        if random.random() < 0.2:
            used[replica] = random.choice(configurations)
        world.revision = revision(used[replica])
        for grant in world.ask(3, replica=replica).grants:
            key = random.choice(used[replica].keys_of[grant.quota])
            counted[key.name].append(world.now)
            world.waiting[replica].clear()
            world.call(replica, Spent(grant.lease, 0))
        world.waiting[replica].clear()
        check_conservation(world.state)
    for instants in counted.values():
        for instant in instants:
            assert sum(1 for other in instants if instant <= other < instant + REAL.window) <= REAL.requests
