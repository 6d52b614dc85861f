"""The addresses of callers behind other proxies: read from the fields that those write, and told to the upstream.

Both fields hold one entry for each hop, the nearest last; a caller may have written any entry before the first that a
trusted proxy wrote. They are read from the right: a caller cannot change how the entries behind its own are read.
"""

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from keyturn.core.headers import names, values
from keyturn.core.http import Fields

UNIX = "unix"
"""The address of whatever connects at a Unix socket."""

TrustedAddress = IPv4Network | IPv6Network | str
"""The addresses of proxies whose word on their callers counts; of text there is only `UNIX`."""

_FORWARDED, _FORWARDED_FOR, _FORWARDED_HOST, _FORWARDED_PROTO = (
    b"forwarded",
    b"x-forwarded-for",
    b"x-forwarded-host",
    b"x-forwarded-proto",
)
_FIELDS = frozenset({_FORWARDED, _FORWARDED_FOR})
_REMEMBERED = 1024
"""Addresses of which it is remembered whether they are trusted."""
_LONGEST_NODE = 64
"""Bytes of an address with its port, brackets and quotes."""

_MOST_READ = 4096
"""Bytes from the right that are read of a field, whatever a caller has written before them."""

_NODE = re.compile(r"(?:\[([^\]]*)\]|([^:]*))(?::(?:[0-9]{1,5}|_[A-Za-z0-9._-]+))?")
_BOUNDARY = re.compile(rb'(?<!\\)(\\*)"|,')
_VALUE = rb'"(?:[^"\\]|\\.)*+"|[^\s",;]*+'
_PAIR = re.compile(rb"[ \t]*+(?:([!#$%&'*+\-.^_`|~0-9A-Za-z]++)=(" + _VALUE + rb"))?[ \t]*+(?:;|\Z)", re.DOTALL)
_ESCAPE = re.compile(rb"\\(.)", re.DOTALL)


class TrustedProxies:
    """The proxies in front of this one that are trusted to tell whom they speak for."""

    def __init__(self, trusted: Iterable[TrustedAddress] = ()) -> None:
        self._trusted = tuple(trusted)
        self._includes = lru_cache(_REMEMBERED)(self._look_up)

    def __bool__(self) -> bool:
        return bool(self._trusted)

    def __contains__(self, address: str) -> bool:
        return bool(self._trusted) and self._includes(address)

    def _look_up(self, address: str) -> bool:
        found = parse_address(address)
        if found is None:
            return address in self._trusted
        return any(not isinstance(network, str) and found in network for network in self._trusted)

    def caller(self, peer: str, fields: Fields) -> str:
        """The address of the caller whose request came from `peer`: the last in the fields that is no trusted proxy's.

        It is the peer's own if that is not trusted, or if the fields do not tell: there are none, the entry is no
        address, or `Forwarded` and `X-Forwarded-For` name different ones, of which a caller may have written one.
        """
        if peer not in self or not (names(fields) & _FIELDS):
            return peer
        forwarded, listed = values(fields, _FORWARDED), values(fields, _FORWARDED_FOR)
        found = self._first_untrusted(_forwarded(forwarded) if forwarded else _forwarded_for(listed))
        if forwarded and listed and found != self._first_untrusted(_forwarded_for(listed)):
            return peer
        return found or peer

    def _first_untrusted(self, hops: Iterable[str]) -> str:
        """The first that is no trusted proxy's, else the last; empty when one before it is no address."""
        hop = ""
        for hop in hops:
            if hop not in self:
                break
        return hop


def parse_address(text: str) -> IPv4Address | IPv6Address | None:
    """An address, `None` when it is none; an IPv4 address that is written as one of IPv6 is one of IPv4."""
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


def _forwarded_for(lines: Iterable[bytes]) -> Iterator[str]:
    """The addresses of `X-Forwarded-For` from the right; empty for what is no address."""
    text, whole = _end(lines)
    entries = text.split(b",")
    if not whole:
        entries[0] = b"unknown"
    for entry in reversed(entries):
        if node := entry.strip():
            yield _address(node[1:-1] if node[:1] == node[-1:] == b'"' else node)


def _forwarded(lines: Iterable[bytes]) -> Iterator[str]:
    """The addresses of `Forwarded` (RFC 7239) from the right; empty for what is no address."""
    text, whole = _end(lines)
    for element in _elements(text, whole=whole):
        if element.strip():
            yield _address(_for(element))


def _end(lines: Iterable[bytes]) -> tuple[bytes, bool]:
    """As much from the right as is read of a field, and whether that is all of it."""
    text = b",".join(lines)
    return text[-_MOST_READ:], len(text) <= _MOST_READ


def _elements(text: bytes, *, whole: bool) -> Iterator[bytes]:
    """The elements of a list from the right, commas within quotes being none of its commas.

    A backslash before a quote makes it a part of the text; one more makes that backslash a part of it.
    """
    end, quoted = len(text), False
    for found in reversed(list(_BOUNDARY.finditer(text))):
        if found[1] is not None:
            quoted ^= len(found[1]) % 2 == 0
        elif not quoted:
            yield text[found.end() : end]
            end = found.start()
    yield text[:end] if whole and not quoted else b'"'


def _for(element: bytes) -> bytes:
    """The node of an element's `for`; empty when it has none, or is malformed."""
    node = None
    at = 0
    while at < len(element):
        pair = _PAIR.match(element, at)
        if pair is None:
            return b""
        at = pair.end()
        if pair[1] and pair[1].lower() == b"for":
            if node is not None:
                return b""
            node = pair[2]
    if node and node.startswith(b'"'):
        return _ESCAPE.sub(rb"\1", node[1:-1])
    return node or b""


def _address(node: bytes) -> str:
    """The address of a node (RFC 7239, section 6) without its port; empty for `unknown`, a name, and nonsense."""
    if len(node) > _LONGEST_NODE or not node.isascii():
        return ""
    text = node.decode("ascii")
    found = _NODE.fullmatch(text)
    bare = text if found is None else found[1] if found[1] is not None else found[2]
    address = None if "%" in bare else parse_address(bare)
    if address is None or (found is not None and (found[1] is not None) != (":" in bare)):
        return ""
    return str(address)


def telling(peer: str, caller: str, fields: Fields, scheme: str, *, trusted: bool) -> Fields:
    """The fields that tell the upstream of a request's way: what a trusted proxy said of it, and where it came from.

    Args:
        peer: the address that the request came from.
        caller: the address of its caller, as `Proxies.caller` found it.
        fields: as they came, without the caller's credential.
        scheme: `http` or `https`, in which it came here.
        trusted: whether the peer is a trusted proxy; else what the fields say of its way is left out.
    """
    asked = values(fields, b"host")[:1]
    hops, nodes = [], []
    if caller != peer:
        hops = values(fields, _FORWARDED) or [b"for=" + _quoted(caller)]
        nodes = values(fields, _FORWARDED_FOR) or [_shown(caller)]
    own = b"for=" + _quoted(peer) + b"".join(b';host="' + host + b'"' for host in asked if host)
    hosts = (values(fields, _FORWARDED_HOST)[-1:] if trusted else None) or asked
    schemes = (values(fields, _FORWARDED_PROTO)[-1:] if trusted else None) or [scheme.encode("ascii")]
    return (
        (b"Forwarded", b", ".join((*hops, own + b";proto=" + scheme.encode("ascii")))),
        (b"X-Forwarded-For", b", ".join((*nodes, _shown(peer)))),
        *((b"X-Forwarded-Host", host) for host in hosts if host),
        (b"X-Forwarded-Proto", schemes[0]),
    )


def _shown(address: str) -> bytes:
    return b"unknown" if address in ("", UNIX) else address.encode("ascii")


def _quoted(address: str) -> bytes:
    """An address as a node of `Forwarded`: one of IPv6 in brackets and quotes."""
    shown = _shown(address)
    return b'"[' + shown + b']"' if b":" in shown else shown
