from hypothesis import given
from hypothesis import strategies as st

from proxy.core.exchange import USE_BY, Seen, Settlement, Spent
from proxy.core.ledger import HOLD
from proxy.core.letters import Held
from proxy.core.model import MILLISECOND, SECOND
from tests.core.worlds import BOUND, World, check_conservation, lane, limit, pool, throttled, unsent

W = 60 * SECOND + 100 * MILLISECOND + 30 * MILLISECOND
"""The stretched window: the guard, and 0.05 % for the rates of two clocks."""


def test_a_spent_token_returns_one_stretched_window_after_its_request_was_counted() -> None:
    """A token that was counted at t is at hand at t + W, and not a microsecond earlier."""
    world = World.of(pool(1, limit(1)))
    (grant,) = world.ask(1).grants
    world.pass_(300 * MILLISECOND)
    world.call("r", Spent(grant.lease, 100 * MILLISECOND))
    counted = world.now - 100 * MILLISECOND
    world.now = counted + W - 1
    assert not world.ask(1).grants
    world.now = counted + W
    assert world.call().grants


def test_an_unsent_token_returns_at_once() -> None:
    """What never left this process costs nothing."""
    world = World.of(pool(1, limit(1)))
    (grant,) = world.ask(1).grants
    world.ask(1)
    assert len(world.call("r", unsent(grant)).grants) == 1
    check_conservation(world.ledger)


def test_a_second_settlement_changes_nothing() -> None:
    """A lease is settled once: a repeated or contradicting settlement neither frees nor shortens (law 2)."""
    world = World.of(pool(1, limit(2)))
    first, second = world.ask(2).grants
    world.call("r", Spent(first.lease, 0), unsent(first), Spent(first.lease, 30 * SECOND), unsent(first))
    assert not world.ask(1).grants
    world.pass_(W)
    assert len(world.call().grants) == 1, "one token returned, the other is still in use"
    check_conservation(world.ledger)
    assert second.lease in world.ledger.buckets._out


def test_a_throttled_quota_stays_closed_until_the_upstreams_time() -> None:
    """Nothing is granted from a parked quota, tokens at hand or not; others serve meanwhile."""
    world = World.of(pool(2, limit(3)))
    (grant,) = world.ask(1).grants
    answer = world.call("r", throttled(grant, 20 * SECOND))
    assert {other.quota for other in world.ask(10).grants} == {"k0", "k1"} - {grant.quota}
    world.pass_(20 * SECOND - 1)
    assert not world.call().grants
    world.pass_(1)
    assert {other.quota for other in world.call().grants} == {grant.quota}
    assert answer.again is None or answer.again > 0


def test_parking_is_never_shortened() -> None:
    """Headers only take tokens away: a shorter time does not open what a longer one closed (law 9)."""
    world = World.of(pool(1, limit(5)))
    first, second = world.ask(2).grants
    world.call("r", throttled(first, 30 * SECOND), throttled(second, 5 * SECOND))
    world.pass_(29 * SECOND)
    assert not world.ask(1).grants


def test_what_was_refused_opens_for_one_request_and_by_what_its_answer_tells() -> None:
    """A 429 shows that somebody else spends: when the bucket opens, nobody knows how much is left (law 8)."""
    world = World.of(pool(1, limit(5)))
    (grant,) = world.ask(1).grants
    world.call("r", throttled(grant, 20 * SECOND))
    world.pass_(20 * SECOND)
    (probe,) = world.ask(9).grants
    assert probe.probe
    answer = world.call("r", Spent(probe.lease, 0, (Seen(0, 1, 30 * SECOND),)))
    assert len(answer.grants) == 1, "two are out by our own count, the upstream has counted four"
    assert answer.foreign == (("k0", 2),)


def test_a_key_that_is_not_in_the_terms_is_asked_after_under_a_lease_of_its_quota() -> None:
    """A replica that does not use a quota gets a token of it for a lane that insists on it only (law 10)."""
    world = World.of(pool(1, limit(2)))
    asked = world.ask(3, lane("own", (0,), "k9"))
    assert [grant.quota for grant in asked.grants] == ["k9"]
    assert asked.grants[0].probe
    assert {grant.quota for grant in world.ask(9).grants} == {"k0"}
    answer = world.call("r", Spent(asked.grants[0].lease, 0))
    assert [grant.quota for grant in answer.grants] == ["k9"]
    check_conservation(world.ledger)


def test_a_lease_takes_a_token_of_every_limit_from_one_quota() -> None:
    """A request under two limits needs both; the narrower one holds back only what it matches."""
    narrow = limit(2, 10 * SECOND, "GET /collections")
    world = World.of(pool(1, limit(5), narrow))
    assert len(world.ask(4, lane("a", (0, 1))).grants) == 2
    assert len(world.ask(9, lane("b", (0,))).grants) == 3
    check_conservation(world.ledger)


def test_the_fullest_quota_is_taken_first_and_among_equals_the_one_used_longest_ago() -> None:
    """Requests spread over the quotas."""
    world = World.of(pool(3, limit(2)))
    assert sorted(grant.quota for grant in world.ask(3).grants) == ["k0", "k1", "k2"]
    assert [grant.quota for grant in world.ask(3).grants] == ["k0", "k1", "k2"]


def test_a_pinned_lane_draws_on_its_own_quota_only() -> None:
    """A caller that names a key never gets another."""
    world = World.of(pool(3, limit(1)))
    answer = world.ask(3, lane("a", (0,), "k1"))
    assert [grant.quota for grant in answer.grants] == ["k1"]


def test_a_silent_replica_loses_its_leases_at_its_last_word_and_never_earlier() -> None:
    """Tokens of a dead replica return at its last word + use_by + settle_bound + W (law 2)."""
    world = World.of(pool(1, limit(1)))
    world.ask(1, replica="dead")
    word = world.now
    world.now = word + USE_BY + BOUND + W - 1
    assert not world.ask(1).grants
    world.now += 1
    assert world.call().grants


def test_a_late_settlement_after_a_lapse_is_ignored() -> None:
    """A replica that was stopped and comes back does not free what was taken from it."""
    world = World.of(pool(1, limit(1)))
    (grant,) = world.ask(1, replica="stopped").grants
    world.pass_(USE_BY + BOUND)
    world.call("r")
    world.call("stopped", unsent(grant))
    assert not world.ask(1).grants


def test_a_kind_without_limits_is_always_served() -> None:
    """What falls under no limit does not wait."""
    world = World.of(pool(2, limit(1, 60 * SECOND, "GET /narrow")))
    assert len(world.ask(50, lane("a", ())).grants) == 50


steps = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.integers(1, 6), st.sampled_from(["a", "b"])),
        st.tuples(st.just("spent"), st.integers(0, 50), st.integers(0, 12_000)),
        st.tuples(st.just("unsent"), st.integers(0, 50), st.just(0)),
        st.tuples(st.just("park"), st.integers(0, 50), st.integers(0, 90_000)),
        st.tuples(st.just("pass"), st.integers(0, 70_000), st.just(0)),
        st.tuples(st.just("crash"), st.just(0), st.just(0)),
    ),
    max_size=80,
)


@given(steps, st.integers(1, 3), st.integers(1, 4))
def test_never_over_and_nothing_lost_in_any_history(
    history: list[tuple[str, int, int]], quotas: int, size: int
) -> None:
    """Wherever in its trip the upstream counts, no window holds more than the limit, and no bucket loses a token."""
    both = (limit(size, 10 * SECOND), limit(size + 1, 25 * SECOND))
    world = World.of(pool(quotas, *both))
    counted: list[tuple[int, int, str]] = []
    granted = world.granted
    for what, first, second in history:
        replica = "r"
        if what == "ask":
            world.ask(first, lane(str(second), (0, 1)))
        elif what == "pass":
            world.pass_(first * MILLISECOND)
        elif what == "crash":
            for lease, grant in world.out.items():
                latest = min(world.now, granted[lease] + USE_BY) + BOUND
                counted.append((granted[lease], latest, grant.quota))
            world.out.clear()
            world.pass_(USE_BY + BOUND)
            world.send("other")
            world.waiting.clear()
        elif world.out:
            lease = sorted(world.out)[first % len(world.out)]
            grant = world.out[lease]
            settlement: Settlement = unsent(grant)
            if what != "unsent":
                age = min(second * MILLISECOND if what == "spent" else 0, world.now - granted[lease])
                counted.append((granted[lease], world.now - age, grant.quota))
                settlement = Spent(lease, age) if what == "spent" else throttled(grant, second * MILLISECOND, 0)
            world.call(replica, settlement)
        check_conservation(world.ledger)
    for name in world.terms.quotas:
        for bound in both:
            assert not _overfull([(a, b) for a, b, quota in counted if quota == name], bound.requests, bound.window)


def _overfull(trips: list[tuple[int, int]], size: int, window: int) -> bool:
    """Whether the upstream could count more than `size` in a half-open interval of `window`, each trip at its worst.

    A set of trips fits into one interval that starts at s when each can be counted in [s, s + window).
    """
    for start in [end for _, end in trips] + [begin for begin, _ in trips]:
        if sum(1 for begin, end in trips if end >= start and begin < start + window) > size:
            return True
    return False


def test_what_cools_under_one_limit_only_is_not_granted_again_under_the_other() -> None:
    """Its replica had been taken for dead, and tells that the lease is out: counted anew where it had returned."""
    world = World.of(pool(2, limit(5, 20 * SECOND), limit(1, 5 * SECOND, "GET /x")))
    both = lane("a", (0, 1))
    (grant,) = world.ask(1, both, "r").grants
    world.pass_(world.terms.bound)
    world.call("s")
    world.pass_(6 * SECOND)
    world.call("s")
    windows = tuple((one.id, one.window) for one in world.terms.limits)
    held = Held(grant.lease, grant.quota, "a", windows, world.now - world.granted[grant.lease], None)
    world.send("r", era="another", held=(held,))
    world.send("r", world.spend(grant))
    check_conservation(world.ledger)
    world.pass_(HOLD)
    assert [one.quota for one in world.ask(2, both, "s").grants] == [{"k0": "k1", "k1": "k0"}[grant.quota]]
