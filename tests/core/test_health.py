from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from keyturn.core.errors import NoKey
from keyturn.core.health import (
    CHECK_DURATION,
    CHECK_TRUST,
    FIRST_RECHECK,
    MAX_RECHECK,
    RECHECK_JITTER,
    RETRY_AFTER_SECONDS,
    KeyHealth,
    KeySnapshot,
)
from keyturn.core.model import SECOND, Key, Micros, Pool, Secret

from tests.core.worlds import limit, pool

NOW: Micros = 1_000 * SECOND


def snapshot(health: KeyHealth, name: str = "k0", now: Micros = NOW) -> KeySnapshot:
    """Return the view of one key."""
    return next(snapshot for snapshot in health.snapshots(now) if snapshot.name == name)


def keys(*secrets: str) -> Pool:
    """Return a pool of keys `k0`, `k1`, … with these secrets."""
    return Pool("default", tuple(Key(f"k{n}", Secret(text), f"k{n}") for n, text in enumerate(secrets)), (limit(60),))


def test_a_suspected_key_is_not_used_until_it_was_checked() -> None:
    """A suspected key is not used until it was checked, and no request is refused meanwhile."""
    health = KeyHealth(pool(1), NOW)
    assert health.begin_check("k0", NOW)
    assert not health.usable("k0")
    assert health.refusal(NOW) is None
    assert not health.begin_check("k0", NOW), "it is being asked after already"
    assert not health.accepted("k0", NOW), "it never was dead"
    assert health.usable("k0")


def test_a_key_that_was_just_found_alive_is_trusted() -> None:
    """A key that was just found alive is not suspected again for a while (rule 4)."""
    health = KeyHealth(pool(1), NOW)
    health.accepted("k0", NOW)
    assert not health.begin_check("k0", NOW + CHECK_TRUST - 1)
    assert health.begin_check("k0", NOW + CHECK_TRUST)


def test_a_dead_key_is_checked_ever_less_often() -> None:
    """Checks of a dead key are twice as far apart each time, up to a bound, with jitter (rule 3)."""
    health = KeyHealth(pool(1), NOW)
    assert health.rejected("k0", NOW, "401", 0.0)
    interval = FIRST_RECHECK
    for _ in range(12):
        assert health.next_check("k0") == NOW + min(interval, MAX_RECHECK)
        interval *= 2
        assert not health.rejected("k0", NOW, "401", 0.0), "no news"
    health.rejected("k0", NOW, "401", 1.0)
    assert health.next_check("k0") == NOW + MAX_RECHECK * (1 + RECHECK_JITTER)
    assert health.accepted("k0", NOW)
    assert health.next_check("k0") is None


def test_what_could_not_be_found_out() -> None:
    """After an inconclusive check a suspected key is used again, and a dead one stays dead and is checked soon."""
    health = KeyHealth(pool(1), NOW)
    health.begin_check("k0", NOW)
    health.inconclusive("k0", NOW, 0.0)
    assert health.usable("k0")
    health.rejected("k0", NOW, "401", 0.0)
    health.inconclusive("k0", NOW + 5 * FIRST_RECHECK, 0.0)
    assert not health.usable("k0")
    assert health.next_check("k0") == NOW + 6 * FIRST_RECHECK


def test_the_last_keys_death_is_told_with_the_time_at_which_one_may_be_back() -> None:
    """The refusal tells the next check's time, rounded up, with time for the check itself."""
    health = KeyHealth(pool(2), NOW)
    health.rejected("k0", NOW, "401", 0.0)
    assert health.refusal(NOW) is None
    health.rejected("k1", NOW - SECOND, "401", 0.0)
    refusal = health.refusal(NOW + 1)
    assert isinstance(refusal, NoKey)
    assert refusal.retry_after == (FIRST_RECHECK - SECOND + CHECK_DURATION) // SECOND
    later = health.refusal(NOW + 10 * FIRST_RECHECK)
    assert later is not None
    assert later.retry_after == CHECK_DURATION // SECOND


def test_a_pinned_request_is_refused_by_its_own_key() -> None:
    """A pinned request is refused when its own key is dead, whatever other keys do."""
    health = KeyHealth(pool(2), NOW)
    health.rejected("k0", NOW, "401", 0.0)
    assert health.refusal(NOW, "k1") is None
    refusal = health.refusal(NOW, "k0")
    assert refusal is not None
    assert "k0" in refusal.message


def test_a_paused_key_is_an_operators() -> None:
    """Only resuming brings a paused key back; callers are told when to try again (rule 5)."""
    health = KeyHealth(pool(1), NOW)
    assert health.pause("k0", NOW)
    assert snapshot(health).state == "paused"
    refusal = health.refusal(NOW)
    assert refusal is not None
    assert refusal.retry_after == RETRY_AFTER_SECONDS
    assert refusal.message.startswith("No key of the pool default can serve: paused")
    insisted = health.refusal(NOW, "k0")
    assert insisted is not None
    assert insisted.message.startswith("The key k0 cannot serve: paused")
    health.accepted("k0", NOW)
    assert not health.usable("k0")
    assert health.resume("k0", NOW + SECOND)
    assert health.usable("k0")
    assert snapshot(health).since == NOW + SECOND
    assert not health.pause("k9", NOW)
    assert not health.resume("k9", NOW)


def test_a_dead_key_that_was_paused_is_checked_when_it_is_resumed() -> None:
    """A dead key that was paused is checked when it is resumed, before it is used."""
    health = KeyHealth(pool(1), NOW)
    due: list[str] = []
    health.on_check_due = due.append
    health.rejected("k0", NOW, "401", 0.0)
    health.pause("k0", NOW)
    assert health.next_check("k0") is None
    assert due == []
    health.resume("k0", NOW + 1)
    assert due == ["k0"]
    assert not health.usable("k0")
    assert health.next_check("k0") == NOW + 1


def test_a_changed_secret_is_checked_at_once() -> None:
    """A dead key is checked at once when its secret changes; a live one is used with the new secret (rule 3)."""
    health = KeyHealth(keys("a", "b", "c"), NOW)
    health.rejected("k0", NOW, "401", 0.0)
    health.rejected("k1", NOW, "401", 0.0)
    due: list[str] = []
    health.on_check_due = due.append
    assert health.adopt(keys("new", "b", "other", "fresh"), NOW + 1) == ("k0",)
    assert health.next_check("k0") == NOW + 1
    assert due == ["k0"]
    assert [health.usable(f"k{number}") for number in range(4)] == [False, False, True, True]
    assert health.adopt(keys("new"), NOW + 2) == ()
    assert [snapshot.name for snapshot in health.snapshots(NOW)] == ["k0"]


def test_what_is_looked_at() -> None:
    """A view has state, reason and times, also of closed quotas; the later of two closings counts."""
    health = KeyHealth(pool(2), NOW)
    assert snapshot(health) == KeySnapshot("k0", "k0", "ready", NOW)
    health.parked("k0", NOW + 1, NOW + 20 * SECOND, "60/60s")
    health.parked("k0", NOW + 2, NOW + 5 * SECOND, "10/10s")
    assert snapshot(health, now=NOW + 3) == KeySnapshot("k0", "k0", "parked", NOW + 1, "60/60s", NOW + 20 * SECOND)
    assert health.usable("k0"), "the store knows what is parked"
    assert snapshot(health, now=NOW + 20 * SECOND) == KeySnapshot("k0", "k0", "ready", NOW + 20 * SECOND)
    assert health.month("k0", 87)
    assert not health.month("k0", 87)
    health.rejected("k0", NOW + 9, "401 AuthenticationError", 0.0)
    found = snapshot(health)
    assert (found.state, found.reason, found.since) == ("quarantined", "401 AuthenticationError", NOW + 9)
    assert (found.until, found.month_left) == (NOW + 9 + FIRST_RECHECK, 87)
    assert snapshot(health, "k1").state == "ready"


@given(st.sampled_from(["k9", ""]))
def test_unknown_keys_are_no_error(name: str) -> None:
    """Reports about a key that was removed by a reload are ignored."""
    health = KeyHealth(pool(1), NOW)
    assert not health.begin_check(name, NOW)
    assert not health.checking(name)
    assert not health.rejected(name, NOW, "", 0.0)
    assert not health.accepted(name, NOW)
    assert not health.month(name, 1)
    health.inconclusive(name, NOW, 0.0)
    assert not health.usable(name)


class Lives(RuleBasedStateMachine):
    """Any order of events in the life of two keys."""

    def __init__(self) -> None:
        super().__init__()
        self.health = KeyHealth(pool(2), NOW)
        self.now = NOW

    @rule(seconds=st.integers(0, 5_000))
    def pass_(self, seconds: int) -> None:
        self.now += seconds * SECOND

    @rule(
        name=st.sampled_from(["k0", "k1"]),
        what=st.sampled_from(["begin_check", "accepted", "rejected", "inconclusive", "pause", "resume"]),
        chance=st.floats(0, 1),
    )
    def happen(self, name: str, what: str, chance: float) -> None:
        health, now = self.health, self.now
        match what:
            case "rejected":
                health.rejected(name, now, "401", chance)
            case "inconclusive":
                health.inconclusive(name, now, chance)
            case _:
                getattr(health, what)(name, now)

    @invariant()
    def requests_are_refused_only_without_hope(self) -> None:
        """A request is refused exactly when no key is usable or being checked, and every dead key is checked."""
        names = ("k0", "k1")
        hope = any(
            self.health.usable(name) or (self.health.checking(name) and snapshot(self.health, name).state != "paused")
            for name in names
        )
        refusal = self.health.refusal(self.now)
        assert (refusal is None) == hope
        for name in names:
            state = snapshot(self.health, name, self.now).state
            assert (state == "quarantined") == (self.health.next_check(name) is not None)
            assert self.health.usable(name) <= (state == "ready")


def test_any_life_of_keys() -> None:
    """The invariants hold in any order of events."""
    run_state_machine_as_test(Lives)


def test_a_key_is_known_by_its_secret_when_names_change() -> None:
    """A dead key stays dead when it is renamed; a new key under the old name does not."""
    before = Pool("default", (Key.alone("a", Secret("x")), Key.alone("b", Secret("y"))), ())
    health = KeyHealth(before)
    health.rejected("a", 0, "refused", 0.0)
    health.adopt(Pool("default", (Key.alone("b", Secret("x")), Key.alone("a", Secret("z"))), ()), 1)
    assert [(snapshot.name, snapshot.state) for snapshot in health.snapshots(2)] == [
        ("b", "quarantined"),
        ("a", "ready"),
    ]
