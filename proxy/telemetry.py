"""Metrics and logs, from the value objects that lower floors emit.

Labels are bounded: names come from the configuration, methods and codes are folded to known ones. Nothing here sees a
secret, a query or a header; what libraries log is freed of what looks like a credential (law 11).
"""

import logging
import platform
import re
import sys
from bisect import bisect_left
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from http import HTTPStatus
from itertools import accumulate
from typing import Any, Literal

import structlog
from aiohttp.http_exceptions import HttpProcessingError
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString
from structlog.typing import Processor

from proxy import __version__
from proxy.core.events import (
    AttemptFailed,
    BucketLevel,
    EraBegan,
    Event,
    Exchanged,
    ForeignSpent,
    Journal,
    Levels,
    Reloaded,
    Retried,
    StoreChanged,
    UpstreamAnswered,
    UpstreamThrottled,
)
from proxy.core.model import SECOND

Labels = tuple[str, ...]

METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
CODES = {status.value: str(status.value) for status in HTTPStatus}

NOBODY = "none"
"""Stands for the client of a request whose caller is not known."""

WAITS = (0.001, 0.005, 0.02, 0.1, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300)
"""Seconds: a wait may last up to `queue.max_wait_ceiling`."""

TRIPS = (0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 310)
OVERHEADS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2)
ROUND_TRIPS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.1, 0.5)


# prometheus_client's own counters and histograms take a lock for each number and walk through the buckets. Here one
# thread counts, and every request does so about ten times: plain numbers, put into families when somebody asks.


class _Counter(Collector):
    """A counter for each set of labels; as bounded as the labels are."""

    def __init__(self, name: str, text: str, labels: Labels) -> None:
        self._name = name
        self._text = text
        self._labels = labels
        self._counts: dict[Labels, int] = {}

    def add(self, labels: Labels, number: int = 1) -> None:
        """Count so many."""
        self._counts[labels] = self._counts.get(labels, 0) + number

    def collect(self) -> Iterator[CounterMetricFamily]:
        family = CounterMetricFamily(self._name, self._text, labels=self._labels)
        for labels, count in self._counts.items():
            family.add_metric(labels, count)
        yield family

    def __len__(self) -> int:
        return len(self._counts)


class _Histogram(Collector):
    """How many values fell into each bucket, and their sum, for each set of labels; as bounded as the labels are."""

    def __init__(self, name: str, text: str, labels: Labels, bounds: tuple[float, ...]) -> None:
        self._name = name
        self._text = text
        self._labels = labels
        self._bounds = bounds
        self._buckets: dict[Labels, list[int]] = {}
        self._sums: dict[Labels, float] = {}

    def add(self, labels: Labels, value: float) -> None:
        """Take a value; a bound belongs to the bucket below it."""
        buckets = self._buckets.get(labels)
        if buckets is None:
            buckets = self._buckets[labels] = [0] * (len(self._bounds) + 1)
        buckets[bisect_left(self._bounds, value)] += 1
        self._sums[labels] = self._sums.get(labels, 0.0) + value

    def collect(self) -> Iterator[HistogramMetricFamily]:
        family = HistogramMetricFamily(self._name, self._text, labels=self._labels)
        names = [*map(floatToGoString, self._bounds), "+Inf"]
        for labels, buckets in self._buckets.items():
            family.add_metric(labels, list(zip(names, accumulate(buckets), strict=True)), self._sums[labels])
        yield family


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
        self.reloads_refused = self._counter("reload_refused", "Configurations refused for their problems.", ())
        self.reloads_refused.add((), 0)
        self.reloaded = Gauge("keyturn_reload_success", "Whether the last reload was taken.", registry=self.registry)
        self.reloaded.set(1)
        build = Gauge("keyturn_build_info", "What runs.", ("version", "python"), registry=self.registry)
        build.labels(__version__, platform.python_version()).set(1)

    def _counter(self, name: str, text: str, labels: Labels) -> _Counter:
        counter = _Counter(f"keyturn_{name}", text, labels)
        self.registry.register(counter)
        return counter

    def _histogram(self, name: str, text: str, labels: Labels, bounds: tuple[float, ...]) -> _Histogram:
        histogram = _Histogram(f"keyturn_{name}", text, labels, bounds)
        self.registry.register(histogram)
        return histogram

    def watch(self, levels: Callable[[], Levels]) -> None:
        """Ask `levels` for the gauges at each scrape."""
        self.registry.register(_LevelsCollector(levels))

    def observe(self, event: Event) -> None:
        """Count an event."""
        match event:
            case Journal():
                self._request(event)
            case UpstreamAnswered(pool, key, code):
                self.answers.add((pool, key, _code(code)))
            case ForeignSpent(pool, quota, tokens):
                self.foreign.add((pool, quota), tokens)
            case AttemptFailed(_, why, answered):
                self.failed.add((why, answered))
            case Exchanged(pool, seconds, grants):
                self.exchanges.add((pool,), seconds)
                self.grants.add((pool,), grants)
            case UpstreamThrottled(pool, key, _, kind):
                self.throttled.add((pool, key, kind))
            case Retried(pool, reason):
                self.retries.add((pool, reason))
            case Reloaded(ok):
                self.reloaded.set(int(ok))
                self.reloads_refused.add((), int(not ok))

    def _request(self, journal: Journal) -> None:
        pool, client = journal.pool or NOBODY, journal.client or NOBODY
        self.requests.add((pool, client, _method(journal.method), _code(journal.code), journal.outcome))
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


class _LevelsCollector(Collector):
    """Gauges that are read when they are asked for."""

    def __init__(self, levels: Callable[[], Levels]) -> None:
        self._levels = levels

    def describe(self) -> Iterable[GaugeMetricFamily]:
        return self._families()

    def collect(self) -> Iterator[Metric]:
        waiting, in_flight, at_hand, size = families = self._families()
        levels = self._levels()
        _add_sums(waiting, (((lane.pool, lane.client), lane.waiting) for lane in levels.lanes))
        _add_sums(in_flight, (((pool,), number) for pool, number in levels.in_flight))
        for labels, bucket in _distinct(levels.buckets):
            at_hand.add_metric(labels, bucket.at_hand)
            size.add_metric(labels, bucket.size)
        yield from families
        up = GaugeMetricFamily("keyturn_store_up", "Whether the store of the tokens answers.")
        up.add_metric((), int(levels.store_up))
        yield up
        degraded = CounterMetricFamily("keyturn_degraded_seconds", "Seconds without the store of the tokens.")
        degraded.add_metric((), levels.degraded)
        yield degraded

    def _families(self) -> tuple[GaugeMetricFamily, GaugeMetricFamily, GaugeMetricFamily, GaugeMetricFamily]:
        return (
            GaugeMetricFamily("keyturn_waiting", "Requests that wait for their turn.", labels=("pool", "client")),
            GaugeMetricFamily("keyturn_in_flight", "Requests that hold a lease.", labels=("pool",)),
            GaugeMetricFamily(
                "keyturn_tokens_at_hand", "Requests that a quota may send now.", labels=("pool", "quota", "limit")
            ),
            GaugeMetricFamily(
                "keyturn_tokens_limit", "Requests per window of a quota.", labels=("pool", "quota", "limit")
            ),
        )


def _add_sums(family: GaugeMetricFamily, values: Iterable[tuple[Labels, int]]) -> None:
    """Add one sample for each set of labels: a client waits in several lanes, a scraper wants one number."""
    sums: dict[Labels, int] = {}
    for labels, value in values:
        sums[labels] = sums.get(labels, 0) + value
    for labels, value in sums.items():
        family.add_metric(labels, value)


def _distinct(buckets: Iterable[BucketLevel]) -> Iterator[tuple[Labels, BucketLevel]]:
    """Labels for each bucket: limits of one size that match different paths share a name, the later get a number."""
    seen: Tally[Labels] = Tally()
    for bucket in buckets:
        labels = (bucket.pool, bucket.quota, bucket.limit)
        seen[labels] += 1
        number = seen[labels]
        yield (labels if number == 1 else (bucket.pool, bucket.quota, f"{bucket.limit}#{number}")), bucket


class Telemetry:
    """The observer of a process: counts every event, and logs what somebody has to know."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self._log = structlog.get_logger("keyturn")

    def observe(self, event: Event) -> None:
        """See `core.events.Observer`."""
        self.metrics.observe(event)
        if isinstance(event, StoreChanged):
            self._store(event)
        elif isinstance(event, EraBegan):
            self._log.warning(
                "the store is new, restarted or behind: each key is tried with one request before it is used on",
                pool=event.pool,
            )
        elif isinstance(event, Reloaded) and event.ok:
            self._log.info("the configuration was reloaded")
        elif isinstance(event, Reloaded):
            self._log.error("the new configuration is refused, the old one goes on", problems=list(event.reasons))
        elif isinstance(event, UpstreamThrottled):
            self._log.warning(
                _THROTTLED[event.kind],
                pool=event.pool,
                key=event.key,
                quota=event.quota,
                kind=event.kind,
                wait_seconds=event.wait / SECOND,
            )

    def _store(self, event: StoreChanged) -> None:
        if event.up:
            self._log.warning("the store answers again", pool=event.pool, lost_seconds=round(event.seconds, 1))
        else:
            self._log.error(_LOST[event.on_loss], pool=event.pool, cause=event.cause)


_LOST = {
    "share": "the store does not answer: going on with this replica's share of the limits",
    "wait": "the store does not answer: requests wait for it",
    "refuse": "the store does not answer: requests are refused with 503",
}

_THROTTLED = {
    "window": "the upstream answered 429: somebody else uses this key, or its limit is lower than configured",
    "endpoint": "the upstream answered 429 by a narrower limit on some endpoints: add it to `limits`, with `match`",
    "plan": "the upstream answered 429: the plan of this key's team is used up, which no waiting cures",
}


def set_up_logs(level: str, form: Literal["text", "json"] | None) -> None:
    """Log to stderr: text on a terminal, JSON elsewhere, unless the form is given; also what libraries log.

    Tracebacks come without the values of local variables. Access logs of aiohttp stay off: they show queries.
    """
    as_text = sys.stderr.isatty() if form is None else form == "text"
    shared: list[Processor] = [
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                _without_what_was_sent,
                structlog.processors.format_exc_info,
                _without_credentials,
                _renderer(as_text=as_text),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    logging.getLogger("aiohttp.access").setLevel(logging.CRITICAL)


def _renderer(*, as_text: bool) -> Processor:
    if not as_text:
        return structlog.processors.JSONRenderer()
    # Its default shows local variables where rich is installed, and so whatever a request carried.
    return structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)


_CREDENTIAL = re.compile(
    r"(\b(?:api_?key=|access_key=|x-api-key\W{1,4}|authorization\W{1,4}(?:\w+\s+)?|bearer\s+))[^\s&\"',;]+"
    r"|\bPMAK-[\w-]+",
    re.IGNORECASE,
)


def _without_credentials(_: Any, __: str, entry: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Put `…` for what looks like a credential in any text of an entry."""
    for name, value in entry.items():
        if isinstance(value, str):
            entry[name] = _CREDENTIAL.sub(lambda found: f"{found[1] or ''}…", value)
    return entry


def _without_what_was_sent(_: Any, __: str, entry: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Of what aiohttp could not parse, only the kind of mistake: its message quotes the bytes."""
    exc_info = entry.get("exc_info")
    problem = exc_info[1] if isinstance(exc_info, tuple) else exc_info
    if isinstance(problem, HttpProcessingError):
        entry["exc_info"] = None
        entry["problem"] = type(problem).__name__
    return entry


def _method(method: str) -> str:
    return method if method in METHODS else "other"


def _code(code: int) -> str:
    """A known status code, the class of an unknown one (`4xx`), or `0` for none."""
    return CODES.get(code) or (f"{code // 100}xx" if 100 <= code <= 599 else "0")  # noqa: PLR2004  # RFC 9110, 15
