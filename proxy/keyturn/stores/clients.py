"""Clients of redis-py for the configuration's `store.url`: one server, the master of sentinels, or a cluster.

    redis://[user:password@]host[:6379][/db]                 one server
    rediss://[user:password@]host[:6379][/db]                one server over TLS
    unix://[user:password@]/path[?db=N]                      one server of this machine
    redis+sentinel://[user:password@]h:p,h:p/service[/db]    the master that the sentinels name (port 26379)
    redis+cluster://[user:password@]h:p,h:p                  a cluster, of which these are some nodes (port 6379)

Query parameters: `username`, `password` and `db` in place of those above (a cluster has no `db`); `ssl=true` speaks TLS
to sentinels and their master, or to cluster nodes; with TLS `ssl_ca_certs` (a CA that signed the certificates of the
servers, besides the system's), `ssl_certfile` and `ssl_keyfile` (our own certificate). Certificates and the names in
them are always verified. Sentinels have credentials of their own, `sentinel_username` and `sentinel_password`; without
these none are sent to them. User names and passwords are percent-decoded.

Nothing here or in redis-py as it is set up here sends a command a second time: what may have been carried out is
never repeated.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import SplitResult, parse_qsl, urlsplit

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import RedisSSLContext, parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff

from keyturn.core.model import SECOND, Micros
from keyturn.keepalive import OPTIONS
from keyturn.trust import LOWEST_VERSION, verify_flags

_DEFAULT_PORT = 6379
_SENTINEL_PORT = 26379

Settings = dict[str, Any]
"""Keyword arguments of redis-py."""

_COMMON: Settings = {
    "protocol": 2,  # 3 begins with HELLO and asks for notices of maintenance; nothing here needs either
    "driver_info": None,  # no CLIENT SETINFO: an ACL may forbid it and then logs each try
    "max_connections": 1000,  # far above one call and one subscription for each pool
}

_KEEPALIVE: Settings = {"socket_keepalive": True, "socket_keepalive_options": OPTIONS}
"""Options for TCP connections, since a subscription may be idle for hours."""


def _once() -> Retry:
    """No second try of anything: by default redis-py makes ten, whatever the first may have done."""
    return Retry(NoBackoff(), 0)


@dataclass(frozen=True, slots=True)
class Opened:
    """A client, and what has to be closed with it."""

    client: "Redis | RedisCluster"
    sentinel: Sentinel | None = None

    async def close(self) -> None:
        """End its connections."""
        await self.client.aclose()
        if self.sentinel:
            await self.sentinel.aclose()
        if isinstance(self.client, RedisCluster):  # that one ends none of them after a failure
            for whose in ("nodes_cache", "startup_nodes"):
                await self.client.nodes_manager.aclose(whose)

    def at(self, problem: BaseException) -> str:
        """The server that a problem came from, where the URL does not name it: a master or a node of a cluster."""
        if self.sentinel:
            host, port = getattr(cast("Redis", self.client).connection_pool, "master_address", None) or ("", 0)
            return f"{host}:{port}" if host else ""
        node = getattr(problem, "connection", None)
        return str(node.name) if isinstance(node, ClusterNode) else ""


def opener(text: str, timeout: Micros, *, strict_certificates: bool = False) -> Callable[[], Opened]:
    """A function that opens new clients for a store's URL; `timeout` is for one complete call.

    The URL has passed `config.urls.parse_store_url`.

    Raises:
        ValueError: a file that cannot be used; the message shows no password.
    """
    url = urlsplit(text)
    given = dict(parse_qsl(url.query))
    tls = _tls(url.scheme, given, strict=strict_certificates)
    whole = timeout / SECOND
    match url.scheme:
        case "redis+sentinel":
            nodes = _nodes(url, _SENTINEL_PORT)
            service, _, database = url.path.strip("/").partition("/")
            unbounded: Settings = {"socket_timeout": None, "socket_connect_timeout": whole}
            master = _login(url, given, database) | tls | _KEEPALIVE | unbounded
            each = whole / (len(nodes) + 1)  # so that a silent one leaves time for the others and the master
            asked = _sentinel_login(given) | tls | _KEEPALIVE | {"socket_timeout": each, "socket_connect_timeout": each}
            return lambda: _sentinels(nodes, service, master, asked)
        case "redis+cluster":
            nodes = _nodes(url, _DEFAULT_PORT)
            node = (
                _login(url, given, "")
                | tls
                | _KEEPALIVE
                | {"socket_timeout": None, "socket_connect_timeout": whole / 2}
            )
            return lambda: _cluster(nodes, node)
        case "unix":
            place: Settings = {"unix_socket_path": parse_url(f"unix://{url.path}")["path"]}
            server = _login(url, given, "") | place
        case _:
            ((host, port),) = _nodes(url, _DEFAULT_PORT)
            server = _login(url, given, url.path[1:]) | tls | _KEEPALIVE | {"host": host, "port": port}
    server |= {"socket_timeout": None, "socket_connect_timeout": whole}
    return lambda: Opened(Redis(**_COMMON, **server, retry=_once()))


def _sentinels(nodes: list[tuple[str, int]], service: str, master: Settings, asked: Settings) -> Opened:
    settings = _COMMON | asked | {"retry": _once()}
    sentinel = Sentinel(nodes, sentinel_kwargs=settings)  # type: ignore[no-untyped-call]  # as redis-py has it
    return Opened(sentinel.master_for(service, **_COMMON, **master, retry=_once()), sentinel)


def _cluster(nodes: list[tuple[str, int]], settings: Settings) -> Opened:
    """A cluster's client asks one of the nodes that the URL names, in random order, who holds what.

    `MOVED`, `ASK` and `TRYAGAIN` it follows, which say that nothing was carried out; nothing else is tried again.
    """
    known = [ClusterNode(host, port) for host, port in nodes]
    return Opened(RedisCluster(startup_nodes=known, **_COMMON, **settings, retry=_once(), dynamic_startup_nodes=False))


def _nodes(url: SplitResult, default: int) -> list[tuple[str, int]]:
    return [_node(text, default) for text in url.netloc.rpartition("@")[2].split(",")]


def _node(text: str, default: int) -> tuple[str, int]:
    host, colon, port = text.rpartition(":") if not text.endswith("]") else (text, "", "")
    return (host if colon else text).strip("[]"), int(port) if colon else default


def _login(url: SplitResult, given: dict[str, str], database: str) -> Settings:
    front = parse_url(f"redis://{url.netloc.rpartition('@')[0]}@host")
    login = {name: given.get(name, front.get(name)) or None for name in ("username", "password")}
    return login if url.scheme == "redis+cluster" else login | {"db": int(given.get("db") or database or 0)}


def _sentinel_login(given: dict[str, str]) -> Settings:
    return {name: given.get(f"sentinel_{name}") or None for name in ("username", "password")}


def _tls(scheme: str, given: dict[str, str], *, strict: bool) -> Settings:
    """The rules of `keyturn.trust`, told to redis-py, which makes a context of its own for each connection."""
    if scheme != "rediss" and given.get("ssl") != "true":
        return {}
    files = {name: text for name, text in given.items() if name.startswith("ssl_")}
    try:
        RedisSSLContext(
            keyfile=files.get("ssl_keyfile"),
            certfile=files.get("ssl_certfile"),
            ca_certs=files.get("ssl_ca_certs"),
            cert_reqs="required",
            check_hostname=True,
        ).get()
    except OSError as problem:
        named = " or ".join(files.values())
        raise ValueError(f"cannot use {named} for TLS: {problem.strerror or problem}") from None
    to_set, to_clear = verify_flags(strict=strict)
    return {
        "ssl": True,
        "ssl_cert_reqs": "required",
        "ssl_check_hostname": True,
        "ssl_min_version": LOWEST_VERSION,
        "ssl_include_verify_flags": to_set,
        "ssl_exclude_verify_flags": to_clear,
        **files,
    }
