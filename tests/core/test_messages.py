from keyturn.core.messages import RevisionClass, revision_of, same_limits
from keyturn.core.model import MILLISECOND, SECOND, Key, Pool, Secret

from tests.core.worlds import limit, pool

SECRETS = [Secret(f"s-k{number}") for number in range(4)]
K = [secret.identity for secret in SECRETS]


def test_a_revision_is_named_by_what_it_says() -> None:
    """Revisions with the same content have the same name; another bound, key or limit changes it."""
    one = revision_of(pool(2, limit(3)), 5)
    assert one == revision_of(pool(2, limit(3)), 5)
    others = [revision_of(pool(2, limit(3)), 6), revision_of(pool(3, limit(3)), 5), revision_of(pool(2, limit(4)), 5)]
    assert len({one.name, *(other.name for other in others)}) == 4


def test_another_name_of_a_key_changes_nothing() -> None:
    """A renamed key keeps its quota and what was spent."""
    before = Pool("default", (Key.alone("a", SECRETS[0]), Key("b", SECRETS[1], "ann")), (limit(3),))
    after = Pool("default", (Key.alone("x", SECRETS[0]), Key("y", SECRETS[1], "ann")), (limit(3),))
    assert revision_of(before, 5) == revision_of(after, 5)


def test_only_quotas_that_are_not_one_keys_own_are_spelled_out() -> None:
    """Only shared quotas are spelled out, with the identities of their keys, in order."""
    quotas = ("own", "shared", "shared", "other")
    keys = [Key(f"k{number}", SECRETS[number], quota) for number, quota in enumerate(quotas)]
    keys[0] = Key.alone("k0", SECRETS[0])
    revision = revision_of(Pool("default", tuple(keys), (limit(3),)), 5)
    assert revision.quotas == tuple(sorted([K[0], "shared", "other"]))
    assert revision.keys == (("other", (K[3],)), ("shared", tuple(sorted(K[1:3]))))


def test_a_limit_keeps_its_identity_when_only_its_number_changes() -> None:
    """Tokens spent under 60 a minute count under 100 a minute; windows include the guard."""
    (before,), (after,) = revision_of(pool(1, limit(60)), 5).limits, revision_of(pool(1, limit(100)), 5).limits
    assert before.id == after.id
    assert before.window == 60 * SECOND + 130 * MILLISECOND
    assert before.id != revision_of(pool(1, limit(60, 10 * SECOND)), 5).limits[0].id
    assert before.id != revision_of(pool(1, limit(60, 60 * SECOND, "GET /a")), 5).limits[0].id


def test_limits_that_count_the_same_are_told_apart() -> None:
    """Two limits with the same window and match have buckets of their own."""
    one, two = revision_of(pool(1, limit(60), limit(50)), 5).limits
    assert one.id != two.id


def test_limits_are_found_again_in_another_configuration() -> None:
    """Limits are matched by what they count, at any index; a removed one is not found."""
    narrow, wide, other = limit(3, 10 * SECOND, "GET /a"), limit(60), limit(9, 20 * SECOND)
    before = pool(1, narrow, other, wide)
    assert same_limits(before, before) == {0: 0, 1: 1, 2: 2}
    assert same_limits(before, pool(1, limit(70), narrow)) == {0: 1, 2: 0}


def test_a_demand_class_says_all_of_itself_in_its_name() -> None:
    """A demand class's name holds all of it, so the order of classes depends on nothing else."""
    assert RevisionClass("r", (0, 2)).name == "r|0,2|"
    assert RevisionClass("r", (), "k0").name == "r||k0"
