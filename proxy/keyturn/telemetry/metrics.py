"""The metrics of one process: the table of docs/observability.md."""

import platform
from collections.abc import Iterator
from http import HTTPStatus
from itertools import product
from typing import get_args

from keyturn import __version__
from keyturn.core.errors import LocalCause
from keyturn.core.events import (
    CallerRejected,
    ConnectionEnded,
    ConnectionEndReason,
    Event,
    Exchanged,
    FailedCredential,
    FailureResponse,
    ForeignSpent,
    Joined,
    LocalErrorMet,
    Reloaded,
    RequestLog,
    Retried,
    RetryReason,
    SignalsIgnored,
    SpoolFailed,
    ThrottleKind,
    UpstreamAnswered,
    UpstreamThrottled,
)
from keyturn.core.levels import Levels
from keyturn.core.model import SECOND
from keyturn.core.tracing import UNTRACED
from keyturn.telemetry.exposition import OPENMETRICS_END, Counter, Form, Gauge, Histogram, Labels, Metric, add_to
from keyturn.telemetry.gauges import gauges

METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
CODES = {status.value: str(status.value) for status in HTTPStatus}

OTHER = "other"

NOBODY = "none"
"""The pool and client labels of requests of unknown callers."""


def label_of_method(name: str) -> str:
    """A known method, or `other`."""
    return name if name in METHODS else OTHER


def label_of_code(number: int) -> str:
    """A known status code, the class of an unknown one (`4xx`), or `0` for none."""
    return CODES.get(number) or (f"{number // 100}xx" if 100 <= number <= 599 else "0")  # noqa: PLR2004  # RFC 9110, 15


WAIT_BOUNDS = (0.001, 0.005, 0.02, 0.1, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300)
"""Bounds in seconds: a wait may last up to `queue.max_wait_ceiling`."""

REQUEST_BOUNDS = (*WAIT_BOUNDS, 600)
"""Histogram bounds for a whole request: the longest wait plus the longest response."""

UPSTREAM_BOUNDS = (0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 310)
"""Histogram bounds for the upstream's time, up to `upstream.response_timeout`."""

OVERHEAD_BOUNDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2)
EXCHANGE_BOUNDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.1, 0.5)
GRANT_BOUNDS = (0, 1, 2, 5, 10, 50, 200)

IGNORED_BODY_FIELDS = ("limit", "remaining", "body")
"""Values of the `field` label of `upstream_fields_ignored_total` that are not header names."""


class Metrics:
    """The metrics of one process."""

    def __init__(self) -> None:
        self._metrics: list[Metric] = []
        self._reload_succeeded = True
        self._rows: dict[tuple[str, str], tuple[list[float], ...]] = {}
        """The histogram rows for forwarded requests, by pool and client."""
        self._about_requests()
        self._about_the_upstream()
        self._about_the_store()
        self._about_the_process()
        for why, answered in product(get_args(FailedCredential), get_args(FailureResponse)):
            self.failed.expect((why, answered))
        for why in get_args(ConnectionEndReason):
            self.ended.expect((why,))

    def _about_requests(self) -> None:
        self.requests = self._counter(
            "requests",
            "Requests that ended. outcome: forwarded (the upstream's response reached the caller in full), refused "
            "(the proxy responded itself), failed (the upstream was not reached or gave no complete response), gone "
            "(the caller disconnected first).",
            ("pool", "client", "method", "code", "outcome"),
        )
        self.refused = self._counter(
            "refused",
            "Requests that the proxy responded to itself, by reason: deadline (too late), max_in_flight, "
            "max_connections (no free connection before the deadline), queue_full, client_rate, no_key, store_lost, "
            "draining, unauthenticated, forbidden and others.",
            ("pool", "client", "reason"),
        )
        self.retries = self._counter(
            "retries",
            "Retries of requests, by reason: throttled (after a 429), unreachable, broken, late and others.",
            ("pool", "reason"),
        )
        self.joined = self._counter(
            "joined", "Requests that shared the response of an identical one and took no token.", ("pool", "client")
        )
        self.failed = self._counter(
            "authentication_failures",
            "Requests without a valid credential, by reason, and how they were answered: at_once, late (after many "
            "failures), or by closing the connection (cut).",
            ("reason", "answered"),
        )
        self.ended = self._counter(
            "connections_ended",
            "Callers' connections that were refused or closed early: too_many, too_many_per_address, "
            "head_timeout, write_timeout, slow_reader, fell_behind, malformed, proxy_protocol.",
            ("reason",),
        )
        self.seconds = self._histogram(
            "request_seconds",
            "From the header of a request to the end of its response.",
            ("pool", "client"),
            REQUEST_BOUNDS,
        )
        self.waited = self._histogram(
            "queue_wait_seconds",
            "Time that a request waited in the queue, all attempts together.",
            ("pool", "client"),
            WAIT_BOUNDS,
        )
        self.overhead = self._histogram(
            "overhead_seconds",
            "The proxy's own time: that of a request less reading its body, waiting and the upstream's time.",
            ("pool",),
            OVERHEAD_BOUNDS,
        )

    def _about_the_upstream(self) -> None:
        self.upstream = self._histogram(
            "upstream_seconds",
            "From the first byte sent to the header of the upstream's response, all attempts together.",
            ("pool",),
            UPSTREAM_BOUNDS,
        )
        self.answers = self._counter(
            "upstream_responses",
            "Responses of the upstream; code 0: an attempt without a response.",
            ("pool", "key", "code"),
        )
        self.throttled = self._counter(
            "upstream_throttled",
            "429s of the upstream; should stay 0. kind: window (requests per time), endpoint (a narrower limit that is "
            "not configured), plan (a limit of the plan, against which waiting does not help).",
            ("pool", "key", "kind"),
        )
        self.foreign = self._counter(
            "foreign_tokens",
            "Requests of others on a quota, by the upstream's own count.",
            ("pool", "quota"),
        )

        self.local = self._counter(
            "local_errors",
            "Attempts that failed because of this machine, not the upstream: no descriptors, ports, memory or threads "
            "left, a connection that is not permitted, no network, a failing resolver.",
            ("cause",),
        )
        for cause in get_args(LocalCause):
            self.local.expect((cause,))
        self.ignored = self._counter(
            "upstream_fields_ignored",
            "Malformed or out-of-range rate limit values in the upstream's responses, by header.",
            ("pool", "field"),
        )

    def _about_the_store(self) -> None:
        self.exchanges = self._histogram("exchange_seconds", "Round trips to the store.", ("pool",), EXCHANGE_BOUNDS)
        self.grants = self._histogram(
            "exchange_grants",
            "Leases granted in one exchange with the store, and without one since the exchange before.",
            ("pool",),
            GRANT_BOUNDS,
        )

    def _about_the_process(self) -> None:
        self.spool_failures = self._counter(
            "spool_failures", "Request bodies that could not be written to a temporary file.", ()
        )
        self.spool_failures.add((), 0)
        self.reloads_refused = self._counter(
            "reload_refused", "Reloads that were rejected because the new configuration has problems.", ()
        )
        self.reloads_refused.add((), 0)

    def _gauges_of_the_process(self) -> Iterator[Gauge]:
        yield Gauge(
            "keyturn_reload_success",
            "1 if the last reload of the configuration was applied or there was none, 0 if it was rejected.",
            (),
            [((), int(self._reload_succeeded))],
        )
        yield Gauge(
            "keyturn_build_info",
            "Always 1; the versions of Keyturn and Python are in the labels.",
            ("version", "python"),
            [((__version__, platform.python_version()), 1)],
        )

    def _counter(self, name: str, text: str, names: Labels) -> Counter:
        counter = Counter(f"keyturn_{name}", text, names)
        self._metrics.append(counter)
        return counter

    def _histogram(self, name: str, text: str, names: Labels, bounds: tuple[float, ...]) -> Histogram:
        histogram = Histogram(f"keyturn_{name}", text, names, bounds)
        self._metrics.append(histogram)
        return histogram

    def observe(self, event: Event) -> None:
        """Count an event."""
        if isinstance(event, RequestLog):
            self._request(event)
        elif isinstance(event, UpstreamAnswered):
            self.answers.add((event.pool, event.key, label_of_code(event.code)))
        else:
            self._seldom(event)

    def _seldom(self, event: Event) -> None:
        match event:
            case ForeignSpent(pool, quota, tokens):
                self.foreign.add((pool, quota), tokens)
            case Exchanged(pool, seconds, grants):
                self.exchanges.add((pool,), seconds)
                self.grants.add((pool,), grants)
            case UpstreamThrottled(pool, key, _, kind):
                self.throttled.add((pool, key, kind))
            case SignalsIgnored(pool, fields):
                for field in fields:
                    self.ignored.add((pool, field))
            case Joined(pool, client):
                self.joined.add((pool, client))
            case Retried(pool, reason):
                self.retries.add((pool, reason))
            case LocalErrorMet(cause):
                self.local.add((cause,))
            case _:
                self._door_or_process(event)

    def _door_or_process(self, event: Event) -> None:
        match event:
            case CallerRejected(_, why, answered):
                self.failed.add((why, answered))
            case ConnectionEnded(why):
                self.ended.add((why,))
            case SpoolFailed():
                self.spool_failures.add((), 1)
            case Reloaded(ok):
                self._reload_succeeded = ok
                self.reloads_refused.add((), int(not ok))

    def _request(self, log: RequestLog) -> None:
        pool, client = log.pool or NOBODY, log.client or NOBODY
        method = log.method if log.method in METHODS else OTHER
        self.requests.add((pool, client, method, CODES.get(log.code) or label_of_code(log.code), log.outcome))
        if log.tries and log.outcome == "forwarded" and log.trace is UNTRACED:
            self._forwarded(log, pool, client)
            return
        trace = log.trace_id
        self.seconds.add((pool, client), log.total / SECOND, trace)
        if log.outcome == "refused":
            self.refused.add((pool, client, log.reason))
        if log.tries or log.queued:
            self.waited.add((pool, client), log.queued / SECOND, trace)
        if log.tries:
            own = log.total - log.reading - log.queued - log.upstream - log.streamed
            self.upstream.add((pool,), log.upstream / SECOND, trace)
            self.overhead.add((pool,), max(0, own) / SECOND, trace)

    def _forwarded(self, log: RequestLog, pool: str, client: str) -> None:
        """Observe the times of a request that is in no trace, the usual one."""
        rows = self._rows.get((pool, client))
        if rows is None:
            rows = self._rows[pool, client] = (
                self.seconds.row((pool, client)),
                self.waited.row((pool, client)),
                self.upstream.row((pool,)),
                self.overhead.row((pool,)),
            )
        total, queued, upstream = log.total, log.queued, log.upstream
        own = total - log.reading - queued - upstream - log.streamed
        seconds, waited, sent, overhead = rows
        add_to(seconds, REQUEST_BOUNDS, total / SECOND)
        add_to(waited, WAIT_BOUNDS, queued / SECOND)
        add_to(sent, UPSTREAM_BOUNDS, upstream / SECOND)
        add_to(overhead, OVERHEAD_BOUNDS, max(0, own) / SECOND)

    def exposition(self, form: Form, levels: Levels | None = None) -> Iterator[str]:
        """Write the metrics in pieces of a few lines; `levels` are the current gauges.

        With 2,000 keys there are some 30,000 lines: run it in steps (`tasks.in_steps`) so that the event loop goes on.
        """
        if levels is not None:
            for _ in self._expect(levels):
                yield ""
            for gauge in gauges(levels):
                yield from gauge.lines(form)
        for metric in (*self._gauges_of_the_process(), *self._metrics):
            yield from metric.lines(form)
        if form is Form.OPENMETRICS:
            yield OPENMETRICS_END

    def _expect(self, levels: Levels) -> Iterator[None]:
        """Expose counters of what should not happen from 0 on, for every key, pool and client."""
        for pool, key in levels.keys:
            self.foreign.expect((pool, key.quota))
            for kind in get_args(ThrottleKind):
                self.throttled.expect((pool, key.name, kind))
            yield
        for pool, _ in levels.in_flight:
            for reason in get_args(RetryReason):
                self.retries.expect((pool, reason))
            for field in IGNORED_BODY_FIELDS:
                self.ignored.expect((pool, field))
            yield
        for client in levels.clients:
            self.joined.expect((client.pool, client.client))
            yield
