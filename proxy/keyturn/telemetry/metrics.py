"""The metrics of one process: the table of docs/observability.md."""

import platform
from collections.abc import Iterator
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
from keyturn.telemetry import labels
from keyturn.telemetry.exposition import OPENMETRICS_END, Form
from keyturn.telemetry.gauges import gauges
from keyturn.telemetry.labels import NOBODY
from keyturn.telemetry.series import Counter, Gauge, Histogram, Labels, Metric

WAITS = (0.001, 0.005, 0.02, 0.1, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300)
"""Seconds: a wait may last up to `queue.max_wait_ceiling`."""

WHOLE = (*WAITS, 600)
"""A whole request: the longest wait, and the longest answer behind it."""

TRIPS = (0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 310)
"""Up to `upstream.response_timeout`."""

OVERHEADS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2)
ROUND_TRIPS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.1, 0.5)
GRANTS = (0, 1, 2, 5, 10, 50, 200)

IGNORED = ("limit", "remaining", "body")
"""Fields of `upstream_fields_ignored_total` that are no header of their own."""


class Metrics:
    """The metrics of one process."""

    def __init__(self) -> None:
        self._metrics: list[Metric] = []
        self._reload_succeeded = True
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
            "Requests that ended. outcome: forwarded (an answer of the upstream reached the caller whole), refused "
            "(the proxy answered itself), failed (the upstream was not reached or gave no whole answer), gone (the "
            "caller left first).",
            ("pool", "client", "method", "code", "outcome"),
        )
        self.refused = self._counter(
            "refused",
            "Requests that the proxy answered itself, and why: deadline (the turn would come too late), max_in_flight, "
            "max_connections (no place in flight before the deadline), queue_full, client_rate, no_key, store_lost, "
            "draining, unauthenticated, forbidden and others.",
            ("pool", "client", "reason"),
        )
        self.retries = self._counter(
            "retries",
            "Requests that were sent once more: throttled (after a 429), unreachable, broken, late and others.",
            ("pool", "reason"),
        )
        self.joined = self._counter(
            "joined", "Requests that got the answer of an identical one and cost no token.", ("pool", "client")
        )
        self.failed = self._counter(
            "authentication_failures",
            "Callers that were not let in: why, and whether that was answered at_once, late, or with the end of the "
            "connection (cut).",
            ("reason", "answered"),
        )
        self.ended = self._counter(
            "connections_ended",
            "Callers' connections that were refused, or ended before their time: too_many, too_many_per_address, "
            "head_timeout, write_timeout, slow_reader, fell_behind, malformed, proxy_protocol.",
            ("reason",),
        )
        self.seconds = self._histogram(
            "request_seconds", "From the head of a request to the end of its answer.", ("pool", "client"), WHOLE
        )
        self.waited = self._histogram(
            "queue_wait_seconds", "What a request waited for its turn, all tries together.", ("pool", "client"), WAITS
        )
        self.overhead = self._histogram(
            "overhead_seconds",
            "What the proxy itself costs: a request's time less its body's, its waiting and the upstream's.",
            ("pool",),
            OVERHEADS,
        )

    def _about_the_upstream(self) -> None:
        self.upstream = self._histogram(
            "upstream_seconds",
            "From the first byte sent to the head of the upstream's answer, all tries together.",
            ("pool",),
            TRIPS,
        )
        self.answers = self._counter(
            "upstream_responses", "Answers of the upstream; code 0: a try brought none.", ("pool", "key", "code")
        )
        self.throttled = self._counter(
            "upstream_throttled",
            "Answers 429 of the upstream, the number that should stay 0. kind: window (requests per time), endpoint (a "
            "narrower limit that is not configured), plan (a limit that no waiting cures).",
            ("pool", "key", "kind"),
        )
        self.foreign = self._counter(
            "foreign_tokens",
            "Requests that somebody else sent on a quota, by the upstream's own count.",
            ("pool", "quota"),
        )

        self.local = self._counter(
            "local_errors",
            "Tries that failed by a trouble of this machine, which says nothing about the upstream: no descriptors, "
            "ports, memory or threads left, a connection that is forbidden, no network, a resolver that fails.",
            ("cause",),
        )
        for cause in get_args(LocalCause):
            self.local.expect((cause,))
        self.ignored = self._counter(
            "upstream_fields_ignored",
            "Values in the upstream's answers that say something about limits, malformed or absurd, by their header.",
            ("pool", "field"),
        )

    def _about_the_store(self) -> None:
        self.exchanges = self._histogram(
            "exchange_seconds", "A round trip to the store of the limits.", ("pool",), ROUND_TRIPS
        )
        self.grants = self._histogram(
            "exchange_grants",
            "Requests that were permitted by one round trip to the store, and without one since the one before.",
            ("pool",),
            GRANTS,
        )

    def _about_the_process(self) -> None:
        self.spool_failures = self._counter(
            "spool_failures", "Bodies of requests that could not be written to a temporary file.", ()
        )
        self.spool_failures.add((), 0)
        self.reloads_refused = self._counter(
            "reload_refused", "Reloads that were refused because the new configuration has problems.", ()
        )
        self.reloads_refused.add((), 0)

    def _gauges_of_the_process(self) -> Iterator[Gauge]:
        yield Gauge(
            "keyturn_reload_success",
            "1 when the last reload of the configuration was taken or none has been tried, 0 when it was refused.",
            (),
            [((), int(self._reload_succeeded))],
        )
        yield Gauge(
            "keyturn_build_info",
            "Always 1: the version of Keyturn that runs, and Python's.",
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
            self.answers.add((event.pool, event.key, labels.code(event.code)))
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
        pool, client, trace = log.pool or NOBODY, log.client or NOBODY, log.trace_id
        self.requests.add((pool, client, labels.method(log.method), labels.code(log.code), log.outcome))
        self.seconds.add((pool, client), log.total / SECOND, trace)
        if log.outcome == "refused":
            self.refused.add((pool, client, log.reason))
        if log.tries or log.queued:
            self.waited.add((pool, client), log.queued / SECOND, trace)
        if log.tries:
            own = log.total - log.reading - log.queued - log.upstream - log.streamed
            self.upstream.add((pool,), log.upstream / SECOND, trace)
            self.overhead.add((pool,), max(0, own) / SECOND, trace)

    def exposition(self, form: Form, levels: Levels | None = None) -> Iterator[str]:
        """The metrics, piece by piece, each of at most some lines; `levels` are the gauges of now.

        With 2,000 keys there are some 30,000 lines: the event loop should turn while they are made (`tasks.in_steps`).
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
        """Expose what should not happen from 0 on, for every key, pool and client that there is, one after another."""
        for key in levels.keys:
            self.foreign.expect((key.pool, key.look.quota))
            for kind in get_args(ThrottleKind):
                self.throttled.expect((key.pool, key.look.name, kind))
            yield
        for pool, _ in levels.in_flight:
            for reason in get_args(RetryReason):
                self.retries.expect((pool, reason))
            for field in IGNORED:
                self.ignored.expect((pool, field))
            yield
        for lane in levels.lanes:
            self.joined.expect((lane.pool, lane.client))
            yield
