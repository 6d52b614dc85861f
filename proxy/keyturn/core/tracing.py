"""What of a request's way is recorded for a trace, and what goes on of the trace that its caller is in.

The way tells where it is; nobody on it knows what becomes of that. Where nothing is recorded, nothing is done, and a
caller's own trace context (W3C, `traceparent` and `tracestate`) passes as it came.
"""

from typing import Protocol

from keyturn.core.http import Fields


class Arrived(Protocol):
    """A request as it has arrived."""

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
    """One request's trace; what begins ends before the next begins."""

    @property
    def trace_id(self) -> str:
        """The trace's id in hexadecimal; empty when it is not recorded."""

    def wait_began(self) -> None:
        """It begins to wait for its turn."""

    def wait_ended(self) -> None:
        """Its turn has come, or it will not come."""

    def try_began(self, key: str, path: str, fields: Fields) -> Fields:
        """It is about to be sent with a key; returns the fields to send, the trace's context among them.

        `path`: what is asked for, without its query.
        """

    def try_ended(self, code: int) -> None:
        """The head of an answer is there; 0: there is none."""

    def end(self, story: object) -> None:
        """It has come to its end, with this request log."""


class Tracer(Protocol):
    """Whoever records requests."""

    def begin(self, arrived: Arrived) -> Trace:
        """A request has arrived."""


class Untraced:
    """A request that is not recorded."""

    trace_id = ""

    def wait_began(self) -> None:
        """Nothing is done."""

    def wait_ended(self) -> None:
        """Nothing is done."""

    def try_began(self, key: str, path: str, fields: Fields) -> Fields:  # noqa: ARG002  # see `Trace`
        """The fields as they came."""
        return fields

    def try_ended(self, code: int) -> None:
        """Nothing is done."""

    def end(self, story: object) -> None:
        """Nothing is done."""


UNTRACED = Untraced()


class NoTracer:
    """Records nothing."""

    def begin(self, arrived: Arrived) -> Trace:  # noqa: ARG002  # see `Tracer`
        """Not recorded."""
        return UNTRACED
