"""The store of one process: the ledger itself, on the process's monotonic clock.

It forgets everything when the process ends, so it is for one replica only.
"""

from collections.abc import Callable

from proxy.core.exchange import Demand, Exchange, Settlement
from proxy.core.ledger import Ledger
from proxy.core.model import Micros, Pool


class MemoryStore:
    """One pool's ledger; replicas of the same process may share it (tests do), each with the call that wakes it."""

    def __init__(self, pool: Pool, *, settle_bound: Micros, clock: Callable[[], Micros]) -> None:
        self.ledger = Ledger(pool, settle_bound)
        self._clock = clock
        self._wake: dict[str, Callable[[], None]] = {}

    def listen(self, replica: str, wake: Callable[[], None]) -> None:
        """Call `wake` when a replica's turn has come earlier than it was told."""
        self._wake[replica] = wake

    def levels(self) -> list[tuple[str, int, int]]:
        """Quota, limit's index and tokens at hand of every bucket."""
        buckets = self.ledger.buckets
        buckets.mature(self._clock())
        limits = range(len(buckets.calendars))
        return [(quota, limit, buckets.open(quota, limit)) for quota in buckets.quotas for limit in limits]

    async def exchange(
        self, replica: str, settlements: tuple[Settlement, ...], demands: tuple[Demand, ...]
    ) -> Exchange:
        """See `core.exchange.Store`."""
        answer = self.ledger.exchange(self._clock(), replica, settlements, demands)
        for sleeper in answer.wake:
            if wake := self._wake.get(sleeper):
                wake()
        return answer
