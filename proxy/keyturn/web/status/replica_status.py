"""The status of a replica at one moment. Instants (epoch) and durations are in microseconds.

There is no field for a secret: names, states, counts and times only (law 11).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from keyturn.core.health import State
from keyturn.core.inferred_limits import HigherLimit
from keyturn.core.model import Micros
from keyturn.core.recent import ZERO_COUNT, Count

SLICES = 12
"""Parts of the window by which returning tokens are grouped, whatever the size of the limit."""


@dataclass(frozen=True, slots=True)
class KeyStatus:
    """A key: the state that it is in, why, since when, and until when if that is known."""

    name: str
    quota: str
    state: State
    since: Micros
    reason: str = ""
    until: Micros | None = None
    month_remaining: int | None = None
    """Requests left of the month's plan, as the upstream last reported."""


@dataclass(frozen=True, slots=True)
class Returning:
    """Tokens that are back within a time from now, and not within that of the entry before."""

    within: Micros
    tokens: int


@dataclass(frozen=True, slots=True)
class BucketStatus:
    """The tokens of one limit of one quota; those that cool down are grouped by when they return (`calendar`)."""

    limit: str
    size: int
    window: Micros
    available: int
    in_use: int
    cooling_down: Sequence[Returning] = ()


@dataclass(frozen=True, slots=True)
class QuotaStatus:
    """One quota, with its buckets in the order of the pool's limits."""

    name: str
    buckets: Sequence[BucketStatus]


@dataclass(frozen=True, slots=True)
class QueueStatus:
    """The waiting requests of one client and one demand class."""

    limits: Sequence[str]
    waiting: int
    longest_wait: Micros
    """How long its oldest request has waited."""
    estimated_wait: Micros | None = None
    """Time until its first request is expected to be served; `None` when no token is expected."""
    pinned: str | None = None


@dataclass(frozen=True, slots=True)
class ClientStatus:
    """A client of a pool: the leases that it got in the last minute, and its queues."""

    name: str
    weight: int
    granted: int
    """Leases in the last minute."""
    queues: Sequence[QueueStatus] = ()

    @property
    def active(self) -> bool:
        """Whether it got a lease in the last minute or waits for one; only active clients have a fair share."""
        return bool(self.granted or self.queues)


@dataclass(frozen=True, slots=True)
class OutageStatus:
    """An upstream that is left alone because it is out of order: since when, why, and when it is tried again.

    For the whole pool, for one client, or for one route of it.
    """

    since: Micros
    cause: str
    until: Micros
    client: str = ""
    route: str = ""


@dataclass(frozen=True, slots=True)
class FailureStatus:
    """A request that failed at the upstream: when, and why in words."""

    at: Micros
    cause: str


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """A pool: its keys, its quotas, and its clients."""

    name: str
    keys: Sequence[KeyStatus]
    quotas: Sequence[QuotaStatus]
    clients: Sequence[ClientStatus]
    in_flight: int = 0
    refused: Count = ZERO_COUNT
    throttled: Count = ZERO_COUNT
    """Answers 429 of the upstream."""
    failed: Count = ZERO_COUNT
    """Requests that failed at the upstream: no connection, no answer, or one that broke off."""
    failure: FailureStatus | None = None
    """The last of them."""
    outage: OutageStatus | None = None
    failing: Sequence[OutageStatus] = ()
    """Clients, and routes of clients, that are left alone while the others go on; those that failed last."""
    higher: Sequence[HigherLimit] = ()
    """Limits of which the upstream permits more than is configured."""


@dataclass(frozen=True, slots=True)
class StoreStatus:
    """Where the buckets live, whether it answers, since when, and the cause when it does not."""

    kind: str
    up: bool
    since: Micros
    replicas: int = 1
    """Seen by the store of late, this one counted."""
    cause: str = ""
    on_loss: str = ""


@dataclass(frozen=True, slots=True)
class ReloadStatus:
    """The last reload of the configuration, and why it was refused if it was."""

    at: Micros
    ok: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ProcessStatus:
    """The process: what runs, since when, and why it is not ready if it is not."""

    replica: str
    version: str
    python: str
    started: Micros
    draining: bool = False
    unready: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """All that the page shows, of one moment (`at`, epoch)."""

    at: Micros
    process: ProcessStatus
    store: StoreStatus
    pools: Sequence[PoolStatus]
    reload: ReloadStatus | None = None
    refused: Mapping[str, Count] = field(default_factory=dict)
    """Counts by reason, those of callers without a pool included."""


def calendar(delays: Iterable[Micros], window: Micros) -> tuple[Returning, ...]:
    """Count tokens together by the slice of the window in which they return; at most `SLICES` + 1 entries.

    Args:
        delays: of each token, the time until it returns.
        window: the (stretched) window; what returns later than that is one entry of its own.
    """
    width = max(1, -(-window // SLICES))
    slices: dict[int, Returning] = {}
    for delay in sorted(max(0, delay) for delay in delays):
        index = min(delay // width, SLICES)
        before = slices.get(index)
        slices[index] = Returning(delay, before.tokens + 1 if before else 1)
    return tuple(slices.values())
