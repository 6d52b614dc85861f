from keyturn.core.exchange import DemandClass
from keyturn.core.health import KeyHealth
from keyturn.core.model import SECOND, Client, Key, Pool, Secret
from keyturn.scheduler.keys import Keys
from keyturn.scheduler.tickets import Ticket

from tests.core.worlds import limit

SHARED = Pool("default", tuple(Key(name, Secret(name), name[0]) for name in ("a1", "a2", "b1")), (limit(60),))


def ticket(pinned: str | None = None, *, own: bool = False) -> Ticket:
    """A request, perhaps one that insists on a key."""
    return Ticket(Client("c"), DemandClass((0,)), 0, pinned=pinned, own=own)


def picked(keys: Keys, quota: str, request: Ticket) -> str | None:
    """The name of the key that is handed out."""
    key = keys.pick(quota, request)
    return key.name if key else None


def test_keys_of_a_quota_take_turns() -> None:
    """Each carries its part of the quota's requests."""
    keys = Keys(SHARED, KeyHealth(SHARED))
    assert [picked(keys, "a", ticket()) for _ in range(3)] == ["a1", "a2", "a1"]
    assert keys.serving is SHARED


def test_a_dead_key_leaves_its_quota_to_the_others() -> None:
    """The store has to be told only when a quota has no key left, or has one again."""
    health = KeyHealth(SHARED)
    keys = Keys(SHARED, health)
    health.rejected("a1", 0, "401", 0.0)
    assert not keys.sort()
    assert [picked(keys, "a", ticket()) for _ in range(2)] == ["a2", "a2"]
    health.pause("a2", 0)
    assert keys.sort()
    assert list(keys.serving.quotas) == ["b"]
    assert keys.pick("a", ticket()) is None
    health.accepted("a1", 0)
    assert keys.sort()
    assert list(keys.serving.quotas) == ["a", "b"]


def test_who_insists_on_a_key_gets_that_one_or_none() -> None:
    """The proxy itself gets it in whatever state it is; nobody gets it from another quota."""
    health = KeyHealth(SHARED)
    keys = Keys(SHARED, health)
    assert picked(keys, "a", ticket("a2")) == "a2"
    health.rejected("a2", 0, "401", 0.0)
    assert keys.pick("a", ticket("a2")) is None
    assert picked(keys, "a", ticket("a2", own=True)) == "a2"
    assert keys.pick("b", ticket("a1")) is None
    assert keys.pick("a", ticket("gone")) is None


def test_refusals_are_for_callers() -> None:
    """The proxy's own request is how a dead key comes back."""
    health = KeyHealth(SHARED)
    keys = Keys(SHARED, health)
    health.rejected("a2", 0, "401", 0.0)
    assert keys.refusal(ticket(), SECOND) is None
    assert keys.refusal(ticket("a2"), SECOND) is not None
    assert keys.refusal(ticket("a2", own=True), SECOND) is None


def test_another_configuration() -> None:
    """Other keys are handed out from then on."""
    keys = Keys(SHARED, KeyHealth(SHARED))
    fewer = Pool("default", SHARED.keys[2:], SHARED.limits)
    keys.health.adopt(fewer, 0)
    keys.adopt(fewer)
    assert keys.pick("a", ticket()) is None
    assert picked(keys, "b", ticket()) == "b1"
