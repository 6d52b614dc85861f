"""Responses of the proxy's own, and what is said about input that is not HTTP."""

import json
import re
from http import HTTPStatus
from uuid import uuid4

from aiohttp.helpers import rfc822_formatted_time
from aiohttp.http import HttpProcessingError
from aiohttp.http_exceptions import InvalidHeader, InvalidURLError, LineTooLong

from keyturn.core.errors import BadRequest, HeadTooLarge, Refusal, TargetTooLong
from keyturn.core.events import RequestLog
from keyturn.core.headers import accepts_problem
from keyturn.core.http import Fields
from keyturn.core.translate import VIA, server_timing
from keyturn.web.overload import Bounds

_UNAUTHENTICATED = 401
_METHOD_NOT_ALLOWED = 405
_FORWARDED = b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
"""The methods of `Allow` (RFC 9110, section 15.5.6). Others are forwarded, too."""
_QUOTED = str.maketrans({"\\": "\\\\", '"': '\\"'})


def error_response(
    refusal: Refusal, log: RequestLog, fields: Fields, connection: bytes = b"", rates: Fields = ()
) -> bytes:
    """A refusal as a whole response, without the body for HEAD.

    `fields` are those of the request, read for what the caller accepts; `connection` are the fields about the
    connection, if any; `rates` say what is left of the caller's limits, if the caller is known.
    """
    media_type = b"application/problem+json" if accepts_problem(fields) else b"application/json"
    body = error_body(refusal.status, refusal.name, refusal.message)
    lines = [
        b"HTTP/1.1 %d %b" % (refusal.status, HTTPStatus(refusal.status).phrase.encode("ascii")),
        b"Date: " + rfc822_formatted_time().encode("ascii"),
        b"Content-Type: " + media_type,
        b"Content-Length: %d" % len(body),
        b"Via: " + VIA,
        b"X-Request-Id: " + log.id.encode("ascii", "replace"),
        b"Server-Timing: " + server_timing(log.queued, log.upstream),
        b"Proxy-Status: " + _proxy_status(refusal),
    ]
    if log.key:
        lines.append(b"Keyturn-Key: " + log.key.encode())
    if refusal.retry_after is not None:
        lines.append(b"Retry-After: %d" % refusal.retry_after)
    if refusal.status == _UNAUTHENTICATED:
        lines.append(b"WWW-Authenticate: Bearer")
    lines += map(b": ".join, rates)
    if refusal.status == _METHOD_NOT_ALLOWED:
        lines.append(b"Allow: " + _FORWARDED)
    if connection:
        lines.append(connection)
    return b"\r\n".join(lines) + b"\r\n\r\n" + (body if log.method != "HEAD" else b"")


def error_body(status: int, name: str, message: str) -> bytes:
    """The body of an error response: the upstream's shape and that of RFC 9457, whose members its SDK reads."""
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


_TOO_MANY_FIELDS = "Too many headers"
"""The beginning of the parser's message."""
_HTTP_2 = "Pause on PRI/Upgrade"
_HANDSHAKE = 0x16
"""The first byte of a TLS connection (RFC 8446, section 5.1), which no method begins with."""
_BEYOND_ASCII = re.compile(r"\\x[89a-f]")
"""A byte outside ASCII as the parser quotes it."""


class UnreadableBody(Exception):
    """Raised to the reader of a body that cannot be parsed, or is not read any more."""


class MalformedBody(UnreadableBody):
    """The body stops being HTTP; `refusal` is the answer."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


def foreign_protocol(data: bytes) -> BadRequest | None:
    """The refusal of bytes that begin like another protocol, `None` when they may be a request."""
    if data[0] != _HANDSHAKE:
        return None
    return BadRequest(
        "This port speaks plain HTTP, and was sent TLS. Use http://, not https://.",
        foreign="TLS on a port of plain HTTP",
    )


def plain_response(refusal: Refusal, method: str = "") -> bytes:
    """The response to a caller of which nothing is known; it ends the connection."""
    return error_response(refusal, RequestLog(id=uuid4().hex, method=method), (), b"Connection: close")


def head_too_large(most: int) -> HeadTooLarge:
    """The refusal of a head beyond `most` bytes."""
    return HeadTooLarge(f"The head of the request is too large. At most {most} bytes are read.")


def refusal_of(error: HttpProcessingError, bounds: Bounds) -> Refusal:
    """The parser's error as a refusal, without the part of it that quotes the request."""
    match error:
        case LineTooLong() if error.args[1] == bounds.target:
            return TargetTooLong(f"The request target is too long. At most {bounds.target} bytes are read.")
        case LineTooLong():
            return head_too_large(bounds.head)
        case InvalidURLError():
            return _malformed_target(error)
        case InvalidHeader():
            return BadRequest("A field is malformed. Send it without NUL.")
        case _ if error.message.startswith(_TOO_MANY_FIELDS):
            return HeadTooLarge(f"The request has too many fields. At most {bounds.fields} are read.")
        case _:
            return _malformed(error)


def _malformed(error: HttpProcessingError) -> BadRequest:
    if error.message.startswith(_HTTP_2):
        message = "HTTP/2 is not spoken here. Send HTTP/1.1 (in many clients: leave out prior knowledge of HTTP/2)."
        return BadRequest(message, foreign="HTTP/2")
    what = error.message.partition(":")[0].rstrip(". ")
    return BadRequest(f"The request is malformed: {what}. Send HTTP/1.1.")


def _malformed_target(error: HttpProcessingError) -> BadRequest:
    if _BEYOND_ASCII.search(error.message):
        message = "The request target has bytes outside ASCII. Send them percent-encoded, as in caf%C3%A9."
        return BadRequest(message, foreign="a request target with bytes outside ASCII")
    return BadRequest("The request target is malformed. Send a path, or a URL.")
