"""The gauges of one moment, as values: whoever is asked fills them in, telemetry writes them as metrics."""

from collections.abc import Sequence
from dataclasses import dataclass

from keyturn.core.health import KeySnapshot
from keyturn.core.inferred_limits import HigherLimit
from keyturn.core.model import Micros


@dataclass(frozen=True, slots=True)
class BucketLevel:
    """Tokens of one bucket as it stands: a gauge."""

    pool: str
    quota: str
    limit: str
    at_hand: int
    size: int


@dataclass(frozen=True, slots=True)
class LaneLevel:
    """What waits for one client of a pool, and what one more request would wait, if that is known: gauges."""

    pool: str
    client: str
    waiting: int
    turn: Micros | None = None


@dataclass(frozen=True, slots=True)
class KeyLevel:
    """A key as it stands: gauges of its state, and of what its month's plan still holds."""

    pool: str
    look: KeySnapshot


@dataclass(frozen=True, slots=True)
class BreakerLevel:
    """How many breakers of a scope (`pool`, `client`, `route`) are open: a gauge."""

    pool: str
    scope: str
    open: int


@dataclass(frozen=True, slots=True)
class Levels:
    """The gauges of one moment."""

    buckets: Sequence[BucketLevel]
    lanes: Sequence[LaneLevel]
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
    keys: Sequence[KeyLevel] = ()
    breakers: Sequence[BreakerLevel] = ()
    store_up: bool = True
    degraded: float = 0.0
    """Seconds without the store, so far."""
    higher: Sequence[tuple[str, HigherLimit]] = ()
    log_lines_dropped: int = 0
    """Lines of the log that were not written, so far."""
