"""Issuers of JSON Web Tokens: the URLs that their keys are read from, and their settings over all clients.

What is said of an issuer is said once, with any of the clients that it issues tokens to, and holds for all of them.
"""

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from keyturn.config.tree import Node
from keyturn.config.units import TcpListener
from keyturn.core.errors import Problem

SHARED = ("jwks_file", "jwks_url", "ca", "bearer_file", "algorithms", "leeway")
"""Settings that are the issuer's."""

_HINT = "write an https:// URL (http:// only to a loopback address, for tests)"


def fetchable(text: str) -> bool:
    """Whether keys may be fetched from a URL: over https, or from this machine."""
    try:
        url = urlsplit(text)
        _ = url.port
    except ValueError:
        return False
    if not url.hostname or "@" in url.netloc or url.fragment or not text.isprintable() or " " in text:
        return False
    return url.scheme == "https" or (url.scheme == "http" and TcpListener(url.hostname, 0).loopback)


def parse_keys_url(value: str) -> str:
    """Check the URL of a JWKS.

    Raises:
        ValueError: nothing is fetched from there.
    """
    if not fetchable(value):
        raise ValueError(_HINT)
    return value


def discovery_url(issuer: str) -> str:
    """Where an issuer's discovery document is (OpenID Connect Discovery 1.0, section 4)."""
    return f"{issuer.rstrip('/')}/.well-known/openid-configuration"


def merged(entries: Mapping[str, Any] | None, more: Mapping[str, Any]) -> dict[str, Any]:
    """An issuer's settings so far, and those that another client adds."""
    return {**(entries or {}), **{name: more[name] for name in SHARED if more.get(name) is not None}}


def check_issuers(root: Node) -> Iterator[Problem]:
    """What is wrong with the issuers of a raw document's clients."""
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
    for setting in SHARED:
        if jwt[setting].given:
            first, _ = said.setdefault(setting, (jwt[setting].value, jwt[setting]))
            if first != jwt[setting].value:
                yield jwt[setting].problem("another client has another value for this issuer: write it once")


def _sources(name: str, node: Node, said: Mapping[str, tuple[Any, Node]]) -> Iterator[Problem]:
    if "jwks_file" in said and "jwks_url" in said:
        yield said["jwks_url"][1].problem("the keys are in `jwks_file` already: keep one of the two")
    if "jwks_file" not in said and "jwks_url" not in said and not fetchable(name):
        yield node.problem(f"no place to read the issuer's keys from: {_HINT}, or add `jwks_url` or `jwks_file`")
    if "jwks_file" in said:
        for setting in ("ca", "bearer_file"):
            if setting in said:
                yield said[setting][1].problem("nothing is fetched, the keys are in `jwks_file`: take this out")
