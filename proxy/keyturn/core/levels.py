"""The values of all gauges at one time, which telemetry writes as metrics."""

from collections.abc import Sequence
from dataclasses import dataclass

from keyturn.core.health import KeySnapshot
from keyturn.core.inferred_limits import HigherLimit
from keyturn.core.model import Micros


@dataclass(frozen=True, slots=True)
class BucketLevel:
    """Tokens of one bucket."""

    pool: str
    quota: str
    limit: str
    available: int
    size: int


@dataclass(frozen=True, slots=True)
class ClientLevel:
    """Waiting requests of one client of a pool, and the estimated wait of one more, if that is known."""

    pool: str
    client: str
    waiting: int
    estimated_wait: Micros | None = None


@dataclass(frozen=True, slots=True)
class BreakerLevel:
    """How many breakers of a scope (`pool`, `client`, `route`) are open."""

    pool: str
    scope: str
    open: int


@dataclass(frozen=True, slots=True)
class Levels:
    """The gauges of one moment; those of a pool that have no type of their own are pairs, the pool's name first."""

    buckets: Sequence[BucketLevel]
    clients: Sequence[ClientLevel]
    in_flight: Sequence[tuple[str, int]]
    """Pool and requests that hold a lease."""
    connections: int = 0
    """Open on the data listeners."""
    bodies: Sequence[tuple[str, int]] = ()
    """Where bodies of requests are kept (`memory`, `file`), and the bytes that they take there."""
    upstream_connections: int = 0
    """To the upstream that are in use, or being made."""
    upstream_connections_limit: int = 0
    buffered: int = 0
    """Bytes that requests hold on their way in."""
    keys: Sequence[tuple[str, KeySnapshot]] = ()
    breakers: Sequence[BreakerLevel] = ()
    store_up: bool = True
    degraded: float = 0.0
    """Seconds without the store, so far."""
    higher: Sequence[tuple[str, HigherLimit]] = ()
    log_lines_dropped: int = 0
    """Lines of the log that were not written, so far."""
