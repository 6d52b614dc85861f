import logging
import re
import socket
import ssl
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from keyturn.core.http import Fields
from keyturn.core.tracing import UNTRACED
from keyturn.keepalive import PROBE_INTERVAL
from keyturn.telemetry import Metrics
from keyturn.telemetry.exposition import Form
from keyturn.telemetry.traces import REPORT_INTERVAL, Exporter, RequestTrace, Traces, TrustAdapter
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from requests import Request

from tests.authorities import FAULTS, LENIENT, Authority, Sort
from tests.telemetry.samples import Arrived, request_log, text

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED = f"00-{TRACE}-{PARENT}-01".encode()
UNSAMPLED = f"00-{TRACE}-{PARENT}-00".encode()


class Collector:
    """Traces whose spans are kept here."""

    def __init__(self, sample: float = 1.0) -> None:
        self._spans = InMemorySpanExporter()
        processor = SimpleSpanProcessor(self._spans)
        self.traces = Traces(processor, sample=sample, replica="r-1", upstream="https://api.example:8443")

    @property
    def spans(self) -> Mapping[str, ReadableSpan]:
        """Those that have ended, by what they are of; of several tries the last."""
        kinds = {SpanKind.SERVER: "request", SpanKind.CLIENT: "attempt", SpanKind.INTERNAL: "wait"}
        return {kinds[span.kind]: span for span in self._spans.get_finished_spans()}

    def go(self, *codes: int, fields: Fields = (), **story: object) -> Fields:
        """A request with so many tries; returns what went out with the last."""
        trace = self.traces.begin(Arrived("GET", fields))
        sent = fields
        for code in codes:
            trace.wait_began()
            trace.wait_ended()
            sent = trace.try_began("k0", "/collections", fields)
            trace.try_ended(code)
        trace.end(request_log(**story))
        return sent


def attributes(span: ReadableSpan) -> dict[str, object]:
    """Of a span."""
    return dict(span.attributes or {})


def test_a_request_its_wait_and_its_try_are_spans() -> None:
    """The last two within the first, named and described by OpenTelemetry's conventions."""
    collector = Collector()
    collector.go(200)
    spans = collector.spans
    whole = spans["request"]
    assert set(spans) == {"request", "wait", "attempt"}
    for part in (spans["wait"], spans["attempt"]):
        assert part.parent is not None
        assert part.parent.span_id == whole.context.span_id
    assert (whole.name, spans["wait"].name, spans["attempt"].name) == ("GET", "wait", "GET")
    told = attributes(whole)
    assert told["http.request.method"] == "GET"
    assert told["http.response.status_code"] == 200
    assert told["url.path"] == "/collections"
    assert (told["keyturn.client"], told["keyturn.pool"], told["keyturn.key"]) == ("ci", "default", "k0")
    assert (told["keyturn.outcome"], told["keyturn.attempts"], told["keyturn.request_id"]) == ("forwarded", 1, "r-1")
    told = attributes(spans["attempt"])
    assert (told["server.address"], told["server.port"]) == ("api.example", 8443)
    assert (told["keyturn.key"], told["http.response.status_code"]) == ("k0", 200)
    resource = whole.resource.attributes
    assert (resource["service.name"], resource["service.instance.id"]) == ("keyturn", "r-1")


def test_the_caller_s_trace_goes_on_through_the_proxy() -> None:
    """The request is a child of the caller's span, what goes upstream one of the try's; the caller's state stays."""
    collector = Collector(sample=0)
    fields = ((b"Traceparent", SAMPLED), (b"TraceState", b"a=1,b=2"), (b"X", b"y"))
    sent = dict(collector.go(200, fields=fields))
    spans = collector.spans
    parent = spans["request"].parent
    assert parent is not None
    assert f"{parent.trace_id:032x}-{parent.span_id:016x}" == f"{TRACE}-{PARENT}"
    assert sent[b"traceparent"].decode() == f"00-{TRACE}-{spans['attempt'].context.span_id:016x}-01"
    assert sent[b"tracestate"] == b"a=1,b=2"
    assert sent[b"X"] == b"y"
    assert b"Traceparent" not in sent


def test_a_caller_that_is_not_recorded_is_not_recorded_here() -> None:
    """Its decision holds, and its context passes as it came."""
    collector = Collector(sample=1)
    fields = ((b"traceparent", UNSAMPLED), (b"tracestate", b"a=1"))
    assert collector.traces.begin(Arrived("GET", fields)) is UNTRACED
    assert collector.go(200, fields=fields) is fields
    assert collector.spans == {}


@pytest.mark.parametrize(
    "broken", [b"", b"nonsense", b"00-%s-%s-01" % (b"0" * 32, PARENT.encode()), SAMPLED + b"," + SAMPLED]
)
def test_a_broken_context_begins_a_new_trace(broken: bytes) -> None:
    """W3C Trace Context, section 3.2: then the state is dropped, too."""
    collector = Collector()
    sent = collector.go(200, fields=((b"traceparent", broken), (b"tracestate", b"a=1")))
    assert collector.spans["request"].parent is None
    assert [name for name, _ in sent] == [b"traceparent"]
    assert TRACE.encode() not in dict(sent)[b"traceparent"]


def test_a_part_of_the_requests_is_recorded() -> None:
    """The fraction of sampled traces among callers that have not decided."""
    collector = Collector(sample=0.5)
    recorded = sum(isinstance(collector.traces.begin(Arrived("GET", ())), RequestTrace) for _ in range(400))
    assert 100 < recorded < 300


def test_each_try_is_a_span_and_tells_how_it_went() -> None:
    """No answer and an answer of an error are errors for a client."""
    collector = Collector()
    collector.go(0, 429, 200, tries=3)
    tries = [span for span in collector._spans.get_finished_spans() if span.kind is SpanKind.CLIENT]
    assert [span.status.status_code for span in tries] == [StatusCode.ERROR, StatusCode.ERROR, StatusCode.UNSET]
    assert [attributes(span).get("error.type") for span in tries] == ["no_answer", "429", None]
    assert [attributes(span).get("http.request.resend_count") for span in tries] == [None, 1, 2]
    assert collector.spans["request"].status.status_code is StatusCode.UNSET


@pytest.mark.parametrize(
    ("story", "error"),
    [
        ({"code": 502, "outcome": "failed", "reason": "unreachable"}, "unreachable"),
        ({"code": 500}, "500"),
        ({"code": 429, "outcome": "refused", "reason": "deadline"}, None),
        ({"code": 404}, None),
    ],
)
def test_a_server_s_error_is_one_from_500_on(story: dict[str, object], error: str | None) -> None:
    """A caller's mistake is no error of the span."""
    collector = Collector()
    collector.traces.begin(Arrived("GET", ())).end(request_log(**story))
    whole = collector.spans["request"]
    assert (whole.status.status_code is StatusCode.ERROR) == (error is not None)
    assert attributes(whole).get("error.type") == error


def test_who_leaves_while_it_waits_leaves_no_span_open() -> None:
    """Its wait ends with the request."""
    collector = Collector()
    trace = collector.traces.begin(Arrived("GET", ()))
    trace.wait_began()
    trace.end(request_log(outcome="gone", code=0))
    assert set(collector.spans) == {"request", "wait"}
    assert "http.response.status_code" not in attributes(collector.spans["request"])


def test_methods_are_folded() -> None:
    """A span's name is one of few."""
    collector = Collector()
    collector.traces.begin(Arrived("BREW", ())).end(request_log())
    whole = collector.spans["request"]
    assert (whole.name, attributes(whole)["http.request.method"]) == ("HTTP", "_OTHER")


def test_times_of_a_recorded_request_lead_to_its_trace() -> None:
    """As exemplars, in OpenMetrics."""
    collector, metrics = Collector(), Metrics()
    trace = collector.traces.begin(Arrived("GET", ((b"traceparent", SAMPLED),)))
    metrics.observe(request_log(trace=trace))
    body = text(metrics, form=Form.OPENMETRICS)
    for name in ("request_seconds", "queue_wait_seconds", "upstream_seconds", "overhead_seconds"):
        assert re.search(rf'^keyturn_{name}_bucket.* # {{trace_id="{TRACE}"}} ', body, re.MULTILINE)
    assert TRACE not in text(metrics)


SERVER = {
    "http.request.method": "GET",
    "http.response.status_code": 200,
    "url.path": "/collections",
    "url.scheme": "https",
    "server.address": "proxy.example",
    "server.port": 8080,
    "client.address": "192.0.2.7",
    "user_agent.original": "curl/8.9",
    "network.protocol.version": "1.1",
}
"""Attributes of a server's span that the conventions require or recommend, but for the query."""

CLIENT = {
    "http.request.method": "GET",
    "http.response.status_code": 200,
    "url.full": "https://api.example:8443/collections",
    "server.address": "api.example",
    "server.port": 8443,
    "network.protocol.version": "1.1",
}
"""Attributes of a client span."""


def test_spans_have_what_the_conventions_ask_for() -> None:
    """The stable semantic conventions for HTTP, version 1.23 and later; `error.type` stands on errors only."""
    collector = Collector()
    arrived = Arrived("GET", ((b"Host", b"proxy.example:8080"),), "https")
    trace = collector.traces.begin(arrived)
    trace.try_began("k0", "/collections", ())
    trace.try_ended(200)
    trace.end(request_log())
    assert SERVER.items() <= attributes(collector.spans["request"]).items()
    assert CLIENT.items() <= attributes(collector.spans["attempt"]).items()
    for span in collector.spans.values():
        assert "error.type" not in attributes(span)
        assert "url.query" not in attributes(span)


@pytest.mark.parametrize(
    ("host", "scheme", "shown"),
    [
        (b"proxy.example", "http", ("proxy.example", 80)),
        (b"proxy.example", "https", ("proxy.example", 443)),
        (b"[2001:db8::1]:81", "http", ("2001:db8::1", 81)),
        (b"x" * 300, "http", None),
        (b"a@b:1", "http", None),
        (b"\xff", "http", None),
        (None, "http", None),
    ],
)
def test_the_listener_is_named_as_its_caller_does(
    host: bytes | None, scheme: str, shown: tuple[str, int] | None
) -> None:
    """By a `Host` that is one; else it is not named."""
    collector = Collector()
    fields = () if host is None else ((b"Host", host),)
    collector.traces.begin(Arrived("GET", fields, scheme)).end(request_log())
    told = attributes(collector.spans["request"])
    assert (told.get("server.address"), told.get("server.port")) == (shown or (None, None))


def test_an_odd_method_stands_beside_the_folded_one() -> None:
    """Cut, on both spans."""
    collector = Collector()
    trace = collector.traces.begin(Arrived("BREW" * 100))
    trace.try_began("k0", "/", ())
    trace.end(request_log())
    for name in ("request", "attempt"):
        told = attributes(collector.spans[name])
        assert (told["http.request.method"], told["http.request.method_original"]) == ("_OTHER", "BREW" * 8)


class Unreached:
    """A collector that is away, in the exporter's own words."""

    def __init__(self, *remarks: str) -> None:
        self.remarks = remarks
        self.success = not remarks
        self.error = self.status_code = None

    def export(self, _: bytes) -> "Unreached":
        logger = logging.getLogger("opentelemetry.exporter.otlp.proto.http.trace_exporter")
        for remark in self.remarks:
            logger.warning("%s", remark)
        return self


REFUSED = "Transient error (… [Errno 111] Connection refused')) encountered while exporting spans batch, retrying."
LAST = "Failed to export spans batch due to timeout, max retries or shutdown."


@pytest.mark.parametrize(
    ("remarks", "cause"),
    [
        ((REFUSED, LAST), "connection refused"),
        (("Transient error Read timed out. (read timeout=10) encountered", LAST), "no answer in time"),
        (("Failed to export spans batch code: 404, reason: Not Found",), "code: 404, reason: Not Found"),
        ((), None),
    ],
)
def test_what_is_lost_is_told_with_the_collector_and_the_cause(
    caplog: pytest.LogCaptureFixture, remarks: tuple[str, ...], cause: str | None
) -> None:
    """In one line a minute, and nothing of what the exporter says of every batch."""
    moments = [0.0]
    exporter = Exporter("http://user:secret@collector.example:4318/v1/traces", lambda: moments[0])
    exporter._client = Unreached(*remarks)  # type: ignore[assignment]
    for moment in (0.0, 1.0, REPORT_INTERVAL, REPORT_INTERVAL + 1):
        moments[0] = moment
        exporter.export([])
    expected = (
        [] if cause is None else ["traces are lost: the collector at http://collector.example:4318/v1/traces "] * 2
    )
    assert [message[: len(expected[0])] for message in caplog.messages] == expected
    assert all(cause and message.endswith(cause) for message in caplog.messages)
    logging.getLogger("opentelemetry.exporter.otlp.proto.http.trace_exporter").removeFilter(exporter._log_filter)


class Site(HTTPServer):
    """A collector over TLS that takes everything."""

    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__(("127.0.0.1", 0), Taking)
        self.socket = context.wrap_socket(self.socket, server_side=True)

    def handle_error(self, request: object, client_address: object) -> None:
        """A caller that refuses the certificate is no error here."""


class Taking(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # so called by the library
        """Say nothing."""


@contextmanager
def taking(context: ssl.SSLContext) -> Iterator[str]:
    """Such a collector, in a thread: its URL."""
    with Site(context) as site, ThreadPoolExecutor(1) as pool:
        serving = pool.submit(site.serve_forever, 0.01)
        try:
            yield f"https://localhost:{site.server_address[1]}/v1/traces"
        finally:
            site.shutdown()
            serving.result()


@pytest.mark.parametrize("sort", ["conforming", *LENIENT])
def test_a_company_s_own_authority_is_accepted_unless_certificates_are_strict(
    tmp_path: Path, sort: Sort, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """On every Python; the line about what is lost names the certificate, the extension and the setting."""
    issued = Authority(tmp_path, sort)
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):  # which would go before it
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", str(issued.ca))
    with taking(issued.server_context()) as url:
        assert exported(Exporter(url)) is SpanExportResult.SUCCESS
        strict = Exporter(url, strict_certificates=True)
        if sort == "conforming":
            assert exported(strict) is SpanExportResult.SUCCESS
        else:
            assert exported(strict) is SpanExportResult.FAILURE
            (line,) = caplog.messages
            assert f"its certificate is refused: {FAULTS[sort]}, and `strict_certificates` is true" in line
        monkeypatch.delenv("OTEL_EXPORTER_OTLP_CERTIFICATE")
        caplog.clear()
        assert exported(Exporter(url)) is SpanExportResult.FAILURE
        (line,) = caplog.messages
        assert f"signed by `CN=CA of {sort}`): name the authority that signed it in OTEL_EXPORTER_OTLP_C" in line


def exported(exporter: Exporter) -> SpanExportResult:
    """An export without spans is not tried again."""
    exporter._client._shutdown_event.wait = lambda timeout=None: timeout is not None  # type: ignore[method-assign]
    try:
        return exporter.export([])
    finally:
        exporter._client.shutdown()
        logging.getLogger("opentelemetry.exporter.otlp.proto.http.trace_exporter").removeFilter(exporter._log_filter)


def test_the_last_spans_are_sent_at_the_end() -> None:
    """Stopping waits for the export in progress, and for no other."""
    collector = Collector()
    collector.go(200)
    collector.traces.stop()
    collector.traces.stop()
    assert "request" in collector.spans


def test_connections_to_a_collector_are_kept_alive() -> None:
    """The other side is asked whether it is there before what lies between forgets the connection."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        request = Request("POST", f"http://127.0.0.1:{listening.getsockname()[1]}/v1/traces").prepare()
        pool: Any = TrustAdapter(strict=False).get_connection_with_tls_context(request, verify=True)
        connection = pool._new_conn()
        connection.connect()
        try:
            assert connection.sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert connection.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == PROBE_INTERVAL
        finally:
            connection.close()
