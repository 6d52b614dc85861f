"""Durations and listeners in the notation of config.yaml."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from keyturn.core.forwarded import UNIX
from keyturn.core.model import MILLISECOND, SECOND, Micros

_UNITS: dict[str, Micros] = {
    "d": 86_400 * SECOND,
    "h": 3_600 * SECOND,
    "m": 60 * SECOND,
    "s": SECOND,
    "ms": MILLISECOND,
}
_DURATION = re.compile(r"([0-9]{1,12})(ms|s|m|h|d)")
_NUMBER = re.compile(r"[0-9]+(\.[0-9]*)?")
_PORT = re.compile(r"[0-9]{1,5}")
_HOST_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,252})")

DURATION_PATTERN = r"^[0-9]{1,12}(ms|s|m|h|d)$"
LISTENER_PATTERN = r"^(unix:/.+|[^\s/]+:[0-9]{1,5})$"

_DURATION_HINT = "write a whole number and its unit, such as `250ms`, `10s`, `5m` or `1h`"
_LISTENER_HINT = "write `host:port`, `[::1]:8080` or `unix:/path`"
_LISTENER_OBJECT_HINT = f"{_LISTENER_HINT}, or `{{address: host:port, proxy_protocol: true}}`"
_MAX_PORT = 65_535
_MAX_UNIX_PATH = 103
"""Bytes that fit into `sun_path` on every system (macOS has the shortest)."""


def parse_duration(value: object) -> Micros:
    """Read `250ms`, `10s`, `5m`, `1h` or `31d`, in microseconds.

    Raises:
        ValueError: it is something else; the message says what to write and does not show the value.
    """
    if isinstance(value, int | float) or (isinstance(value, str) and _NUMBER.fullmatch(value.strip())):
        raise ValueError("a number alone is no duration: write its unit too, such as `250ms`, `10s`, `5m` or `1h`")
    found = _DURATION.fullmatch(value.strip()) if isinstance(value, str) else None
    if not found:
        raise ValueError(_DURATION_HINT)
    return int(found[1]) * _UNITS[found[2]]


def format_duration(value: Micros) -> str:
    """Format a duration in the largest unit that divides it, at least in whole milliseconds."""
    for unit, size in _UNITS.items():
        if value and value % size == 0:
            return f"{value // size}{unit}"
    return f"{-(-value // MILLISECOND)}ms" if value else "0s"


@dataclass(frozen=True, slots=True)
class TcpListener:
    """A host (a name or an address, without brackets) and a port; port 0 lets the system choose."""

    host: str
    port: int
    proxy_protocol: bool = False
    """Whether each connection begins with a PROXY protocol header."""

    @property
    def loopback(self) -> bool:
        """Whether only processes of this machine (in Kubernetes: of this pod) can reach it."""
        if self.host.lower().rstrip(".") == "localhost":
            return True
        address = _address(self.host)
        if isinstance(address, IPv6Address) and address.ipv4_mapped:
            return address.ipv4_mapped.is_loopback
        return address is not None and address.is_loopback

    def overlaps(self, other: "Listener") -> bool:
        """Whether both addresses cannot be used at once: the same port of the same host, or of every host."""
        if not isinstance(other, TcpListener) or not self.port or self.port != other.port:
            return False
        return self.host == other.host or _is_every_host(self.host) or _is_every_host(other.host)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class UnixListener:
    """A Unix socket. It counts as loopback, since its permissions control access."""

    path: str
    proxy_protocol: bool = False
    """Whether each connection begins with a PROXY protocol header."""

    @property
    def loopback(self) -> bool:
        """Always true: only processes of this machine can reach it."""
        return True

    def overlaps(self, other: "Listener") -> bool:
        """Whether both name the same socket."""
        return isinstance(other, UnixListener) and self.path == other.path

    def __str__(self) -> str:
        return f"unix:{self.path}"


Listener = TcpListener | UnixListener


def parse_listener(value: object) -> Listener:
    """Read `host:port`, `[::1]:8080` or `unix:/path`, alone or as the `address` of an object with `proxy_protocol`.

    Raises:
        ValueError: it is something else; the message says what to write.
    """
    if isinstance(value, TcpListener | UnixListener):
        return value
    if isinstance(value, Mapping):
        return _parse_object(value)
    if not isinstance(value, str):
        raise ValueError(_LISTENER_HINT)  # noqa: TRY004  # pydantic collects ValueErrors only
    text = value.strip()
    return _parse_unix(text.removeprefix("unix:")) if text.startswith("unix:") else _parse_tcp(text)


def _parse_object(value: Mapping[object, object]) -> Listener:
    address, proxied = value.get("address"), value.get("proxy_protocol", False)
    if not set(value) <= {"address", "proxy_protocol"} or not isinstance(address, str):
        raise ValueError(_LISTENER_OBJECT_HINT)
    if str(proxied).lower() not in ("true", "false"):
        raise ValueError("`proxy_protocol` is `true` or `false`")
    return replace(parse_listener(address), proxy_protocol=str(proxied).lower() == "true")


def format_listener(listener: Listener) -> str | dict[str, object]:
    """Format a listener in the notation of config.yaml."""
    return {"address": str(listener), "proxy_protocol": True} if listener.proxy_protocol else str(listener)


def parse_admin(value: object) -> Listener:
    """Read the admin listener, which has no PROXY protocol.

    Raises:
        ValueError: it is something else.
    """
    if isinstance(value, Mapping):
        raise ValueError(_LISTENER_HINT)  # noqa: TRY004  # pydantic collects ValueErrors only
    return parse_listener(value)


def parse_trusted(value: object) -> IPv4Network | IPv6Network | str:
    """Read an address, a network such as `10.0.0.0/8`, or `unix`.

    Raises:
        ValueError: it is something else; the message says what to write.
    """
    if isinstance(value, IPv4Network | IPv6Network):
        return value
    text = value.strip() if isinstance(value, str) else ""
    if text == UNIX:
        return text
    try:
        network = ip_network(text, strict=False)
    except ValueError:
        raise ValueError("write an address, a network such as `10.0.0.0/8`, or `unix`") from None
    if not network.prefixlen:
        raise ValueError("every caller would be trusted to name its own address: write the proxies' networks")
    if isinstance(network, IPv6Network) and network.network_address.ipv4_mapped is not None:
        raise ValueError("an IPv4 address is known in its own form only: write it so")
    if "/" in text and ip_address(text.partition("/")[0]) != network.network_address:
        raise ValueError(f"bits behind the mask are set: write `{network}`, or the address alone")
    return network


def _parse_unix(path: str) -> UnixListener:
    path = "/" + path.lstrip("/") if path.startswith("//") else path
    if not path.startswith("/") or "\0" in path or path.endswith("/"):
        raise ValueError("write an absolute path, `unix:/run/keyturn/proxy.sock`")
    if len(path.encode()) > _MAX_UNIX_PATH:
        raise ValueError(f"the path of a unix socket has at most {_MAX_UNIX_PATH} bytes: write a shorter one")
    return UnixListener(path)


def _parse_tcp(text: str) -> TcpListener:
    host, colon, port = text.rpartition(":")
    if not colon or not _PORT.fullmatch(port):
        raise ValueError(f"{_LISTENER_HINT}; the port is missing or no number")
    if int(port) > _MAX_PORT:
        raise ValueError(f"the port is a number from 0 to {_MAX_PORT}; 0 lets the system choose")
    if host in ("", "*"):
        raise ValueError(
            f"write the host: `127.0.0.1:{port}` for this machine only, `0.0.0.0:{port}` for every network"
        )
    return TcpListener(_parse_host(host), int(port))


def _parse_host(host: str) -> str:
    if host.startswith("[") and host.endswith("]"):
        if isinstance(_address(host[1:-1]), IPv6Address):
            return host[1:-1]
        raise ValueError("what stands in brackets is no IPv6 address: write it as `[::1]:8080`")
    if ":" in host:
        raise ValueError("put an IPv6 address in brackets: `[::1]:8080`")
    if not _HOST_NAME.fullmatch(host) or (host.replace(".", "").isdigit() and _address(host) is None):
        raise ValueError(f"the host is neither a name nor an address: {_LISTENER_HINT}")
    return host


def _address(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


def _is_every_host(host: str) -> bool:
    address = _address(host)
    return address is not None and address.is_unspecified
