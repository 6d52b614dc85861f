"""Traces by OpenTelemetry: a span for each request, for its waiting, and for each try.

They are in the caller's trace if it has one. This module is imported when traces are configured only; what it needs
comes with the extra `keyturn[otel]`.

Spans go in batches to a collector (OTLP over HTTP), from a thread of their own; what a collector does not take is lost
and holds nothing up.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from proxy import __version__
from proxy.core.events import Journal
from proxy.core.headers import values
from proxy.core.http import Fields
from proxy.core.recording import UNRECORDED, Recording
from proxy.telemetry.labels import OTHER
from proxy.telemetry.labels import method as known_method
from proxy.telemetry.logs import without_credentials
from proxy.telemetry.requests import shown_path

PARENT, STATE = b"traceparent", b"tracestate"
SERVICE = "keyturn"
FAILURES, ERRORS = 500, 400
LAST_WORDS = 2.0
"""Seconds in which a collector that is away may come back before the last spans are given up."""

COMPLAINING = (
    "opentelemetry.sdk._shared_internal",
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "opentelemetry.exporter.otlp.common.http",
)
"""Loggers that would say of every batch that it was lost."""

SELDOM = 60.0
"""Seconds between two complaints of one kind about a collector."""

_propagator = TraceContextTextMapPropagator()


class Exporting(BatchSpanProcessor):
    """Sends spans to a collector's `/v1/traces`, from a thread; at the end for `LAST_WORDS` at the most."""

    def __init__(self, endpoint: str) -> None:
        self._exporter = OTLPSpanExporter(endpoint)
        super().__init__(self._exporter)
        logging.getLogger("opentelemetry").setLevel(logging.ERROR)
        for name in COMPLAINING:
            logging.getLogger(name).addFilter(Seldom(time.monotonic))

    def shutdown(self) -> None:
        """Send what is left."""
        give_up: Callable[[], None] = self._exporter.shutdown
        patience = threading.Timer(LAST_WORDS, give_up)
        patience.start()
        super().shutdown()  # type: ignore[no-untyped-call]  # the library's
        patience.cancel()


class Traces:
    """Records requests.

    `sample` is the part that is recorded where the caller has not decided that already, `upstream` the upstream's URL.
    """

    def __init__(self, processor: SpanProcessor, *, sample: float, replica: str, upstream: str) -> None:
        resource = {"service.name": SERVICE, "service.version": __version__, "service.instance.id": replica}
        self._provider = TracerProvider(
            ParentBased(TraceIdRatioBased(sample)), Resource.create(resource), shutdown_on_exit=False
        )
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer(SERVICE, __version__)
        parts = urlsplit(upstream)
        self._server = {
            "server.address": parts.hostname or "",
            "server.port": parts.port or (443 if parts.scheme == "https" else 80),
        }

    def begin(self, method: str, fields: Fields) -> Recording:
        """See `core.recording.Recorder`."""
        carrier = {
            name.decode(): b",".join(found).decode("ascii", "replace")
            for name in (PARENT, STATE)
            if (found := values(fields, name))
        }
        known = known_method(method)
        name = known if known != OTHER else "HTTP"
        span = self._tracer.start_span(
            name,
            _propagator.extract(carrier, Context()),
            SpanKind.SERVER,
            {"http.request.method": known if known != OTHER else "_OTHER"},
        )
        return Recorded(self._tracer, span, name, self._server) if span.is_recording() else UNRECORDED

    def stop(self) -> None:
        """Send what is left; this may take some seconds, so not in the event loop."""
        self._provider.shutdown()


class Recorded:
    """A request that is recorded; see `core.recording.Recording`."""

    def __init__(self, tracer: trace.Tracer, span: Span, name: str, server: dict[str, Any]) -> None:
        self._tracer = tracer
        self._span = span
        self._name = name
        self._context = trace.set_span_in_context(span, Context())
        self._server = server
        self._step: Span | None = None
        self._tries = 0
        self.trace = trace.format_trace_id(span.get_span_context().trace_id)

    def waits(self) -> None:
        """A span of its own: what Keyturn is for happens in it."""
        self._step = self._tracer.start_span("wait", self._context)

    def waited(self) -> None:
        """See `core.recording.Recording`."""
        self._end_step()

    def tries(self, key: str, fields: Fields) -> Fields:
        """A span of its own, which the upstream's spans are children of."""
        attributes = {"keyturn.key": key, "http.request.resend_count": self._tries, **self._server}
        self._tries += 1
        self._step = self._tracer.start_span(self._name, self._context, SpanKind.CLIENT, attributes)
        carrier: dict[str, str] = {}
        _propagator.inject(carrier, trace.set_span_in_context(self._step, Context()))
        others = tuple([field for field in fields if field[0].lower() not in (PARENT, STATE)])
        return (*others, *((name.encode(), value.encode()) for name, value in carrier.items()))

    def tried(self, code: int) -> None:
        """An error by OpenTelemetry's conventions for clients: no answer, or one from 400 on."""
        if self._step is None:
            return
        if code:
            self._step.set_attribute("http.response.status_code", code)
        if not code or code >= ERRORS:
            self._step.set_status(Status(StatusCode.ERROR))
            self._step.set_attribute("error.type", str(code) if code else "no_answer")
        self._end_step()

    def ended(self, story: object) -> None:
        """The whole request; an error by OpenTelemetry's conventions for servers: from 500 on."""
        assert isinstance(story, Journal)
        self._end_step()
        for name, value in _attributes(story):
            if value not in ("", None):
                self._span.set_attribute(name, value)
        if story.outcome == "failed" or story.code >= FAILURES:
            self._span.set_status(Status(StatusCode.ERROR, story.reason or None))
            self._span.set_attribute("error.type", story.reason or str(story.code))
        self._span.end()

    def _end_step(self) -> None:
        step, self._step = self._step, None
        if step is not None:
            step.end()


def _attributes(story: Journal) -> Sequence[tuple[str, Any]]:
    return (
        ("url.path", shown_path(story.path)),
        ("http.response.status_code", story.code or None),
        ("http.request.body.size", story.received or None),
        ("http.response.body.size", story.sent or None),
        ("keyturn.request_id", without_credentials(story.id)),
        ("keyturn.client", story.client),
        ("keyturn.pool", story.pool),
        ("keyturn.key", story.key),
        ("keyturn.outcome", story.outcome),
        ("keyturn.reason", story.reason),
        ("keyturn.tries", story.tries),
    )


class Seldom(logging.Filter):
    """Lets one record of a kind through a minute: a collector that is away is complained about for every batch."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__()
        self._clock = clock
        self._said: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether it is written."""
        now, kind = self._clock(), str(record.msg)
        seldom = now - self._said.get(kind, -SELDOM) >= SELDOM
        if seldom:
            self._said[kind] = now
        return seldom
