"""A request target taken apart without losing what was encoded, and the credential that may stand in it."""

from typing import NamedTuple
from urllib.parse import unquote, unquote_plus

Endpoint = tuple[str, str, int]
"""Method, first segment and number of segments: enough to tell the API's endpoints apart."""

_KEY_NAME = "apikey"


class Target(NamedTuple):
    """The parts of a target.

    Attributes:
        raw: The target as it came.
        shown: The same with `…` in place of the value of `apikey`, for the log.
        segments: The path's segments, each decoded by itself, so that an encoded slash does not divide; a slash at its
            end begins none.
        query: The first value of each parameter, decoded.
    """

    raw: str
    shown: str
    segments: tuple[str, ...]
    query: dict[str, str]

    @property
    def key(self) -> str:
        """The key in the query, or nothing."""
        return self.query.get(_KEY_NAME, "")


def parse_target(raw: str) -> Target:
    """Take a target apart, in origin-form or absolute-form (RFC 9112, section 3.2)."""
    before, mark, after = raw.partition("?")
    path = before if before.startswith("/") else _path_of_absolute(before)
    segments = tuple(map(unquote, (path.removesuffix("/") or "/").split("/")[1:]))
    if not mark:
        return Target(raw, raw, segments, {})
    query: dict[str, str] = {}
    return Target(raw, f"{before}?{'&'.join(_take(pair, query) for pair in after.split('&'))}", segments, query)


def _path_of_absolute(target: str) -> str:
    _scheme, _mark, rest = target.partition("://")
    _authority, slash, path = rest.partition("/")
    return slash + path or "/"


def _take(pair: str, query: dict[str, str]) -> str:
    """Put a parameter into `query`, and return it as it may be shown."""
    encoded, equals, value = pair.partition("=")
    name = unquote_plus(encoded)
    query.setdefault(name, unquote_plus(value.partition("#")[0]))
    return f"{encoded}{equals}…" if name == _KEY_NAME else pair
