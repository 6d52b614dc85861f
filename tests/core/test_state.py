from hypothesis import given
from hypothesis import strategies as st
from keyturn.core.exchange import HEARTBEAT, LEASE_LIFETIME, Flow, FlowDemand, LeaseGrant, ObservedLimit, Spent
from keyturn.core.messages import ExchangeRequest, ExchangeResponse, HeldLease, revision_of
from keyturn.core.model import MILLISECOND, SECOND
from keyturn.core.state import COLLECT, DRIFT, LAPSED, RECOVERY_GRACE, SharedState

from tests.core.worlds import BOUND, World, check_conservation, flow, know, limit, pool, unsent

W = 60 * SECOND + 130 * MILLISECOND
REVISION = revision_of(pool(1, limit(5)), LEASE_LIFETIME + BOUND)
THREE = (FlowDemand(flow(), 1, 3),)


def new_world() -> World:
    """Return a world of five tokens whose state is new to all replicas."""
    return World(SharedState(), REVISION)


def report(world: World, *grants: LeaseGrant) -> tuple[HeldLease, ...]:
    """Return outstanding leases as their replica reports them."""
    windows = tuple([(one.id, one.window) for one in world.revision.limits])
    return tuple([HeldLease(grant.lease, grant.quota, grant.flow.client, windows, 0, None) for grant in grants])


# Available tokens go at once (law 3)


def test_what_is_available_goes_at_once() -> None:
    """An exchange leaves no request waiting that an available token could serve."""
    world = World.of(pool(2, limit(5)))
    assert len(world.ask(12).grants) == 10
    assert world.waiting["r"][flow()] == 2
    check_conservation(world.state)


class AtOnce(World):
    """A world with the fast path: a request that comes while none waits is served without an exchange."""

    def ask(self, number: int, flow_: Flow | None = None, replica: str = "r") -> ExchangeResponse:
        """Send one request, by the fast path if possible, else by an exchange."""
        chosen = flow_ or flow()
        weight = self.weights.get(chosen.client, 1)
        name = self.revision.name
        grant = self.state.try_grant(self.now, replica, name, chosen, weight) if number == 1 else None
        if grant is None:
            return super().ask(number, flow_, replica)
        return ExchangeResponse(self.state.epoch, 0, self.now, grants=(grant,))


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from("rs"), st.integers(1, 3), st.integers(0, 900)), max_size=60
    )
)
def test_a_request_that_is_served_at_once_is_served_as_by_an_exchange(steps: list[tuple[str, str, int, int]]) -> None:
    """The fast path grants the same leases on the same quotas as an exchange."""
    worlds = [kind.of(pool(2, limit(4, SECOND), limit(9, 3 * SECOND))) for kind in (World, AtOnce)]
    for client, replica, number, pause in steps:
        told = []
        for world in worlds:
            world.weights = {"a": 3, "b": 1, "c": 2}
            world.pass_(pause * MILLISECOND)
            before = world.call(replica).grants
            grants = world.ask(number, flow(client, (0, 1)), replica).grants
            world.call(replica, *world.spend(*before, *grants))
            told.append((*before, *grants))
            check_conservation(world.state)
        assert told[0] == told[1]


def test_nobody_is_served_at_once_while_somebody_waits() -> None:
    """The fast path serves no request while others wait, or under an unknown revision or replica (law 4)."""
    world = World.of(pool(2, limit(1)))
    known = world.revision.name
    world.call()
    assert world.state.try_grant(world.now, "r", "other", flow("b"), 1) is None
    assert world.state.try_grant(world.now, "stranger", known, flow("b"), 1) is None
    world.ask(3, flow("a", (0,), "k0"), "far")
    assert world.state.try_grant(world.now, "r", known, flow("b"), 1) is None


# When to call again


def test_an_idle_replica_need_not_call() -> None:
    """A replica that neither waits nor holds leases is not told to call."""
    assert World.of(pool()).call().again is None


def test_a_replica_with_leases_keeps_its_heartbeat() -> None:
    """A replica with outstanding leases has a heartbeat of at most two seconds."""
    assert World.of(pool()).ask(1).again == HEARTBEAT


def test_a_waiting_replica_calls_when_its_token_returns() -> None:
    """A waiting replica is told to call when its token returns."""
    world = World.of(pool(1, limit(1, SECOND), guard=0))
    world.call("r", *world.spend(*world.ask(1).grants))
    again = world.ask(1).again
    assert again == SECOND + SECOND // 2000
    world.pass_(again)
    assert world.call().grants


def test_another_replica_is_woken_when_its_token_comes_early() -> None:
    """Another replica is woken once if its token returns earlier than it was told."""
    world = World.of(pool(1, limit(1, SECOND), guard=0))
    (grant,) = world.ask(1).grants
    assert world.ask(1, flow("b"), "far").again == HEARTBEAT
    answer = world.call("r", *world.spend(grant))
    assert (answer.wake, answer.again) == ((("far", SECOND + SECOND // 2000),), None)
    assert not world.ask(1, flow("c")).wake


# Reservations


def reserved_world() -> World:
    """Return a world in which the only token was just reserved for the replica `far`."""
    world = World.of(pool(1, limit(1, 60 * SECOND)))
    world.weights["c"] = 2
    (grant,) = world.ask(1, flow("a")).grants
    world.ask(2, flow("b"), "far")
    world.ask(3, flow("c"))
    assert world.call("r", unsent(grant)).wake == (("far", 0),)
    return world


def test_a_token_of_another_replica_is_reserved_for_it() -> None:
    """A token of another replica is reserved for it; it is woken and collects."""
    world = reserved_world()
    assert len(world.call("far").grants) == 1
    assert world.waiting["far"] == {flow("b"): 1}
    assert world.state.queue.totals[world.state.queue.classes.popitem()[0], "b"] == 1
    assert not world.state._members["far"].reserved


def test_what_is_not_collected_goes_to_others() -> None:
    """A reservation that is not collected ends, and its replica's demands are forgotten and asked for."""
    world = reserved_world()
    world.pass_(COLLECT - 1)
    assert not world.call().grants
    world.pass_(1)
    assert [grant.flow.client for grant in world.call().grants] == ["c"]
    assert not world.state.queue.waits("far")
    assert world.send("far", full=False).asks == ("demands",)
    (grant,) = world.out.values()
    world.waiting["r"] = {flow("b"): 1, flow("c"): 1}
    assert [one.flow.client for one in world.call("r", unsent(grant)).grants] == ["b"], "it was charged nothing"
    check_conservation(world.state)


def test_a_dead_replica_holds_its_place_for_a_moment_only() -> None:
    """A dead replica's tokens go to others after a moment."""
    world = World.of(pool(1, limit(1, SECOND), guard=0))
    (grant,) = world.ask(1).grants
    world.ask(5, flow("gone"), "dead")
    world.waiting["r"] = {flow("alive"): 50}
    served = 0
    world.call("r", *world.spend(grant))
    for _ in range(20):
        world.pass_(SECOND // 2)
        grants = world.call().grants
        served += len(grants)
        world.call("r", *world.spend(*grants))
    assert served >= 6
    assert not world.state.queue.waits("dead")


def test_a_replica_that_reports_does_not_collect_as_well() -> None:
    """Reservations that a report does not name are given back, so no token has two leases (law 1)."""
    world = reserved_world()
    answer = world.send("far", (), (FlowDemand(flow("b"), 1, 2),), held=())
    assert {grant.lease for grant in answer.grants} <= set(world.state.tokens.leases)
    check_conservation(world.state)


def test_a_replica_that_changes_its_revision_does_not_collect() -> None:
    """A replica with a new revision does not collect reservations of the old one (law 1)."""
    world = reserved_world()
    other = revision_of(pool(1, limit(1, 30 * SECOND)), LEASE_LIFETIME + BOUND)
    answer = world.send("far", (), (FlowDemand(flow("b"), 1, 2),), revision=other)
    assert [grant.probe for grant in answer.grants] == [True], "of a bucket that is not known"
    check_conservation(world.state)


def test_a_full_request_changes_nothing_when_nothing_has_changed() -> None:
    """A full request changes neither start tags nor turns; flows that it does not name wait no longer."""
    world = World.of(pool(1, limit(1)))
    (grant,) = world.ask(1).grants
    for replica in ("r", "s"):
        world.send(replica, (), (FlowDemand(flow("b"), 1, 2), FlowDemand(flow("c"), 1, 1)))
    world.send("r", (), (FlowDemand(flow("b"), 1, 2),))
    queue = world.state.queue
    name = next(iter(queue.classes))
    assert (queue.totals[name, "b"], queue.totals[name, "c"]) == (4, 1)
    assert queue.replica(name, "b") == "r"
    assert world.send("r", (unsent(grant),), full=False).grants


# Messages that are lost, and replicas


def test_grants_that_were_not_heard_are_taken_back() -> None:
    """Grants of a lost response are taken back with the next request."""
    world = World.of(pool(1, limit(2)))
    world.ask(1)
    world.waiting["s"] = {flow("b"): 1}
    assert len(world.call("s").grants) == 1
    answer = world.send("s", heard=world.serials["s"] - 1)
    assert answer.available[0].available == 1
    assert len(world.state.tokens.leases) == 1
    check_conservation(world.state)


def test_a_request_that_was_overtaken_does_nothing() -> None:
    """A delayed request of a replica that has spoken since is void."""
    world = World.of(pool(1, limit(2)))
    world.ask(1)
    world.serials["r"] -= 1
    late = world.send("r", (), THREE, heard=0)
    assert (late.asks, late.grants) == (("nothing",), ())
    assert len(world.state.tokens.leases) == 1


def test_a_state_asks_for_what_it_does_not_know() -> None:
    """A state that lacks a revision, demands or a report asks for it and does nothing else."""
    state = SharedState()
    request = ExchangeRequest("r", 1, 0, "another", 0, 1, REVISION.name)
    assert state.exchange(0, "", request).asks == ("revision", "held", "demands")
    assert not state.revisions.views
    assert not state._members


def test_a_replica_is_gone_when_it_was_silent_for_the_bound() -> None:
    """Silent replicas expire, a bounded number in one exchange."""
    world = World.of(pool(1, limit(LAPSED + 5)))
    for number in range(LAPSED + 4):
        world.ask(1, flow("a"), f"r{number}")
    world.pass_(LEASE_LIFETIME + BOUND)
    assert [world.send("s").replicas for _ in range(3)] == [LAPSED + 5 - LAPSED, 1, 1]
    assert not world.state.tokens.leases
    assert not world.state._members.keys() - {"s"}
    check_conservation(world.state)


# Epochs (law 8)


def test_a_state_that_lost_writes_begins_an_epoch_and_asks_for_what_is_held() -> None:
    """A restarted state, or one behind a replica, begins an epoch and asks for reports."""
    for lost in ("run", "version", "heard"):
        world = World.of(pool(1, limit(2)))
        world.ask(1)
        epoch = world.state.epoch
        world.run = "b" if lost == "run" else ""
        version, heard = 10**18 * (lost == "version"), 99 if lost == "heard" else None
        assert world.send("r", epoch=epoch, version=version, heard=heard).asks == ("held",)
        assert world.state.epoch != epoch
        assert not world.state.tokens.shut.known
        assert not world.send("r", epoch=epoch, held=()).asks


def test_a_new_epoch_has_newer_versions_and_other_leases() -> None:
    """A new epoch reuses neither versions nor names of leases."""
    world = World.of(pool(1, limit(2)))
    before, (grant,) = world.send("r"), world.ask(1).grants
    world.run = "b"
    after = world.send("r", held=(), epoch=before.epoch)
    assert after.version > before.version
    world.pass_(RECOVERY_GRACE)
    assert world.ask(1).grants[0].lease != grant.lease


def test_nothing_is_dealt_before_all_had_the_time_to_report() -> None:
    """Nothing is dealt, or told to be available, before the recovery grace is over."""
    world = World.of(pool(1, limit(5)))
    held = world.ask(5, replica="late").grants
    epoch, world.run = world.state.epoch, "b"
    answer = world.send("r", (), THREE, epoch=epoch, held=())
    assert (answer.available[0].available, answer.again, answer.replicas) == (0, HEARTBEAT, 2)
    world.pass_(RECOVERY_GRACE - 1)
    answer = world.ask(1)
    assert (answer.grants, answer.again) == ((), MILLISECOND)
    world.send("late", epoch=epoch, held=report(world, *held))
    world.pass_(1)
    assert not world.call().grants, "all five are out"
    check_conservation(world.state)


def test_buckets_that_are_not_known_open_by_a_probe() -> None:
    """Unknown buckets open by one request each, the fullest first, and fully when it is settled."""
    world = World.of(pool(3, limit(5)))
    world.run = "b"
    world.send("r", epoch=world.state.epoch, held=())
    world.pass_(RECOVERY_GRACE)
    probes = world.ask(4).grants
    assert {grant.quota for grant in probes if grant.probe} == {"k0", "k1", "k2"}
    (grant,) = world.call("r", *world.spend(probes[0])).grants
    assert (grant.quota, grant.probe) == (probes[0].quota, False)


def test_a_state_that_is_new_to_all_deals_as_soon_as_its_probe_is_settled() -> None:
    """A state that is new to all replicas has no recovery grace."""
    world = new_world()
    (probe,) = world.send("first", (), THREE, epoch="").grants
    assert probe.probe
    assert not world.send("second", (), THREE, epoch="").grants
    answer = world.send("first", world.spend(probe), full=False)
    assert len(answer.grants) + len(world.state._members["second"].reserved) == 4
    assert answer.wake == (("second", 0),)


def test_a_probe_is_for_the_replica_that_is_next() -> None:
    """A probe goes to the first request of the fair queue, wherever it waits (law 4)."""
    world = new_world()
    (probe,) = world.ask(1, flow("c"), "near").grants
    assert not world.ask(2, flow("a"), "far").grants
    assert not world.ask(1, flow("b"), "near").grants
    answer = world.call("near", unsent(probe))
    assert (answer.grants, answer.wake) == ((), (("far", 0),))
    assert [grant.probe for grant in world.call("far").grants] == [True]
    check_conservation(world.state)


def test_a_state_that_is_new_to_its_first_caller_may_be_a_loss_to_others() -> None:
    """A replica that knows another epoch starts the recovery grace."""
    world = new_world()
    (probe,) = world.send("young", (), THREE, epoch="").grants
    world.pass_(RECOVERY_GRACE)
    assert world.send("old", epoch="another").asks == ("held",)
    assert not world.send("young", world.spend(probe), THREE).grants, "before anything is reported"
    world.send("old", epoch="another", held=())
    world.pass_(RECOVERY_GRACE - 1)
    assert not world.send("young", (), THREE).grants
    world.pass_(1)
    assert len(world.send("young", (), THREE).grants) == 3


def test_a_state_is_found_to_be_lost_once() -> None:
    """A replica that was cut off for longer reports its leases and delays no others."""
    world = new_world()
    (probe,) = world.send("old", (), (FlowDemand(flow(), 1, 1),), epoch="").grants
    world.send("old", world.spend(probe))
    world.send("other", epoch="another", held=())
    world.pass_(RECOVERY_GRACE)
    world.send("late", epoch="another", held=())
    assert len(world.send("old", (), THREE).grants) == 3


def test_reservations_of_the_last_epoch_are_not_collected() -> None:
    """Reservations of the last epoch are not reported, so they are given back."""
    world = reserved_world()
    epoch, world.run = world.state.epoch, "b"
    assert not world.send("far", (), (FlowDemand(flow("b"), 1, 2),), epoch=epoch, held=()).grants
    assert not world.state.tokens.holds("far")
    world.send("r", epoch=epoch, held=())
    world.pass_(RECOVERY_GRACE)
    assert [grant.probe for grant in world.call("far").grants] == [True]
    check_conservation(world.state)


# The one clock (law 7)


def test_the_clock_never_goes_back() -> None:
    """A clock that was set back goes on from the last known instant."""
    world = World.of(pool(1, limit(1, SECOND)))
    world.call("r", *world.spend(*world.ask(1).grants))
    before = world.now
    world.now -= 3600 * SECOND
    assert world.call().instant == before
    world.pass_(SECOND // 2)
    assert world.call().instant == before + SECOND // 2


def test_the_clock_is_corrected_by_the_least_that_all_see_it_ahead() -> None:
    """The clock is corrected by the least drift of all active replicas, beyond the tolerance."""
    world = World.of(pool(1, limit(9)))
    for replica in ("r", "s"):
        world.ask(1, replica=replica)
    assert world.send("idle").again is None
    assert world.send("r", ahead=SECOND).instant == world.now
    assert world.send("s", ahead=DRIFT).instant == world.now
    assert world.send("s", ahead=80 * MILLISECOND).instant == world.now - 80 * MILLISECOND
    assert world.send("s", ahead=0).instant == world.now - 80 * MILLISECOND
    assert world.send("r", ahead=900 * MILLISECOND).instant == world.now - 80 * MILLISECOND, "the same as before"


def test_a_replica_that_holds_nothing_has_no_say_about_the_clock() -> None:
    """Replicas without leases or demands, and those that are gone, do not count for the clock."""
    world = World.of(pool(1, limit(9)))
    world.ask(1, replica="gone")
    world.ask(1, replica="r")
    assert world.send("r", ahead=50 * MILLISECOND).instant == world.now
    world.pass_(LEASE_LIFETIME + BOUND)
    world.send("r", ahead=50 * MILLISECOND)
    assert world.send("r", ahead=50 * MILLISECOND).instant == world.now - 50 * MILLISECOND


def test_a_clock_that_was_set_forward_begins_an_epoch() -> None:
    """A step forward is taken off once and begins an epoch."""
    world = World.of(pool(1, limit(5)))
    world.call("r", *world.spend(*world.ask(5).grants))
    epoch, before = world.state.epoch, world.now
    world.pass_(3600 * SECOND)
    for _ in range(2):
        answer = world.send("r", epoch=epoch, stepped=3600 * SECOND)
        assert (answer.asks, answer.instant) == (("held",), before)
    assert world.state.epoch != epoch


def test_the_time_of_a_look_is_the_states_own() -> None:
    """A view is as of the state's own time: corrected, and never before the last exchange."""
    world = World.of(pool(1, limit(9)))
    world.ask(1)
    world.send("r", ahead=50 * MILLISECOND)
    assert world.state.time(world.now + SECOND) == world.now + SECOND - 50 * MILLISECOND
    assert world.state.time(0) == world.now - 50 * MILLISECOND


def test_what_others_spent_is_told_once() -> None:
    """Tokens that others spent are reported once, to the replica whose answer showed it (law 9)."""
    world = World.of(pool(1, limit(5)))
    (grant,) = world.ask(1).grants
    answer = world.call("r", Spent(grant.lease, 0, (ObservedLimit(0, 1, 30 * SECOND),)))
    assert answer.foreign == (("k0", 3),)
    assert world.call().foreign == ()
    know(world.state)
    assert world.call().dealt == 1
