"""The observer of a process: events become metrics, log lines, and the recent history that the status shows."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from keyturn.core.events import (
    Event,
    Exchanged,
    Reloaded,
    RequestLog,
    StoreChanged,
    UpstreamAnswered,
    UpstreamThrottled,
)
from keyturn.core.model import Micros
from keyturn.core.recent import Count, RecentCounts
from keyturn.logger import structlog
from keyturn.telemetry.access_log import AccessLog
from keyturn.telemetry.event_log import line_of
from keyturn.telemetry.metrics import Metrics


@dataclass(frozen=True, slots=True)
class LastReload:
    """The last reload of the configuration: when (epoch), and why it was refused if it was."""

    at: Micros
    ok: bool
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LastFailure:
    """The last request of a pool that failed at the upstream: when (epoch), and the cause in words."""

    at: Micros
    cause: str


class History:
    """Recent counts and last changes. `clock` is monotonic, `wall` epoch, both in microseconds."""

    def __init__(self, clock: Callable[[], Micros], wall: Callable[[], Micros]) -> None:
        self._clock = clock
        self._wall = wall
        self._refused = RecentCounts()
        self._reasons = RecentCounts()
        self._throttled = RecentCounts()
        self._failed = RecentCounts()
        self._failures: dict[str, LastFailure] = {}
        self._lost: dict[str, str] = {}
        self.store_since: Micros = wall()
        """Since when (epoch) the store has responded, or has not."""
        self.reload: LastReload | None = None

    def observe(self, event: Event) -> None:
        """Record an event."""
        match event:
            case RequestLog():
                if event.outcome == "refused":
                    self._refusal(event)
                elif event.outcome == "failed" and event.pool:
                    self._failed.add(event.pool, self._clock())
                    self._failures[event.pool] = LastFailure(self._wall(), event.problem)
            case UpstreamThrottled(pool):
                self._throttled.add(pool, self._clock())
            case StoreChanged():
                self._store(event)
            case Reloaded(ok, reasons):
                self.reload = LastReload(self._wall(), ok, reasons)

    def _refusal(self, log: RequestLog) -> None:
        now = self._clock()
        self._reasons.add(log.reason, now)
        if log.pool:
            self._refused.add(log.pool, now)

    def _store(self, event: StoreChanged) -> None:
        was = self.lost
        if event.up:
            self._lost.pop(event.pool, None)
        else:
            self._lost[event.pool] = event.cause
        if self.lost != was:
            self.store_since = self._wall()

    @property
    def lost(self) -> bool:
        """Whether any pool has lost its store."""
        return bool(self._lost)

    @property
    def cause(self) -> str:
        """The cause of that, or empty."""
        return next(iter(self._lost.values()), "")

    def refused(self) -> Mapping[str, Count]:
        """Refusals by pool."""
        return self._refused.counts(self._clock())

    def reasons(self) -> Mapping[str, Count]:
        """Refusals by reason, also of callers that belong to no pool."""
        return self._reasons.counts(self._clock())

    def failed(self) -> Mapping[str, Count]:
        """Requests that failed at the upstream, by pool."""
        return self._failed.counts(self._clock())

    def failure(self, pool: str) -> LastFailure | None:
        """The last failed request of a pool."""
        return self._failures.get(pool)

    def throttled(self) -> Mapping[str, Count]:
        """429s of the upstream, by pool."""
        return self._throttled.counts(self._clock())


_COUNTED_ONLY = (UpstreamAnswered, Exchanged)
"""Events of every request that are counted only."""


def _monotonic() -> Micros:
    return time.monotonic_ns() // 1000


def _wall() -> Micros:
    return time.time_ns() // 1000  # people read it


class Telemetry:
    """Counts events, keeps the recent history, and logs changes.

    `clock` is monotonic, `wall` epoch, both in microseconds.
    """

    def __init__(
        self,
        clock: Callable[[], Micros] = _monotonic,
        wall: Callable[[], Micros] = _wall,
        requests: AccessLog | None = None,
    ) -> None:
        self.metrics = Metrics()
        self.history = History(clock, wall)
        self._requests = requests or AccessLog()
        self._log = structlog.get_logger("keyturn")

    def observe(self, event: Event) -> None:
        """See `core.events.Observer`."""
        self.metrics.observe(event)
        if isinstance(event, _COUNTED_ONLY):
            return
        if isinstance(event, RequestLog):
            if event.outcome != "forwarded":
                self.history.observe(event)
            self._requests.write(event)
            event.trace.end(event)
            return
        self.history.observe(event)
        if line := line_of(event):
            values = {name: value for name, value in line.values.items() if value not in ("", None)}
            self._log.log(getattr(logging, line.level.upper()), line.text, **values)
