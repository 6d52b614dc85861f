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


class Recording(Protocol):
    """One request's trace; what begins ends before the next begins."""

    @property
    def trace(self) -> str:
        """The trace's id in hexadecimal; empty when it is not recorded."""

    def waits(self) -> None:
        """It begins to wait for its turn."""

    def waited(self) -> None:
        """Its turn has come, or it will not come."""

    def tries(self, key: str, path: str, fields: Fields) -> Fields:
        """It is about to be sent with a key; returns the fields to send, the trace's context among them.

        `path`: what is asked for, without its query.
        """

    def tried(self, code: int) -> None:
        """The head of an answer is there; 0: there is none."""

    def ended(self, story: object) -> None:
        """It has come to its end, with this journal."""


class Recorder(Protocol):
    """Whoever records requests."""

    def begin(self, arrived: Arrived) -> Recording:
        """A request has arrived."""


class Unrecorded:
    """A request that is not recorded."""

    trace = ""

    def waits(self) -> None:
        """Nothing is done."""

    def waited(self) -> None:
        """Nothing is done."""

    def tries(self, key: str, path: str, fields: Fields) -> Fields:  # noqa: ARG002  # see `Recording`
        """The fields as they came."""
        return fields

    def tried(self, code: int) -> None:
        """Nothing is done."""

    def ended(self, story: object) -> None:
        """Nothing is done."""


UNRECORDED = Unrecorded()


class NoRecorder:
    """Records nothing."""

    def begin(self, arrived: Arrived) -> Recording:  # noqa: ARG002  # see `Recorder`
        """Not recorded."""
        return UNRECORDED
