"""The header that a load balancer writes in front of a connection: HAProxy's PROXY protocol, versions 1 and 2.

It is read in pieces of exactly as many bytes as it still has for certain, so that nothing behind it is taken.
"""

from ipaddress import IPv4Address, IPv6Address, ip_address

from keyturn.core.forwarded import parse_address
from keyturn.core.values import value_object

SHORTEST_HEADER = 15
"""Bytes of the shortest header, `PROXY UNKNOWN` and its line end."""
LONGEST_LINE = 107
LONGEST_BLOCK = 4096
"""Bytes of addresses and extensions (TLVs) in version 2; a header announces up to 64 KiB."""

_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_FIXED = 16
"""Bytes of version 2 before its addresses."""
_VERSION, _LOCAL, _PROXIED = 0x20, 0, 1
_BYTES = {0x1: 4, 0x2: 16}
"""Bytes of one address, by family: IPv4 and IPv6."""
_PORTS = 4
_STREAM = 1
_PARTS = 6
"""Words of a line that holds addresses."""
_FAMILIES = {b"TCP4": IPv4Address, b"TCP6": IPv6Address}
_MOST_PORT = 65_535


class InvalidProxyHeader(Exception):
    """These bytes are no header of the PROXY protocol, or one that is not accepted; the message says why."""


@value_object
class ProxyHeader:
    """A header that is whole."""

    address: str | None
    """The address of the caller; `None` when the balancer speaks for itself, or does not know it."""


def read(data: bytes) -> ProxyHeader | int:
    """The header that these bytes are, or how many more it has for certain.

    Raises:
        NoHeader: they begin no header.
    """
    if data[:1] == _SIGNATURE[:1]:
        return _read_block(data)
    return _read_line(data)


def _read_line(data: bytes) -> ProxyHeader | int:
    """Version 1: `PROXY TCP4 192.0.2.1 192.0.2.2 1000 443`."""
    if not b"PROXY ".startswith(data[:6]):
        raise InvalidProxyHeader("it is missing")
    if len(data) < SHORTEST_HEADER:
        return SHORTEST_HEADER - len(data)
    if not data.endswith(b"\r\n"):
        if len(data) >= LONGEST_LINE:
            raise InvalidProxyHeader(f"its line has more than {LONGEST_LINE} bytes")
        if b"\n" in data:
            raise InvalidProxyHeader("its line does not end in CR LF")
        return min(_left(data), LONGEST_LINE - len(data))
    _, family, *rest = data[:-2].split(b" ")
    if family == b"UNKNOWN":
        return ProxyHeader(None)
    if family not in _FAMILIES or len(rest) != _PARTS - 2 or not all(map(_is_port, rest[2:])):
        raise InvalidProxyHeader("its line is malformed")
    try:
        source, _ = (_FAMILIES[family](address.decode("ascii")) for address in rest[:2])
    except ValueError:
        raise InvalidProxyHeader("its line has no addresses") from None
    return ProxyHeader(str(parse_address(str(source))))


def _left(data: bytes) -> int:
    """Bytes that a line has at least: each word that is missing has one, and a blank before it."""
    end = 1 if data.endswith(b"\r") else 2
    missing = _PARTS - 1 - data.count(b" ") if data.startswith(b"PROXY TCP") and end > 1 else 0
    return end + 2 * max(missing, 0)


def _is_port(text: bytes) -> bool:
    return text.isdigit() and len(text) <= len(str(_MOST_PORT)) and int(text) <= _MOST_PORT


def _read_block(data: bytes) -> ProxyHeader | int:
    """Version 2: a signature, what it is about, a length, and so many bytes of addresses and extensions."""
    if not _SIGNATURE.startswith(data[: len(_SIGNATURE)]):
        raise InvalidProxyHeader("it is missing")
    if len(data) < _FIXED:
        return _FIXED - len(data)
    command, family = data[12] - _VERSION, data[13]
    length = int.from_bytes(data[14:_FIXED], "big")
    if command not in (_LOCAL, _PROXIED):
        raise InvalidProxyHeader("its version or command is unknown")
    if length > LONGEST_BLOCK:
        raise InvalidProxyHeader(f"it has more than {LONGEST_BLOCK} bytes")
    size = _BYTES.get(family >> 4, 0) if command == _PROXIED and family & 0xF == _STREAM else 0
    if size and length < 2 * size + _PORTS:
        raise InvalidProxyHeader("its addresses are cut short")
    if len(data) < _FIXED + length:
        return _FIXED + length - len(data)
    return ProxyHeader(str(parse_address(str(ip_address(data[_FIXED : _FIXED + size])))) if size else None)
