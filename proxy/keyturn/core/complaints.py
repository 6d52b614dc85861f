"""The bodies of errors, in either of the API's forms, or as the page of a gateway in front of it.

`{"error": {"name": …, "message": …, "details": …}}`, a problem (RFC 9457: `title`, `detail`), or any other text, which
is taken as the message. Names and messages are the upstream's own; their interpretation is here.
"""

import json
import re
import zlib
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from keyturn.core.model import SECOND, Micros
from keyturn.core.values import value_object

BODY_LIMIT = 64 * 1024
"""Bytes of an error's body that are read."""

PLAN = "serviceLimitExhausted"
"""The name of the error that waiting does not cure within the month."""

_AUTHENTICATION = "authenticationerror"
_UNAUTHORIZED, _FORBIDDEN = 401, 403
_NOT_ABOUT_THE_KEY = re.compile(r"not authorized to perform|permission", re.IGNORECASE)
_ABOUT_THE_KEY = re.compile(
    r"\bapi key\b.{0,80}?\b(?:missing|invalid|expired|revoked|disabled|must be provided|requires? a)\b"
    r"|\b(?:missing|invalid|expired|revoked|disabled)\b.{0,20}?\bapi key\b",
    re.IGNORECASE | re.DOTALL,
)
_RETRY_AT = re.compile(r"retry at (\d{10,14})\b", re.IGNORECASE)
_OUTAGE_WITHIN = re.compile(r"within (?:the )?(?:next )?(\d{1,3}) (second|minute|hour)s?\b", re.IGNORECASE)
_GZIP_OR_ZLIB, _BARE = 47, -15
"""Window sizes of zlib; some servers send the latter as `deflate` (RFC 9110, section 8.4.1.2)."""
_UNITS: dict[str, Micros] = {"second": SECOND, "minute": 60 * SECOND, "hour": 3600 * SECOND}


@value_object
class Complaint:
    """An error: its name and message, and the instants of a retry that it names, as they were written."""

    name: str = ""
    message: str = ""
    moments: tuple[object, ...] = ()
    unreadable: bool = False
    """Whether it is in an unknown coding (a caller may ask for any): it may say anything."""

    @property
    def of_plan(self) -> bool:
        """Whether a plan's quota is used up, which waiting does not cure."""
        return self.name == PLAN

    def about_key(self, status: int) -> bool:
        """Whether it is the key that is not accepted, rather than the request.

        Of the answers 403 only those named as errors of authentication are: most are about a plan, a role, a region.
        What cannot be read may be: the health check of the key tells.
        """
        if self.unreadable:
            return status in (_UNAUTHORIZED, _FORBIDDEN)
        named = self.name.casefold() == _AUTHENTICATION
        if status == _FORBIDDEN:
            return named
        if status != _UNAUTHORIZED or _NOT_ABOUT_THE_KEY.search(self.message):
            return False
        return named or _ABOUT_THE_KEY.search(self.message) is not None

    @property
    def over_within(self) -> Micros | None:
        """The time within which an outage is usually over, by its message ("within the next 5 minutes")."""
        found = _OUTAGE_WITHIN.search(self.message)
        return int(found[1]) * _UNITS[found[2].lower()] if found else None


def complaint(body: bytes, coding: bytes = b"") -> Complaint:
    """Read the body of an error; `coding` is its `Content-Encoding`."""
    text = _plain(body[:BODY_LIMIT], coding.strip().lower())
    if text is None:
        return Complaint(unreadable=True)
    try:
        document = json.loads(text) if text else None
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        message = text.decode("latin-1")
        return Complaint("", message, tuple(_moments(message, {})))
    inner = document.get("error")
    error: dict[str, Any] = inner if isinstance(inner, dict) else document
    message = next((str(error[key]) for key in ("message", "detail", "error") if error.get(key)), "")
    name = next((error[key] for key in ("name", "title") if isinstance(error.get(key), str)), "")
    return Complaint(name, message, tuple(_moments(message, error)))


def _moments(message: str, error: dict[str, Any]) -> Iterator[object]:
    yield from (found[1] for found in _RETRY_AT.finditer(message))
    for holder in (error, error.get("details")):
        if isinstance(holder, dict) and holder.get("retryAfter") is not None:
            yield holder["retryAfter"]


def _plain(body: bytes, coding: bytes) -> bytes | None:
    """The body without its content coding, as far as `BODY_LIMIT` goes; `None` when it cannot be read."""
    if coding in (b"", b"identity"):
        return body
    if coding not in (b"gzip", b"x-gzip", b"deflate"):
        return None
    for form in (_GZIP_OR_ZLIB, _BARE) if coding == b"deflate" else (_GZIP_OR_ZLIB,):
        with suppress(zlib.error):
            return zlib.decompressobj(wbits=form).decompress(body, BODY_LIMIT)
    return None
