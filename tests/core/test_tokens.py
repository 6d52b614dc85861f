from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from keyturn.core.exchange import HEARTBEAT, LEASE_LIFETIME, LeaseGrant, ObservedLimit, Settlement, Spent
from keyturn.core.messages import HeldLease
from keyturn.core.model import MILLISECOND, SECOND, Limit, Micros
from keyturn.core.state import RECOVERY_GRACE
from keyturn.core.tokens import REPLENISHED, UNLIMITED, USES, TokenBuckets, quota_of

from tests.core.worlds import BOUND, World, check_conservation, flow, limit, pool, throttled, unsent

W = 60 * SECOND + 100 * MILLISECOND + 30 * MILLISECOND
"""The stretched window: the guard, and 0.05 % for the rates of two clocks."""


def held(world: World, grant: LeaseGrant, counted: Micros | None = None) -> HeldLease:
    """Return a lease as its replica reports it."""
    windows = tuple(
        [
            (world.revision.limits[index].id, world.revision.limits[index].window)
            for index in grant.flow.demand_class.limits
        ]
    )
    return HeldLease(
        grant.lease, grant.quota, grant.flow.client, windows, world.now - world.granted[grant.lease], counted
    )


def test_a_spent_token_returns_one_stretched_window_after_its_request_was_counted() -> None:
    """A token counted at t is available at t + W and no earlier (law 1)."""
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
    """The token of an unsent lease returns at once."""
    world = World.of(pool(1, limit(1)))
    (grant,) = world.ask(1).grants
    world.ask(1)
    assert len(world.call("r", unsent(grant)).grants) == 1
    check_conservation(world.state)


def test_a_second_settlement_changes_nothing() -> None:
    """A repeated or contradicting settlement changes nothing (law 2)."""
    world = World.of(pool(1, limit(2)))
    first, second = world.ask(2).grants
    world.call("r", Spent(first.lease, 0), unsent(first), Spent(first.lease, 30 * SECOND), throttled(first, W))
    world.call("r", unsent(first))
    assert not world.ask(1).grants
    world.pass_(W)
    assert len(world.call().grants) == 1, "one token returned, the other is still in use"
    check_conservation(world.state)
    assert second.lease in world.state.tokens.leases


def test_a_throttled_quota_stays_closed_until_the_upstreams_time() -> None:
    """A throttled bucket grants nothing until the upstream's time; others serve meanwhile."""
    world = World.of(pool(2, limit(3)))
    (grant,) = world.ask(1).grants
    world.call("r", throttled(grant, 20 * SECOND))
    assert {other.quota for other in world.ask(10).grants} == {"k0", "k1"} - {grant.quota}
    world.pass_(20 * SECOND - 1)
    assert not world.call().grants
    world.pass_(1)
    assert {other.quota for other in world.call().grants} == {grant.quota}


def test_a_closed_bucket_is_never_opened_earlier() -> None:
    """A shorter time does not open what a longer one closed (law 9)."""
    world = World.of(pool(1, limit(5)))
    first, second = world.ask(2).grants
    world.call("r", throttled(first, 30 * SECOND), throttled(second, 5 * SECOND))
    world.pass_(29 * SECOND)
    assert not world.ask(1).grants


def test_what_was_refused_opens_by_a_probe_and_by_what_its_answer_says() -> None:
    """After a 429 a bucket opens by a probe and what its answer says (laws 8 and 9)."""
    world = World.of(pool(1, limit(5)))
    (grant,) = world.ask(1).grants
    world.call("r", throttled(grant, 20 * SECOND))
    world.pass_(20 * SECOND)
    (probe,) = world.ask(9).grants
    assert probe.probe
    answer = world.call("r", Spent(probe.lease, 0, (ObservedLimit(0, 1, 30 * SECOND),)))
    assert len(answer.grants) == 1, "two are taken by our own count, the upstream has counted four"
    assert answer.foreign == (("k0", 2),)
    world.pass_(30 * SECOND)
    assert len(world.call().grants) == 2, "what others spent returns with the upstream's reset"
    check_conservation(world.state)


def test_a_bucket_that_is_refused_while_it_is_probed_needs_another_probe() -> None:
    """A bucket refused during its probe needs another one (law 8)."""
    world = World.of(pool(1, limit(5)))
    (refused,) = world.ask(1).grants
    world.state.tokens.doubt()
    (probe,) = world.ask(9).grants
    world.call("r", throttled(refused, 20 * SECOND), Spent(probe.lease, 0))
    world.pass_(20 * SECOND)
    assert [grant.probe for grant in world.call().grants] == [True]


def test_a_bucket_opens_when_its_probe_takes_too_long() -> None:
    """A probe that takes too long counts as counted and opens its bucket, unless refused meanwhile (law 8)."""
    for refused in (False, True):
        world = World.of(pool(1, limit(5)))
        (grant,) = world.ask(1).grants
        world.state.tokens.doubt()
        assert [one.probe for one in world.ask(2).grants] == [True]
        again = world.call("r", throttled(grant, world.revision.bound + 1) if refused else unsent(grant)).again
        assert again == HEARTBEAT
        world.pass_(world.revision.bound - 1)
        assert not world.call().grants
        world.pass_(2)
        assert [one.probe for one in world.call().grants] == [refused]
        check_conservation(world.state)


def test_a_probe_that_was_never_sent_is_followed_by_another() -> None:
    """An unsent probe is followed by another (law 8)."""
    world = World.of(pool(1, limit(5)))
    world.state.tokens.doubt()
    (probe,) = world.ask(2).grants
    assert [grant.probe for grant in world.call("r", unsent(probe)).grants] == [True]


def test_what_nobody_answered_for_a_window_opens_by_a_probe() -> None:
    """A bucket with only unanswered requests in a window opens by a probe."""
    for answered in (False, True):
        world = World.of(pool(1, limit(3)))
        first, second, _ = world.ask(3).grants
        world.call("r", Spent(first.lease, -SECOND, answered=False))
        if answered:
            world.call("r", Spent(second.lease, 0))
        world.pass_(W + SECOND)
        assert [grant.probe for grant in world.ask(1).grants] == [not answered]


def test_a_key_that_is_not_in_the_revision_has_a_bucket_of_its_own() -> None:
    """A quota outside the revision serves only flows pinned to it (law 10)."""
    world = World.of(pool(1, limit(2)))
    asked = world.ask(3, flow("own", (0,), "k9"))
    assert [(grant.quota, grant.probe) for grant in asked.grants] == [("k9", True)]
    assert {grant.quota for grant in world.ask(9).grants} == {"k0"}
    assert [grant.quota for grant in world.call("r", Spent(asked.grants[0].lease, 0)).grants] == ["k9"]
    check_conservation(world.state)


def test_a_lease_takes_a_token_of_every_limit_from_one_quota() -> None:
    """A lease takes one token of each of its limits, all of one quota."""
    world = World.of(pool(1, limit(5), limit(2, 10 * SECOND, "GET /collections")))
    assert len(world.ask(4, flow("a", (0, 1))).grants) == 2
    assert len(world.ask(9, flow("b", (0,))).grants) == 3
    check_conservation(world.state)


def test_the_fullest_quota_is_taken_first() -> None:
    """The quota with most available tokens is used first, down to the last token."""
    world = World.of(pool(2, limit(3)))
    for number, quota in ((2, "k0"), (1, "k1")):
        world.ask(number, flow("a", (0,), quota))
    assert [grant.quota for grant in world.ask(9).grants] == ["k1", "k0", "k1"]


def test_of_quotas_with_equally_many_tokens_the_one_used_longest_ago_is_taken() -> None:
    """The quota used longest ago is chosen among equally full ones."""
    world = World.of(pool(3, limit(2)))
    for quota in ("k1", "k0"):
        world.call("r", unsent(*world.ask(1, flow("a", (0,), quota)).grants))
    assert [grant.quota for grant in world.ask(4).grants] == ["k2", "k1", "k0", "k2"]


def test_uses_start_over() -> None:
    """Rankings are right on both sides of the roll-over of uses."""
    world = World.of(pool(2, limit(2)))
    world.state.tokens._uses = USES - 2
    assert len(world.ask(5).grants) == 4
    check_conservation(world.state)
    assert USES * UNLIMITED < 1 << 53


def test_a_pinned_flow_gets_no_other_quota() -> None:
    """A pinned flow gets no other quota."""
    world = World.of(pool(3, limit(1)))
    assert [grant.quota for grant in world.ask(3, flow("a", (0,), "k1")).grants] == ["k1"]


def test_a_class_without_limits_is_always_served() -> None:
    """A class under no limit is served at once."""
    world = World.of(pool(2, limit(1, 60 * SECOND, "GET /narrow")))
    assert len(world.ask(50, flow("a", ())).grants) == 50


def test_a_silent_replica_loses_its_leases_when_they_can_count_no_longer() -> None:
    """Tokens of a dead replica return at last seen + use_by + settle_bound + W (law 2)."""
    world = World.of(pool(1, limit(1)))
    world.ask(1, replica="dead")
    seen = world.now
    world.now = seen + LEASE_LIFETIME + BOUND + W - 1
    assert not world.ask(1).grants
    world.now += 1
    assert world.call().grants


def test_a_late_settlement_after_a_lapse_is_ignored() -> None:
    """A settlement after its lease expired is ignored; one in time is not."""
    for silence, freed in ((LEASE_LIFETIME + BOUND - 1, 1), (LEASE_LIFETIME + BOUND, 0)):
        world = World.of(pool(1, limit(1)))
        (grant,) = world.ask(1, replica="stopped").grants
        world.pass_(silence)
        world.call("r")
        world.call("stopped", unsent(grant))
        assert len(world.ask(1).grants) == freed


def test_a_bounded_number_of_tokens_returns_in_one_exchange() -> None:
    """An exchange returns a bounded number of tokens and asks for the next one at once."""
    world = World.of(pool(1, limit(REPLENISHED + 5)))
    tokens, view = world.state.tokens, world.state.revisions.views[world.revision.name]
    for number in range(REPLENISHED + 5):
        tokens.take(f"l{number}", view, (0,), "k0", now=world.now, replica="r", client="a")
        tokens.settle(world.now, Spent(f"l{number}", 0), view)
    world.pass_(W)
    first, second = world.call(), world.call()
    assert [one.available[0].available for one in (first, second)] == [REPLENISHED, REPLENISHED + 5]
    assert (first.again, second.again) == (MILLISECOND, None)


# Reports (law 8)


def test_what_is_reported_counts_until_its_window_is_over() -> None:
    """Reported leases and tokens count until their windows are over; repeating a report changes nothing."""
    world = World.of(pool(1, limit(3)))
    used, cooled, _ = world.ask(3).grants
    report = (held(world, used), held(world, cooled, counted=10 * SECOND))
    tokens = world.state.tokens = TokenBuckets()
    for _ in range(2):
        tokens.restore(world.now, "r", report)
        assert (set(tokens.leases), tokens.taken) == ({used.lease}, {(world.revision.limits[0].id, "k0"): 2})
        check_conservation(world.state)
    tokens.replenish(world.now - 10 * SECOND + W)
    assert tokens.taken == {(world.revision.limits[0].id, "k0"): 1}


def test_what_a_report_does_not_name_was_never_heard_of() -> None:
    """Leases that a report does not name return; those that it calls counted are cooling."""
    world = World.of(pool(1, limit(3)))
    _, cooled, _ = world.ask(3).grants
    world.state.tokens.restore(world.now, "r", (held(world, cooled, counted=0),))
    assert not world.state.tokens.leases
    assert world.state.tokens.taken == {(world.revision.limits[0].id, "k0"): 1}
    check_conservation(world.state)


def test_what_was_never_answered_is_reported_as_the_same_token() -> None:
    """A token without an answer is recognised in a report under its other name."""
    world = World.of(pool(1, limit(3)))
    (grant,) = world.ask(1).grants
    world.call("r", Spent(grant.lease, -SECOND, answered=False))
    world.state.tokens.restore(world.now, "r", (held(world, grant, counted=-SECOND),))
    assert world.state.tokens.taken == {(world.revision.limits[0].id, "k0"): 1}
    check_conservation(world.state)


def test_what_cools_is_not_granted_again_when_it_is_reported_to_be_in_use() -> None:
    """A cooling token that a report calls in use is counted once."""
    world = World.of(pool(2, limit(5, 20 * SECOND), limit(1, 5 * SECOND, "GET /x")))
    both = flow("a", (0, 1))
    (grant,) = world.ask(1, both, "r").grants
    world.pass_(world.revision.bound)
    world.call("s")
    world.pass_(6 * SECOND)
    world.call("s")
    world.send("r", epoch="another", held=(held(world, grant),))
    check_conservation(world.state)
    world.send("r", world.spend(grant))
    check_conservation(world.state)
    world.pass_(RECOVERY_GRACE)
    assert [one.quota for one in world.ask(2, both, "s").grants] == [{"k0": "k1", "k1": "k0"}[grant.quota]]


def test_a_member_names_its_quota() -> None:
    """A member of the returns names lease and quota."""
    assert quota_of("r1-7@team-a") == "team-a"


# Any history

BOTH = (limit(2, 10 * SECOND), limit(3, 25 * SECOND))
REPLICAS = st.sampled_from(["r1", "r2", "r3"])
AGES = st.integers(-5_000, 12_000)


class Histories(RuleBasedStateMachine):
    """Three replicas that lose messages, die and settle at random, before a store that loses its epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World.of(pool(2, *BOTH))
        self.owners: dict[str, str] = {}
        self.trips: list[tuple[Micros, Micros, LeaseGrant]] = []
        """The first and the last instant at which the upstream may have counted a request, and its lease."""
        self.cooled: dict[str, dict[str, tuple[LeaseGrant, Micros]]] = {"r1": {}, "r2": {}, "r3": {}}

    def note(self, replica: str, grants: tuple[LeaseGrant, ...]) -> None:
        """Note that a replica received its grants."""
        self.owners.update({grant.lease: replica for grant in grants})

    def report(self, replica: str) -> tuple[HeldLease, ...]:
        """Return all outstanding leases of a replica."""
        world = self.world
        own = [held(world, grant) for lease, grant in world.out.items() if self.owners[lease] == replica]
        cooled = [(grant, world.now - counted) for grant, counted in self.cooled[replica].values()]
        return (*own, *[held(world, grant, age) for grant, age in cooled if age < 26 * SECOND])

    @rule(
        replica=REPLICAS, number=st.integers(1, 4), client=st.sampled_from("ab"), pinned=st.sampled_from([None, "k0"])
    )
    def ask(self, replica: str, number: int, client: str, pinned: str | None) -> None:
        """Let more requests wait; a dead replica sends nothing."""
        self.note(replica, self.world.ask(number, flow(client, (0, 1), pinned), replica).grants)

    @rule(replica=REPLICAS, client=st.sampled_from("ab"), number=st.integers(1, 4))
    def lose(self, replica: str, client: str, number: int) -> None:
        """Lose a response, and repeat the request."""
        world = self.world
        world.ask(number, flow(client, (0, 1)), replica)
        for lease, grant in list(world.out.items()):
            if lease not in self.owners:
                del world.out[lease]
                world.waiting[replica][
                    flow(grant.flow.client, grant.flow.demand_class.limits, grant.flow.demand_class.pinned)
                ] += 1
        world.send(replica, heard=world.serials[replica] - 1)

    @precondition(lambda self: self.world.out)
    @rule(which=st.integers(0, 99), age=AGES, what=st.sampled_from(["spent", "spent", "unsent", "throttled"]))
    def settle(self, which: int, age: int, what: str) -> None:
        """Settle a lease, counted between its grant and now, or soon."""
        world = self.world
        lease = sorted(world.out)[which % len(world.out)]
        grant = world.out[lease]
        replica = self.owners[lease]
        settlement: Settlement = unsent(grant)
        if what != "unsent":
            micros = min(age * MILLISECOND, world.now - world.granted[lease]) if what == "spent" else 0
            self.trips.append((world.granted[lease], world.now - micros, grant))
            self.cooled[replica][lease] = (grant, world.now - micros)
            settlement = (
                Spent(lease, micros, answered=age >= 0) if what == "spent" else throttled(grant, age * MILLISECOND, 0)
            )
        self.note(replica, world.call(replica, settlement).grants)

    @rule(duration=st.integers(0, 12_000))
    def pass_(self, duration: int) -> None:
        """Let time pass; living replicas call at their heartbeats."""
        for _ in range(3):
            self.world.pass_(duration * MILLISECOND // 3)
            for replica in ("r1", "r2", "r3"):
                self.note(replica, self.world.call(replica).grants)

    @rule(replica=REPLICAS)
    def die(self, replica: str) -> None:
        """Let a replica die with its leases in flight; its successor knows nothing."""
        world = self.world
        for lease, grant in list(world.out.items()):
            if self.owners[lease] == replica:
                self.trips.append((world.granted[lease], world.now + LEASE_LIFETIME + BOUND, grant))
                del world.out[lease]
        world.waiting.pop(replica, None)
        self.cooled[replica].clear()
        for other in {"r1", "r2", "r3"} - {replica}:
            self.note(other, world.call(other).grants)
        for _ in range(6):
            world.pass_(BOUND // 5)
            for other in {"r1", "r2", "r3"} - {replica}:
                self.note(other, world.call(other).grants)

    @rule()
    def lose_epoch(self) -> None:
        """Start the store over; all replicas report."""
        world = self.world
        epoch, world.run = world.state.epoch, world.run + "x"
        for replica in ("r1", "r2", "r3"):
            world.waiting.pop(replica, None)
            world.send(replica, epoch=epoch, held=self.report(replica))

    @invariant()
    def conserves(self) -> None:
        """No bucket loses or gains a token."""
        check_conservation(self.world.state)

    def teardown(self) -> None:
        """Wherever in its trip the upstream counts, no window holds more than the limit (law 1)."""
        for lease, grant in self.world.out.items():
            self.trips.append((self.world.granted[lease], self.world.now, grant))
        for quota in ("k0", "k1"):
            trips = [(begin, end) for begin, end, grant in self.trips if grant.quota == quota]
            assert not any(overfull(trips, bound) for bound in BOTH)


def overfull(trips: list[tuple[Micros, Micros]], bound: Limit) -> bool:
    """Return whether the upstream could count more than a limit in a half-open window, each trip at its worst.

    A set of trips fits into one window that starts at s when each can be counted in [s, s + window).
    """
    starts = [instant for trip in trips for instant in trip]
    return any(
        sum(begin < start + bound.window and end >= start for begin, end in trips) > bound.requests for start in starts
    )


TestHistories = Histories.TestCase


@given(st.lists(st.tuples(st.integers(0, 90), st.integers(1, 50)), max_size=8))
def test_overfull_windows_are_found(trips: list[tuple[int, int]]) -> None:
    """The check for overfull windows agrees with counting at every instant."""
    spans = [(begin, begin + length) for begin, length in trips]
    slow = any(len([1 for begin, end in spans if begin < start + 10 and end >= start]) > 2 for start in range(-20, 160))
    assert overfull(spans, limit(2, 10)) == slow
