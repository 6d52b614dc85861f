"""The store of one process: the state itself, on the process's monotonic clock.

Its content is lost when the process ends, so it is for one replica only. It does not know what its keys had spent
before the start either: each bucket is opened by a probe (law 8).
"""

from collections.abc import Callable, Sequence
from itertools import count

from keyturn.core.bucket_snapshots import BucketSnapshot, bucket_snapshots
from keyturn.core.exchange import Flow, LeaseGrant
from keyturn.core.messages import ExchangeRequest, ExchangeResponse, Snapshot
from keyturn.core.model import Micros, Pool
from keyturn.core.placements import REVISION_LIFETIME, SILENT, Placement, PlacementRevision, name_of
from keyturn.core.snapshots import snapshot
from keyturn.core.state import SharedState
from keyturn.stores.base import Pins, SessionStore

Wake = Callable[[Micros], None]
"""Called with the delay after which a replica is to call."""


class Memory:
    """The state of one pool, and the replicas that share it: one in production, several in tests."""

    def __init__(self, clock: Callable[[], Micros]) -> None:
        self.state = SharedState()
        self.clock = clock
        self.sleepers: dict[str, Wake] = {}

    def exchange(self, request: ExchangeRequest) -> ExchangeResponse:
        """Answer a request, and wake the replicas that get the next tokens."""
        response = self.state.exchange(self.clock(), "", request)
        for replica, delay in response.wake:
            if wake := self.sleepers.get(replica):
                wake(delay)
        return response


class MemoryStore(SessionStore):
    """One replica's way to the memory."""

    def __init__(self, memory: Memory, pool: Pool, *, replica: str, settle_bound: Micros) -> None:
        super().__init__(pool, replica=replica, settle_bound=settle_bound, clock=memory.clock)
        self._memory = memory

    def listen(self, wake: Wake) -> None:
        """Call `wake` when a token comes earlier than announced."""
        self._memory.sleepers[self.session.replica] = wake

    @property
    def degraded(self) -> float:
        """Seconds without the store: it cannot be lost."""
        return 0.0

    async def buckets(self) -> tuple[BucketSnapshot, ...]:
        """The tokens of every bucket."""
        return bucket_snapshots(self._memory.state, self.revision, self._memory.clock())

    def try_grant(self, flow: Flow, weight: int) -> LeaseGrant | None:
        """See `core.exchange.PoolStore`."""
        memory, revision = self._memory, self.revision
        now = memory.clock()
        grant = memory.state.try_grant(now, self.session.replica, revision.name, flow, weight)
        if grant is not None:
            self.session.held.granted(now, grant, revision)
        return grant

    async def send(self, request: ExchangeRequest, pins: Pins | None) -> tuple[ExchangeResponse, Snapshot | None]:
        """See `SessionStore`."""
        response = self._memory.exchange(request)
        return response, None if pins is None or response.asks else await self.fetch(request.revision, pins)

    async def fetch(self, revision: str, pins: Pins) -> Snapshot | None:
        """See `SessionStore`."""
        state = self._memory.state
        return snapshot(state, self._memory.clock(), revision, pins) if revision in state.revisions.views else None


class LocalPlacements:
    """Those of one process, or in tests of several replicas: what the script does, in memory."""

    def __init__(self, clock: Callable[[], Micros]) -> None:
        self._clock = clock
        self._known: dict[str, tuple[Placement, int, Micros, Micros]] = {}
        """Each with its rank, when it appeared and when it was last named."""
        self._ranks = count(1)

    async def name(self, placement: Placement) -> tuple[PlacementRevision, Sequence[PlacementRevision]]:
        """See `stores.shared_placements.Placements`."""
        now, name = self._clock(), name_of(placement)
        _, rank, since, heard = self._known.get(name) or (placement, next(self._ranks), now, now)
        self._known[name] = (placement, rank, now if now - heard > SILENT else since, now)
        known = self._known = {other: one for other, one in self._known.items() if now - one[3] <= REVISION_LIFETIME}
        told = {other: PlacementRevision(what, rank, now - a, now - b) for other, (what, rank, a, b) in known.items()}
        return told.pop(name), list(told.values())
