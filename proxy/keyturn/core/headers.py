"""Header fields that a proxy reads or takes off: pure functions over `Fields`.

Hop-by-hop fields (RFC 9110, section 7.6.1) end here in both directions. They go before anything of ours is put on, so
that a peer cannot have our own fields taken off by naming them in its `Connection`.
"""

import re
from collections.abc import Callable, Iterator
from itertools import chain, compress
from typing import TypeVar

from keyturn.core.errors import Broken
from keyturn.core.http import Fields
from keyturn.core.model import Secret

_HOP_BY_HOP = frozenset({b"connection", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade"})
_NOT_TO_UPSTREAM = _HOP_BY_HOP | {b"expect", b"host", b"keyturn-key"}
# Fields in which intermediaries describe a caller to their own network: its address, request and identity. `Via`
# (RFC 9110, section 7.6.3) is forwarded.
_OF_INTERMEDIARIES = frozenset({
    b"forwarded", b"forwarded-for", b"x-forwarded", b"x-forwarder-for",
    b"x-real-ip", b"x-real-port", b"x-client-ip", b"client-ip", b"x-client-port", b"x-cluster-client-ip",
    b"true-client-ip", b"fastly-client-ip", b"fly-client-ip", b"x-remote-ip", b"x-remote-addr", b"remote-addr",
    b"x-originating-ip", b"x-proxyuser-ip", b"wl-proxy-client-ip", b"x-appengine-user-ip", b"x-nf-client-connection-ip",
    b"x-host", b"x-rewrite-url", b"x-url-scheme", b"x-scheme", b"front-end-https",
    b"cf-ew-via", b"cf-ipcountry", b"cf-ray", b"cf-visitor", b"cf-worker",
})  # fmt: skip
_OF_INTERMEDIARIES_PREFIXES = (
    b"x-forwarded-", b"x-original-", b"x-envoy-", b"x-istio-", b"l5d-", b"cf-connecting-", b"cf-pseudo-", b"x-azure-",
    b"x-arr-", b"x-ssl-client-", b"ssl-client-", b"x-auth-request-", b"x-amzn-mtls-", b"x-amzn-oidc-", b"x-goog-iap-",
    b"x-goog-authenticated-user-", b"x-ms-client-principal",
)  # fmt: skip
# A challenge of a proxy is for the next client only (RFC 9110, section 11.7.1), which is us; the caller could not meet
# it, since its Proxy-Authorization ends here too. Proxy-Status passes: it is for whoever reads the answer (RFC 9209).
_NOT_FROM_UPSTREAM = _HOP_BY_HOP | {b"proxy-connection", b"proxy-authenticate", b"proxy-authentication-info"}

_FOR_ALL_RECIPIENTS = frozenset({
    b"cache-control", b"content-encoding", b"content-length", b"content-range", b"content-type", b"date", b"via",
})  # fmt: skip
"""Fields that `Connection` cannot name (RFC 9110, section 7.6.1): what frames or describes the content stays."""

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_NAME = re.compile(_TOKEN)
_QUOTED = rb'"(?:[^"\\]|\\.)*+"'
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:@/+=-]{1,128}")
_SEPARATOR = re.compile(rb',|"(?:[^"\\]|\\.)*+("?)')
"""A comma, or a quoted string, which hides its commas; the group is empty where the string is never closed."""
_PREFERENCE = re.compile(rb"\s*+(" + _TOKEN + rb")\s*+(?:=\s*+(" + _QUOTED + rb"|[^\s;]*+)\s*+)?(?:;|\Z)")
_QUALITY = re.compile(rb";\s*q\s*=\s*([01](?:\.\d{0,3})?)\s*(?:;|\Z)", re.IGNORECASE)
_VIA = re.compile(rb"\s*" + _TOKEN + rb"(?:/" + _TOKEN + rb")?\s+([^\s(]+)")

_ORIGIN, _FETCH_SITE = b"origin", b"sec-fetch-site"
_LOCAL_ORIGIN = re.compile(rb"https?://(?:(?:[\w-]+\.)*localhost|127(?:\.\d+){3}|\[::1\])(?::\d+)?", re.IGNORECASE)

# RFC 8941, section 3: what a dictionary is made of.
_KEY = rb"[a-z*][a-z0-9_.*-]*"
_BARE = (
    rb'(?:-?\d{1,15}(?:\.\d{1,3})?|"(?:[ !#-\[\]-~]|\\["\\])*+"|:[A-Za-z0-9+/=]*:|\?[01]'
    rb"|[A-Za-z*][!#$%&'*+\-.^_`|~0-9A-Za-z:/]*)"
)
_PARAMETERS = rb"(?:; *" + _KEY + rb"(?:=" + _BARE + rb")?)*+"
_INNER_LIST = rb"\( *(?:" + _BARE + _PARAMETERS + rb"(?: +|(?=\))))*+\)"
_ENTRY = re.compile(rb"(" + _KEY + rb")(?:=(" + _BARE + rb"|" + _INNER_LIST + rb"))?" + _PARAMETERS)
_COMMA = re.compile(rb"[ \t]*,[ \t]*")

Known = TypeVar("Known")
_MAX_SPELLINGS, _MAX_NAME_LENGTH = 1024, 64
_MAX_HEADS, _MAX_NAMES, _MAX_NAMES_LENGTH = 512, 64, 1024
_MAX_PREFER_WAIT = 999_999_999
_MOST_URGENT, _LEAST_URGENT = 0, 7


def to_upstream(fields: Fields) -> Fields:
    """A request's fields without those that end here, in order and byte for byte.

    Off go the hop-by-hop fields, what `Connection` lists, `Proxy-*`, `Expect`, `Host` and `Keyturn-Key`, and what other
    intermediaries tell of the caller (`X-Forwarded-*`, `Forwarded`, `X-Real-IP` and the like); also what servers that
    make no difference between `_` and `-` would take for one of these or for `Content-Length`.
    """
    kept, has_connection = _way_to_upstream[names_of(fields)]
    return _without_listed([*compress(fields, kept)], fields) if has_connection else tuple(compress(fields, kept))


def from_upstream(fields: Fields) -> Fields:
    """An answer's fields without those that end here, in order and byte for byte.

    `Content-Length` goes only beside a `Transfer-Encoding`, which overrides it (RFC 9112, section 6.3).

    Raises:
        Broken: a field's name is none, which the caller might read in another way (RFC 9112, section 5.1).
    """
    kept = _way_to_caller[names_of(fields)]
    if kept is None:
        return fields
    return _without_hop_by_hop([*compress(fields, kept)], fields)


def _without_hop_by_hop(kept: list[tuple[bytes, bytes]], fields: Fields) -> Fields:
    if any(name.lower() == b"transfer-encoding" for name, _ in fields):
        kept = [field for field in kept if field[0].lower() != b"content-length"]
    return _without_listed(kept, fields)


def names_of(fields: Fields) -> tuple[bytes, ...]:
    """The names of fields, in order."""
    return next(zip(*fields), ())  # noqa: B905  # `strict` takes twice as long as all the rest, for pairs


class ByName(dict[bytes, Known]):
    """Values that depend on a field's name only, computed once for each spelling; `of` gets the lower-case name.

    Every request and answer asks for all of its names. Callers choose them, so not more than `_MAX_SPELLINGS` are kept,
    and none longer than `_MAX_NAME_LENGTH`.
    """

    def __init__(self, of: Callable[[bytes], Known]) -> None:
        super().__init__()
        self._of = of

    def __missing__(self, name: bytes) -> Known:
        if len(self) >= _MAX_SPELLINGS:
            self.clear()
        known = self._of(name.lower())
        if len(name) <= _MAX_NAME_LENGTH:
            self[name] = known
        return known


class ByNames(dict[tuple[bytes, ...], Known]):
    """Values that depend on the names of a whole head only: most heads have the same names in the same order.

    It is bounded like `ByName`.
    """

    def __init__(self, of: Callable[[tuple[bytes, ...]], Known]) -> None:
        super().__init__()
        self._of = of

    def __missing__(self, names: tuple[bytes, ...]) -> Known:
        if len(self) >= _MAX_HEADS:
            self.clear()
        known = self._of(names)
        if len(names) <= _MAX_NAMES and sum(map(len, names)) <= _MAX_NAMES_LENGTH:
            self[names] = known
        return known


def _ends_with_us(name: bytes) -> bool:
    read = name.replace(b"_", b"-")
    if read in _NOT_TO_UPSTREAM or read in _OF_INTERMEDIARIES or read.startswith(_OF_INTERMEDIARIES_PREFIXES):
        return True
    return read.startswith(b"proxy-") or (read != name and read == b"content-length")


def _ends_on_its_way_back(name: bytes) -> bool:
    if not _NAME.fullmatch(name):
        malformed = "The upstream's answer has a field with a malformed name. Check `upstream.url`."
        raise Broken(malformed, proxy_error="http_protocol_error")
    return name in _NOT_FROM_UPSTREAM


_ends_before_upstream = ByName(_ends_with_us)
_ends_before_caller = ByName(_ends_on_its_way_back)
_is_connection = ByName(lambda name: name == b"connection")


def _plan_to_upstream(names: tuple[bytes, ...]) -> tuple[tuple[bool, ...], bool]:
    """The fields to forward, and whether a `Connection` field may name others to drop."""
    return tuple([not _ends_before_upstream[name] for name in names]), any(_is_connection[name] for name in names)


def _plan_to_caller(names: tuple[bytes, ...]) -> tuple[bool, ...] | None:
    """The fields to forward; `None`: all."""
    kept = tuple([not _ends_before_caller[name] for name in names])
    return None if all(kept) else kept


_way_to_upstream = ByNames(_plan_to_upstream)
_way_to_caller = ByNames(_plan_to_caller)


def _without_listed(kept: list[tuple[bytes, bytes]], fields: Fields) -> Fields:
    """`kept` without what a `Connection` among `fields` names."""
    connections = [value for name, value in fields if _is_connection[name]]
    if not connections:
        return tuple(kept)
    listed = {option.strip().lower() for value in connections for option in value.split(b",")} - _FOR_ALL_RECIPIENTS
    return tuple([field for field in kept if field[0].lower() not in listed])


def without(secret: Secret, fields: Fields) -> Fields:
    """An answer's fields without a secret that the upstream has written into them, `***` in its place (law 11)."""
    if not secret.is_in(b"\n".join(chain.from_iterable(fields))):
        return fields
    return tuple([(secret.mask(name), secret.mask(value)) for name, value in fields])


def names(fields: Fields) -> set[bytes]:
    """The lower-case names that occur, to ask for several of them at once."""
    return {name.lower() for name, _ in fields}


def values(fields: Fields, name: bytes) -> list[bytes]:
    """The values of all fields of that (lower-case) name, in order."""
    return [value for field, value in fields if field.lower() == name]


def from_another_site(fields: Fields) -> bool:
    """Whether the browser that sends this says that a page of another site made it do so; the loopback is no other.

    `Sec-Fetch-Site` (W3C Fetch Metadata) and `Origin` (RFC 6454, section 7) are written by browsers, and by no page.
    """
    for name, value in fields:
        if len(name) == len(_ORIGIN) and name.lower() == _ORIGIN and not _LOCAL_ORIGIN.fullmatch(value.strip()):
            return True
        if len(name) == len(_FETCH_SITE) and name.lower() == _FETCH_SITE and value.strip() == b"cross-site":
            return True
    return False


def sane_request_id(value: bytes) -> bool:
    """Whether a caller's `X-Request-Id` may go on and stand in our logs: 1 to 128 characters, all harmless."""
    return _REQUEST_ID.fullmatch(value) is not None


def prefer_wait(fields: Fields) -> int | None:
    """The seconds of `Prefer: wait=N` (RFC 7240, section 4.3), `None` without one.

    If there are several, only the first counts (section 2), even if it is not a whole number.
    """
    for value in values(fields, b"prefer"):
        for member in _members(value):
            found = _PREFERENCE.match(member)
            if found and found[1].lower() == b"wait":
                return _seconds((found[2] or b"").strip(b'"'))
    return None


def _seconds(digits: bytes) -> int | None:
    if not digits.isdigit():
        return None
    return int(digits) if len(digits.lstrip(b"0")) < len(str(_MAX_PREFER_WAIT)) else _MAX_PREFER_WAIT


def priority_urgency(fields: Fields) -> int | None:
    """The urgency of `Priority: u=N` (RFC 9218, section 4.1), 0 to 7.

    A field that is no structured dictionary (RFC 8941), or an `u` that is no urgency, is ignored.
    """
    urgency = dict(_entries(b",".join(values(fields, b"priority")).strip(b" "))).get(b"u")
    if urgency is None or not urgency.isdigit() or not _MOST_URGENT <= int(urgency) <= _LEAST_URGENT:
        return None
    return int(urgency)


def _entries(text: bytes) -> list[tuple[bytes, bytes | None]]:
    """The keys and values of a structured dictionary; one mistake makes the whole of it empty."""
    found = []
    position = 0
    while entry := _ENTRY.match(text, position):
        found.append((entry[1], entry[2]))
        if entry.end() == len(text):
            return found
        comma = _COMMA.match(text, entry.end())
        if comma is None:
            break
        position = comma.end()
    return []


def accepts_problem(fields: Fields) -> bool:
    """Whether the caller accepts `application/problem+json` and not `application/json` (RFC 9110, section 12.5.1)."""
    accept = values(fields, b"accept")
    if not accept:
        return False
    ranges = dict(_ranges(b",".join(accept)))
    return _accepted(ranges, b"application/problem+json") and not _accepted(ranges, b"application/json")


def _ranges(accept: bytes) -> Iterator[tuple[bytes, bool]]:
    """Media ranges, and whether each is accepted at all."""
    for member in _members(accept):
        quality = _QUALITY.search(member)
        yield member.partition(b";")[0].strip().lower(), quality is None or float(quality[1]) > 0


def _accepted(ranges: dict[bytes, bool], media_type: bytes) -> bool:
    return ranges.get(media_type, ranges.get(b"application/*", ranges.get(b"*/*", False)))


def passed(fields: Fields, proxy: bytes) -> int:
    """The number of times a message has passed a proxy of that (lower-case) name, by its `Via` (RFC 9110, 7.6.3)."""
    return sum(
        1
        for value in values(fields, b"via")
        for member in _members(value)
        if (found := _VIA.match(member)) and found[1].lower() == proxy
    )


def _members(value: bytes) -> list[bytes]:
    """The members of a list, a comma within quotes being none of its commas (RFC 9110, section 5.6.1).

    A quote that is never closed is an ordinary character. So is every quote behind it, which would only be escaped
    within the same string: the end of the value is looked for once.
    """
    if b'"' not in value:
        return value.split(b",")
    members = []
    begin = 0
    for found in _SEPARATOR.finditer(value):
        if found[0] == b",":
            members.append(value[begin : found.start()])
            begin = found.end()
        elif not found[1]:
            first, *others = value[found.start() :].split(b",")
            return [*members, value[begin : found.start()] + first, *others]
    return [*members, value[begin:]]
