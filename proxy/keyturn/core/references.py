"""References of an answer to the upstream's own authority: made relative, so that callers come back here.

Otherwise the callers that follow redirects (`curl -L`, requests, fetch) would go past this proxy, and take their tokens
for it to the upstream. A path alone is a reference in each of these fields (RFC 9110, sections 8.7 and 10.2.2; RFC
8288; the HTML standard for `Refresh`). References to other authorities stay as they are.
"""

import re
from urllib.parse import urlsplit

from keyturn.core.headers import ByName, ByNames, names_of
from keyturn.core.http import Fields

_DEFAULT_PORTS = {b"http": 80, b"https": 443}

_TEXT_BEFORE = {
    b"location": rb"\A\s*+",
    b"content-location": rb"\A\s*+",
    b"link": rb'(?:<|\banchor\s*+=\s*+")\s*+',
    b"refresh": rb"\A\s*+[\d.]*+\s*+[;,]?+\s*+(?:url\s*+=\s*+)?+[\"']?+\s*+",
}
"""Patterns of the text before a reference, for each field that holds one."""

_before = ByName(_TEXT_BEFORE.get)
_places = ByNames(lambda names: tuple([index for index, name in enumerate(names) if _before[name] is not None]))
"""The fields that may hold a reference."""


class OwnReferences:
    """Makes references to the authority of `url` relative; its scheme may be the other of `http` and `https`, too."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._scheme = parts.scheme.encode("ascii")
        self._port = parts.port or _DEFAULT_PORTS[self._scheme]
        host = parts.hostname or ""
        named = re.escape((f"[{host}]" if ":" in host else host).encode("ascii"))
        reference = (
            rb"(?:(?P<scheme>https?):[\\/]*+|[\\/]{2,}+)(?:[^\\/?#<>\"'\s]*@)?"
            + named
            + rb"\.?(?::(?P<port>\d{0,5}+))?+(?P<slashes>[\\/]*+)(?=[?#>\"'\s;,]|\Z|(?<=[\\/]))"
        )
        self._patterns = {
            name: re.compile(b"(?P<before>" + before + b")" + reference, re.IGNORECASE)
            for name, before in _TEXT_BEFORE.items()
        }

    def relative(self, fields: Fields) -> Fields:
        """The fields with paths in place of the URLs of this authority."""
        places = _places[names_of(fields)]
        if not places:
            return fields
        found = list(fields)
        for index in places:
            name, value = fields[index]
            found[index] = (name, self._patterns[name.lower()].sub(self._path, value))
        return tuple(found)

    def _path(self, found: re.Match[bytes]) -> bytes:
        """The text in place of scheme and authority.

        More than one slash would begin another authority, so it stands behind `/.` (RFC 3986, section 4.2).
        """
        if not self._is_own((found["scheme"] or b"").lower(), found["port"]):
            return found[0]
        slashes = found["slashes"]
        return found["before"] + (b"/." + slashes if len(slashes) > 1 else b"/")

    def _is_own(self, scheme: bytes, port: bytes | None) -> bool:
        given = int(port) if port else _DEFAULT_PORTS.get(scheme)
        return given in (None, self._port) or (scheme != self._scheme and given == _DEFAULT_PORTS.get(scheme))
