"""Client certificates: which of a verified certificate's names is a client's.

TLS has verified the certificate itself, its chain to `tls.client_ca` and its purpose, before any request is read. Only
subject alternative names count (RFC 9525, section 2); its common name does not.
"""

import re
from collections.abc import Iterable, Mapping
from ipaddress import ip_address
from typing import Any

from keyturn.core.model import Client

Name = tuple[str, str]
"""A kind as Python's `ssl` calls it, and the name in the form in which it is compared."""

_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:(?!\d+\Z).")


def kind_of(san: str) -> Name:
    """What kind of name a configured one is: `spiffe://a/b` a URI, `10.0.0.1` an address, `a@b` an e-mail, else DNS.

    A name of another kind that happens to read the same is another name.
    """
    address = _address(san)
    if address:
        return "IP Address", address
    if _URI.match(san):
        return "URI", san
    if "@" in san:
        return "email", san
    return "DNS", san.lower()


def by_name(clients: Iterable[Client]) -> dict[Name, Client]:
    """The clients that are known by a certificate; of two with the same name the first counts."""
    found: dict[Name, Client] = {}
    for client in clients:
        if client.san is not None:
            found.setdefault(kind_of(client.san), client)
    return found


def holder(certificate: Mapping[str, Any], known: Mapping[Name, Client]) -> Client | None:
    """Whose certificate it is, as `ssl` tells of one: the first of its names that is a client's decides."""
    names = (entry for entry in certificate.get("subjectAltName", ()) if _is_text(entry))
    return next((known[name] for name in map(_as_compared, names) if name in known), None)


def _is_text(entry: object) -> bool:
    return isinstance(entry, tuple) and len(entry) == 2 and all(isinstance(part, str) for part in entry)  # noqa: PLR2004


def _as_compared(entry: tuple[str, str]) -> Name:
    kind, name = entry
    match kind:
        case "IP Address":
            return kind, _address(name) or ""
        case "DNS":
            return kind, name.lower()
        case _:
            return kind, name


def _address(text: str) -> str | None:
    """The one way in which an address is written, `None` when it is none."""
    try:
        return str(ip_address(text.strip()))
    except ValueError:
        return None
