from collections import Counter
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from keyturn.core.exchange import (
    HEARTBEAT,
    DemandClass,
    Flow,
    FlowDemand,
    LeaseGrant,
    LimitTokens,
    Settlement,
    Spent,
    Throttled,
    Unsent,
)
from keyturn.core.messages import ExchangeRequest, ExchangeResponse, HeldLease, Revision, RevisionLimit, Snapshot
from keyturn.core.model import MILLISECOND, SECOND, Micros
from keyturn.core.session import (
    REPLICAS_MEMORY,
    SNAPSHOT_INTERVAL,
    SNAPSHOT_LIFETIME,
    HeldLeases,
    SeenReplicas,
    Session,
)

MINUTE = RevisionLimit("minute", 60, 60 * SECOND)
HOUR = RevisionLimit("hour", 600, 3600 * SECOND)
REVISION = Revision("one", ("k0",), (MINUTE, HOUR), 11 * SECOND)
TURNED = Revision("two", ("k0",), (HOUR, MINUTE), 11 * SECOND)
"""The same limits in another order, so that an index taken for one of the other revision shows."""

A = Flow("a", DemandClass((0,)))
B = Flow("b", DemandClass((0, 1)))
PINNED = Flow("a", DemandClass((1,), "k0"))
FLOWS = (A, Flow("a", DemandClass((1,))), B, PINNED)
"""The second is what the first would be if its index were taken for one of the other revision."""
START = 1_000 * SECOND
TRIP = 5 * MILLISECOND


def turned(flow: Flow) -> Flow:
    """Return the flow as the other revision has it."""
    return Flow(
        flow.client, DemandClass(tuple([1 - limit for limit in flow.demand_class.limits]), flow.demand_class.pinned)
    )


class ScriptedStore:
    """A store that believes demands by their changes only, and knows a lease until it is settled."""

    def __init__(self) -> None:
        self.epoch, self.version, self.serial, self.leases = 1, 0, 0, 0
        self.ahead: Micros = 0
        self.last: tuple[str, ...] = ()
        self.revisions: dict[str, Revision] = {}
        self.spoken = ""
        self.waiting: dict[Flow, tuple[int, int]] = {}
        """Weight and waiting requests, those of reservations among them."""
        self.reserved: list[LeaseGrant] = []
        self.limits: tuple[RevisionLimit, ...] = ()
        """Those of the revision that the replica spoke of last."""
        self.counted: dict[str, tuple[str, ...]] = {}
        """The limits by which each lease was granted."""
        self.out: dict[str, tuple[str, ...]] = {}
        """The limits of each lease in use."""
        self.cooling: set[str] = set()
        self.doubts = False

    def begin(self) -> None:
        """Lose everything but the count of leases, whose names are never reused."""
        self.epoch += 1
        self.serial, self.last, self.spoken, self.reserved = 0, (), "", []
        self.waiting, self.out, self.cooling, self.revisions = {}, {}, set(), {}

    def lapse(self) -> None:
        """Forget all demands of the replica, as after a reservation that was not collected, and ask for them."""
        self.reserved, self.waiting, self.doubts = [], {}, True

    def reserve(self) -> None:
        """Deal to the replica while it does not call."""
        taken = Counter(grant.flow for grant in self.reserved)
        flow = next((flow for flow, (_, number) in self.waiting.items() if number > taken[flow]), None)
        if flow:
            self.reserved.append(self.grant(flow))

    def grant(self, flow: Flow) -> LeaseGrant:
        self.leases += 1
        self.counted[f"lease-{self.leases}"] = tuple([self.limits[i].id for i in flow.demand_class.limits])
        return LeaseGrant(f"lease-{self.leases}", flow, "k0", probe=False)

    def exchange(self, now: Micros, request: ExchangeRequest, deal: int) -> ExchangeResponse:
        """Answer a request, granting to so many waiting requests."""
        if request.stepped and request.epoch == str(self.epoch):
            self.ahead -= request.stepped
            self.begin()
        if asks := tuple(self.asks(request)):
            return ExchangeResponse(str(self.epoch), self.version, now + self.ahead, asks)
        if self.serial and request.heard != self.serial:
            for lease in self.last:
                self.out.pop(lease, None)
        self.serial, self.version = request.serial, self.version + 1
        if request.spelled:
            self.revisions[request.spelled.name] = request.spelled
        self.restore(request.held or ())
        self.settle(request.settlements)
        self.remember(request)
        dealt, self.reserved = self.reserved, []
        for grant in dealt:
            self.count_down(grant.flow)
        for _ in range(deal):
            if flow := next(iter(self.waiting), None):
                dealt.append(self.grant(flow))
                self.count_down(flow)
        self.out |= {grant.lease: self.counted[grant.lease] for grant in dealt}
        self.last = tuple([grant.lease for grant in dealt])
        return ExchangeResponse(
            str(self.epoch), self.version, now + self.ahead, grants=tuple(dealt), dealt=self.leases, replicas=2
        )

    def asks(self, request: ExchangeRequest) -> list[str]:
        found = ["nothing"] if request.serial <= self.serial else []
        if request.revision not in self.revisions and request.spelled is None:
            found.append("revision")
        if request.epoch not in ("", str(self.epoch)) and request.held is None:
            found.append("held")
        if self.doubts and not request.full:
            found.append("demands")
        return found

    def restore(self, held: tuple[HeldLease, ...]) -> None:
        for lease in held:
            if lease.lease not in self.cooling and lease.counted is None:
                self.out[lease.lease] = tuple([limit for limit, _ in lease.windows])

    def settle(self, settlements: tuple[Settlement, ...]) -> None:
        for settlement in settlements:
            if self.out.pop(settlement.lease, None) and not isinstance(settlement, Unsent):
                self.cooling.add(settlement.lease)

    def remember(self, request: ExchangeRequest) -> None:
        if request.revision != self.spoken:
            assert request.full, "a new revision is told everything"
            self.reserved = []  # its limits are indices of the other revision
        if request.full:
            self.waiting, self.doubts, self.spoken = {}, False, request.revision
        self.limits = self.revisions[request.revision].limits
        for demand in request.demands:
            self.waiting.pop(demand.flow, None)
            if demand.waiting:
                self.waiting[demand.flow] = demand.weight, demand.waiting

    def count_down(self, flow: Flow) -> None:
        weight, number = self.waiting.pop(flow, (0, 0))
        if number > 1:
            self.waiting[flow] = weight, number - 1


@dataclass
class Step:
    """The events before, during and after one request."""

    flow: int
    waiting: int
    weight: int
    deal: int
    fate: str
    """`heard`, `request lost` or `response lost`."""
    event: str
    use: int
    """Leases that end."""


@dataclass
class SimulatedReplica:
    """The truth of a replica, which the store is to believe: waiting requests and outstanding leases."""

    session: Session = field(default_factory=lambda: Session("r", REVISION))
    store: ScriptedStore = field(default_factory=ScriptedStore)
    now: Micros = START
    waiting: dict[Flow, int] = field(default_factory=dict)
    weights: dict[str, int] = field(default_factory=lambda: {"a": 1, "b": 1})
    out: dict[str, tuple[str, ...]] = field(default_factory=dict)
    untold: list[Settlement] = field(default_factory=list)
    served: set[str] = field(default_factory=set)
    asked: Revision = REVISION
    partial: bool = False
    """Whether only flows that may have changed are passed to the session."""
    changed: dict[Flow, None] = field(default_factory=dict)

    def tell(self) -> None:
        if not self.partial:
            self.session.tell(self.demands(), partial=False)
            return
        told = [FlowDemand(flow, self.weights[flow.client], self.waiting.get(flow, 0)) for flow in self.changed]
        self.session.tell(told, partial=True)
        self.changed.clear()

    def demands(self) -> tuple[FlowDemand, ...]:
        return tuple([FlowDemand(flow, self.weights[flow.client], number) for flow, number in self.waiting.items()])

    def adopt(self) -> None:
        """Adopt another configuration: waiting requests go on by its limits."""
        self.session.revision = TURNED if self.session.revision is REVISION else REVISION
        before, self.waiting = self.waiting, {turned(flow): number for flow, number in self.waiting.items()}
        self.changed |= dict.fromkeys((*before, *self.waiting))

    def exchange(self, deal: int = 0, fate: str = "heard", *, adopt: bool = False) -> ExchangeResponse | None:
        """One request; `adopt`: the configuration changes while it is in flight."""
        sent, told, self.asked = self.now, tuple(self.untold), self.session.revision
        self.tell()
        request = self.session.request(sent, told)
        self.now += TRIP
        response = self.store.exchange(self.now, request, deal) if fate != "request lost" else None
        self.now += TRIP
        if adopt:
            self.adopt()
        if response is None or fate == "response lost":
            return None
        heard = self.session.hear(sent, self.now, request, response)
        if heard:
            self.take(heard, told, adopt=adopt)
        return heard

    def take(self, heard: ExchangeResponse, told: tuple[Settlement, ...], *, adopt: bool) -> None:
        """Hand leases to waiting requests; return those that are not needed or are of another configuration."""
        self.untold = self.untold[len(told) :]
        for grant in heard.grants:
            assert grant.lease not in self.served, "granted twice"
            self.served.add(grant.lease)
            if self.waiting.get(grant.flow, 0) and not adopt:
                self.waiting[grant.flow] -= 1
                self.out[grant.lease] = tuple([self.asked.limits[i].id for i in grant.flow.demand_class.limits])
            else:
                self.untold.append(Unsent(grant.lease))

    def use(self, number: int) -> None:
        """Settle some leases as spent, throttled or unsent."""
        for lease in list(self.out)[:number]:
            del self.out[lease]
            end = int(lease.partition("-")[2]) % 3
            ends: tuple[Settlement, ...] = (Spent(lease, 0), Throttled(lease, 0, SECOND, (0,)), Unsent(lease))
            self.untold.append(ends[end])

    def play(self, step: Step) -> None:
        """Play one step; after each acknowledged response the store agrees with the truth."""
        flow = FLOWS[step.flow] if self.session.revision is REVISION else turned(FLOWS[step.flow])
        self.waiting[flow] = step.waiting
        self.weights[flow.client] = step.weight
        self.changed |= dict.fromkeys([one for one in self.waiting if one.client == flow.client])
        self.use(step.use)
        self.befall(step.event)
        if self.exchange(step.deal, step.fate, adopt=step.event == "adopted meanwhile"):
            self.check(adopted=step.event == "adopted meanwhile")
        self.now += SECOND

    def befall(self, event: str) -> None:
        match event:
            case "lost state":
                self.store.begin()
            case "lapse":
                self.store.lapse()
            case "reservation":
                self.store.reserve()
            case "unknown revision":
                self.store.revisions.clear()
            case "adopted":
                self.adopt()
            case "adopted before collecting":
                self.store.reserve()
                self.adopt()
            case "step":
                self.store.ahead += 30 * SECOND
            case "suspicion":
                self.session.forget()

    def check(self, *, adopted: bool = False) -> None:
        """Check that the store knows what waits and what is in use (law 2)."""
        if not adopted:
            truth = {flow: (self.weights[flow.client], number) for flow, number in self.waiting.items() if number}
            assert self.store.waiting == truth
        returned = {one.lease for one in self.untold if isinstance(one, Unsent) and one.lease not in self.out}
        assert self.store.out.keys() - returned == self.out.keys()
        assert {lease: self.store.out[lease] for lease in self.out} == self.out
        held = {lease.lease: lease for lease in self.session.held.report(self.now)}
        assert {name for name, lease in held.items() if lease.counted is None} == self.store.out.keys()
        for name in self.out:
            assert tuple([limit for limit, _ in held[name].windows]) == self.out[name]


EVENTS = (
    "nothing",
    "nothing",
    "reservation",
    "reservation",
    "lapse",
    "lost state",
    "unknown revision",
    "adopted",
    "adopted meanwhile",
    "adopted before collecting",
    "step",
    "suspicion",
)

STEPS = st.builds(
    Step,
    flow=st.integers(0, len(FLOWS) - 1),
    waiting=st.integers(0, 4),
    weight=st.integers(1, 2),
    deal=st.integers(0, 3),
    fate=st.sampled_from(["heard", "heard", "heard", "request lost", "response lost"]),
    event=st.sampled_from(EVENTS),
    use=st.integers(0, 2),
)


WAITS = Step(flow=0, waiting=1, weight=1, deal=0, fate="heard", event="nothing", use=0)


@given(st.lists(STEPS, max_size=25), st.booleans())
@example(steps=[WAITS, WAITS, replace(WAITS, flow=1, event="adopted before collecting")], partial=False)
def test_the_store_believes_what_is_true_whatever_is_lost(steps: list[Step], partial: bool) -> None:
    """After each acknowledged response the store's view is true, whatever messages are lost.

    It is acknowledged within a few requests once none is lost, with full demands or changes only.
    """
    replica = SimulatedReplica(partial=partial)
    for step in steps:
        replica.play(step)
    for _ in range(5):
        if replica.exchange():
            break
    else:
        raise AssertionError("not heard")
    replica.check()


def heard(replica: SimulatedReplica, deal: int = 0) -> ExchangeResponse:
    """Make requests until one is answered."""
    for _ in range(5):
        if response := replica.exchange(deal):
            return response
    raise AssertionError("not heard")


def opened(**waiting: int) -> SimulatedReplica:
    """Return a replica whose store knows all its demands."""
    replica = SimulatedReplica(waiting={Flow(client, DemandClass((0,))): number for client, number in waiting.items()})
    replica.weights |= dict.fromkeys(waiting, 1)
    heard(replica)
    return replica


def say(replica: SimulatedReplica, *demands: FlowDemand) -> ExchangeRequest:
    """Make the next request without an answer."""
    replica.session.tell(demands, partial=False)
    return replica.session.request(replica.now, ())


def answer(replica: SimulatedReplica, request: ExchangeRequest, **more: object) -> ExchangeResponse | None:
    """Have a request answered at once, with these fields changed."""
    response = replica.store.exchange(replica.now, request, 0)
    return replica.session.hear(replica.now, replica.now, request, replace(response, **more))  # type: ignore[arg-type]


def test_only_changes_are_sent() -> None:
    """Only changed counts and weights are sent, and 0 for a flow that is gone."""
    replica = opened(a=3, b=1)
    b = Flow("b", DemandClass((0,)))
    assert say(replica, FlowDemand(A, 1, 3), FlowDemand(b, 1, 1)).demands == ()
    replica = opened(a=3, b=1)
    request = say(replica, FlowDemand(A, 1, 4))
    assert request.demands == (
        FlowDemand(Flow("a", DemandClass((0,))), 1, 4),
        FlowDemand(Flow("b", DemandClass((0,))), 1, 0),
    )
    assert not request.full
    replica = opened(a=3)
    assert say(replica, FlowDemand(A, 2, 3)).demands == (FlowDemand(Flow("a", DemandClass((0,))), 2, 3),)
    assert say(opened(a=3), FlowDemand(A, 1, 0)).demands == (FlowDemand(Flow("a", DemandClass((0,))), 1, 0),)
    assert say(SimulatedReplica(), FlowDemand(A, 1, 0)).demands == (), "a full request says what waits"


def test_what_was_granted_is_believed_to_wait_no_longer() -> None:
    """Granted requests wait no longer in the store's view, so newcomers beyond these are changes."""
    replica = opened(a=3)
    heard(replica, deal=2)
    assert say(replica, FlowDemand(A, 1, 1)).demands == ()
    heard(replica)
    assert say(replica, FlowDemand(A, 1, 2)).demands == (FlowDemand(Flow("a", DemandClass((0,))), 1, 2),)


@pytest.mark.parametrize("fate", ["request lost", "response lost"])
def test_a_request_is_full_after_a_response_that_was_not_heard(fate: str) -> None:
    """After a lost response all demands are sent until one is acknowledged."""
    replica = opened(a=3)
    replica.exchange(1, fate)
    replica.store.revisions.clear()
    assert replica.exchange() is None
    request = say(replica, *replica.demands())
    assert (request.full, request.spelled) == (True, REVISION)
    assert request.demands == (FlowDemand(Flow("a", DemandClass((0,))), 1, 3),)
    assert answer(replica, request)
    assert not say(replica, *replica.demands()).full


def test_a_request_is_full_when_the_store_asks_for_demands() -> None:
    """All demands are sent when the store asks, since a reservation was not collected."""
    replica = opened(a=3)
    replica.store.lapse()
    assert replica.exchange() is None
    assert say(replica, *replica.demands()).full


def test_a_request_is_full_in_a_new_epoch() -> None:
    """All demands are sent in a new epoch, however the store announces it."""
    replica = opened(a=3)
    request = say(replica, *replica.demands())
    assert answer(replica, request, asks=("held",), epoch="new") is None
    assert say(replica, *replica.demands()).full
    replica = opened(a=3)
    assert answer(replica, say(replica, *replica.demands()), epoch="new")
    assert say(replica, *replica.demands()).full


def test_an_ask_alone_makes_no_request_full() -> None:
    """An answer that only asks for something does not make the next request full."""
    replica = opened(a=3)
    replica.store.revisions.clear()
    assert replica.exchange() is None
    request = say(replica, *replica.demands())
    assert (request.full, request.demands, request.spelled) == (False, (), REVISION)


def test_what_was_asked_for_is_sent_until_a_response_is_heard() -> None:
    """A requested report is sent until it is acknowledged, then no more."""
    replica = opened(a=1)
    heard(replica, deal=1)
    replica.store.begin()
    assert replica.exchange() is None
    assert replica.exchange(fate="request lost") is None
    request = say(replica)
    assert request.spelled == REVISION
    assert [lease.lease for lease in request.held or ()] == ["lease-1"]
    assert answer(replica, request)
    request = say(replica)
    assert (request.spelled, request.held) == (None, None)


def test_a_suspected_store_is_told_all_that_is_held_and_waits() -> None:
    """A suspected store gets a report and all demands, also if suspicion arises during a request."""
    replica = opened(a=2)
    heard(replica, deal=1)
    request = say(replica, *replica.demands())
    replica.session.forget()
    assert answer(replica, request)
    request = say(replica, *replica.demands())
    assert [lease.lease for lease in request.held or ()] == ["lease-1"]
    assert request.full
    assert answer(replica, request)
    request = say(replica, *replica.demands())
    assert (request.held, request.full) == (None, False)


def test_a_response_to_an_overtaken_request_is_not_believed() -> None:
    """A response to an overtaken request is ignored, since the store takes its grants back."""
    replica = opened(a=1)
    first = say(replica, *replica.demands())
    late = replica.store.exchange(replica.now, first, 1)
    second = say(replica, *replica.demands())
    assert late.grants
    assert replica.session.hear(replica.now, replica.now, first, late) is None
    assert second.heard == first.heard
    assert len(replica.session.held) == 0


def test_a_response_by_a_clock_that_was_set_forward_is_not_believed() -> None:
    """After a step of the clock grants are ignored, and the store is told until a new epoch (law 8)."""
    replica = opened(a=1)
    epoch = replica.session.epoch
    replica.store.ahead += 30 * SECOND
    assert replica.exchange(deal=1) is None
    assert len(replica.session.held) == 0
    request = say(replica, *replica.demands())
    assert request.stepped == pytest.approx(30 * SECOND, abs=2 * TRIP)
    assert request.full
    assert say(replica).stepped == request.stepped, "nobody has heard of it yet"
    assert heard(replica).epoch != epoch
    assert say(replica).stepped == 0


def test_a_slow_response_makes_the_next_one_no_step() -> None:
    """A slow response makes the next one no step: the store may have read its clock early."""
    replica = opened()
    sent = replica.now
    request = say(replica)
    response = replica.store.exchange(sent, request, 0)
    assert replica.session.hear(sent, sent + SECOND // 2, request, response)
    replica.now = sent + SECOND // 2
    assert answer(replica, say(replica))


def test_drift_is_measured_over_about_the_longest_window() -> None:
    """A drift of 1 % is measured over half a minute, of which 0.05 % is tolerated."""
    replica = opened()
    for _ in range(12):
        replica.now += 5 * SECOND
        replica.store.ahead += 50 * MILLISECOND
        heard(replica)
    assert say(replica).ahead > 300 * MILLISECOND - 30 * SECOND // 2000 - 4 * TRIP


def test_drift_is_said_once() -> None:
    """A correction whose response was lost is not made twice."""
    replica = opened()
    replica.now += 10 * SECOND
    replica.store.ahead += 50 * MILLISECOND
    heard(replica)
    assert 30 * MILLISECOND < say(replica).ahead <= 50 * MILLISECOND
    assert say(replica).ahead == 0
    heard(replica)
    assert say(replica).ahead > 30 * MILLISECOND, "it was not corrected"


def test_a_new_epoch_is_another_clock() -> None:
    """Instants of different epochs are never compared."""
    replica = opened()
    replica.store.begin()
    replica.store.ahead += 3600 * SECOND
    assert heard(replica).epoch == "2"
    assert say(replica).ahead == 0
    assert replica.session.store_time(replica.now) == pytest.approx(replica.now + 3600 * SECOND, abs=2 * TRIP)


def test_leases_count_under_the_limits_by_which_they_were_asked_for() -> None:
    """Grants keep their revision's limits when the configuration changes during the request."""
    replica = opened(a=1)
    assert replica.exchange(deal=1, adopt=True)
    (lease,) = replica.session.held.report(replica.now)
    assert lease.windows == (("minute", 60 * SECOND),)
    assert lease.granted == 2 * TRIP, "the store granted it after the request was sent"
    request = say(replica, *replica.demands())
    assert (request.full, request.revision) == (True, "two")
    assert [demand.flow.demand_class.limits for demand in request.demands] == [(1,)]


def test_what_the_store_told() -> None:
    """Each request says which response the replica knows."""
    replica = opened()
    assert answer(replica, say(replica), version=99, replicas=5, dealt=7)
    request = say(replica)
    assert (request.version, request.replicas, request.heard) == (99, 5, request.serial - 1)
    assert (replica.session.replicas, replica.session.seen.most, replica.session.dealt) == (5, 5, 7)


# Snapshots


def told(replica: SimulatedReplica, *available: int) -> None:
    """Return a response with so many available tokens."""
    tokens = tuple([LimitTokens(60, number, 0) for number in available])
    assert answer(replica, say(replica, *replica.demands()), available=tokens)


def wants(replica: SimulatedReplica, *demands: FlowDemand) -> bool:
    """Return whether a snapshot is fetched together with a request of these demands."""
    say(replica, *demands)
    return replica.session.wants_snapshot()


def test_a_snapshot_is_fetched_with_newcomers_who_probably_have_to_wait() -> None:
    """Newcomers beyond the available tokens of a limit fetch a snapshot; others do not."""
    replica = opened(a=3)
    told(replica, 5, 2)
    assert not wants(replica, FlowDemand(A, 1, 3))
    assert not wants(replica, FlowDemand(A, 1, 5))
    assert wants(replica, FlowDemand(A, 1, 6))
    assert wants(replica, FlowDemand(A, 1, 3), FlowDemand(B, 1, 3)), "those who wait count, too"
    assert not wants(replica, FlowDemand(A, 1, 3), FlowDemand(B, 1, 2))
    assert wants(replica, FlowDemand(PINNED, 1, 3))
    assert not wants(replica, FlowDemand(A, 9, 3)), "nobody has come"
    assert not wants(replica, FlowDemand(A, 1, 3), FlowDemand(Flow("b", DemandClass(())), 1, 9)), "under no limit"
    assert not wants(replica)


def test_newcomers_under_no_scarce_limit_want_no_snapshot() -> None:
    """Waiting requests under other limits are no reason for a snapshot."""
    replica = opened(a=3)
    told(replica, 0, 9)
    assert not wants(replica, FlowDemand(A, 1, 3), FlowDemand(PINNED, 1, 1))


def test_newcomers_want_a_snapshot_when_nothing_is_known() -> None:
    """Newcomers fetch a snapshot before the first response, and under another revision."""
    assert wants(SimulatedReplica(), FlowDemand(A, 1, 1))
    replica = opened()
    told(replica, 5, 5)
    replica.adopt()
    assert wants(replica, FlowDemand(A, 1, 1))
    replica = opened(a=1)
    told(replica, 5, 5)
    replica.adopt()
    assert wants(replica, FlowDemand(A, 1, 1)), "not the flow that had the same indices before"


def test_a_snapshot_is_due_by_what_was_dealt_since() -> None:
    """A snapshot is due after leases were dealt, within its interval, while something waits."""
    replica = opened(a=3)
    assert replica.session.snapshot_due(replica.now), "there is none"
    replica.session.took(replica.now, Snapshot(replica.session.dealt, ()))
    assert not replica.session.snapshot_due(replica.now + SNAPSHOT_LIFETIME - 1)
    assert replica.session.snapshot_due(replica.now + SNAPSHOT_LIFETIME)
    replica.session.took(replica.now, Snapshot(replica.session.dealt - 1, ()))
    assert not replica.session.snapshot_due(replica.now + SNAPSHOT_INTERVAL - 1)
    assert replica.session.snapshot_due(replica.now + SNAPSHOT_INTERVAL)
    assert replica.session.snapshot_age(replica.now + 7) == 7
    heard(replica, deal=3)
    assert not replica.session.snapshot_due(replica.now + SNAPSHOT_LIFETIME)


def test_a_snapshot_is_due_for_newcomers_whom_it_does_not_show() -> None:
    """A snapshot is due for newcomers that were expected to be served and were not."""
    replica = opened(a=3)
    replica.session.took(replica.now, Snapshot(replica.session.dealt, ()))
    replica.waiting[A] = 2
    heard(replica)
    assert not replica.session.snapshot_due(replica.now)
    replica.waiting[A] = 3
    heard(replica)
    assert replica.session.snapshot_due(replica.now)
    heard(replica)
    assert replica.session.snapshot_due(replica.now), "there still is none"
    replica.session.took(replica.now, Snapshot(replica.session.dealt, ()))
    assert not replica.session.snapshot_due(replica.now)


def test_newcomers_who_were_served_make_no_snapshot_due() -> None:
    """Served newcomers make no snapshot due."""
    replica = opened(a=3)
    replica.session.took(replica.now, Snapshot(0, ()))
    request = say(replica, FlowDemand(A, 1, 3), FlowDemand(B, 1, 1))
    assert answer(replica, request, grants=(LeaseGrant("l", Flow("b", DemandClass((0, 1))), "k0", probe=False),))
    assert not replica.session.snapshot_due(replica.now)


@pytest.mark.parametrize("event", ["lost state", "adopted"])
def test_a_snapshot_of_another_epoch_or_revision_is_dropped(event: str) -> None:
    """A snapshot of another epoch or revision is dropped."""
    replica = opened(a=3)
    replica.session.took(replica.now, Snapshot(replica.session.dealt, ()))
    heard(replica)
    assert replica.session.snapshot is not None
    replica.befall(event)
    heard(replica)
    assert replica.session.snapshot is None


def test_quotas_that_flows_insist_on() -> None:
    """A snapshot asks for the returns of pinned quotas by limit."""
    replica = SimulatedReplica()
    say(replica, FlowDemand(PINNED, 1, 1), FlowDemand(A, 1, 1), FlowDemand(Flow("c", DemandClass((0, 1), "k0")), 1, 1))
    assert sorted(replica.session.pins()) == [(0, "k0"), (1, "k0")]


# Held leases, and the replicas that share the pool


def test_a_lease_is_held_until_its_tokens_have_returned() -> None:
    """A lease is remembered until its last token has returned."""
    held = HeldLeases()
    held.granted(0, LeaseGrant("x", B, "k0"), REVISION)
    held.granted(0, LeaseGrant("y", A, "k0"), REVISION)
    held.settled(10 * SECOND, (Spent("x", 2 * SECOND), Spent("unknown", 0)))
    x, y = held.report(20 * SECOND)
    assert x == HeldLease(
        "x", "k0", "b", (("minute", 60 * SECOND), ("hour", 3600 * SECOND)), 20 * SECOND, counted=12 * SECOND
    )
    assert (y.granted, y.counted) == (20 * SECOND, None)
    assert len(held.report(3608 * SECOND - 1)) == 2
    assert [lease.lease for lease in held.report(3608 * SECOND)] == ["y"]


def test_a_lease_is_settled_once() -> None:
    """A repeated settlement keeps the time of the first one (law 2)."""
    held = HeldLeases()
    held.granted(0, LeaseGrant("x", A, "k0"), REVISION)
    held.settled(SECOND, (Spent("x", 0),))
    held.settled(9 * SECOND, (Throttled("x", 0, SECOND, (0,)), Unsent("x")))
    assert [lease.counted for lease in held.report(9 * SECOND)] == [8 * SECOND]


def test_what_has_returned_is_forgotten_with_each_response() -> None:
    """Returned leases are forgotten with each response."""
    replica = opened(a=1)
    heard(replica, deal=1)
    replica.use(1)
    heard(replica)
    assert len(replica.session.held) == 1
    replica.now += 60 * SECOND
    heard(replica)
    assert len(replica.session.held) == 0


def test_what_was_never_sent_or_counts_nowhere_is_not_held() -> None:
    """Unsent leases, and those under no limit, are not remembered."""
    held = HeldLeases()
    held.granted(0, LeaseGrant("x", A, "k0"), REVISION)
    held.granted(0, LeaseGrant("y", Flow("a", DemandClass(())), "k0"), REVISION)
    assert len(held) == 1
    held.settled(0, (Unsent("x"),))
    assert len(held) == 0


def test_replicas_that_shared_of_late_are_remembered() -> None:
    """The number of replicas is the most of the last minute or two."""
    seen, now = SeenReplicas(), 0
    seen.note(now, 7)
    while now < REPLICAS_MEMORY * 3 // 2:
        now += HEARTBEAT
        seen.note(now, 1)
    assert seen.most == 7
    while now < 2 * REPLICAS_MEMORY + HEARTBEAT:
        now += HEARTBEAT
        seen.note(now, 2)
    assert seen.most == 2


def test_a_silence_makes_no_replica_forgotten() -> None:
    """A silent store makes no replica forgotten."""
    seen = SeenReplicas()
    seen.note(0, 7)
    for hours in range(1, 9):
        seen.note(hours * 3600 * SECOND, 1)
    assert seen.most == 7


def test_a_clock_that_runs_fast_is_watched_for_a_while() -> None:
    """A replica calls more often while the store's clock runs fast."""
    session, own, instant = Session("r", REVISION), START, START
    for rate, steps, fast in ((0, 4, False), (83_000, 4, True), (0, 130, False)):
        for _ in range(steps):
            request = session.request(own, ())
            own += SECOND
            instant += SECOND + rate
            response = ExchangeResponse("e", request.serial, instant, available=(), dealt=0)
            assert session.hear(own - TRIP, own, request, response)
        assert session.clock_is_fast(own) is fast
