from collections import defaultdict
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from proxy.core.exchange import USE_BY, Seen, Spent
from proxy.core.letters import Terms, terms_of
from proxy.core.model import MILLISECOND, SECOND, Key, Limit, Pool, Secret
from proxy.core.views import Heirs, Out, Place, View, places, scope, span
from tests.core.worlds import BOUND, World, check_conservation, limit, pool, throttled, warm

SECRETS = [Secret(f"s-k{number}") for number in range(10)]
K = [secret.identity for secret in SECRETS]
"""The identities of keys, and of their quotas if these are their own."""


def with_quotas(*quotas: str, limits: tuple[Limit, ...] = (limit(3),)) -> Pool:
    """A pool of keys `k0`, `k1`, … that count against these quotas; `own` makes a key a quota of its own."""
    keys = [Key(f"k{number}", SECRETS[number], quota) for number, quota in enumerate(quotas)]
    own = [Key.alone(key.name, key.secret) if key.quota == "own" else key for key in keys]
    return Pool("default", tuple(own), limits)


def terms(of: Pool) -> Terms:
    """Its terms."""
    return terms_of(of, USE_BY + BOUND)


def view(*quotas: str, limits: tuple[Limit, ...] = (limit(3),)) -> View:
    """The terms of such a pool, looked up."""
    return View.of(terms(with_quotas(*quotas, limits=limits)))


WIDE, NARROW = limit(3), limit(1, 10 * SECOND, "GET /narrow")


def test_a_limit_is_known_by_its_scope_and_span() -> None:
    """What its id says; the second of two of one kind counts the same as the first."""
    ids = [one.id for one in terms(pool(1, WIDE, NARROW, limit(9, 20 * SECOND, "GET /narrow"), limit(4))).limits]
    assert [span(one) for one in ids] == [60 * SECOND, 10 * SECOND, 20 * SECOND, 60 * SECOND]
    assert [scope(one) == scope(ids[0]) for one in ids] == [True, False, False, True]
    assert scope(ids[1]) == scope(ids[2])


def test_the_keys_of_quotas_are_known() -> None:
    """Only quotas that are more than one key's own are spelled out."""
    assert terms(with_quotas("own", "shared", "shared", "other")).keys == (
        ("other", (K[3],)),
        ("shared", tuple(sorted(K[1:3]))),
    )
    it = view("own", "shared", "shared")
    assert (it.keys("shared"), it.keys(K[0])) == (tuple(sorted(K[1:3])), (K[0],))
    assert [it.owner(key) for key in (K[0], K[1], K[9])] == [K[0], "shared", None]
    assert it.heirs("shared", K[:2]) == ["shared", K[0]]


def test_what_a_quota_has_spent_is_its_heirs() -> None:
    """Of the quotas to which its keys have gone, by new terms."""
    heirs = Heirs([view("own", "shared", "shared")], view("shared", "own", "shared"))
    assert heirs.gone == {K[0]: ["shared"], "shared": [K[1]]}
    assert heirs.of("shared", itself=True) == ["shared", K[1]]
    assert heirs.of(K[0], itself=True) == ["shared"], "it is not there any more"
    assert heirs.of("shared", itself=False) == [K[1]]


def test_another_name_of_a_key_changes_nothing() -> None:
    """A key that is renamed keeps its quota, and with it what was spent."""
    before = Pool("default", (Key.alone("a", SECRETS[0]), Key("b", SECRETS[1], "ann")), (limit(3),))
    after = Pool("default", (Key.alone("x", SECRETS[0]), Key("y", SECRETS[1], "ann")), (limit(3),))
    assert terms(before) == terms(after)


def test_a_lease_counts_by_everybodys_terms() -> None:
    """Under limits of the same scope, on the quotas of the keys with which it may have been used."""
    longer = (limit(3, 90 * SECOND), NARROW)
    mine, theirs = view("own", "own", limits=(WIDE, NARROW)), view("shared", "shared", limits=longer)
    (wide, narrow), (other, _) = mine.terms.limits, theirs.terms.limits
    own = [(wide.id, wide.window)]
    assert places([mine], K[0], (K[0],), own) == (Place(wide.id, wide.window, K[0]),)
    assert places([mine, theirs], K[0], (K[0],), own) == (
        Place(wide.id, wide.window, K[0]),
        Place(other.id, other.window, "shared"),
    )
    both = places([theirs, mine], K[1], (K[1],), [*own, (narrow.id, narrow.window)])
    assert {(place.limit, place.quota) for place in both} == {
        (wide.id, K[1]),
        (narrow.id, K[1]),
        (other.id, "shared"),
        (narrow.id, "shared"),
    }


def test_a_refusal_is_about_limits_of_the_same_kind() -> None:
    """The named one, and its like by others' terms; not another one of its own terms."""
    mine = [limit.id for limit in view("k0", limits=(WIDE, limit(9, 90 * SECOND))).terms.limits]
    theirs = [limit.id for limit in view("k0", limits=(limit(3, 70 * SECOND), NARROW)).terms.limits]
    out = Out("k0", tuple(Place(one, SECOND, "k0") for one in (*mine, *theirs)), 0, "r", "a")
    assert [place.limit for place in out.refused(mine[:1], mine)] == [mine[0], theirs[0]]


# What buckets make of it


def change(world: World, to: Pool) -> None:
    """The replicas take up another configuration."""
    world.terms = terms(to)
    world.call("r")


def test_another_window_counts_what_was_spent() -> None:
    """What is out, and what cools: until its own window is over."""
    world = World.of(pool(1, limit(3)))
    cooled, used = world.ask(2).grants
    world.call("r", Spent(cooled.lease, 0))
    change(world, pool(1, limit(3, 90 * SECOND)))
    assert len(world.ask(5).grants) == 1
    world.call("r", Spent(used.lease, 0))
    check_conservation(world.ledger)
    world.pass_(80 * SECOND)
    assert not world.call().grants
    world.pass_(11 * SECOND)
    assert len(world.call().grants) == 2
    check_conservation(world.ledger)


def test_a_known_bucket_stays_known_unless_its_window_is_longer() -> None:
    """What was spent before the shorter one began is not known to be all."""
    shorter, longer = World.of(pool(1, limit(3))), World.of(pool(1, limit(3)))
    change(shorter, pool(1, limit(3, 30 * SECOND)))
    change(longer, pool(1, limit(3, 90 * SECOND)))
    assert [len(world.ask(3).grants) for world in (shorter, longer)] == [3, 1]


def test_a_key_takes_what_it_has_spent_to_another_quota() -> None:
    """To one that it shares, and to one of its own, which counts all that the shared one has spent."""
    world = World.of(with_quotas("k0", "k1"))
    for grant in world.ask(6).grants:
        world.call("r", Spent(grant.lease, 0))
    change(world, with_quotas("shared", "shared"))
    assert not world.ask(1).grants
    world.pass_(61 * SECOND)
    grants = world.call().grants
    assert len(grants) == 1
    world.ask(2)
    change(world, with_quotas("shared", "k1"))
    assert not world.ask(9).grants
    check_conservation(world.ledger)


def test_what_is_closed_is_closed_by_everybodys_terms() -> None:
    """A refusal parks the bucket for who goes by other terms, too, and for who takes them up later."""
    world = World.of(pool(1, limit(3)))
    first, _ = world.ask(2).grants
    other = terms(pool(1, limit(4, 90 * SECOND)))
    world.send("late", terms=other)
    warm(world.ledger)
    world.call("r", throttled(first, 20 * SECOND))
    world.terms = other
    assert not world.ask(1, replica="late").grants
    world.terms = terms(pool(1, limit(5, 100 * SECOND)))
    assert not world.ask(1, replica="later").grants
    world.pass_(20 * SECOND)
    assert world.call("later").grants


def test_others_are_not_asked_to_know_what_an_answer_said() -> None:
    """What somebody else has spent counts by the terms of who heard it, and by new ones."""
    world = World.of(pool(1, limit(5)))
    (grant,) = world.ask(1).grants
    world.call("r", Spent(grant.lease, 0, (Seen(0, 1, 30 * SECOND),)))
    change(world, pool(1, limit(5, 90 * SECOND)))
    assert len(world.ask(5).grants) == 1
    check_conservation(world.ledger)


REAL = limit(3, 2 * SECOND)
"""What the upstream permits on each key."""

pools = st.builds(
    lambda shared, requests, window: with_quotas(
        *("shared" if number in shared else f"k{number}" for number in range(2)), limits=(Limit(requests, window),)
    ),
    st.frozensets(st.integers(0, 1)),
    st.integers(1, 3),
    st.sampled_from([2 * SECOND, 3 * SECOND, 5 * SECOND]),
)


@given(st.lists(pools, min_size=2, max_size=3), st.integers(0, 10**6))
def test_law_1_holds_while_replicas_go_by_different_terms(configurations: list[Pool], seed: int) -> None:
    """Whoever takes up which configuration when, no key is over the upstream's limit in any of its windows."""
    random = Random(seed)
    world = World.of(configurations[0])
    going_by = dict.fromkeys("abc", configurations[0])
    counted: dict[str, list[int]] = defaultdict(list)
    for _ in range(80):
        world.pass_(random.randint(0, 400) * MILLISECOND)
        replica = random.choice("abc")
        if random.random() < 0.2:
            going_by[replica] = random.choice(configurations)
        world.terms = terms(going_by[replica])
        for grant in world.ask(3, replica=replica).grants:
            key = random.choice(going_by[replica].keys_of[grant.quota])
            counted[key.name].append(world.now)
            world.waiting[replica].clear()
            world.call(replica, Spent(grant.lease, 0))
        world.waiting[replica].clear()
        check_conservation(world.ledger)
    for instants in counted.values():
        for instant in instants:
            assert sum(1 for other in instants if instant <= other < instant + REAL.window) <= REAL.requests
