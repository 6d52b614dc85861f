"""A caller's credential: where it may stand in a request, and the request without it (law 11).

Four places, in the order in which they are asked: `Authorization`, `Proxy-Authorization`, the key headers, the query
parameter. The first two hold a token in any scheme (`Bearer`, `Token`, `ApiKey`, the user or the password of `Basic`)
or in none. The key headers and the parameter are taken off always, `Proxy-Authorization` ends here like all of
`Proxy-*`, and an `Authorization` is taken off when it holds a token of ours: otherwise it belongs to the upstream.

Values found in these places are then looked for in the rest (`without`): a field or a parameter that repeats a
credential goes without it. Everything else stays byte for byte.
"""

import re
from binascii import Error, a2b_base64
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Generic, TypeVar
from urllib.parse import unquote_to_bytes

from keyturn.core.headers import ByNames, names_of
from keyturn.core.http import Fields
from keyturn.core.redaction import Redactor
from keyturn.core.values import value_object

Owner = TypeVar("Owner")

_AUTHORIZATION, _PROXY_AUTHORIZATION, _REFERER = b"authorization", b"proxy-authorization", b"referer"
_CONNECTION, _COOKIE = b"connection", b"cookie"
_KEY_HEADER = b"x-api-key"
_BASIC = b"basic"
_SCHEMES = frozenset({b"", b"bearer", _BASIC, b"token", b"apikey"})
"""Schemes that hold no token when they stand alone."""

MAX_CANDIDATES = 16
"""Words of one `Authorization` that are tried: `Digest` and its like have about ten."""
MAX_STRAY_WORDS = 256
"""Words of a head that are tried where no place holds a token of ours, within its first `MAX_BYTES_SEARCHED` bytes."""
MAX_BYTES_SEARCHED = 16_384

_WORD = re.compile(rb"[A-Za-z0-9._~+/-]+=*")
"""`token68` of RFC 9110, section 11.2."""
_STRAY_WORD = re.compile(rb"[A-Za-z0-9._~+-]+")
"""The same where a slash may stand between words."""
_BEFORE_PARAMETER, _BEFORE_PAIR = re.compile(rb"(?=[&;])"), re.compile(rb"(?=;)")
_BLANK, _BRACKET_OPEN, _BRACKET_CLOSE = rb"[ +\t\0]|%(?:20|09|00)", rb"\[|%5b", rb"\]|%5d"


@dataclass(frozen=True, slots=True)
class CredentialPlaces:
    """The places of a credential: lower-case names of headers, and a parameter of the query."""

    headers: frozenset[bytes]
    query: re.Pattern[bytes]
    """The parameter; see `parameter`."""
    among: ByNames[tuple[int, ...]] = field(repr=False, compare=False)
    """The indices of a head's fields that may hold one."""

    @classmethod
    def named(cls, key_header: str, key_query: str) -> "CredentialPlaces":
        """The places for a configured key header, beside `X-Api-Key`, and a query parameter."""
        headers = frozenset({_KEY_HEADER, key_header.lower().encode("ascii")})
        sought = headers | {_AUTHORIZATION, _PROXY_AUTHORIZATION, _REFERER}

        def among(names: tuple[bytes, ...]) -> tuple[int, ...]:
            lower = [name.lower() for name in names]
            return tuple([i for i, name in enumerate(lower) if name in sought or name.replace(b"_", b"-") in headers])

        return cls(headers, parameter(key_query), ByNames(among))


@value_object
class FoundCredentials(Generic[Owner]):
    """The credentials of a request, and the request without them. The `repr` shows none."""

    authorized: Owner | None
    """The owner of the first token in an `Authorization`, else of the first in a `Proxy-Authorization`."""
    basic: bool
    """Whether `authorized` was told by Basic credentials only, which browsers send by themselves."""
    header: bytes | None = field(repr=False)
    """The first key header's value, `None` when there is none or all are empty."""
    query: bytes | None = field(repr=False)
    """The first query parameter's value, decoded; `None` when there is none or all are empty."""
    ours: tuple[bytes, ...] = field(repr=False)
    """All that stood in a place that is ours to read, known or not: it goes nowhere."""
    proxied: tuple[bytes, ...] = field(repr=False)
    """Unknown credentials of a `Proxy-Authorization`: they go nowhere either."""
    others: tuple[bytes, ...] = field(repr=False)
    """Unknown credentials of an `Authorization`: they go to the upstream, and stand in no log."""
    fields: Fields = field(repr=False)
    target: bytes = field(repr=False)


def remove_credentials(
    fields: Fields, target: bytes, places: CredentialPlaces, owner_of: Callable[[bytes], Owner | None]
) -> FoundCredentials[Owner]:
    """Find a request's credentials and take them off; `owner_of` says whose a token of an `Authorization` is.

    A false owner stands for a token of ours that is refused: it is taken off, too, and the next one counts.
    """
    among = places.among[names_of(fields)]
    if len(among) == 1 and fields[among[0]][0].lower() in places.headers:
        return _in_one_key_header(fields, target, places, among[0])
    owners: dict[bytes, Owner | None] = {}
    header: bytes | None = None
    basic = True
    taken: dict[int, bytes | None] = {}
    ours: list[bytes] = []
    unknown: dict[bytes, list[bytes]] = {_AUTHORIZATION: [], _PROXY_AUTHORIZATION: []}
    headers = places.headers
    for index in among:
        name, value = fields[index]
        lower = name.lower()
        if lower in headers:
            taken[index] = None
            header = header or value.strip() or None
            ours.append(value.strip())
        elif lower in unknown:
            token, owner = _owner(value, owner_of, unknown[lower])
            if owner is not None:
                taken[index] = None
                ours.append(token)
                owners[lower] = owners.get(lower) or owner
                basic = basic and value.lstrip()[: len(_BASIC)].lower() == _BASIC
        elif lower == _REFERER:
            values, rest = remove_parameter(value, places.query)
            if rest is not value:
                taken[index] = rest
                ours += values
        elif b"_" in lower and lower.replace(b"_", b"-") in headers:
            taken[index] = None  # no credential here, but one to a server that makes no difference
            ours.append(value.strip())
    values, target = remove_parameter(target, places.query)
    return FoundCredentials(
        owners.get(_AUTHORIZATION) or owners.get(_PROXY_AUTHORIZATION) or next(iter(owners.values()), None),
        basic and bool(owners),
        header,
        values[0] if values else None,
        (*ours, *values),
        tuple(unknown[_PROXY_AUTHORIZATION]),
        tuple(unknown[_AUTHORIZATION]),
        _replaced(fields, taken),
        target,
    )


def _in_one_key_header(fields: Fields, target: bytes, places: CredentialPlaces, index: int) -> FoundCredentials[Owner]:
    """The same where a key header is the only field that may hold a credential: the usual case."""
    value = fields[index][1].strip()
    values, target = remove_parameter(target, places.query)
    return FoundCredentials(
        None,
        False,
        value or None,
        values[0] if values else None,
        (value, *values),
        (),
        (),
        fields[:index] + fields[index + 1 :],
        target,
    )


def parameter(name: str) -> re.Pattern[bytes]:
    """A parameter of that name in a query, with the separator before it; its value is the group.

    The name counts in any letters, however its characters are percent-encoded, and with the blanks and the index
    (`name[]`) that frameworks take off it; `;` separates parameters as `&` does.
    """
    letters = [
        b"(?:%b|%%%02x|%%%02x)" % (re.escape(letter.encode()), ord(letter.lower()), ord(letter.upper()))
        for letter in name
    ]
    before, behind = b"(?:%b|%b)*+" % (_BLANK, _BRACKET_OPEN), b"(?:%b|%b)*+" % (_BLANK, _BRACKET_CLOSE)
    index = rb"(?:(?:%b)[^&;=]*+)?+" % _BRACKET_OPEN
    named = before + b"".join(letters) + behind + index
    return re.compile(rb"(?:\A|[&;])" + named + rb"(?:=([^&;]*+))?+(?=[&;]|\Z)", re.IGNORECASE)


def remove_parameter(target: bytes, taken: re.Pattern[bytes]) -> tuple[list[bytes], bytes]:
    """The values of a parameter in a target's query, decoded, but for empty ones, and the target without any of them.

    A query that becomes empty goes with its `?`.
    """
    path, mark, query = target.partition(b"?")
    if not mark or taken.search(query) is None:
        return [], target
    values = [unquote_to_bytes(found[1]) for found in taken.finditer(query) if found[1]]
    rest = taken.sub(b"", query)
    first = taken.match(query)
    if first and not first[0].startswith((b"&", b";")):  # else its own separator went with it
        rest = rest[1:]
    return values, path + mark + rest if rest else path


def without(fields: Fields, target: bytes, hidden: Redactor) -> tuple[Fields, bytes]:
    """Remove every occurrence of a credential from fields and target; the target's path stays unchanged.

    Removes the parameter from a query or `Referer`, the pair from a `Cookie`, and any other field entirely. Keeps
    `Connection`, which is not forwarded and has to be read before.
    """
    changed: dict[int, bytes | None] = {}
    for index, (name, value) in enumerate(fields):
        if hidden.is_in(name):
            changed[index] = None
        elif hidden.is_in(value) and (lower := name.lower()) != _CONNECTION:
            changed[index] = _value_without(lower, value, hidden)
    path, mark, query = target.partition(b"?")
    if hidden.is_in(query):
        query = _kept(query, _BEFORE_PARAMETER, hidden)
        target = path + mark + query if query else path
    return _replaced(fields, changed), target


def _value_without(name: bytes, value: bytes, hidden: Redactor) -> bytes | None:
    """Return the rest of a field's value, `None` when nothing is worth keeping."""
    if name == _COOKIE:
        rest = _kept(value, _BEFORE_PAIR, hidden).strip()
    elif name == _REFERER:
        address, mark, query = value.partition(b"?")
        rest = address + mark + _kept(query, _BEFORE_PARAMETER, hidden)
    else:
        return None
    return rest if rest and not hidden.is_in(rest) else None


def _kept(text: bytes, boundary: re.Pattern[bytes], hidden: Redactor) -> bytes:
    """Return a text without the parts that repeat a credential; nothing when one spans several."""
    first, *others = boundary.split(text)
    rest = b"".join(_clean(others, hidden))
    rest = rest[1:] if hidden.is_in(first) else first + rest
    return b"" if hidden.is_in(rest) else rest


def _clean(parts: list[bytes], hidden: Redactor) -> list[bytes]:
    """The parts that repeat no credential: halves are searched as a whole first, since most repeat none."""
    if not hidden.is_in(b"".join(parts)):
        return parts
    if len(parts) == 1:
        return []
    half = len(parts) // 2
    return _clean(parts[:half], hidden) + _clean(parts[half:], hidden)


def stray_words(fields: Fields, target: bytes) -> Iterator[bytes]:
    """The words of a head that could be a token, percent-encoding undone."""
    head = unquote_to_bytes(b"\n".join((target, *chain.from_iterable(fields)))[:MAX_BYTES_SEARCHED])
    return (found[0] for found in islice(_STRAY_WORD.finditer(head), MAX_STRAY_WORDS))


def _owner(value: bytes, owner_of: Callable[[bytes], Owner | None], unknown: list[bytes]) -> tuple[bytes, Owner | None]:
    """The token in the value of an `Authorization`, and its owner; an unknown token is added to `unknown`.

    It is all behind the scheme, Basic's password or user, or any other word, in quotes for example.
    """
    scheme, _, token = value.replace(b"\t", b" ").strip().partition(b" ")
    token = token.strip()
    if not token:
        if scheme.lower() in _SCHEMES:
            return b"", None
        scheme, token = b"", scheme
    if (owner := owner_of(token)) is not None:
        return token, owner
    parts = _basic(token) if scheme.lower() == _BASIC else ()
    for candidate in parts or _words(token):
        if (owner := owner_of(candidate)) is not None:
            return candidate, owner
    unknown += (token, *parts[:1])
    return b"", None


def _basic(token: bytes) -> tuple[bytes, ...]:
    """Password and user of Basic credentials (RFC 7617, section 2)."""
    try:
        user, _, password = a2b_base64(token + b"==").partition(b":")
    except Error:
        return ()
    return tuple(filter(None, (password, user)))


def _words(token: bytes) -> Iterator[bytes]:
    """The words of what has more than one."""
    found = (match[0] for match in islice(_WORD.finditer(token), MAX_CANDIDATES))
    return (word for word in found if word != token)


def _replaced(fields: Fields, changed: dict[int, bytes | None]) -> Fields:
    """Fields with other values, and without those for which there is `None`."""
    if not changed:
        return fields
    if len(changed) == 1:
        ((index, value),) = changed.items()
        middle = () if value is None else ((fields[index][0], value),)
        return fields[:index] + middle + fields[index + 1 :]
    kept = [
        field if value is None else (field[0], value)
        for index, field in enumerate(fields)
        if (value := changed.get(index)) is not None or index not in changed
    ]
    return tuple(kept)
