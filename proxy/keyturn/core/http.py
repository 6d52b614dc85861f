"""Requests and answers on their way through the proxy: bytes as they came, bodies as streams."""

from collections.abc import AsyncIterator, Callable
from typing import Protocol

from keyturn.core.model import Client, Micros
from keyturn.core.values import value_object

Fields = tuple[tuple[bytes, bytes], ...]
"""Header fields in order, names and values as they stood on the wire."""


class Body(Protocol):
    """A request's body: a stream that is read once, in order."""

    @property
    def length(self) -> int | None:
        """Its `Content-Length` in bytes; `None` when it came in chunks."""

    def chunks(self) -> AsyncIterator[bytes]:
        """The bytes as they arrive.

        Raises:
            TooLarge: the body has outgrown `upstream.max_body`.
            ConnectionError: the caller broke off.
        """


@value_object
class Request:
    """A caller's request, without its credential and its hop-by-hop fields, ready to be sent."""

    id: str
    client: Client
    method: str
    target: bytes
    """Path and query, byte for byte, without the caller's credential."""
    path: str | None
    """The normalised path, `None` when there is none (`core.policy.normalise`)."""
    fields: Fields
    """The fields for the upstream, without key and `Host`; with `Content-Length`, never with `Transfer-Encoding`."""
    body: Body | None
    urgency: int
    wait: Micros
    """How long it may wait for a lease."""
    pinned: str | None = None
    """The key that it names, if its client may."""
    interim: Callable[[int, Fields], None] | None = None
    """Receives interim responses (RFC 9110, section 15.2)."""


class AnswerBody(Protocol):
    """An upstream answer's body and the connection that carries it."""

    async def read(self) -> bytes:
        """The next bytes, `b""` at the end, when the connection has gone back to its pool.

        Raises:
            Broken: it ended before its announced end; the caller's answer must stay visibly truncated.
        """

    async def discard(self) -> None:
        """Stop reading early: read a short rest, or close the connection."""

    def abort(self) -> None:
        """Close the connection at once."""


class Whole:
    """A body that has arrived completely, and needs no connection."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data: bytes = data
        """The bytes that have not been read."""

    async def read(self) -> bytes:
        """All of it, then nothing."""
        data, self.data = self.data, b""
        return data

    async def discard(self) -> None:
        """Do nothing."""

    def abort(self) -> None:
        """Do nothing."""


@value_object
class Answer:
    """The upstream's answer: its head, and its body still to be read."""

    status: int
    reason: bytes
    fields: Fields
    body: AnswerBody

    def header(self, name: bytes) -> bytes | None:
        """The first value of the field of that (lower-case) name."""
        return next((value for field, value in self.fields if field.lower() == name), None)
