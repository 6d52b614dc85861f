"""URLs of the configuration, and what they say about the issuers of JSON Web Tokens."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlencode, urlsplit

from keyturn.config.problems import Node
from keyturn.config.units import TcpListener
from keyturn.core.errors import Problem
from keyturn.core.model import Secret

STORE_SCHEMES = ("memory", "redis", "rediss", "unix", "redis+sentinel", "redis+cluster")

_UPSTREAM_HINT = "write `https://` and a host, such as `https://api.getpostman.com`"
_NODE = r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]{1,5})?"
_NODES = re.compile(rf"{_NODE}(?:,{_NODE})*")
_ONE_NODE = re.compile(_NODE)
_DATABASE = re.compile(r"/?[0-9]{0,5}")
_SERVICE = re.compile(r"/[A-Za-z0-9._-]+(?:/[0-9]{0,5})?")
_PASSWORD = re.compile(r"(?<=[?&])((?:(?!pass)[^=&#?])*+pass[^=&#?]*+=)[^&#]*", re.IGNORECASE)

_PERCENT = re.compile(r"%[0-9A-Fa-f]{2}")

_LOGIN_HINT = (
    "a user name and a password stand best in `store.username` and `store.password` or `store.password_file`, which "
    "take them literally; in the URL percent-encode `/ ? # @ [ ] %`"
)

_STORE_FORMS = {
    "memory": "`memory://`",
    "redis": "`redis://host:6379/0`",
    "rediss": "`rediss://host:6379/0`",
    "unix": "`unix:///path/to/redis.sock?db=0`",
    "redis+sentinel": "`redis+sentinel://host:26379,host:26379/service`",
    "redis+cluster": "`redis+cluster://host:6379,host:6379`",
}


_LOGIN = {"username", "password"}
_TLS = {"ssl_ca_certs", "ssl_certfile", "ssl_keyfile"}
_PARAMETERS = {
    "redis": _LOGIN | {"db"},
    "rediss": _LOGIN | _TLS | {"db"},
    "unix": _LOGIN | {"db"},
    "redis+sentinel": _LOGIN | _TLS | {"ssl", "db", "sentinel_username", "sentinel_password"},
    "redis+cluster": _LOGIN | _TLS | {"ssl"},
}
"""Permitted query parameters of a store's URL."""


def parse_upstream_url(value: object) -> str:
    """Check the upstream's URL; returns it without a closing slash.

    Raises:
        ValueError: it is not https (http to loopback is for tests), or has more than a host and a port.
    """
    url = _split(value, _UPSTREAM_HINT)
    if url.scheme not in ("https", "http") or not _ONE_NODE.fullmatch(url.netloc.rpartition("@")[2]):
        raise ValueError(_UPSTREAM_HINT)
    if "@" in url.netloc or url.path not in ("", "/") or url.query or url.fragment:
        raise ValueError(f"only a host and a port belong here, no path, query or user name: {_UPSTREAM_HINT}")
    if url.scheme == "http" and not TcpListener(url.hostname or "", 0).loopback:
        raise ValueError(
            "keys are sent over https only: write `https://…` (http:// only to a loopback address, for tests)"
        )
    return f"{url.scheme}://{url.netloc}"


def parse_collector_url(value: object) -> str:
    """Check the URL to which spans are sent.

    Raises:
        ValueError: it is no URL by http or https, or holds a password.
    """
    hint = "write an http:// or https:// URL, such as `http://127.0.0.1:4318/v1/traces`"
    url = _split(value, hint)
    if url.scheme not in ("http", "https") or not _ONE_NODE.fullmatch(url.netloc) or url.fragment:
        raise ValueError(hint)
    return url.geturl()


@dataclass(frozen=True, slots=True)
class StoreUrl:
    """The store's URL; shown with its password masked, revealed to the store's client only."""

    scheme: str
    shown: str
    text: Secret = field(repr=False)

    def reveal(self) -> str:
        """The URL itself, with its password."""
        return self.text.reveal()

    @property
    def has_password(self) -> bool:
        """Whether it contains a password."""
        return "…" in self.shown

    def has_login(self, whose: str) -> bool:
        """Whether it contains a user name or a password: the store's, or with `sentinel_` the sentinels'."""
        url = urlsplit(self.reveal())
        given = dict(parse_qsl(url.query))
        return (not whose and "@" in url.netloc) or not given.keys().isdisjoint(
            (f"{whose}username", f"{whose}password")
        )

    @property
    def looks_literal(self) -> bool:
        """Whether percent-decoding changes a user name or a password in a way that is hardly intended.

        Letters and digits need no percent-encoding, and a blank in a query is `%20` to most encoders.
        """
        url = urlsplit(self.reveal())
        secrets = [value for name, value in _pairs(url.query) if name.endswith(("username", "password"))]
        if any("+" in value for value in secrets):
            return True
        texts = [url.netloc.rpartition("@")[0], *secrets]
        return any(unquote(found, errors="ignore").isalnum() for text in texts for found in _PERCENT.findall(text))

    def with_login(self, login: Mapping[str, str]) -> "StoreUrl":
        """The URL with these parameters, percent-encoded."""
        query = urlencode(login, quote_via=quote)
        text = self.reveal()
        return (
            StoreUrl(self.scheme, self.shown, Secret(f"{text}{'&' if '?' in text else '?'}{query}")) if query else self
        )

    def __str__(self) -> str:
        return self.shown


def parse_store_url(value: object) -> StoreUrl:
    """Read the store's URL.

    Raises:
        ValueError: no scheme that there is, not of its form, or with parameters that cannot be used; the message does
            not show the value.
    """
    if isinstance(value, StoreUrl):
        return value
    url = _split(
        value, f"write the store's URL, such as {_STORE_FORMS['memory']} or {_STORE_FORMS['redis']}; {_LOGIN_HINT}"
    )
    if url.scheme not in STORE_SCHEMES:
        raise ValueError(f"the scheme is one of {', '.join(f'`{scheme}://`' for scheme in STORE_SCHEMES)}")
    if url.fragment or not _has_form(url):
        raise ValueError(f"write {_STORE_FORMS[url.scheme]}; {_LOGIN_HINT}")
    _check_nodes(url)
    _check_parameters(url)
    return StoreUrl(url.scheme, _masked(url), Secret(str(value).strip()))


def _split(value: object, hint: str) -> SplitResult:
    if not isinstance(value, str) or not value.isprintable():
        raise ValueError(hint)
    try:
        url = urlsplit(value.strip())
        _ = url.port if "," not in url.netloc else None
    except ValueError:
        raise ValueError(hint) from None
    return url


def _has_form(url: SplitResult) -> bool:
    nodes = url.netloc.rpartition("@")[2]
    if "@" in url.path + url.query:  # a password that was not percent-encoded has ended the host too early
        return False
    match url.scheme:
        case "memory":
            return not (url.netloc or url.path or url.query)
        case "unix":
            return not nodes and len(url.path) > 1
        case "redis+sentinel":
            return bool(_NODES.fullmatch(nodes) and _SERVICE.fullmatch(url.path))
        case "redis+cluster":
            return bool(_NODES.fullmatch(nodes)) and url.path in ("", "/")
        case _:
            return bool(_ONE_NODE.fullmatch(nodes) and _DATABASE.fullmatch(url.path))


def _check_nodes(url: SplitResult) -> None:
    for node in url.netloc.rpartition("@")[2].split(","):
        port = re.search(r":([0-9]+)$", node)
        if port and not 0 < int(port[1]) < 2**16:
            raise ValueError(f"the port {port[1]} is not between 1 and 65535")


def _check_parameters(url: SplitResult) -> None:
    known = _PARAMETERS.get(url.scheme, set())
    given = dict(parse_qsl(url.query, keep_blank_values=True))
    hint = f"; {_LOGIN_HINT}, and `&`" if any("password" in name for name in given) else ""
    for name in given:
        if name not in known:
            named = f" `{name}`" if re.fullmatch("[a-z_]{2,24}", name) else ""
            raise ValueError(
                f"no parameter{named} belongs to {url.scheme}://; there are {', '.join(sorted(known))}" + hint
            )
    user, _, password = url.netloc.rpartition("@")[0].partition(":")
    for name, named, secret in (
        ("user name", given.get("username", user), given.get("password", password)),
        ("sentinel_username", given.get("sentinel_username", ""), given.get("sentinel_password", "")),
    ):
        if named and not secret:
            raise ValueError(
                f"a {name} needs a password: write `user:password@`, `:password@` without a user, or both apart, in "
                "`store.username` and `store.password`"
            )
    if not re.fullmatch("[0-9]{1,5}", given.get("db") or "0"):
        raise ValueError("`db` is a whole number")
    if given.get("ssl", "true") not in ("true", "false"):
        raise ValueError("`ssl` is `true` or `false`")
    if url.scheme != "rediss" and given.get("ssl") != "true" and _TLS & given.keys():
        raise ValueError("`ssl_…` is for TLS: `ssl=true` belongs to it")
    if "ssl_keyfile" in given and "ssl_certfile" not in given:
        raise ValueError("`ssl_keyfile` needs `ssl_certfile`, the certificate that it belongs to")


def _pairs(query: str) -> list[tuple[str, str]]:
    """The parameters of a query, their values as they are written."""
    pairs = (part.partition("=") for part in query.split("&"))
    return [(name, value) for name, _, value in pairs]


def _masked(url: SplitResult) -> str:
    user, at, nodes = url.netloc.rpartition("@")
    name, colon, _ = user.partition(":")
    shown = f"{name}:…@" if colon else "…@" if at else ""
    query = _PASSWORD.sub(r"\1…", f"?{url.query}") if url.query else ""
    return f"{url.scheme}://{shown}{nodes}{url.path}{query}"


ISSUER_SETTINGS = ("jwks_file", "jwks_url", "ca", "bearer_file", "algorithms", "leeway")
"""Settings of the issuer. Written with one of its clients, they apply to all of them."""

_KEYS_HINT = "write an https:// URL (http:// only to a loopback address, for tests)"


def fetchable(text: str) -> bool:
    """Whether keys may be fetched from a URL: by https, or from this machine."""
    try:
        url = urlsplit(text)
        _ = url.port
    except ValueError:
        return False
    if not url.hostname or "@" in url.netloc or url.fragment or not text.isprintable() or " " in text:
        return False
    return url.scheme == "https" or (url.scheme == "http" and TcpListener(url.hostname, 0).loopback)


def parse_keys_url(value: str) -> str:
    """Check the URL of a JWK set.

    Raises:
        ValueError: keys are not fetched from there.
    """
    if not fetchable(value):
        raise ValueError(_KEYS_HINT)
    return value


def discovery_url(issuer: str) -> str:
    """The URL of an issuer's discovery document (OpenID Connect Discovery 1.0, section 4)."""
    return f"{issuer.rstrip('/')}/.well-known/openid-configuration"


def merge_issuer_settings(entries: Mapping[str, Any] | None, more: Mapping[str, Any]) -> dict[str, Any]:
    """Add the issuer's settings of another client to those found so far."""
    return {**(entries or {}), **{name: more[name] for name in ISSUER_SETTINGS if more.get(name) is not None}}


def check_issuers(root: Node) -> Iterator[Problem]:
    """Report problems of the issuers of a raw document's clients."""
    said: dict[str, dict[str, tuple[Any, Node]]] = {}
    nodes: dict[str, Node] = {}
    for client in root["clients"].items():
        jwt = client["jwt"]
        name = jwt["issuer"].text
        if name is None:
            continue
        nodes.setdefault(name, jwt["issuer"])
        yield from _differences(jwt, said.setdefault(name, {}))
    for name, node in nodes.items():
        yield from _sources(name, node, said[name])


def _differences(jwt: Node, said: dict[str, tuple[Any, Node]]) -> Iterator[Problem]:
    for setting in ISSUER_SETTINGS:
        if jwt[setting].given:
            first, _ = said.setdefault(setting, (jwt[setting].value, jwt[setting]))
            if first != jwt[setting].value:
                yield jwt[setting].problem("another client has another value for this issuer: write it once")


def _sources(name: str, node: Node, said: Mapping[str, tuple[Any, Node]]) -> Iterator[Problem]:
    if "jwks_file" in said and "jwks_url" in said:
        yield said["jwks_url"][1].problem("the keys are in `jwks_file` already: keep one of the two")
    if "jwks_file" not in said and "jwks_url" not in said and not fetchable(name):
        yield node.problem(f"no place to read the issuer's keys from: {_KEYS_HINT}, or add `jwks_url` or `jwks_file`")
    if "jwks_file" in said:
        for setting in ("ca", "bearer_file"):
            if setting in said:
                yield said[setting][1].problem("nothing is fetched, since the keys are in `jwks_file`: delete this")
