"""Random histories of a fleet in which messages are lost, processes die, clocks step and stores restart.

A history drives any number of stores in lockstep; each must give the same responses and snapshots.
"""

from dataclasses import dataclass, field, replace
from random import Random
from typing import Protocol

from keyturn.core.exchange import (
    DemandClass,
    Flow,
    FlowDemand,
    LeaseGrant,
    ObservedLimit,
    Settlement,
    Spent,
    Throttled,
    Unsent,
)
from keyturn.core.messages import ExchangeRequest, ExchangeResponse, HeldLease, Revision, RevisionLimit, Snapshot
from keyturn.core.model import MILLISECOND, SECOND, Micros

BOUND: Micros = 3 * SECOND

Pins = tuple[tuple[int, str], ...]


class Decides(Protocol):
    """A store that a history drives."""

    def exchange(
        self, now: Micros, run: str, request: ExchangeRequest, pins: Pins | None
    ) -> tuple[ExchangeResponse, Snapshot | None]:
        """Answer a request, and with `pins` return the snapshot after it."""

    def snapshot(self, now: Micros, revision: str, pins: Pins) -> Snapshot | None:
        """Return the part of a snapshot that estimates depend on."""

    def flush(self) -> None:
        """Lose everything."""

    def save(self) -> None:
        """Save everything."""

    def rewind(self) -> None:
        """Go back to the last save, if there was one: a failover that loses writes."""


@dataclass
class Replica:
    """One replica: what it received, holds and waits for."""

    name: str
    revision: Revision
    serial: int = 0
    heard: int = 0
    epoch: str = ""
    version: int = 0
    full: bool = True
    stepped: Micros = 0
    held: dict[str, HeldLease] = field(default_factory=dict)
    """Its leases, with instants in place of ages."""
    grants: dict[str, tuple[LeaseGrant, Revision]] = field(default_factory=dict)
    """Those that are not settled."""
    settlements: tuple[Settlement, ...] = ()
    waiting: dict[Flow, int] = field(default_factory=dict)
    changed: set[Flow] = field(default_factory=set)


class FleetHistory:
    """One history, made step by step from a seed."""

    def __init__(self, seed: int, stores: list[Decides], *, crowd: int = 5) -> None:
        self.random = Random(seed)
        self.stores = stores
        self.now: Micros = 1_700_000_000 * SECOND + seed
        self.run = "a" * 40
        self.crowd = crowd
        self.revisions = self._revisions()
        self.replicas: dict[str, Replica] = {}
        self.weights = [1, 2, 3, 1, 2]
        self.born = 0
        self.steps = 0
        self.granted = 0
        for _ in range(self.random.randint(1, 4)):
            self._join()

    def _revisions(self) -> list[Revision]:
        size, count, quotas = self.random.choice([1, 2, 5, 40]), self.random.randint(1, 3), self.random.randint(1, 5)
        limits = (
            RevisionLimit("10000000", size, 10 * SECOND),
            RevisionLimit("3000000-x", max(1, size // 2), 3 * SECOND),
            RevisionLimit("25000000", size * 2, 25 * SECOND),
        )[:count]
        names = tuple(f"k{number}" for number in range(quotas))
        more = (*names, "k7", "k8")
        larger = (RevisionLimit("10000000", size + 1, 10 * SECOND), *limits[1:])
        other = (RevisionLimit("12000000", size, 12 * SECOND), *limits[1:])
        shared = ("k7", "shared")
        return [
            Revision("one", names, limits, BOUND),
            Revision("two", more, limits, BOUND + SECOND),
            Revision("three", names[:1], larger, BOUND),
            Revision("four", names, other, BOUND),
            Revision("five", shared, limits, BOUND, (("shared", names),)),
            Revision("six", (*names[1:], "shared"), larger, BOUND, (("shared", (names[0], "k7")),)),
        ]

    def _join(self) -> None:
        self.born += 1
        name = f"r{self.born}"
        self.replicas[name] = Replica(name, self.revisions[0])

    def step(self) -> None:
        """Play one random event."""
        self.steps += 1
        self.now += self.random.randint(0, self.random.choice([0, 0, 1, 20, 200, 600, 2000]) * MILLISECOND)
        if self.random.random() < 0.03:
            self._incident()
        replica = self.replicas[self.random.choice(sorted(self.replicas))]
        self._live(replica)
        self._ask(replica)

    def _incident(self) -> None:
        incidents = [self._step_clock, self._restart, self._lose, self._die, self._reload, self._reload, self._pause]
        self.random.choice(incidents)()

    def _step_clock(self) -> None:
        step = self.random.choice([-30, 30]) * SECOND
        self.now += step
        if step > 0:
            self.replicas[self.random.choice(sorted(self.replicas))].stepped = step

    def _restart(self) -> None:
        self.run = f"{self.random.getrandbits(160):040x}"

    def _lose(self) -> None:
        what = self.random.randrange(3)
        for store in self.stores:
            (store.flush, store.save, store.rewind)[what]()

    def _die(self) -> None:
        del self.replicas[self.random.choice(sorted(self.replicas))]
        self._join()

    def _reload(self) -> None:
        replica = self.replicas[self.random.choice(sorted(self.replicas))]
        replica.revision, replica.full = self.random.choice(self.revisions), True
        replica.waiting = {}
        self.random.shuffle(self.weights)

    def _pause(self) -> None:
        self.now += self.random.choice([BOUND, 100 * SECOND])

    def _live(self, replica: Replica) -> None:
        limits = len(replica.revision.limits)
        for _ in range(self.random.choice([0, 0, 1, 2, 8])):
            under = self.random.choice([(0,), tuple(range(limits)), ()])
            pinned = self.random.choice([*[None] * 12, "k0", "k1", "shared", "nobody"])
            flow = Flow(f"c{self.random.randrange(self.crowd)}", DemandClass(under, pinned))
            replica.waiting[flow] = replica.waiting.get(flow, 0) + self.random.choice([1, 2, 5, 70])
            replica.changed.add(flow)
        if replica.waiting and self.random.random() < 0.3:
            flow = self.random.choice(sorted(replica.waiting, key=str))
            replica.waiting[flow] = 0
            replica.changed.add(flow)
        for lease, (grant, revision) in sorted(replica.grants.items()):
            if self.random.random() < 0.6:
                del replica.grants[lease]
                replica.settlements += (self._settle(replica, grant, revision),)

    def _settle(self, replica: Replica, grant: LeaseGrant, revision: Revision) -> Settlement:
        row, what = replica.held[grant.lease], self.random.random()
        if what < 0.15:
            del replica.held[grant.lease]
            return Unsent(grant.lease)
        age = self.random.randint(0, max(0, self.now - row.granted)) if self.random.random() < 0.8 else -BOUND
        replica.held[grant.lease] = replace(row, counted=self.now - age)
        own = grant.flow.demand_class.limits if revision.name == replica.revision.name else ()
        if what < 0.25:
            return Throttled(grant.lease, age, self.random.randint(0, 20) * SECOND, own)
        seen = [
            ObservedLimit(index, self.random.randint(0, 5), self.random.randint(0, 9) * SECOND)
            for index in own
            if self.random.random() < 0.2
        ]
        return Spent(grant.lease, age, tuple(seen), answered=age >= 0)

    def _ask(self, replica: Replica) -> None:
        asks: set[str] = set()
        for _ in range(6):
            request = self._request(replica, asks)
            if self.random.random() < 0.03:
                replica.full = True
                return  # the request is lost
            response = self._everywhere(request)
            self.now += self.random.randint(0, 20) * MILLISECOND
            if self.random.random() < 0.05:
                replica.full = True
                return  # the response is lost
            if not response.asks and self.random.random() < 0.05:
                assert self._exchange(request).asks == ("nothing",), "a request that comes twice does nothing"
            if response.asks:
                asks |= set(response.asks)
                continue
            self._hear(replica, request, response)
            return
        raise AssertionError("a replica and its store do not come to terms")

    def _request(self, replica: Replica, asks: set[str]) -> ExchangeRequest:
        replica.serial += 1
        full = replica.full or "demands" in asks
        flows = sorted(replica.waiting if full else replica.changed, key=str)
        demands = [
            FlowDemand(flow, self.weights[int(flow.client[1:]) % 5], replica.waiting[flow])
            for flow in flows
            if flow in replica.waiting
        ]
        ahead = self.random.choice([0, 0, 0, 12 * MILLISECOND, -5 * MILLISECOND, 300])
        return ExchangeRequest(
            replica.name,
            replica.serial,
            replica.heard,
            replica.epoch,
            replica.version,
            len(self.replicas),
            replica.revision.name,
            replica.settlements,
            tuple(demands),
            full=full,
            ahead=ahead,
            stepped=replica.stepped,
            held=self._held(replica) if "held" in asks else None,
            spelled=replica.revision if "revision" in asks else None,
        )

    def _held(self, replica: Replica) -> tuple[HeldLease, ...]:
        return tuple(
            replace(
                row,
                granted=max(0, self.now - row.granted),
                counted=None if row.counted is None else max(0, self.now - row.counted),
            )
            for row in replica.held.values()
        )

    def _hear(self, replica: Replica, request: ExchangeRequest, response: ExchangeResponse) -> None:
        replica.heard, replica.epoch, replica.version = request.serial, response.epoch, response.version
        replica.full, replica.settlements, replica.changed, replica.stepped = False, (), set(), 0
        self.granted += len(response.grants)
        for grant in response.grants:
            flow = grant.flow
            if not replica.waiting.get(flow):  # it was reserved before its request went away
                replica.settlements += (Unsent(grant.lease),)
                continue
            replica.waiting[flow] -= 1
            windows = tuple(
                (replica.revision.limits[i].id, replica.revision.limits[i].window)
                for i in grant.flow.demand_class.limits
            )
            replica.grants[grant.lease] = (grant, replica.revision)
            replica.held[grant.lease] = HeldLease(grant.lease, grant.quota, grant.flow.client, windows, self.now, None)
        replica.waiting = {flow: number for flow, number in replica.waiting.items() if number}
        replica.held = {
            lease: row for lease, row in replica.held.items() if (row.counted or self.now) > self.now - 25 * SECOND
        }

    def _everywhere(self, request: ExchangeRequest) -> ExchangeResponse:
        pins = tuple((0, quota) for quota in ("k0", "k1") if self.random.random() < 0.5)
        response = self._exchange(request, pins if self.random.random() < 0.5 else None)
        views = [store.snapshot(self.now, request.revision, pins) for store in self.stores]
        for view in views[1:]:
            assert view == views[0], f"snapshot, step {self.steps}"
        return response

    def _exchange(self, request: ExchangeRequest, pins: Pins | None = None) -> ExchangeResponse:
        responses = [store.exchange(self.now, self.run, request, pins) for store in self.stores]
        for response in responses[1:]:
            assert response == responses[0], f"step {self.steps}"
        return responses[0][0]
