"""Leases as the gateway holds them: the right to send one request, settled exactly once (laws 2 and 10)."""

from collections.abc import Callable
from typing import Protocol, Self

from proxy.core.exchange import Grant, Seen, Settlement, Spent, Throttled, Unsent
from proxy.core.model import Key, Micros
from proxy.core.values import value_object


@value_object
class Counted:
    """When a request was surely counted by the upstream, and what its answer told.

    Of a 429 what it closed, and for how long from then; of others how much of which limit was left, until when.
    """

    instant: Micros
    park: Micros = 0
    limits: tuple[int, ...] = ()
    seen: tuple[Seen, ...] = ()


@value_object
class Ending:
    """How a lease ended; `counted` is `None` when nothing was sent."""

    lease: "Lease"
    counted: Counted | None

    def settlement(self, now: Micros) -> Settlement:
        """What the store is told, as durations from `now`."""
        counted = self.counted
        if counted is None:
            return Unsent(self.lease.id)
        age = now - counted.instant
        if counted.limits:
            return Throttled(self.lease.id, age, counted.park - age, counted.limits)
        seen = tuple([Seen(one.limit, one.remaining, max(0, one.reset - age)) for one in counted.seen])
        return Spent(self.lease.id, age, seen)


class Office(Protocol):
    """Where leases are settled."""

    @property
    def clock(self) -> Callable[[], Micros]:
        """The store's or the process's monotonic clock, in microseconds."""

    @property
    def settle_bound(self) -> Micros:
        """How long after it was written a request is surely counted."""

    def settle(self, ending: "Ending") -> None:
        """Take note of how a lease ended."""

    def ended(self, lease: "Lease") -> None:
        """The exchange that a lease was for is over."""


class Lease:
    """The right to send one request now; it is settled exactly once, at the latest at the end of its `with` block."""

    __slots__ = ("_office", "_settled", "_written", "id", "key", "limits", "probe", "quota", "use_by")

    def __init__(self, office: Office, grant: Grant, key: Key, use_by: Micros) -> None:
        self._office = office
        self._settled = False
        self._written: Micros | None = None
        self.id = grant.lease
        self.quota = grant.quota
        self.probe = grant.probe
        self.limits = grant.lane.kind.limits
        self.key = key
        self.use_by = use_by

    def fresh(self) -> bool:
        """Whether it may still be used: a process that was paused does not send on an old lease (law 10)."""
        return self._office.clock() < self.use_by

    def written(self) -> None:
        """The last byte of the request is out: it is counted `settle_bound` from now at the latest."""
        self._written = self._office.clock()

    def spent(self, seen: tuple[Seen, ...] = ()) -> None:
        """The head of the answer is here: the request was counted before now. `seen` is what it told, from now."""
        self._settle(Counted(self._office.clock(), seen=seen))

    def unsent(self) -> None:
        """No byte of the request has left: the tokens return now."""
        self._settle(None)

    def throttled(self, park: Micros, limits: tuple[int, ...]) -> None:
        """The upstream answered 429: close these limits' buckets for `park`."""
        self._settle(Counted(self._office.clock(), park, limits))

    def lost(self) -> None:
        """Bytes went out and no answer came: the request may be counted for `settle_bound` yet."""
        written = self._written if self._written is not None else self._office.clock()
        self._settle(Counted(written + self._office.settle_bound))

    def overdue(self, now: Micros) -> bool:
        """Whether it was written so long ago that it is counted, answer or not."""
        return self._written is not None and self._written + self._office.settle_bound <= now

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
