"""A caller's credential: where it may stand in a request, and the request without it.

Three places, in this order: `Authorization: Bearer`, the key headers, the query parameter. The key headers and the
parameter are taken off always and wherever they stand (law 11); an `Authorization` only when its token is one of ours,
else it belongs to the upstream. What is not taken off stays byte for byte.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar
from urllib.parse import unquote_to_bytes

from proxy.core.http import Fields
from proxy.core.values import value_object

Owner = TypeVar("Owner")

_AUTHORIZATION = b"authorization"
_KEY_HEADER = b"x-api-key"


@dataclass(frozen=True, slots=True)
class Places:
    """Where a credential may stand: lower-case names of headers, and the decoded name of the query parameter."""

    headers: frozenset[bytes]
    query: bytes
    lengths: frozenset[int]
    """Of the names of all headers that are looked at: most others are told apart by theirs alone."""

    @classmethod
    def named(cls, key_header: str, key_query: str) -> "Places":
        """The places for a configured key header, beside `X-Api-Key`, and a query parameter."""
        headers = frozenset({_KEY_HEADER, key_header.lower().encode("ascii")})
        return cls(headers, key_query.encode("ascii"), frozenset(map(len, headers | {_AUTHORIZATION})))


@value_object
class Found(Generic[Owner]):
    """What a request held, and the request without it. Its `repr` shows none of it."""

    bearer: Owner | None
    """The owner of the first bearer token that has one."""
    header: bytes | None = field(repr=False)
    """The first key header's value, `None` when there is none or all are empty."""
    query: bytes | None = field(repr=False)
    """The first query parameter's value, decoded; `None` when there is none or all are empty."""
    fields: Fields = field(repr=False)
    target: bytes = field(repr=False)


def take_off(fields: Fields, target: bytes, places: Places, owner_of: Callable[[bytes], Owner | None]) -> Found[Owner]:
    """Find a request's credentials and take them off; `owner_of` says whose a bearer token is.

    An owner that is false stands for a token of ours that lets nobody in: it is taken off too, and the next counts.
    """
    bearer: Owner | None = None
    header: bytes | None = None
    taken: list[int] = []
    headers, lengths = places.headers, places.lengths
    for index, (name, value) in enumerate(fields):
        if len(name) not in lengths:
            continue
        lower = name.lower()
        if lower in headers:
            taken.append(index)
            header = header or value.strip() or None
        elif b"_" in lower and lower.replace(b"_", b"-") in headers:
            taken.append(index)  # no credential here, but one to a server that makes no difference
        elif lower == _AUTHORIZATION and (owner := _bearer_owner(value, owner_of)) is not None:
            taken.append(index)
            bearer = bearer or owner
    query, target = take_off_target(target, places.query)
    return Found(bearer, header, query, _without(fields, taken), target)


def take_off_target(target: bytes, name: bytes) -> tuple[bytes | None, bytes]:
    """The parameter's first value in a target's query, and the target without any of them.

    A name counts however its characters are percent-encoded. A query that becomes empty goes with its `?`.
    """
    path, mark, query = target.partition(b"?")
    if not mark or (query.find(name) < 0 and query.find(b"%") < 0):  # `in` is slow: it asks for an integer first
        return None, target
    pieces = query.split(b"&")
    kept = [piece for piece in pieces if not _is_named(piece, name)]
    if len(kept) == len(pieces):
        return None, target
    values = (unquote_to_bytes(piece.partition(b"=")[2]) for piece in pieces if _is_named(piece, name))
    rest = b"&".join(kept)
    return next(filter(None, values), None), path + mark + rest if rest else path


def _is_named(piece: bytes, name: bytes) -> bool:
    given = piece.partition(b"=")[0]
    return given == name or (b"%" in given and unquote_to_bytes(given) == name)


def _bearer_owner(value: bytes, owner_of: Callable[[bytes], Owner | None]) -> Owner | None:
    scheme, _, token = value.strip().partition(b" ")
    token = token.strip()
    return owner_of(token) if token and scheme.lower() == b"bearer" else None


def _without(fields: Fields, taken: list[int]) -> Fields:
    if not taken:
        return fields
    if len(taken) == 1:
        return fields[: taken[0]] + fields[taken[0] + 1 :]
    gone = set(taken)
    return tuple(field for index, field in enumerate(fields) if index not in gone)
