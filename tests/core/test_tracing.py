from keyturn.core.events import RequestLog
from keyturn.core.http import Fields
from keyturn.core.tracing import UNTRACED, NoTracer, Trace, Tracer

from tests.telemetry.samples import Arrived


def test_what_is_not_recorded_goes_on_as_it_came() -> None:
    """Without a recorder the fields, with the caller's trace context, are the same object."""
    fields: Fields = ((b"traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"), (b"A", b"b"))
    tracer: Tracer = NoTracer()
    trace: Trace = tracer.begin(Arrived("GET", fields))
    trace.wait_began()
    trace.wait_ended()
    assert trace.try_began("k0", "/me", fields) is fields
    trace.try_ended(200)
    trace.end(RequestLog())
    assert trace.trace_id == ""


def test_a_request_log_has_no_trace_by_default() -> None:
    """A request log has no trace by default."""
    assert RequestLog().trace is UNTRACED
    assert RequestLog().trace_id == ""
