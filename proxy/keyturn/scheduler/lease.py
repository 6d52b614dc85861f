"""Leases as the gateway holds them: the right to send one request, settled exactly once (laws 2 and 10)."""

from collections.abc import Callable, Sequence
from typing import Protocol, Self

from keyturn.core.exchange import LeaseGrant, LimitTokens, ObservedLimit, Settlement, Spent, Throttled, Unsent
from keyturn.core.messages import same_limits
from keyturn.core.model import MILLISECOND, Key, Micros, Pool
from keyturn.core.moments import ROUNDING
from keyturn.core.values import value_object

PROMPT: Micros = 100 * MILLISECOND
"""What is told within this time has hardly been overtaken."""

SURPRISE = 20
"""Which part of a limit an answer may differ from what is known, before the store is told at once."""


@value_object
class Counted:
    """When a request was surely counted by the upstream, and what its answer told.

    Of a 429 what it closed, and for how long from then; of others how much of which limit was left, until when.
    """

    instant: Micros
    park: Micros = 0
    limits: tuple[int, ...] = ()
    seen: tuple[ObservedLimit, ...] = ()
    answered: bool = True


@value_object
class Ending:
    """How a lease ended; `counted` is `None` when nothing was sent."""

    lease: "Lease"
    counted: Counted | None

    def settlement(self, now: Micros, pool: Pool) -> Settlement:
        """What the store is told, as durations from `now`, in terms of the pool's limits as they are now."""
        counted = self.counted
        if counted is None:
            return Unsent(self.lease.id)
        age = now - counted.instant
        if not counted.limits and not counted.seen:
            return Spent(self.lease.id, age, answered=counted.answered)
        before = self.lease.pool
        if before is pool and not counted.limits:
            return Spent(self.lease.id, age, tuple([_aged(one, age) for one in counted.seen if _stands(one, age)]))
        same = same_limits(before, pool)
        if closed := tuple([same[limit] for limit in counted.limits if limit in same]):
            return Throttled(self.lease.id, age, counted.park - age, closed)
        seen = [
            ObservedLimit(same[one.limit], one.remaining, one.reset - age)
            for one in counted.seen
            if one.limit in same and _size(before, one.limit) == _size(pool, same[one.limit]) and _stands(one, age)
        ]
        return Spent(self.lease.id, age, tuple(seen))


def _aged(seen: ObservedLimit, age: Micros) -> ObservedLimit:
    return ObservedLimit(seen.limit, seen.remaining, seen.reset - age)


def _size(pool: Pool, limit: int) -> int:
    return pool.limits[limit].requests


def _stands(seen: ObservedLimit, age: Micros) -> bool:
    """Whether what was seen is worth telling: once its window may be over, tokens counted by then have returned."""
    return seen.reset - (ROUNDING if age > PROMPT else 0) > age


def surprising(counted: Counted, budgets: Sequence[LimitTokens], quotas: int) -> bool:
    """Whether a bucket holds clearly less than its pool's buckets do on average: somebody else spends (law 9)."""
    for one in counted.seen:
        if one.limit < len(budgets):
            budget = budgets[one.limit]
            if (one.remaining + 1) * quotas + budget.size // SURPRISE < budget.available:
                return True
    return False


class Office(Protocol):
    """Where leases are settled."""

    @property
    def clock(self) -> Callable[[], Micros]:
        """The store's or the process's monotonic clock, in microseconds."""

    @property
    def settle_bound(self) -> Micros:
        """How long after it was written a request may be counted whose connection has ended without an answer."""

    def settle(self, ending: "Ending") -> None:
        """Take note of how a lease ended."""

    def ended(self, lease: "Lease") -> None:
        """The exchange that a lease was for is over."""


class Lease:
    """The right to send one request now; it is settled exactly once, at the latest at the end of its `with` block."""

    __slots__ = ("_office", "_settled", "_written", "id", "key", "limits", "pool", "probe", "quota", "use_by")

    def __init__(self, office: Office, pool: Pool, grant: LeaseGrant, key: Key, use_by: Micros) -> None:
        """`pool` is as it was when the lease was asked for: the limits are its."""
        self._office = office
        self._settled = False
        self._written: Micros | None = None
        self.id = grant.lease
        self.quota = grant.quota
        self.probe = grant.probe
        self.pool = pool
        self.limits = grant.flow.demand_class.limits
        self.key = key
        self.use_by = use_by

    def fresh(self) -> bool:
        """Whether it may still be used: a process that was paused does not send on an old lease (law 10)."""
        return self._office.clock() < self.use_by

    def written(self) -> None:
        """The last byte of the request is out: should no answer come, it counts from `settle_bound` after this."""
        self._written = self._office.clock()

    def spent(self, seen: tuple[ObservedLimit, ...] = ()) -> None:
        """The head of the answer is here: the request was counted before now. `seen` is what it told, from now."""
        self._settle(Counted(self._office.clock(), seen=seen))

    def unsent(self) -> None:
        """No byte of the request has left: the tokens return now."""
        self._settle(None)

    def throttled(self, park: Micros, limits: tuple[int, ...]) -> None:
        """The upstream answered 429: close these limits' buckets for `park`."""
        self._settle(Counted(self._office.clock(), park, limits))

    def lost(self) -> None:
        """Settle a request that ended without an answer.

        It counts from now, or from `settle_bound` after it was written, whichever is later: an upstream that stands
        still may take it in until its connection ends.
        """
        now = self._office.clock()
        written = self._written if self._written is not None else now
        self._settle(Counted(max(now, written + self._office.settle_bound), answered=False))

    def _settle(self, counted: Counted | None) -> None:
        if not self._settled:
            self._settled = True
            self._office.settle(Ending(self, counted))

    def __enter__(self) -> Self:
        return self

    def close(self) -> None:
        """The exchange that it was for is over; what is not settled is settled as lost."""
        if not self._settled:
            self.lost()
        self._office.ended(self)

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Lease {self.id} on {self.key.name}{' settled' if self._settled else ''}>"
