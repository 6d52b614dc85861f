"""Leases: the right to send one request, settled exactly once (laws 2 and 10)."""

from collections.abc import Callable, Iterable
from typing import Self

from keyturn.core.exchange import LeaseGrant, ObservedLimit, Settlement, Spent, Throttled, Unsent
from keyturn.core.messages import same_limits
from keyturn.core.model import MILLISECOND, Key, Micros, Pool
from keyturn.core.moments import ROUNDING
from keyturn.core.recent import RecentCounts

PROMPT: Micros = 100 * MILLISECOND
"""A report made within this time has hardly been overtaken by other answers."""


class Lease:
    """The right to send one request now; settled exactly once, at the latest at the end of its `with` block."""

    __slots__ = (
        "_answered",
        "_leases",
        "_written",
        "client",
        "closed",
        "closed_for",
        "counted",
        "granted",
        "id",
        "key",
        "limits",
        "observed",
        "pool",
        "probe",
        "quota",
        "settled",
        "use_by",
    )

    counted: Micros | None
    """Once it is settled: the instant at which the upstream had certainly counted the request; `None`: never sent."""
    observed: tuple[ObservedLimit, ...]
    """Once it is settled: what the answer said about limits, as of `counted`."""
    closed: tuple[int, ...]
    """Once it is settled: the limits whose buckets a 429 closed, for `closed_for` from `counted`."""
    closed_for: Micros

    def __init__(
        self, leases: "OutstandingLeases", pool: Pool, grant: LeaseGrant, key: Key, granted: Micros, use_by: Micros
    ) -> None:
        """Make one of a grant; `pool` is as it was when the lease was asked for, and its limits are the lease's."""
        self._leases = leases
        self._written: Micros | None = None
        self.id, flow, self.quota, self.probe = grant
        self.client = flow.client
        self.limits = flow.demand_class.limits
        self.pool = pool
        self.key = key
        self.granted = granted
        self.use_by = use_by
        self.settled = False

    def fresh(self) -> bool:
        """Whether it may still be used: a process that was paused does not send on an old lease (law 10)."""
        return self._leases.clock() < self.use_by

    def written(self) -> None:
        """Note that the request is written: if no answer comes, it counts from `settle_bound` after this."""
        self._written = self._leases.clock()

    def spent(self, observed: tuple[ObservedLimit, ...] = ()) -> None:
        """Settle a request whose answer has begun: it was counted before now. `observed` counts from now."""
        self._settle(self._leases.clock(), observed)

    def unsent(self) -> None:
        """Settle a request of which no byte has left: the tokens return now."""
        self._settle(None)

    def throttled(self, closed_for: Micros, limits: tuple[int, ...]) -> None:
        """Settle a request that was answered 429: these limits' buckets are closed for `closed_for`."""
        self._settle(self._leases.clock(), closed=limits, closed_for=closed_for)

    def lost(self) -> None:
        """Settle a request that ended without an answer.

        It counts from now, or from `settle_bound` after it was written, whichever is later: an upstream that stands
        still may take it in until its connection ends.
        """
        now = self._leases.clock()
        written = self._written if self._written is not None else now
        self._settle(max(now, written + self._leases.settle_bound), answered=False)

    def _settle(
        self,
        counted: Micros | None,
        observed: tuple[ObservedLimit, ...] = (),
        *,
        closed: tuple[int, ...] = (),
        closed_for: Micros = 0,
        answered: bool = True,
    ) -> None:
        if self.settled:
            return
        self.settled = True
        self.counted, self.observed, self._answered = counted, observed, answered
        self.closed, self.closed_for = closed, closed_for
        self._leases.settled(self)

    def settlement(self, now: Micros, pool: Pool) -> Settlement:
        """Settlement of a lease that has ended, as durations from `now`, by the limits that the pool has now."""
        if self.counted is None:
            return Unsent(self.id)
        age = now - self.counted
        if not self.closed and not self.observed:
            return Spent(self.id, age, answered=self._answered)
        if self.pool is pool and not self.closed:
            seen = self.observed
            held = [ObservedLimit(limit, left, reset - age) for limit, left, reset in seen if _holds(reset, age)]
            return Spent(self.id, age, tuple(held))
        same = same_limits(self.pool, pool)
        if closed := tuple([same[limit] for limit in self.closed if limit in same]):
            return Throttled(self.id, age, self.closed_for - age, closed)
        before, after = self.pool.limits, pool.limits
        observed = [
            ObservedLimit(same[limit], remaining, reset - age)
            for limit, remaining, reset in self.observed
            if limit in same and before[limit].requests == after[same[limit]].requests and _holds(reset, age)
        ]
        return Spent(self.id, age, tuple(observed))

    def __enter__(self) -> Self:
        return self

    def close(self) -> None:
        """End the exchange with the upstream; a lease that is not settled yet is settled as lost."""
        if not self.settled:
            self.lost()
        self._leases.ended(self)

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Lease {self.id} on {self.key.name} for {self.client}{' settled' if self.settled else ''}>"


def _holds(reset: Micros, age: Micros) -> bool:
    """Whether an observation is worth reporting: once its window may be over, tokens counted by then have returned."""
    return reset - (ROUNDING if age > PROMPT else 0) > age


class OutstandingLeases:
    """The leases of one scheduler: in use, not settled yet, and settled but not reported to the store yet.

    `on_settled` is called when it is known how a lease ended, and `on_ended` when its exchange with the upstream is
    over.
    """

    def __init__(
        self,
        clock: Callable[[], Micros],
        settle_bound: Micros,
        on_settled: Callable[[Lease], None],
        on_ended: Callable[[Lease], None],
    ) -> None:
        self.clock = clock
        self.settle_bound = settle_bound
        """How long after it was written a request may be counted whose connection ended without an answer."""
        self.in_use: set[Lease] = set()
        self.unsettled: set[Lease] = set()
        self.granted = RecentCounts()
        """Leases by client."""
        self._on_settled = on_settled
        self._on_ended = on_ended
        self._unreported: list[Lease] = []

    def add(self, lease: Lease) -> None:
        """A caller has got a lease."""
        self.in_use.add(lease)
        self.unsettled.add(lease)
        self.granted.add(lease.client, lease.granted)

    def settled(self, lease: Lease) -> None:
        """It is known how a lease ended."""
        self.unsettled.discard(lease)
        self._unreported.append(lease)
        self._on_settled(lease)

    def ended(self, lease: Lease) -> None:
        """The exchange with the upstream that a lease was for is over."""
        if lease in self.in_use:
            self.in_use.remove(lease)
            self._on_ended(lease)

    def take_settled(self) -> list[Lease]:
        """The settled leases to report, in order; they count as reported unless `not_reported` says otherwise."""
        taken, self._unreported = self._unreported, []
        return taken

    def not_reported(self, leases: Iterable[Lease]) -> None:
        """The store did not hear of these: report them again, before those settled since."""
        self._unreported[:0] = leases

    @property
    def unreported(self) -> bool:
        """Whether the store is to be told anything."""
        return bool(self._unreported)

    def __repr__(self) -> str:
        return (
            f"<OutstandingLeases {len(self.in_use)} in use, {len(self.unsettled)} unsettled, "
            f"{len(self._unreported)} to report>"
        )
