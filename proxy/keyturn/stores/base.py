"""The common part of all stores, from one replica's view: a session of exchanges, and estimates from snapshots."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from itertools import chain, islice

from keyturn.core.errors import StoreLost
from keyturn.core.estimator import Estimator
from keyturn.core.exchange import (
    HEARTBEAT,
    LEASE_LIFETIME,
    EstimatedWaits,
    ExchangeResult,
    Flow,
    FlowDemand,
    Settlement,
    heartbeat,
)
from keyturn.core.messages import ExchangeRequest, ExchangeResponse, Revision, Snapshot, revision_of
from keyturn.core.model import MILLISECOND, SECOND, Micros, Pool
from keyturn.core.session import Session

MAX_ROUND_TRIPS = 6
"""Requests to one exchange at the most: a revision, what is held, demands, a clock that stepped, and a connection that
broke, with one to spare."""

ESTIMATED = 100
"""Flows that are estimated in one exchange at the most; an event loop does nothing else meanwhile."""

REVIEWED = 25
"""Flows without newcomers that are estimated in one exchange at the most."""

ESTIMATES_RECENT: Micros = SECOND // 2
"""An older snapshot says nothing about requests that come now."""

IDLE: Micros = 5 * SECOND
"""A replica that has nothing out says this often that it is there, so that others know how many share the pool.

One that has spent something within the last window speaks as often as one that has leases out: a new epoch waits no
longer for its report (`core.state.RECOVERY_GRACE`).
"""

DRIFT_PULSE: Micros = SECOND // 4
"""While the store's clock runs fast a replica speaks this often, so that it is corrected within the guard."""

Pins = tuple[tuple[int, str], ...]
"""The limits and quotas that a snapshot is asked for besides."""


class SessionStore:
    """One replica's way to the state of one pool; a subclass carries the messages (`send`, `fetch`)."""

    def __init__(self, pool: Pool, *, replica: str, settle_bound: Micros, clock: Callable[[], Micros]) -> None:
        self.pool = pool.name
        self.revision: Revision = revision_of(pool, LEASE_LIFETIME + settle_bound)
        """That of the next exchange; one in flight goes on with the revision that it began with."""
        self.session = Session(replica, self.revision)
        self._settle_bound = settle_bound
        self._clock = clock
        self._estimator: Estimator | None = None
        """That of the session's newest snapshot."""
        self._next = 0
        """Where the rotation of the flows that are estimated goes on."""

    def adopt(self, pool: Pool) -> None:
        """Go on with another configuration of the pool; what was spent stays spent."""
        self.revision = revision_of(pool, LEASE_LIFETIME + self._settle_bound)

    @property
    def replicas(self) -> int:
        """How many share the pool, as far as is known."""
        return self.session.replicas

    async def send(self, request: ExchangeRequest, pins: Pins | None) -> tuple[ExchangeResponse, Snapshot | None]:
        """Carry one request, and with `pins` the wish for a snapshot after it: one round trip.

        Raises:
            StoreLost: no answer.
        """
        raise NotImplementedError

    async def fetch(self, revision: str, pins: Pins) -> Snapshot | None:
        """A snapshot; `None` when the store does not know the revision.

        Raises:
            StoreLost: no answer.
        """
        raise NotImplementedError

    def epoch_began(self) -> None:
        """Take note that the state was new, restarted, failed over or behind: every bucket opens by a probe (law 8)."""

    async def exchange(
        self, settlements: tuple[Settlement, ...], demands: tuple[FlowDemand, ...], *, partial: bool = False
    ) -> ExchangeResult:
        """See `core.exchange.PoolStore`."""
        self.session.tell(demands, partial=partial)
        return await self.speak(settlements)

    async def speak(self, settlements: tuple[Settlement, ...], *, report: bool = False) -> ExchangeResult:
        """Send settlements and demands; a report sends no demands, so nothing is granted.

        A broken connection does not mean that the store is lost: the request is retried once over a new one. The result
        of the first attempt does not matter, since its grants are taken back and settlements are idempotent.
        """
        session, broke = self.session, False
        session.revision = self.revision
        epoch = session.epoch
        for _ in range(MAX_ROUND_TRIPS):
            sent = self._clock()
            request = session.request(sent, settlements, report=report)
            try:
                response, snapshot = await self.send(request, session.pins() if session.wants_snapshot() else None)
            except StoreLost as lost:
                if broke or not lost.broke:
                    raise
                broke = True
                continue
            now = self._clock()
            heard = session.hear(sent, now, request, response)
            if heard is None:
                continue
            if epoch not in ("", session.epoch):
                self.epoch_began()
            return await self._answer(heard, snapshot)
        raise StoreLost("The shared store does not come to terms with this replica.", cause=_AT_ODDS)

    async def _answer(self, heard: ExchangeResponse, snapshot: Snapshot | None) -> ExchangeResult:
        """The result for the scheduler, with estimates if there is a new snapshot."""
        session, grants = self.session, heard.grants
        if snapshot is None and session.snapshot_due(self._clock()):
            with suppress(StoreLost):  # the grants are here, and the next exchange says so, too
                snapshot = await self.fetch(session.revision.name, session.pins())
        estimates = self._estimates(snapshot) if snapshot is not None else {}
        again = heard.again
        if session.newcomers and snapshot is not None:
            again = MILLISECOND
        elif again is None:
            again = heartbeat(session.revision.bound, HEARTBEAT if len(session.held) else IDLE)
        if session.clock_is_fast(self._clock()):
            again = min(again, DRIFT_PULSE)
        return ExchangeResult(heard.version, grants, estimates, heard.available, again, heard.replicas, heard.foreign)

    def estimate(self, flow: Flow, waiting: int, weight: int) -> tuple[EstimatedWaits, Micros] | None:
        """See `core.exchange.PoolStore`."""
        session = self.session
        if self._estimator is None or session.snapshot is None or session.revision is not self.revision:
            return None
        age = session.snapshot_age(self._clock())
        if age > ESTIMATES_RECENT:
            return None
        estimates = self._estimator.estimate(flow, waiting, weight)
        return None if estimates is None else (estimates, age)

    def _estimates(self, snapshot: Snapshot) -> Mapping[Flow, EstimatedWaits]:
        """The estimates of flows of which requests still wait: of newcomers first, then of the others in rotation."""
        session = self.session
        waiting, pins = session.waiting, {(limit, quota) for limit, quota, _ in snapshot.pinned}

        def shown(flow: Flow) -> bool:
            limits, pinned = flow.demand_class
            return not pinned or all((limit, pinned) in pins for limit in limits)

        newcomers = [flow for flow in session.newcomers if shown(flow)][:ESTIMATED]
        begin = self._next % len(waiting) if waiting else 0
        chosen = dict.fromkeys(newcomers)
        for flow in chain(islice(waiting, begin, None), islice(waiting, begin)):
            if len(chosen) >= min(ESTIMATED, len(newcomers) + REVIEWED):
                break
            begin += 1
            if shown(flow):
                chosen[flow] = None
        self._next = begin
        session.took(self._clock(), snapshot, [flow for flow in session.newcomers if flow not in chosen])
        self._estimator = estimator = Estimator(snapshot, session.revision)
        told: dict[Flow, EstimatedWaits] = {}
        for demand in [waiting[flow] for flow in chosen]:
            turns = estimator.estimate(demand.flow, demand.waiting, demand.weight)
            if turns is not None:
                told[demand.flow] = turns
        return told


_AT_ODDS = (
    "the store asks for the same thing again and again: is its memory full, or is it two servers behind one name?"
)
