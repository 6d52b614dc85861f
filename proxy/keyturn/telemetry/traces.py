"""Traces by OpenTelemetry: a span for each request, for its waiting, and for each attempt.

They belong to the caller's trace if it has one. This module is imported only when traces are configured; its
dependencies come with the extra `keyturn[otel]`.

Spans are sent in batches to a collector (OTLP over HTTP), from a separate thread. Spans that a collector does not
accept are lost and delay nothing; the log reports that once a minute.

Names, attributes and errors follow OpenTelemetry's stable semantic conventions for HTTP; queries, which may hold
credentials, are left out of all of them.
"""

import logging
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from requests import PreparedRequest, Session
from requests.adapters import HTTPAdapter

from keyturn import __version__
from keyturn.core.events import RequestLog
from keyturn.core.headers import values
from keyturn.core.http import Fields
from keyturn.core.tracing import UNTRACED, Arrived, Trace
from keyturn.keepalive import SOCKET_OPTIONS
from keyturn.telemetry.access_log import shown_agent, shown_path
from keyturn.telemetry.logs import without_credentials
from keyturn.telemetry.metrics import OTHER, label_of_method
from keyturn.trust import client_context, refusal

_ORIGINAL = "http.request.method_original"
_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"([A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::(\d{1,5}))?")

PARENT, STATE = b"traceparent", b"tracestate"
SERVICE = "keyturn"
SERVER_ERRORS, CLIENT_ERRORS = 500, 400
SHUTDOWN_TIMEOUT = 2.0
"""Seconds at the end of the process after which spans that were not accepted are given up."""

REPORT_INTERVAL = 60.0
"""Seconds between two log lines about lost spans."""

_EXPORTER = "opentelemetry.exporter.otlp.proto.http.trace_exporter"
"""The exporter's logger, which reports every lost batch and every attempt."""
_SYSTEM_SAYS = re.compile(r"\[Errno -?\d+\] ([\w ]+)")
_LONGEST_CAUSE = 200
_AUTHORITIES = "name the authority that signed it in OTEL_EXPORTER_OTLP_CERTIFICATE"
_LONGEST_METHOD = 32

_log = logging.getLogger("keyturn")
_propagator = TraceContextTextMapPropagator()


class TrustAdapter(HTTPAdapter):
    """Verifies by the rules of `keyturn.trust` in place of the library's, and keeps connections alive.

    Authorities are those of the system, or those that OpenTelemetry's environment variables name.
    """

    def __init__(self, *, strict: bool) -> None:
        self._contexts = {system: client_context(strict=strict, system=system) for system in (True, False)}
        super().__init__()

    def build_connection_pool_key_attributes(
        self, request: PreparedRequest, verify: Any, cert: Any = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """See `HTTPAdapter`."""
        host, pool = super().build_connection_pool_key_attributes(request, verify, cert)
        options = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1), *SOCKET_OPTIONS]
        return host, {**pool, "ssl_context": self._contexts[verify is True], "socket_options": options}

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
        """See `HTTPAdapter`; its own list of authorities is left out."""
        super().cert_verify(conn, url, verify, cert)
        if verify is True:
            conn.ca_certs = None


class Exporter(OTLPSpanExporter):
    """Sends batches to a collector; logs lost ones with its address and the cause."""

    def __init__(
        self, endpoint: str, clock: Callable[[], float] = time.monotonic, *, strict_certificates: bool = False
    ) -> None:
        session = Session()
        adapter = TrustAdapter(strict=strict_certificates)
        session.mount("https://", adapter)
        session.mount("http://", adapter)
        super().__init__(endpoint, session=session)
        parts = urlsplit(endpoint)
        self._shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        self._clock = clock
        self._told: float | None = None
        self._log_filter = ExporterLogFilter()
        logger = logging.getLogger(_EXPORTER)
        logger.setLevel(logging.WARNING)
        logger.addFilter(self._log_filter)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """See `SpanExporter`."""
        self._log_filter.cause = ""
        result = super().export(spans)
        now = self._clock()
        if result is not SpanExportResult.SUCCESS and (self._told is None or now - self._told >= REPORT_INTERVAL):
            self._told = now
            cause = self._log_filter.cause or "unknown"
            _log.warning("traces are lost: the collector at %s does not accept them: %s", self._shown, cause)
        return result


class ExporterLogFilter(logging.Filter):
    """Removes the exporter's lines from the log, and keeps the cause that they name."""

    def __init__(self) -> None:
        super().__init__()
        self.cause = ""

    def filter(self, record: logging.LogRecord) -> bool:
        """See `logging.Filter`: never."""
        said = record.getMessage()
        if refused := next(_refused_certificates(record.args), None):
            self.cause = f"its certificate is refused: {refusal(refused, _AUTHORITIES)}"
        elif found := _SYSTEM_SAYS.search(said):
            self.cause = found[1].lower()
        elif "timed out" in said:
            self.cause = "no answer in time"
        elif not self.cause:
            self.cause = said[:_LONGEST_CAUSE]
        return False


def _refused_certificates(found: object) -> Iterator[ssl.SSLCertVerificationError]:
    """Search the arguments of a log line, and errors inside of errors."""
    if isinstance(found, ssl.SSLCertVerificationError):
        yield found
    elif isinstance(found, Exception):
        yield from _refused_certificates((*found.args, getattr(found, "reason", None)))
    elif isinstance(found, tuple):
        for one in found:
            yield from _refused_certificates(one)


class SpanSender(BatchSpanProcessor):
    """Sends spans to a collector's `/v1/traces` from a thread; at the end for at most `SHUTDOWN_TIMEOUT`."""

    def __init__(self, endpoint: str, *, strict_certificates: bool = False) -> None:
        logging.getLogger("opentelemetry").setLevel(logging.ERROR)
        self._exporter = Exporter(endpoint, strict_certificates=strict_certificates)
        super().__init__(self._exporter)

    def shutdown(self) -> None:
        """Send what is left."""
        give_up: Callable[[], None] = self._exporter.shutdown
        patience = threading.Timer(SHUTDOWN_TIMEOUT, give_up)
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
        self._upstream = Server(
            f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}",
            parts.hostname or "",
            parts.port or _PORTS[parts.scheme],
        )

    def begin(self, arrived: Arrived) -> Trace:
        """See `core.tracing.Tracer`."""
        fields = arrived.raw_headers
        carrier = {
            name.decode(): b",".join(found).decode("ascii", "replace")
            for name in (PARENT, STATE)
            if (found := values(fields, name))
        }
        method = _method(arrived.method)
        name = "HTTP" if _ORIGINAL in method else arrived.method
        span = self._tracer.start_span(name, _propagator.extract(carrier, Context()), SpanKind.SERVER, method)
        if not span.is_recording():
            return UNTRACED
        span.set_attributes({**_listener(arrived), "network.protocol.version": "{}.{}".format(*arrived.version)})
        return RequestTrace(self._tracer, span, name, method, self._upstream)

    def stop(self) -> None:
        """Send what is left; this may take some seconds, so not in the event loop."""
        self._provider.shutdown()


class RequestTrace:
    """A request that is recorded; see `core.tracing.Trace`."""

    def __init__(
        self, tracer: trace.Tracer, span: Span, name: str, method: Mapping[str, str], upstream: "Server"
    ) -> None:
        self._tracer = tracer
        self._span = span
        self._name = name
        self._method = method
        self._context = trace.set_span_in_context(span, Context())
        self._upstream = upstream
        self._step: Span | None = None
        self._tries = 0
        self.trace_id = trace.format_trace_id(span.get_span_context().trace_id)

    def wait_began(self) -> None:
        """A span of its own: what Keyturn is for happens in it."""
        self._step = self._tracer.start_span("wait", self._context)

    def wait_ended(self) -> None:
        """See `core.tracing.Trace`."""
        self._end_step()

    def try_began(self, key: str, path: str, fields: Fields) -> Fields:
        """A span of its own, which the upstream's spans are children of."""
        attributes: dict[str, str | int] = {
            **self._method,
            "keyturn.key": key,
            "server.address": self._upstream.address,
            "server.port": self._upstream.port,
            "url.full": self._upstream.origin + shown_path(path),
        }
        if self._tries:
            attributes["http.request.resend_count"] = self._tries
        self._tries += 1
        self._step = self._tracer.start_span(self._name, self._context, SpanKind.CLIENT, attributes)
        carrier: dict[str, str] = {}
        _propagator.inject(carrier, trace.set_span_in_context(self._step, Context()))
        others = tuple([field for field in fields if field[0].lower() not in (PARENT, STATE)])
        return (*others, *((name.encode(), value.encode()) for name, value in carrier.items()))

    def try_ended(self, code: int) -> None:
        """An error by OpenTelemetry's conventions for clients: no answer, or one from 400 on."""
        if self._step is None:
            return
        if code:
            self._step.set_attributes({"http.response.status_code": code, "network.protocol.version": "1.1"})
        if not code or code >= CLIENT_ERRORS:
            self._step.set_status(Status(StatusCode.ERROR))
            self._step.set_attribute("error.type", str(code) if code else "no_answer")
        self._end_step()

    def end(self, story: object) -> None:
        """The whole request; an error by OpenTelemetry's conventions for servers: from 500 on."""
        assert isinstance(story, RequestLog)
        self._end_step()
        for name, value in _attributes(story):
            if value not in ("", None):
                self._span.set_attribute(name, value)
        if story.outcome == "failed" or story.code >= SERVER_ERRORS:
            self._span.set_status(Status(StatusCode.ERROR, story.reason or None))
            self._span.set_attribute("error.type", story.reason or str(story.code))
        self._span.end()

    def _end_step(self) -> None:
        step, self._step = self._step, None
        if step is not None:
            step.end()


class Server(NamedTuple):
    """The upstream, as spans name it."""

    origin: str
    address: str
    port: int


def _method(name: str) -> dict[str, str]:
    """A known method; the name of another stands beside."""
    if label_of_method(name) != OTHER:
        return {"http.request.method": name}
    return {"http.request.method": "_OTHER", _ORIGINAL: shown_path(name[:_LONGEST_METHOD])}


def _listener(arrived: Arrived) -> dict[str, str | int]:
    """Where the caller believes to be: by its `Host`, if that is one."""
    host = values(arrived.raw_headers, b"host")
    found = _HOST.fullmatch(host[0].decode("ascii", "replace")) if host else None
    if found is None:
        return {"url.scheme": arrived.scheme}
    port = int(found[2]) if found[2] else _PORTS[arrived.scheme]
    return {"url.scheme": arrived.scheme, "server.address": found[1].strip("[]"), "server.port": port}


def _attributes(story: RequestLog) -> Sequence[tuple[str, Any]]:
    return (
        ("url.path", shown_path(story.path) or "/"),
        ("client.address", story.address),
        ("user_agent.original", shown_agent(story.agent)),
        ("http.response.status_code", story.code or None),
        ("http.request.body.size", story.received or None),
        ("http.response.body.size", story.sent or None),
        ("keyturn.request_id", without_credentials(story.id)),
        ("keyturn.client", story.client),
        ("keyturn.pool", story.pool),
        ("keyturn.key", story.key),
        ("keyturn.outcome", story.outcome),
        ("keyturn.reason", story.reason),
        ("keyturn.attempts", story.attempts),
    )
