"""The metrics of one process: the table of docs/observability.md."""

import platform
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.exposition import choose_encoder

from proxy import __version__
from proxy.core.events import (
    AttemptFailed,
    ConnectionEnded,
    Event,
    Exchanged,
    ForeignSpent,
    Joined,
    Journal,
    Levels,
    Reloaded,
    Retried,
    UpstreamAnswered,
    UpstreamThrottled,
)
from proxy.core.model import SECOND
from proxy.telemetry import labels
from proxy.telemetry.gauges import LevelsCollector
from proxy.telemetry.labels import NOBODY
from proxy.telemetry.series import Counter, Histogram, Labels

WAITS = (0.001, 0.005, 0.02, 0.1, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300)
"""Seconds: a wait may last up to `queue.max_wait_ceiling`."""

TRIPS = (0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 310)
OVERHEADS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2)
ROUND_TRIPS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.1, 0.5)


class Metrics:
    """The metrics of one process, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter(
            "requests",
            "Requests by how they ended: forwarded, refused, failed upstream, or the caller gone.",
            ("pool", "client", "method", "code", "outcome"),
        )
        self.refused = self._counter(
            "refused", "Requests that the proxy answered itself, and why.", ("pool", "client", "reason")
        )
        self.retries = self._counter("retries", "Requests sent once more, and why.", ("pool", "reason"))
        self.joined = self._counter(
            "joined", "Requests that got the answer of an identical one and cost no token.", ("pool", "client")
        )
        self.answers = self._counter(
            "upstream_responses", "Answers of the upstream; code 0: none came.", ("pool", "key", "code")
        )
        self.throttled = self._counter(
            "upstream_throttled", "Answers 429 of the upstream: the number that should stay 0.", ("pool", "key", "kind")
        )
        self.seconds = self._histogram(
            "request_seconds", "A request from its head to its answer's end.", ("pool", "client"), WAITS
        )
        self.waited = self._histogram(
            "queue_wait_seconds", "What a request waited for its turn.", ("pool", "client"), WAITS
        )
        self.upstream = self._histogram(
            "upstream_seconds", "From sending to the head of the answer, all tries.", ("pool",), TRIPS
        )
        self.overhead = self._histogram(
            "overhead_seconds", "A request's time less its waiting and the upstream's.", ("pool",), OVERHEADS
        )
        self.exchanges = self._histogram("exchange_seconds", "A round trip to the store.", ("pool",), ROUND_TRIPS)
        self.grants = self._histogram(
            "exchange_grants", "Leases granted in a round trip.", ("pool",), (0, 1, 2, 5, 10, 50, 200)
        )
        self.foreign = self._counter("foreign_tokens", "Tokens that somebody else spent.", ("pool", "quota"))
        self.failed = self._counter(
            "failed_attempts", "Callers that were not let in, and when that was answered.", ("why", "answered")
        )
        self.ended = self._counter(
            "connections_ended", "Callers' connections that were refused, or ended before their time.", ("why",)
        )
        self.reloads_refused = self._counter("reload_refused", "Configurations refused for their problems.", ())
        self.reloads_refused.add((), 0)
        self.reloaded = Gauge("keyturn_reload_success", "Whether the last reload was taken.", registry=self.registry)
        self.reloaded.set(1)
        build = Gauge("keyturn_build_info", "What runs.", ("version", "python"), registry=self.registry)
        build.labels(__version__, platform.python_version()).set(1)

    def _counter(self, name: str, text: str, names: Labels) -> Counter:
        counter = Counter(f"keyturn_{name}", text, names)
        self.registry.register(counter)
        return counter

    def _histogram(self, name: str, text: str, names: Labels, bounds: tuple[float, ...]) -> Histogram:
        histogram = Histogram(f"keyturn_{name}", text, names, bounds)
        self.registry.register(histogram)
        return histogram

    def watch(self, levels: Callable[[], Levels]) -> None:
        """Ask `levels` for the gauges at each scrape."""
        self.registry.register(LevelsCollector(levels))

    def observe(self, event: Event) -> None:
        """Count an event."""
        match event:
            case Journal():
                self._request(event)
            case UpstreamAnswered(pool, key, code):
                self.answers.add((pool, key, labels.code(code)))
            case ForeignSpent(pool, quota, tokens):
                self.foreign.add((pool, quota), tokens)
            case Exchanged(pool, seconds, grants):
                self.exchanges.add((pool,), seconds)
                self.grants.add((pool,), grants)
            case UpstreamThrottled(pool, key, _, kind):
                self.throttled.add((pool, key, kind))
            case Joined(pool, client):
                self.joined.add((pool, client))
            case Retried(pool, reason):
                self.retries.add((pool, reason))
            case _:
                self._door_or_process(event)

    def _door_or_process(self, event: Event) -> None:
        match event:
            case AttemptFailed(_, why, answered):
                self.failed.add((why, answered))
            case ConnectionEnded(why):
                self.ended.add((why,))
            case Reloaded(ok):
                self.reloaded.set(int(ok))
                self.reloads_refused.add((), int(not ok))

    def _request(self, journal: Journal) -> None:
        pool, client = journal.pool or NOBODY, journal.client or NOBODY
        self.requests.add((pool, client, labels.method(journal.method), labels.code(journal.code), journal.outcome))
        self.seconds.add((pool, client), journal.total / SECOND)
        if journal.outcome == "refused":
            self.refused.add((pool, client, journal.reason))
        if journal.tries or journal.queued:
            self.waited.add((pool, client), journal.queued / SECOND)
        if journal.tries:
            own = journal.total - journal.queued - journal.upstream - journal.streamed
            self.upstream.add((pool,), journal.upstream / SECOND)
            self.overhead.add((pool,), max(0, own) / SECOND)

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """The metrics in the form that a scraper accepts, and its content type."""
        encoder, content_type = choose_encoder(accept)
        return encoder(self.registry), content_type
