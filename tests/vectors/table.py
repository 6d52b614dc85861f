"""A vector is bytes that come in and what must happen. The vectors are in the modules beside this one.

In the bytes, `@T` stands for the vector's own target, `@A` for a field with a token, `@N` for another whole request,
whose target is `/next`: it must be answered by itself or not at all, and never become part of another.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256

from tests.vectors.origin import Answering

NEXT = b"GET /next HTTP/1.1\r\nHost: a\r\n@A\r\n\r\n"


@dataclass(frozen=True)
class Refused:
    """One answer, followed by the end of the connection; nothing arrives at the upstream."""

    status: int = 400
    keeps: bool = False
    """Whether the connection goes on all the same."""
    anonymous: bool = False
    """Whether it has no token."""

    def __str__(self) -> str:
        return f"{self.status}" if self.keeps else f"{self.status}, the connection ends"


@dataclass(frozen=True)
class Passes:
    """The request reaches the upstream once, in sound form."""

    body: bytes = b""
    sees: tuple[bytes, ...] = ()
    """Lines of its head."""
    hides: tuple[bytes, ...] = ()
    """Text that its head must not contain, in lower case."""
    line: bytes = b""
    """Its request line, when it is another than the one that was sent."""
    answers: int = 1
    """Number of answers: each `@N` that is read as a request of its own adds one."""
    then: int | None = None
    """The status of one more answer, which refuses what follows."""
    ends: bool = False
    """Whether the connection ends after the last of them."""
    text: str = "passes"

    def __str__(self) -> str:
        return self.text + (", the connection ends" if self.ends else "")


@dataclass(frozen=True)
class Unheard:
    """The caller disconnects within the request; nothing arrives at the upstream."""

    def __str__(self) -> str:
        return "the connection ends; the upstream sees nothing"


@dataclass(frozen=True)
class Truncated:
    """The upstream sees a truncated request; the caller gets `status`, if it gets an answer."""

    body: bytes
    status: int | None = None

    def __str__(self) -> str:
        told = f"{self.status}, the connection ends" if self.status else "the connection ends"
        return f"{told}; the upstream sees it truncated"


@dataclass(frozen=True)
class Relayed:
    """The upstream's answer reaches the caller."""

    body: bytes = b"ok"
    status: int = 200
    sees: tuple[bytes, ...] = ()
    """Lines of its head."""
    hides: tuple[bytes, ...] = ()
    """Text that its head must not contain, in lower case."""
    whole: bool = True
    """Whether it is complete; a truncated one must end early."""
    interim: tuple[bytes, ...] = ()
    """Heads that come before it."""
    text: str = "passes"
    ends: bool = False

    def __str__(self) -> str:
        return self.text if self.whole else "the caller sees it truncated"


@dataclass(frozen=True)
class BadGateway:
    """The caller gets 502 in place of the answer, on a connection that goes on."""

    ends: bool = False

    def __str__(self) -> str:
        return "502"


@dataclass(frozen=True)
class Abandoned:
    """The caller disconnects, and the upstream's connection is closed as well."""

    body: bytes = b""

    def __str__(self) -> str:
        return "the upstream's connection is closed too"


Must = Refused | Passes | Unheard | Truncated | Relayed | BadGateway | Abandoned


@dataclass(frozen=True)
class Vector:
    """One sequence of bytes of a case."""

    name: str
    sent: bytes
    answering: Answering | None = None
    """How the upstream answers it, when that matters."""


@dataclass(frozen=True)
class Case:
    """A row of the table: the input, what must happen, and the source."""

    what: str
    must: Must
    source: str
    vectors: tuple[Vector, ...]


@dataclass
class Section:
    """Cases of one kind."""

    title: str
    cases: list[Case] = field(default_factory=list)

    def add(self, what: str, must: Must, source: str, *sent: bytes, **named: bytes) -> None:
        """Add a case with these requests."""
        self._case(what, must, source, (Vector("", data) for data in (*sent, *named.values())))

    def answers(self, what: str, must: Must, source: str, *answers: Answering, sent: bytes = b"") -> None:
        """Add a case of these answers to one request."""
        self._case(what, must, source, (Vector("", sent or request(), answer) for answer in answers))

    def _case(self, what: str, must: Must, source: str, vectors: Iterable[Vector]) -> None:
        slug = "-".join(self.title.lower().split()[:2])
        number = len(self.cases) + 1
        named = tuple(
            Vector(f"{slug}-{number}-{index}", vector.sent, vector.answering) for index, vector in enumerate(vectors, 1)
        )
        self.cases.append(Case(what, must, source, named))


def request(
    *fields: bytes, line: bytes = b"GET @T HTTP/1.1", host: bytes | None = b"Host: a", body: bytes = b""
) -> bytes:
    """Return the bytes of a request with a token."""
    lines = [line, *([host] if host is not None else []), b"@A", *fields]
    return b"\r\n".join([*lines, b"", b""]) + body


def post(*fields: bytes, version: bytes = b"1.1", body: bytes = b"") -> bytes:
    """Return a POST with these fields about its body, and the body."""
    return request(*fields, line=b"POST @T HTTP/" + version, body=body)


def filled(vector: Vector, token: bytes) -> bytes:
    """Return the bytes with all placeholders filled in."""
    data = vector.sent.replace(b"@N", NEXT).replace(b"@T", target(vector))
    return data.replace(b"@A", b"X-Api-Key: " + token)


def target(vector: Vector) -> bytes:
    """Return the vector's own path, which contains nothing that looks like a field.

    Its first segment is unique, so each vector is a route of its own and no streak of failures opens a route's breaker.
    """
    return b"/" + sha256(vector.name.encode()).hexdigest()[:16].encode()


def every(sections: Iterable[Section]) -> Iterator[tuple[Case, Vector]]:
    """Return all vectors, each with its case."""
    for section in sections:
        for case in section.cases:
            for vector in case.vectors:
                yield case, vector


def each(template: bytes, values: Iterable[bytes] | Mapping[str, bytes]) -> list[bytes]:
    """Return a template with each of the values in place of `@V`."""
    found = values.values() if isinstance(values, Mapping) else values
    return [template.replace(b"@V", value) for value in found]
