"""A collector of traces: somebody to whom spans are sent by OTLP over HTTP."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from aiohttp import web
from aiohttp.test_utils import RawTestServer
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

OPENMETRICS = "Accept: application/openmetrics-text; version=1.0.0"
"""The `Accept` of a scraper that takes exemplars."""


class Collector:
    """Spans, and the bytes that they came in, heads included."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.received: list[bytes] = []

    async def handle(self, incoming: web.BaseRequest) -> web.StreamResponse:
        """Take spans in."""
        assert incoming.path == "/v1/traces"
        body = await incoming.read()
        self.received += [part for field in incoming.raw_headers for part in field] + [body]
        told = ExportTraceServiceRequest.FromString(body)
        self.spans += [span for part in told.resource_spans for scope in part.scope_spans for span in scope.spans]
        return web.Response()

    def of(self, request_id: str) -> Mapping[str, Span]:
        """A request's spans by name; what goes upstream is `try`."""
        whole = next(span for span in self.spans if attributes(span).get("keyturn.request_id") == request_id)
        parts = [span for span in self.spans if span.parent_span_id == whole.span_id]
        return {"request": whole, **{"wait" if span.name == "wait" else "try": span for span in parts}}


def attributes(span: Span) -> dict[str, str]:
    """Those that are text."""
    return {attribute.key: attribute.value.string_value for attribute in span.attributes}


@asynccontextmanager
async def collecting() -> AsyncIterator[tuple[Collector, str]]:
    """A collector, and its address."""
    collector = Collector()
    async with RawTestServer(collector.handle) as server:
        yield collector, str(server.make_url("/v1/traces"))
