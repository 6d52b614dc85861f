from keyturn.core.exchange import DemandClass
from keyturn.core.health import KeyHealth
from keyturn.core.model import SECOND, Client, Key, Pool, Secret
from keyturn.scheduler.key_rotation import KeyRotation
from keyturn.scheduler.waiter import INTERNAL, Waiter

from tests.core.worlds import limit

SHARED = Pool("default", tuple(Key(name, Secret(name), name[0]) for name in ("a1", "a2", "b1")), (limit(60),))


def request(pinned: str | None = None, *, own: bool = False) -> Waiter:
    """A request, perhaps one that insists on a key, or a health check."""
    return Waiter(INTERNAL if own else Client("c"), DemandClass((0,)), 0, pinned=pinned)


def picked(keys: KeyRotation, quota: str, waiter: Waiter) -> str | None:
    """The name of the key that is handed out."""
    key = keys.pick(quota, waiter)
    return key.name if key else None


def test_keys_of_a_quota_take_turns() -> None:
    """Each carries its part of the quota's requests."""
    keys = KeyRotation(SHARED, KeyHealth(SHARED))
    assert [picked(keys, "a", request()) for _ in range(3)] == ["a1", "a2", "a1"]
    assert keys.serving is SHARED


def test_a_dead_key_leaves_its_quota_to_the_others() -> None:
    """The store has to be told only when a quota has no key left, or has one again."""
    health = KeyHealth(SHARED)
    keys = KeyRotation(SHARED, health)
    health.rejected("a1", 0, "401", 0.0)
    assert not keys.refresh()
    assert [picked(keys, "a", request()) for _ in range(2)] == ["a2", "a2"]
    health.pause("a2", 0)
    assert keys.refresh()
    assert list(keys.serving.quotas) == ["b"]
    assert keys.pick("a", request()) is None
    health.accepted("a1", 0)
    assert keys.refresh()
    assert list(keys.serving.quotas) == ["a", "b"]


def test_who_insists_on_a_key_gets_that_one_or_none() -> None:
    """The proxy itself gets it in whatever state it is; nobody gets it from another quota."""
    health = KeyHealth(SHARED)
    keys = KeyRotation(SHARED, health)
    assert picked(keys, "a", request("a2")) == "a2"
    health.rejected("a2", 0, "401", 0.0)
    assert keys.pick("a", request("a2")) is None
    assert picked(keys, "a", request("a2", own=True)) == "a2"
    assert keys.pick("b", request("a1")) is None
    assert keys.pick("a", request("gone")) is None


def test_refusals_are_for_callers() -> None:
    """The proxy's own request is how a dead key comes back."""
    health = KeyHealth(SHARED)
    keys = KeyRotation(SHARED, health)
    health.rejected("a2", 0, "401", 0.0)
    assert keys.refusal(request(), SECOND) is None
    assert keys.refusal(request("a2"), SECOND) is not None
    assert keys.refusal(request("a2", own=True), SECOND) is None


def test_another_configuration() -> None:
    """Other keys are handed out from then on."""
    keys = KeyRotation(SHARED, KeyHealth(SHARED))
    fewer = Pool("default", SHARED.keys[2:], SHARED.limits)
    keys.health.adopt(fewer, 0)
    keys.adopt(fewer)
    assert keys.pick("a", request()) is None
    assert picked(keys, "b", request()) == "b1"
