"""What a browser is answered: the files of the status page, and the document that they draw."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from types import MappingProxyType

from keyturn.tasks import encoded_in_steps
from keyturn.web.status.document import document
from keyturn.web.status.model import Snapshot


@dataclass(frozen=True, slots=True)
class Asset:
    """A file to answer with, and its header fields."""

    body: bytes
    headers: Mapping[str, str]


GUARD = MappingProxyType(
    {
        # Nothing but this page's own files, no inline script or style, and no frame around it (CSP level 3).
        "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
    }
)
"""Sent with everything that a browser reads here."""

_PAGE = MappingProxyType(
    {
        "/": ("index.html", "text/html; charset=utf-8"),
        "/status.css": ("status.css", "text/css; charset=utf-8"),
        "/status.js": ("status.js", "text/javascript; charset=utf-8"),
        "/elements.js": ("elements.js", "text/javascript; charset=utf-8"),
        "/words.js": ("words.js", "text/javascript; charset=utf-8"),
        "/icon.svg": ("icon.svg", "image/svg+xml"),
    }
)

PAGE_PATHS = tuple(_PAGE)
"""The paths at which `asset` has a file."""


@cache
def asset(path: str) -> Asset | None:
    """A file of the page by its path; `None` when there is none."""
    if path not in _PAGE:
        return None
    name, content_type = _PAGE[path]
    body = files("keyturn.web.status").joinpath("files", name).read_bytes()
    # A new version of the proxy brings a new page: a browser asks each time, and the files are small.
    return Asset(body, {"Content-Type": content_type, "Cache-Control": "no-cache", **GUARD})


async def status_json(snapshot: Snapshot) -> Asset:
    """The document as it is answered; the event loop turns while it is written."""
    body = await encoded_in_steps(document(snapshot))
    return Asset(body, {"Content-Type": "application/json", "Cache-Control": "no-store", **GUARD})
