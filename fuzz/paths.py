"""Target: a path has one normal form that every server reads, or none."""

import posixpath
import re
from urllib.parse import unquote_to_bytes

from hypothesis import strategies as st
from keyturn.core.policy import Rule, normalise

_PIECES = st.sampled_from(
    [
        b"/", b"//", b"/.", b"/..", b".", b"..", b"%2e", b"%2E", b"%2f", b"%2F", b"%5c", b"\\", b"%00",
        b"%252e", b"%25",
        b"%", b"%4", b"%zz", b"a", b"me", b"echo", b"%61", b";", b";a=b", b"%3b", b"?", b"#", b"%23", b"%3F",
        b"~", b"%7e",
        b"*", b"%2a", b"\xc3\xa9", b"%c3%a9", b"%E9", b"%c0%ae", b"%c0%af",
        b" ", b"%20", b"+", b"\x00", b"\t", b"\x7f", b":", b"@",
        b"http:",
    ]
)  # fmt: skip
TARGETS = st.lists(_PIECES | st.binary(max_size=3), max_size=12).map(lambda parts: b"/" + b"".join(parts))

_RULES = [Rule.parse(text) for text in ("GET /echo/**", "GET /me", "GET /*", "* /**/a", "GET /echo/*/a*b")]


def check(target: bytes) -> None:
    """Check that every reader agrees with the normal form, if there is one."""
    path = normalise(target)
    for rule in _RULES:
        if path is not None:
            rule.matches("GET", path)
    if path is None:
        return
    assert normalise(path.encode()) == path
    assert path.startswith("/")
    assert "//" not in path
    meant = _decoded(path.encode()).rstrip(b"/")
    assert _as_rfc(target).rstrip(b"/") == meant, path
    assert _as_nginx(target).rstrip(b"/") == meant, path
    assert _without_parameters(_as_tomcat(target)) == _without_parameters(meant), path
    read = _as_file_system(target).rstrip(b"/")
    if b"%2F" in meant:  # one segment here, several to this reader: but never beside where they stand
        before = meant.partition(b"%2F")[0].rpartition(b"/")[0]
        assert read.startswith(before), (read, path)
    else:
        assert read == meant, path


def _decoded(text: bytes) -> bytes:
    """Decode all escapes but those of slashes."""
    return unquote_to_bytes(re.sub(rb"%2f", b"%252F", text, flags=re.IGNORECASE))


def _path(target: bytes) -> bytes:
    return target.partition(b"?")[0].partition(b"#")[0]


def _resolved(segments: list[bytes]) -> list[bytes]:
    kept: list[bytes] = []
    for segment in segments:
        if segment == b"..":
            del kept[-1:]
        elif segment != b".":
            kept.append(segment)
    return kept


def _as_rfc(target: bytes) -> bytes:
    """Read as RFC 3986, section 5.2.4: dot segments first, unreserved escapes decoded, then merge slashes."""
    text = re.sub(rb"%2e", b".", _path(target), flags=re.IGNORECASE)
    return re.sub(rb"/+", b"/", _decoded(b"/" + b"/".join(_resolved(text.split(b"/")[1:]))))


def _as_nginx(target: bytes) -> bytes:
    """Read as nginx: merge slashes, then resolve dot segments."""
    text = re.sub(rb"%2e", b".", _path(target), flags=re.IGNORECASE)
    return _decoded(b"/" + b"/".join(_resolved(re.sub(rb"/+", b"/", text).split(b"/")[1:])))


def _as_tomcat(target: bytes) -> bytes:
    """Read as Tomcat: drop parameters, encoded ones too, before anything is resolved."""
    text = re.sub(rb"(?:;|%3b)[^/]*", b"", _path(target), flags=re.IGNORECASE)
    return _as_nginx(text).rstrip(b"/")


def _without_parameters(path: bytes) -> bytes:
    return re.sub(rb";[^/]*", b"", path)


def _as_file_system(target: bytes) -> bytes:
    """Read as a server that maps paths to files may: decode all escapes first, encoded slashes too."""
    return posixpath.normpath(re.sub(rb"/+", b"/", unquote_to_bytes(_path(target))))
