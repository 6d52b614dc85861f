"""A replica's side of the exchange with a store: what it says, what it believes, and what it can report again.

Laws kept here: 2 (a lease is held until its settlement was heard; grants of a response that was not heard or is not
believed are never used, and the store takes them back), 7 (instants are this replica's monotonic ones), 8 (all tokens
that are out are remembered, so that they can be reported to a state that has lost them).

Demands are sent as changes (`core.demands`). After a response that was heard, the store believes of each flow what was
sent, less the grants of that response, whether they were dealt now or reserved before. When that is not certain (at
first, in a new epoch, after a response that was not heard, with another revision), a request is full.

Nothing here does I/O: `request` says what to send, `hear` what the response is worth.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from heapq import heappop, heappush

from keyturn.core.clocks import StoreClock
from keyturn.core.demands import Demands
from keyturn.core.exchange import HEARTBEAT, Flow, FlowDemand, LeaseGrant, LimitTokens, Settlement, Unsent
from keyturn.core.messages import ExchangeRequest, ExchangeResponse, HeldLease, Revision, Snapshot
from keyturn.core.model import MILLISECOND, SECOND, Micros

REPLICAS_MEMORY: Micros = 60 * SECOND
"""How long it is remembered that more replicas shared the pool."""

DRIFT: Micros = 5 * MILLISECOND
"""The store's clock may run ahead by this much without being watched more closely."""

FAST_MEMORY: Micros = 10 * SECOND
"""How long it is watched more closely."""

SNAPSHOT_INTERVAL: Micros = 250 * MILLISECOND
"""A snapshot is not replaced earlier merely because leases were dealt since."""

PINS = 64
"""Limits of single quotas that one snapshot is asked for at the most."""

SNAPSHOT_LIFETIME: Micros = HEARTBEAT
"""A snapshot is replaced then though no lease was dealt: a quota may have been closed."""


class SeenReplicas:
    """The most replicas that shared the pool of late.

    A store that was just found again has heard of some of them only, and an idle one is not spoken with for a while. So
    only time in which it is spoken with counts.
    """

    def __init__(self) -> None:
        self._most = self._before = 1
        self._age: Micros = 0
        self._noted: Micros | None = None

    def note(self, now: Micros, replicas: int) -> None:
        """Note how many share the pool at this instant."""
        self._age += min(now - self._noted, HEARTBEAT) if self._noted is not None else 0
        self._noted = now
        if self._age >= REPLICAS_MEMORY:
            self._before, self._most, self._age = self._most, 1, 0
        self._most = max(self._most, replicas)

    @property
    def most(self) -> int:
        """The most since `REPLICAS_MEMORY` ago, or twice as long."""
        return max(self._most, self._before)


@dataclass(slots=True)
class _Lease:
    """A lease of this replica whose tokens are out; instants are the replica's own."""

    quota: str
    client: str
    windows: tuple[tuple[str, Micros], ...]
    granted: Micros
    counted: Micros | None = None

    def report(self, name: str, now: Micros) -> HeldLease:
        counted = None if self.counted is None else now - self.counted
        return HeldLease(name, self.quota, self.client, self.windows, now - self.granted, counted)


class HeldLeases:
    """Every lease of one replica until its tokens have returned."""

    def __init__(self) -> None:
        self._leases: dict[str, _Lease] = {}
        self._returns: list[tuple[Micros, str]] = []

    def __len__(self) -> int:
        return len(self._leases)

    def granted(self, now: Micros, grant: LeaseGrant, revision: Revision) -> None:
        """Add a lease that was granted at `now` at the earliest."""
        windows = tuple([(revision.limits[i].id, revision.limits[i].window) for i in grant.flow.demand_class.limits])
        if windows:
            self._leases[grant.lease] = _Lease(grant.quota, grant.flow.client, windows, now)

    def settled(self, now: Micros, settlements: Iterable[Settlement]) -> None:
        """Note how leases ended; the ages of the settlements count from `now`."""
        for settlement in settlements:
            lease = self._leases.get(settlement.lease)
            if lease is None or lease.counted is not None:
                continue
            if isinstance(settlement, Unsent):
                del self._leases[settlement.lease]
            else:
                lease.counted = now - settlement.age
                longest = max(window for _, window in lease.windows)
                heappush(self._returns, (lease.counted + longest, settlement.lease))

    def purge(self, now: Micros) -> None:
        """Forget leases whose tokens have returned."""
        while self._returns and self._returns[0][0] <= now:
            self._leases.pop(heappop(self._returns)[1], None)

    def report(self, now: Micros) -> tuple[HeldLease, ...]:
        """All leases whose tokens are out."""
        self.purge(now)
        return tuple([lease.report(name, now) for name, lease in self._leases.items()])


class Session:
    """The exchanges of one replica about one pool, one at a time."""

    def __init__(self, replica: str, revision: Revision) -> None:
        self.replica = replica
        self.revision = revision
        """The pool as the next request has it; set between exchanges, for settlements name limits by their indices."""
        self.held = HeldLeases()
        self.seen = SeenReplicas()
        self.replicas = 1
        """How many shared the pool when it last heard, this one among them."""
        self.epoch = ""
        self.dealt = 0
        """Leases that the store had granted in this epoch when it last answered."""
        self.snapshot: Snapshot | None = None
        """The newest snapshot of this epoch and revision."""
        self._taken: Micros = 0
        self._clock = StoreClock()
        self._serial = self._heard = self._version = 0
        self._answered = 0
        """The last request of which it is known what the store made of it."""
        self._ahead: Micros = 0
        self._stepped: Micros = 0
        self._fast: Micros | None = None
        """When the store's clock was last seen to run ahead by more than is put up with."""
        self._asked: set[str] = set()
        self._suspected = False
        self._full = True
        self._spoken = revision
        """The revision of the last request."""
        self._reports = False
        """Whether the last request said that nothing waits."""
        self._demands = Demands()
        self._grown: list[Flow] = []
        """Flows of which the last request announced more than was believed."""
        self.newcomers: dict[Flow, None] = {}
        """Flows that wait and have grown since the newest snapshot."""
        self._available: tuple[LimitTokens, ...] = ()

    @property
    def waiting(self) -> Mapping[Flow, FlowDemand]:
        """All that waits in this replica, as far as this session was told; what was granted since waits no longer."""
        return self._demands.waiting

    def tell(self, demands: Iterable[FlowDemand], *, partial: bool) -> None:
        """Take over what waits, for the next request; with `partial` flows that are not named wait as before."""
        self._demands.tell(demands, partial=partial)

    def granted_elsewhere(
        self, now: Micros, revision: Revision, settlements: Iterable[Settlement], grants: Collection[LeaseGrant]
    ) -> None:
        """Note what ended, and what was granted by a revision, without the store."""
        self.held.settled(now, settlements)
        for grant in grants:
            self.held.granted(now, grant, revision)
        self._demands.granted(grants)

    def forget(self) -> None:
        """Suspect the store of having lost anything: report all that is held before anything is granted."""
        self._suspected = True

    # The exchange

    def request(self, now: Micros, settlements: tuple[Settlement, ...], *, report: bool = False) -> ExchangeRequest:
        """The next request; one that only reports says that nothing waits, so nothing is granted."""
        if self.revision.name != self._spoken.name:
            self._full, self.snapshot, self._available = True, None, ()
            self._demands.forgotten()
        self._full = self._full or self._suspected or self._answered != self._serial or report
        if self._suspected:
            self._asked.add("held")
        self._suspected, self._spoken, self._reports = False, self.revision, report
        self._grown = [] if report else self._demands.grown()
        self._serial += 1
        ahead, self._ahead = self._ahead, 0  # said once: what was taken off once must not be taken off again
        return ExchangeRequest(
            self.replica,
            self._serial,
            self._heard,
            self.epoch,
            self._version,
            self.replicas,
            self.revision.name,
            settlements,
            () if report else tuple(self._demands.changes(full=self._full)),
            self._full,
            ahead,
            self._stepped,
            self.held.report(now) if "held" in self._asked else None,
            self.revision if "revision" in self._asked else None,
        )

    def hear(
        self, sent: Micros, now: Micros, request: ExchangeRequest, response: ExchangeResponse
    ) -> ExchangeResponse | None:
        """Take in the response to the last request, sent at `sent`; `None` when it is to be made again.

        That is when the store asked for something, or is not to be believed; then its grants are not used.
        """
        if request.serial != self._serial:
            return None
        began = response.epoch != self.epoch
        if response.asks:
            self._answered = request.serial
            self._asked.update(response.asks)
            self._full = self._full or began or "demands" in response.asks
            return None
        stepped = 0 if began else self._clock.stepped(now, response.instant)
        if stepped:
            self._stepped = stepped
            return None
        if began:
            self._clock.restart()
            self.snapshot = None
        self._clock.window = max((limit.window for limit in self._spoken.limits), default=0)
        self._ahead = self._clock.ahead(now, response.instant)
        if self._ahead > DRIFT:
            self._fast = now
        self._clock.believe(sent, now, response.instant)
        self._heard = self._answered = request.serial
        self._stepped, self._full = 0, self._reports or (began and not request.full)
        self._asked.clear()
        self.epoch, self._version, self.dealt = response.epoch, response.version, response.dealt
        self.replicas, self._available = response.replicas, response.available
        self.seen.note(now, response.replicas)
        self._keep(sent, now, request.settlements, response.grants)
        return response

    def _keep(
        self, sent: Micros, now: Micros, settlements: tuple[Settlement, ...], grants: tuple[LeaseGrant, ...]
    ) -> None:
        """Note what is held, and what the store believes to wait, after a response."""
        self.held.settled(sent, settlements)
        self.held.purge(now)
        for grant in grants:
            self.held.granted(sent, grant, self._spoken)
        if self._reports:
            self._demands.forgotten()
        else:
            self._demands.heard(grants)
        self.newcomers = dict.fromkeys([flow for flow in (*self.newcomers, *self._grown) if flow in self.waiting])

    def clock_is_fast(self, now: Micros) -> bool:
        """Whether the store's clock ran fast of late."""
        return self._fast is not None and now - self._fast < FAST_MEMORY

    def store_time(self, now: Micros) -> Micros:
        """The store's clock at an own instant, overstated by a round trip at most; it was heard at least once."""
        return self._clock.store_time(now)

    # Snapshots

    def wants_snapshot(self) -> bool:
        """Whether one is fetched together with the last request: it announces newcomers who probably have to wait."""
        if not self._grown or not self._available:
            return bool(self._grown)
        waiting = self._demands.by_limit
        short = {limit for limit, budget in enumerate(self._available) if waiting[limit] > budget.available}
        return any(not short.isdisjoint(flow.demand_class.limits) for flow in self._grown)

    def snapshot_due(self, now: Micros) -> bool:
        """Whether one is fetched after an exchange: requests wait, and the newest snapshot is too old for them."""
        if not self.waiting:
            return False
        if self.snapshot is None or self.newcomers:
            return True
        interval = SNAPSHOT_INTERVAL if self.dealt != self.snapshot.dealt else SNAPSHOT_LIFETIME
        return self.snapshot_age(now) >= interval

    def snapshot_age(self, now: Micros) -> Micros:
        """How old the newest snapshot is, if there is one."""
        return now - self._taken

    def took(self, now: Micros, snapshot: Snapshot, left: Iterable[Flow] = ()) -> None:
        """Keep a snapshot made at `now`, after the exchange heard last; those `left` stay newcomers."""
        self.snapshot, self._taken = snapshot, now
        self.newcomers = dict.fromkeys(left)

    def pins(self) -> tuple[tuple[int, str], ...]:
        """The limits and quotas that flows insist on: of newcomers first, others in rotation."""
        return self._demands.pins((*self._grown, *self.newcomers), PINS)
