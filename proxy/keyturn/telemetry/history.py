"""What is remembered of the past for whoever looks at the status: counts of the last minute, and last changes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from keyturn.core.events import Event, Reloaded, RequestLog, StoreChanged, UpstreamThrottled
from keyturn.core.model import Micros
from keyturn.core.recent import Count, RecentCounts


@dataclass(frozen=True, slots=True)
class LastReload:
    """The last reload of the configuration: when (epoch), and why it was refused if it was."""

    at: Micros
    ok: bool
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LastFailure:
    """The last request of a pool that failed at the upstream: when (epoch), and what failed, in words."""

    at: Micros
    cause: str


class History:
    """Hears every event, and keeps a little of some. `clock` is monotonic, `wall` epoch, both in microseconds."""

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
        """Since when (epoch) the store has answered, or has not."""
        self.reload: LastReload | None = None

    def observe(self, event: Event) -> None:
        """Take note of an event."""
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
        """Whether the store does not answer, to any of the pools."""
        return bool(self._lost)

    @property
    def cause(self) -> str:
        """Why it does not."""
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
        """The last one of a pool."""
        return self._failures.get(pool)

    def throttled(self) -> Mapping[str, Count]:
        """Answers 429 of the upstream by pool."""
        return self._throttled.counts(self._clock())
