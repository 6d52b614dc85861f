"""What is no request, or too large for one: how it is told from what is, and what its sender is told."""

import re
from uuid import uuid4

from aiohttp import web
from aiohttp.http import HttpProcessingError
from aiohttp.http_exceptions import InvalidHeader, InvalidURLError, LineTooLong

from keyturn.core.errors import BadRequest, HeadTooLarge, Refusal, TargetTooLong
from keyturn.core.events import Journal
from keyturn.web import errors
from keyturn.web.bounds import Bounds

_TOO_MANY_FIELDS = "Too many headers"
"""How the parser begins to say so."""
_HTTP_2 = "Pause on PRI/Upgrade"
_HANDSHAKE = 0x16
"""The first byte of a TLS connection (RFC 8446, section 5.1), which no method begins with."""
_BEYOND_ASCII = re.compile(r"\\x[89a-f]")
"""A byte outside ASCII as the parser quotes it."""


class Broken(web.RequestPayloadError):
    """What a body's reader meets where the body stops being HTTP; `refusal` is the answer."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


def foreign(data: bytes) -> BadRequest | None:
    """The refusal of what begins like another protocol, `None` when it may be a request."""
    if data[0] != _HANDSHAKE:
        return None
    return BadRequest(
        "This port speaks plain HTTP, and was sent TLS. Use http://, not https://.",
        foreign="TLS on a port of plain HTTP",
    )


def plain(refusal: Refusal, method: str = "") -> bytes:
    """An answer to somebody of whom nothing is known."""
    return errors.answer(refusal, Journal(id=uuid4().hex, method=method), (), b"Connection: close")


def head_too_large(most: int) -> HeadTooLarge:
    """The refusal of a head beyond `most` bytes."""
    return HeadTooLarge(f"The head of the request is too large. At most {most} bytes are read.")


def what_is_wrong(error: HttpProcessingError, bounds: Bounds) -> Refusal:
    """The parser's complaint without the part of it that quotes the request."""
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
