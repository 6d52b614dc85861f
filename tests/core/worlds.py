"""Small worlds for tests of the core: pools, and a driver that plays replicas against one state."""

from collections import defaultdict
from dataclasses import dataclass, field

from keyturn.core.exchange import (
    LEASE_LIFETIME,
    DemandClass,
    Flow,
    FlowDemand,
    LeaseGrant,
    Settlement,
    Spent,
    Throttled,
    Unsent,
)
from keyturn.core.messages import ExchangeRequest, ExchangeResponse, HeldLease, Revision, Snapshot, revision_of
from keyturn.core.model import MILLISECOND, SECOND, Key, Limit, Micros, Pool, Secret
from keyturn.core.policy import Rule
from keyturn.core.snapshots import snapshot
from keyturn.core.state import SharedState
from keyturn.core.tokens import quota_of

BOUND = 10 * SECOND


def limit(requests: int, window: Micros = 60 * SECOND, *match: str) -> Limit:
    """Return a limit of so many requests in a window."""
    return Limit(requests, window, tuple(Rule.parse(text) for text in match))


def pool(quotas: int = 1, *limits: Limit, guard: Micros = 100 * MILLISECOND) -> Pool:
    """Return a pool of keys `k0`, `k1`, …, each a quota of its own; 60 a minute unless limits are given."""
    names = [f"k{number}" for number in range(quotas)]
    return Pool("default", tuple(Key(name, Secret(f"s-{name}"), name) for name in names), limits or (limit(60),), guard)


def flow(client: str = "a", limits: tuple[int, ...] = (0,), pinned: str | None = None) -> Flow:
    """Return a flow of a client under the first limit, or under those given."""
    return Flow(client, DemandClass(limits, pinned))


def known(state: SharedState, revision: Revision) -> None:
    """Make all buckets of a state known, as after a probe of each."""
    state.exchange(0, "", ExchangeRequest("start", 1, 0, "", 0, 0, revision.name, spelled=revision, full=True))
    know(state)


def know(state: SharedState) -> None:
    """Make every bucket of every revision known."""
    for view in state.revisions.views.values():
        state.tokens.shut.known.update((limit.id, quota) for limit in view.limits for quota in view.quotas)


@dataclass
class World:
    """One state, a clock, and the demands of each replica."""

    state: SharedState
    revision: Revision
    now: Micros = 1_000 * SECOND
    waiting: dict[str, dict[Flow, int]] = field(default_factory=lambda: defaultdict(dict))
    weights: dict[str, int] = field(default_factory=dict)
    out: dict[str, LeaseGrant] = field(default_factory=dict)
    granted: dict[str, Micros] = field(default_factory=dict)
    """When each lease was granted."""
    serials: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    run: str = ""

    @classmethod
    def of(cls, pool_: Pool) -> "World":
        world = cls(SharedState(), revision_of(pool_, LEASE_LIFETIME + BOUND))
        known(world.state, world.revision)
        return world

    def pass_(self, duration: Micros) -> None:
        self.now += duration

    def send(
        self,
        replica: str,
        settlements: tuple[Settlement, ...] = (),
        demands: tuple[FlowDemand, ...] = (),
        *,
        heard: int | None = None,
        epoch: str | None = None,
        version: int = 0,
        full: bool = True,
        ahead: Micros = 0,
        stepped: Micros = 0,
        held: tuple[HeldLease, ...] | None = None,
        revision: Revision | None = None,
    ) -> ExchangeResponse:
        """Make one request, by default the usual one."""
        self.serials[replica] += 1
        serial = self.serials[replica]
        chosen = revision or self.revision
        request = ExchangeRequest(
            replica,
            serial,
            serial - 1 if heard is None else heard,
            self.state.epoch if epoch is None else epoch,
            version,
            1,
            chosen.name,
            settlements,
            demands,
            full,
            ahead,
            stepped,
            held,
            chosen,
        )
        return self.state.exchange(self.now, self.run, request)

    def call(self, replica: str = "r", *settlements: Settlement) -> ExchangeResponse:
        """Make one exchange with the replica's demands; its grants stop waiting."""
        waiting = self.waiting[replica]
        demands = tuple(
            FlowDemand(flow_, self.weights.get(flow_.client, 1), number) for flow_, number in waiting.items() if number
        )
        for settlement in settlements:
            self.out.pop(settlement.lease, None)
        response = self.send(replica, tuple(settlements), demands)
        for grant in response.grants:
            waiting[grant.flow] -= 1
            self.out[grant.lease] = grant
            self.granted[grant.lease] = self.now
        return response

    def ask(self, number: int, flow_: Flow | None = None, replica: str = "r") -> ExchangeResponse:
        """Let so many more requests wait in a flow; exchange."""
        chosen = flow_ or flow()
        self.waiting[replica][chosen] = self.waiting[replica].get(chosen, 0) + number
        return self.call(replica)

    def snapshot(self, *pins: tuple[int, str]) -> Snapshot:
        """Return the snapshot by which a replica estimates."""
        return snapshot(self.state, self.now, self.revision.name, pins)

    def spend(self, *grants: LeaseGrant, age: Micros = 0) -> tuple[Settlement, ...]:
        return tuple(Spent(grant.lease, age) for grant in grants)


def unsent(grant: LeaseGrant) -> Unsent:
    """Return the settlement of an unsent lease."""
    return Unsent(grant.lease)


def throttled(grant: LeaseGrant, park: Micros, *limits: int) -> Throttled:
    """Return the settlement of a lease that was answered with 429."""
    return Throttled(grant.lease, 0, park, limits or (0,))


def check_conservation(state: SharedState) -> None:
    """Check that taken tokens are in use or cooling, and that rankings and ready classes are right."""
    tokens = state.tokens
    taken: dict[tuple[str, str], int] = defaultdict(int)
    for record in tokens.leases.values():
        for limit_, _ in record.windows:
            taken[limit_, record.quota] += 1
    for limit_, cooling in tokens.returns.items():
        for _, member in cooling:
            taken[limit_, quota_of(member)] += 1
    assert tokens.taken == taken
    assert tokens.shut.probes.keys() == tokens.shut.probing.scores.keys()
    total: dict[str, int] = defaultdict(int)
    for (limit_, _), number in taken.items():
        total[limit_] += number
    assert tokens.total == total
    for (_, limits), (view, ranking) in tokens.rankings.items():
        assert ranking.scores == {quota: tokens.rank(view, limits, quota) for quota in view.quotas}
    for name, demanded in state.queue.classes.items():
        view = state.revisions.views[demanded.revision]
        assert name in state.queue.ready or tokens.best(view, demanded.limits, demanded.pinned) is None
