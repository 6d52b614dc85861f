"""The hooks by which a request's way is traced, and the defaults that trace nothing.

Each step on the way calls a hook; telemetry implements them. Without a trace, a caller's own trace context (W3C,
`traceparent` and `tracestate`) passes as it came.
"""

from typing import Protocol

from keyturn.core.http import Fields


class Arrived(Protocol):
    """An incoming request, as a tracer sees it."""

    @property
    def method(self) -> str:
        """Its method."""

    @property
    def raw_headers(self) -> Fields:
        """Its fields."""

    @property
    def scheme(self) -> str:
        """`http` or `https`, by the listener."""

    @property
    def version(self) -> tuple[int, int]:
        """The version of HTTP, such as (1, 1)."""


class Trace(Protocol):
    """The trace of one request; each step ends before the next begins."""

    @property
    def trace_id(self) -> str:
        """The trace's id in hexadecimal; empty if there is none."""

    def wait_began(self) -> None:
        """It begins to wait for a lease."""

    def wait_ended(self) -> None:
        """It has a lease, or will get none."""

    def try_began(self, key: str, path: str, fields: Fields) -> Fields:
        """It is about to be sent with a key; returns the fields to send, with the trace's context.

        `path` is without its query.
        """

    def try_ended(self, code: int) -> None:
        """The head of an answer has arrived; 0: there is none."""

    def end(self, story: object) -> None:
        """The request has ended, with this request log."""


class Tracer(Protocol):
    """Begins traces."""

    def begin(self, arrived: Arrived) -> Trace:
        """Begin the trace of a request."""


class Untraced:
    """A request without a trace."""

    trace_id = ""

    def wait_began(self) -> None:
        """Do nothing."""

    def wait_ended(self) -> None:
        """Do nothing."""

    def try_began(self, key: str, path: str, fields: Fields) -> Fields:  # noqa: ARG002  # see `Trace`
        """The fields as they came."""
        return fields

    def try_ended(self, code: int) -> None:
        """Do nothing."""

    def end(self, story: object) -> None:
        """Do nothing."""


UNTRACED = Untraced()


class NoTracer:
    """Traces nothing."""

    def begin(self, arrived: Arrived) -> Trace:  # noqa: ARG002  # see `Tracer`
        """No trace."""
        return UNTRACED
