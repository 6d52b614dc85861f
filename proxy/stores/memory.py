"""The store of one process: the ledger itself, on the process's monotonic clock.

It forgets everything when the process ends, so it is for one replica only. What its keys had spent before it began it
does not know either: each is opened by a probe (law 8).
"""

from collections.abc import Callable

from proxy.core.exchange import USE_BY, Demand, Exchange, Grant, Lane, Settlement
from proxy.core.ledger import Ledger
from proxy.core.letters import Call, Terms, terms_of
from proxy.core.looks import BucketLook, look
from proxy.core.model import Micros, Pool


class Memory:
    """The ledger of one pool, and the replicas that share it: one in production, several in tests."""

    def __init__(self, clock: Callable[[], Micros]) -> None:
        self.ledger = Ledger()
        self.clock = clock
        self.sleepers: dict[str, Callable[[], None]] = {}

    def wake(self, replicas: tuple[str, ...]) -> None:
        """Tell replicas that their turn has come earlier than they were told."""
        for replica in replicas:
            if wake := self.sleepers.get(replica):
                wake()


class MemoryStore:
    """One replica's way to the memory."""

    def __init__(self, memory: Memory, pool: Pool, *, replica: str, settle_bound: Micros) -> None:
        self._memory = memory
        self._replica = replica
        self._settle_bound = settle_bound
        self._serial = 0
        self.adopt(pool)

    def adopt(self, pool: Pool) -> None:
        """Go on with another configuration of the pool; what was spent stays spent."""
        self.terms: Terms = terms_of(pool, USE_BY + self._settle_bound)

    def listen(self, wake: Callable[[], None]) -> None:
        """Call `wake` when a turn has come earlier than it was told."""
        self._memory.sleepers[self._replica] = wake

    @property
    def replicas(self) -> int:
        """This one, and in tests others."""
        return max(1, len(self._memory.sleepers))

    @property
    def degraded(self) -> float:
        """It cannot be lost."""
        return 0.0

    def levels(self) -> list[tuple[str, int, int]]:
        """Quota, limit's index and tokens at hand of every bucket."""
        buckets = self._memory.ledger.buckets
        buckets.mature(self._memory.clock())
        name, limits = self.terms.name, list(enumerate(self.terms.limits))
        if name not in buckets.views:
            return [(quota, index, limit.requests) for quota in self.terms.quotas for index, limit in limits]
        return [
            (quota, index, buckets.open_for(name, quota, (limit.id,)))
            for quota in self.terms.quotas
            for index, limit in limits
        ]

    async def look(self) -> tuple[BucketLook, ...]:
        """The tokens of every bucket."""
        return look(self._memory.ledger.buckets, self.terms, self._memory.clock())

    def at_once(self, lane: Lane, weight: int) -> Grant | None:
        """See `core.exchange.Store`."""
        memory = self._memory
        return memory.ledger.at_once(memory.clock(), self._replica, self.terms.name, lane, weight)

    async def exchange(self, settlements: tuple[Settlement, ...], demands: tuple[Demand, ...]) -> Exchange:
        """See `core.exchange.Store`."""
        ledger = self._memory.ledger
        self._serial += 1
        call = Call(
            self._replica,
            self._serial,
            self._serial - 1,
            ledger.era,
            0,
            1,
            self.terms.name,
            settlements,
            demands,
            spelled=self.terms,
        )
        reply = ledger.exchange(self._memory.clock(), "", call)
        self._memory.wake(reply.wake)
        return reply.exchange()
