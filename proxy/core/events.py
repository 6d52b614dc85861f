"""What happened, as values: lower floors emit them, telemetry turns them into metrics, logs and traces."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from proxy.core.model import Micros
from proxy.core.values import value_object

Outcome = Literal["forwarded", "refused", "failed", "gone"]


@dataclass(slots=True)
class Journal:
    """One request's story, filled in on its way and read once at its end. Durations in microseconds.

    `outcome`: `forwarded` an upstream's answer reached the caller whole, `refused` the proxy answered itself,
    `failed` the upstream broke its answer off or never gave one, `gone` the caller left first.
    """

    id: str = ""
    method: str = ""
    path: str = ""
    """Without its query."""
    client: str = ""
    pool: str = ""
    key: str = ""
    code: int = 0
    outcome: Outcome = "gone"
    reason: str = ""
    """Why it was refused or failed: a label of `refused_total`."""
    queued: Micros = 0
    """Spent waiting for leases."""
    upstream: Micros = 0
    """From the first byte sent to the head of the answer, over all tries."""
    streamed: Micros = 0
    """From the head of the answer to its end."""
    total: Micros = 0
    tries: int = 0
    received: int = 0
    """Bytes of the request's body."""
    sent: int = 0
    """Bytes of the answer's body."""


@value_object
class UpstreamAnswered:
    """An answer's head arrived (or a try failed: code 0)."""

    pool: str
    key: str
    code: int


@value_object
class UpstreamThrottled:
    """The upstream answered 429: `window` a limit of requests per time, `plan` a quota that no waiting cures."""

    pool: str
    key: str
    quota: str
    kind: Literal["window", "plan"]
    wait: Micros


@value_object
class Retried:
    """A request goes out once more."""

    pool: str
    reason: Literal["throttled", "unreachable", "broken", "late"]


@value_object
class Exchanged:
    """One round trip to the store."""

    pool: str
    seconds: float
    grants: int


Event = Journal | UpstreamAnswered | UpstreamThrottled | Retried | Exchanged


class Observer(Protocol):
    """Whoever wants to know. Called synchronously on the way: it must be quick and must not raise."""

    def observe(self, event: Event) -> None:
        """Take note of an event."""


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
    """What waits for one client of a pool: a gauge."""

    pool: str
    client: str
    waiting: int


@dataclass(frozen=True, slots=True)
class Levels:
    """The gauges of one moment."""

    buckets: Sequence[BucketLevel]
    lanes: Sequence[LaneLevel]
    in_flight: Sequence[tuple[str, int]]
    """Pool and requests that hold a lease."""
