"""Where the shared store is and how to get in: the configuration's `store.url`, taken apart.

    redis://[user:password@]host[:6379][/db]                 one server
    rediss://[user:password@]host[:6379][/db]                one server over TLS
    unix://[user:password@]/path[?db=N]                      one server of this machine
    redis+sentinel://[user:password@]h:p,h:p/service[/db]    the master that the sentinels name (port 26379)
    redis+cluster://[user:password@]h:p,h:p                  a cluster, of which these are some nodes (port 6379)

Query parameters: `username`, `password` and `db` in place of those above (a cluster has no `db`); `ssl=true` speaks TLS
to sentinels and their master, or to cluster nodes; with TLS `ssl_ca_certs` (the CA that signed the certificates of the
servers, in place of the system's), `ssl_certfile` and `ssl_keyfile` (our own certificate). Certificates and the names
in them are always verified. Sentinels have credentials of their own, `sentinel_username` and `sentinel_password`;
without these none are sent to them. User names and passwords are percent-decoded.
"""

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from proxy.core.model import Secret

_DEFAULT_PORT = 6379
_SENTINEL_PORT = 26379


@dataclass(frozen=True, slots=True)
class Node:
    """A server: host and port, or (`port` 0) the path of a socket."""

    host: str
    port: int

    def __str__(self) -> str:
        return (
            self.host
            if not self.port
            else f"[{self.host}]:{self.port}"
            if ":" in self.host
            else f"{self.host}:{self.port}"
        )


@dataclass(frozen=True, slots=True)
class Login:
    """What a new connection says first; without a password it names nobody."""

    user: str = ""
    password: Secret | None = field(default=None, repr=False)
    database: int = 0

    def commands(self) -> list[tuple[str, ...]]:
        """The commands that open a connection."""
        said: list[tuple[str, ...]] = []
        if self.password:
            said.append(("AUTH", *([self.user] if self.user else []), self.password.reveal()))
        return [*said, ("SELECT", str(self.database))] if self.database else said


@dataclass(frozen=True, slots=True)
class Address:
    """Where to connect; `service` is what the sentinels call the master."""

    scheme: str
    nodes: tuple[Node, ...]
    login: Login
    sentinel_login: Login
    service: str = ""
    tls: ssl.SSLContext | None = field(default=None, repr=False)


def parse_address(text: str) -> Address:
    """Take a store's URL apart.

    Raises:
        ValueError: a parameter that there is not, or a file that cannot be used; the message shows no password.
    """
    url = urlsplit(text)
    given = _parameters(url)
    nodes = url.netloc.rpartition("@")[2]
    places: tuple[Node, ...]
    service, _, database = (
        url.path.strip("/").partition("/") if url.scheme == "redis+sentinel" else ("", "", url.path[1:])
    )
    if url.scheme == "unix":
        database, places = "", (Node(unquote(url.path), 0),)
    else:
        default = _SENTINEL_PORT if url.scheme == "redis+sentinel" else _DEFAULT_PORT
        places = tuple(_node(node, default) for node in nodes.split(","))
    return Address(
        url.scheme,
        places,
        _login(url, given, database),
        Login(given.get("sentinel_username", ""), _secret(given.get("sentinel_password", ""))),
        service,
        _tls(url.scheme, given),
    )


def _parameters(url: SplitResult) -> dict[str, str]:
    known = {"username", "password", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile"}
    known |= {"ssl", "sentinel_username", "sentinel_password"} if url.scheme == "redis+sentinel" else set()
    known |= {"ssl"} if url.scheme == "redis+cluster" else {"db"}
    pairs = parse_qsl(url.query, keep_blank_values=True)
    for name, _ in pairs:
        if name not in known:
            raise ValueError(f"no parameter `{name}` belongs to {url.scheme}://; there are {', '.join(sorted(known))}")
    return dict(pairs)


def _node(text: str, default: int) -> Node:
    host, colon, port = text.rpartition(":") if not text.endswith("]") else (text, "", "")
    number = int(port) if colon else default
    if not 0 < number < 2**16:
        raise ValueError(f"the port {number} is not between 1 and 65535")
    return Node((host if colon else text).strip("[]"), number)


def _login(url: SplitResult, given: Mapping[str, str], database: str) -> Login:
    user, _, password = url.netloc.rpartition("@")[0].partition(":")
    user, password = given.get("username", unquote(user)), given.get("password", unquote(password))
    if user and not password:
        raise ValueError("a user name needs a password: write `user:password@`, or `:password@` without a user")
    number = given.get("db", database) or "0"
    if not (number.isascii() and number.isdigit()):
        raise ValueError("`db` is a whole number")
    return Login(user, _secret(password), int(number))


def _secret(text: str) -> Secret | None:
    return Secret(text) if text else None


def _tls(scheme: str, given: Mapping[str, str]) -> ssl.SSLContext | None:
    if given.get("ssl", "true") not in ("true", "false"):
        raise ValueError("`ssl` is `true` or `false`")
    if scheme != "rediss" and given.get("ssl") != "true":
        if any(name.startswith("ssl_") for name in given):
            raise ValueError("`ssl_…` is for TLS: write rediss://, or `ssl=true` for sentinels and clusters")
        return None
    authority, certificate = given.get("ssl_ca_certs"), given.get("ssl_certfile")
    try:
        context = ssl.create_default_context(cafile=authority)
        if certificate:
            context.load_cert_chain(certificate, given.get("ssl_keyfile"))
    except OSError as problem:
        files = " or ".join(name for name in (authority, certificate, given.get("ssl_keyfile")) if name)
        raise ValueError(f"cannot use {files} for TLS: {problem.strerror or problem}") from None
    return context
