"""The proxy's own answers, as bytes: one body in the upstream's shape and that of a problem (RFC 9457)."""

import json
from http import HTTPStatus

from aiohttp.helpers import rfc822_formatted_time

from keyturn.core.errors import Refusal
from keyturn.core.events import Journal
from keyturn.core.headers import accepts_problem
from keyturn.core.http import Fields
from keyturn.core.translate import VIA, server_timing

_UNAUTHENTICATED = 401
_METHOD_NOT_ALLOWED = 405
_FORWARDED = b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
"""What `Allow` names: RFC 9110 (section 15.5.6) asks for it. Others are forwarded too, but need no telling."""
_QUOTED = str.maketrans({"\\": "\\\\", '"': '\\"'})


def answer(refusal: Refusal, journal: Journal, fields: Fields, connection: bytes = b"", rates: Fields = ()) -> bytes:
    """The whole answer: head and body, without the body to HEAD.

    `fields` are the caller's, asked what it accepts; `connection` are the fields about the connection, if any; `rates`
    say what is left of the caller's limits, if it is known who it is.
    """
    media_type = b"application/problem+json" if accepts_problem(fields) else b"application/json"
    body = error_body(refusal.status, refusal.name, refusal.message)
    lines = [
        b"HTTP/1.1 %d %b" % (refusal.status, HTTPStatus(refusal.status).phrase.encode("ascii")),
        b"Date: " + rfc822_formatted_time().encode("ascii"),
        b"Content-Type: " + media_type,
        b"Content-Length: %d" % len(body),
        b"Via: " + VIA,
        b"X-Request-Id: " + journal.id.encode("ascii", "replace"),
        b"Server-Timing: " + server_timing(journal.queued, journal.upstream),
        b"Proxy-Status: " + _proxy_status(refusal),
    ]
    if journal.key:
        lines.append(b"Keyturn-Key: " + journal.key.encode())
    if refusal.retry_after is not None:
        lines.append(b"Retry-After: %d" % refusal.retry_after)
    if refusal.status == _UNAUTHENTICATED:
        lines.append(b"WWW-Authenticate: Bearer")
    lines += map(b": ".join, rates)
    if refusal.status == _METHOD_NOT_ALLOWED:
        lines.append(b"Allow: " + _FORWARDED)
    if connection:
        lines.append(connection)
    return b"\r\n".join(lines) + b"\r\n\r\n" + (body if journal.method != "HEAD" else b"")


def error_body(status: int, name: str, message: str) -> bytes:
    """The body of an answer of our own: the upstream's shape and that of RFC 9457, whose members its SDK reads."""
    document = {
        "error": {"name": name, "message": message},
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": message,
        "name": name,
    }
    return json.dumps(document).encode("ascii") + b"\n"


def _proxy_status(refusal: Refusal) -> bytes:
    """A list member of RFC 9209; `details` is a string of RFC 8941, which has no characters outside ASCII."""
    text = "".join(character if " " <= character <= "~" else "?" for character in refusal.message)
    return f'keyturn; error={refusal.proxy_error}; details="{text.translate(_QUOTED)}"'.encode("ascii")
