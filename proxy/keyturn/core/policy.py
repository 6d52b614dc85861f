"""Rules such as `GET /workspaces/*`: a method and a path pattern, matched on the normalised path.

`*` stands for one segment, or within a segment for at least one character; `**` stands for any number of segments,
also for none. A closing slash makes no difference. The method is a name or `*`; HEAD falls under what GET falls under.
Letters of a path count in their case.

Normalising follows RFC 3986, section 6.2.2, and collapses what servers collapse: `//`, `/./`, `/../`, percent-encoded
unreserved characters; `;` parameters stay as they are. A path that servers resolve in different ways has no normal
form.

Matching takes time linear in the path for each part of a pattern, whatever a caller sends: all wildcards but the last
take the least that they can and are never tried again (atomic groups). For patterns of this kind that finds every
match, since a wildcard that took less leaves more to what follows.
"""

import re
from dataclasses import dataclass, field
from urllib.parse import unquote_to_bytes

_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_ESCAPE = re.compile(rb"%([0-9A-Fa-f]{2})")
_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_UNSAFE = re.compile(rb"[\x00-\x20\x7f-\xff\\]|%00|%5C")
_HIDING = re.compile(rb";|%3B|%2F")
_NORMAL = re.compile(rb"(?:/(?!\.{1,2}(?:/|\Z))[A-Za-z0-9\-._~!$&'()*+,=:@]+)+/?")
"""Paths that are in their normal form as they come: most."""
_RULE = re.compile(r"(?P<method>\*|[A-Za-z0-9!#$%&'+.^_`|~-]+)\s+(?P<path>/\S*)")
_STARS = re.compile(r"\*+")


@dataclass(frozen=True, slots=True)
class Rule:
    """One method and path pattern; made by `Rule.parse`."""

    text: str
    method: str
    pattern: re.Pattern[str] = field(compare=False, repr=False)

    @classmethod
    def parse(cls, text: str) -> "Rule":
        """Read `METHOD /path/pattern`.

        Raises:
            ValueError: it is not of that form; the message says what to write.
        """
        found = _RULE.fullmatch(text.strip())
        if not found:
            raise ValueError('write a method and a path pattern, such as "GET /collections/*" or "* /**"')
        if "?" in found["path"] or "#" in found["path"]:
            raise ValueError("a rule looks at the path only: leave `?`, `#` and what follows out")
        path = normalise(found["path"].encode())
        if path is None:
            raise ValueError("no path can match this: write it without `..`, and percent-encode what is not ASCII")
        return cls(" ".join(text.split()), found["method"].upper(), _compile(path))

    def matches(self, method: str, path: str) -> bool:
        """Whether a request falls under the rule; `path` as `normalise` returns it."""
        method = method.upper()
        if self.method not in ("*", method) and not (method == "HEAD" and self.method == "GET"):
            return False
        return self.pattern.fullmatch(path) is not None


def _compile(path: str) -> re.Pattern[str]:
    runs = [""]
    """The parts between the `**`s."""
    for segment in path.strip("/").split("/"):
        if segment == "**":
            runs.append("")
        else:
            runs[-1] += _segment(segment)
    first, *others = runs
    if not others:
        return re.compile(f"{first}/?")
    held = "".join(rf"(?>(?:/[^/]*)*?{run}(?=/|\Z))" for run in others[:-1] if run)
    return re.compile(f"{first}{held}(?:/[^/]*)*{others[-1]}/?")


def _segment(text: str) -> str:
    first, *others = map(re.escape, _STARS.split(text))
    if not others:
        return f"/{first}"
    held = "".join(f"(?>[^/]+?{piece})" for piece in others[:-1])
    return f"/{first}{held}[^/]+{others[-1]}"


def normalise(target: bytes) -> str | None:
    """The path of an origin-form target in its normal form, or `None` when it has none that is safe to judge by.

    The query is left out. Escapes of unreserved characters are decoded, others get upper-case digits; empty and dot
    segments are resolved. No normal form: a path that climbs above the root, `..` after an empty segment or an encoded
    slash (of which servers take away one or the other), dots beside an encoded slash, `;` parameters of dots or of
    nothing, a broken escape, an encoded NUL, a backslash, blanks, control characters, bytes outside ASCII, and escapes
    that are no UTF-8, such as the overlong forms of a dot.
    """
    path = target.partition(b"?")[0]
    if _NORMAL.fullmatch(path):
        return path.decode("ascii")
    path = path.partition(b"#")[0]
    if not path.startswith(b"/") or _BAD_ESCAPE.search(path):
        return None
    path = _ESCAPE.sub(_decode_unreserved, path)
    if _UNSAFE.search(path) or not _is_utf8(path):
        return None
    segments = _resolve(path.split(b"/")[1:])
    if segments is None:
        return None
    tail = b"/" if segments and path.endswith((b"/", b"/.", b"/..")) else b""
    return (b"/" + b"/".join(segments) + tail).decode("ascii")


def _resolve(segments: list[bytes]) -> list[bytes] | None:
    kept: list[bytes] = []
    before = b"/"
    for segment in segments:
        if segment == b"..":
            if not kept or not before or b"%2F" in before:
                return None
            kept.pop()
        elif _hides_something(segment):
            return None
        elif segment not in (b"", b"."):
            kept.append(segment)
        before = before if segment == b"." else segment
    return kept


def _hides_something(segment: bytes) -> bool:
    """Whether some servers read dots, or nothing, where a segment with parameters or encoded slashes stands."""
    if not _HIDING.search(segment):
        return False
    parts = (part.partition(b";") for part in unquote_to_bytes(segment).split(b"/"))
    return any(name in (b".", b"..") or (mark and not name) for name, mark, _ in parts)


def _is_utf8(path: bytes) -> bool:
    try:
        unquote_to_bytes(path).decode()
    except UnicodeDecodeError:
        return False
    return True


def _decode_unreserved(escape: re.Match[bytes]) -> bytes:
    byte = bytes.fromhex(escape[1].decode("ascii"))
    return byte if byte[0] in _UNRESERVED else escape[0].upper()
