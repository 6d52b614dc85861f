"""What an answer says about limits: pure functions from fields and bodies to value objects.

Sources: the forms listed for the Postman API; `Retry-After` RFC 9110, section 10.2.3. Instants in an answer are read
against the answer's own `Date`, so that a local clock that is off does no harm; what is malformed or absurd is ignored.
"""

import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import mktime_tz, parsedate_tz
from typing import Any, Literal

from proxy.core.http import Fields
from proxy.core.model import MILLISECOND, SECOND, Limit, Micros

LONGEST: Micros = 31 * 24 * 3600 * SECOND
"""A longer wait is not believed."""

BODY_LIMIT = 64 * 1024
"""Bytes of an error body that are read for what they say."""

_EPOCH_SECONDS = 1_000_000_000
_EPOCH_MILLISECONDS = 100_000_000_000
_MOST_DIGITS = 14
_RETRY_AT = re.compile(r"retry at (\d{12,14})\b", re.IGNORECASE)
_RESET = re.compile(rb"(?:^|[,;\s])(?:reset|t)=(\d{1,14})\b", re.IGNORECASE)
_WAITS = frozenset((b"retry-after", b"retryafter", b"x-ratelimit-retryafter"))
_RESETS = frozenset((b"x-ratelimit-reset", b"ratelimit-reset"))
_LIMITS = frozenset((b"x-ratelimit-limit", b"ratelimit-limit"))


@dataclass(frozen=True, slots=True)
class Throttle:
    """A 429: how long until the upstream wants another try (`None`: it does not say), and what it is about."""

    wait: Micros | None
    kind: Literal["window", "plan"]
    limit: int | None = None
    """The size of the limit that was hit, if named."""

    def parks(self, limits: tuple[int, ...], of: tuple[Limit, ...]) -> tuple[int, ...]:
        """Which of a request's limits are full: those of the named size, else all."""
        named = tuple(index for index in limits if of[index].requests == self.limit)
        return named or limits


def throttle(fields: Fields, body: bytes, wall: Micros) -> Throttle:
    """Read a 429; `wall` is the local time in epoch microseconds, used when the answer has no `Date`."""
    now = sent_at(fields) or wall
    error = _error(fields, body)
    waits = [*_announced(fields, now), *_told(error, now)]
    kind: Literal["window", "plan"] = "plan" if error.get("name") == "serviceLimitExhausted" else "window"
    wait = max(waits) if waits else next(_resets(fields, now), None)
    return Throttle(wait, kind, next(_numbers(fields, _LIMITS), None))


def announced_wait(fields: Fields, wall: Micros) -> Micros | None:
    """The wait that an answer's fields ask for, in any of their forms."""
    now = sent_at(fields) or wall
    waits = list(_announced(fields, now))
    return max(waits) if waits else next(_resets(fields, now), None)


def sent_at(fields: Fields) -> Micros | None:
    """The answer's own `Date`, in epoch microseconds."""
    for name, value in fields:
        if name.lower() == b"date":
            return _date(value)
    return None


def _announced(fields: Fields, now: Micros) -> Iterator[Micros]:
    for name, value in fields:
        if name.lower() in _WAITS:
            wait = _wait(value, now)
            if wait is not None:
                yield wait


def _resets(fields: Fields, now: Micros) -> Iterator[Micros]:
    for name, value in fields:
        lowered = name.lower()
        if lowered in _RESETS:
            wait = _wait(value, now)
        elif lowered == b"ratelimit" and (found := _RESET.search(value)):
            wait = _wait(found[1], now)
        else:
            continue
        if wait is not None:
            yield wait


def _told(error: dict[str, Any], now: Micros) -> Iterator[Micros]:
    """Waits in an error's text and details."""
    found = _RETRY_AT.search(str(error.get("message", "")))
    wait = _wait(found[1].encode(), now) if found else None
    if wait is not None:
        yield wait
    details = error.get("details")
    seconds = details.get("retryAfter") if isinstance(details, dict) else None
    if isinstance(seconds, int | float) and 0 <= seconds * SECOND <= LONGEST:
        yield int(seconds * SECOND)


def _numbers(fields: Fields, names: frozenset[bytes]) -> Iterator[int]:
    for name, value in fields:
        if name.lower() in names and value.strip().isdigit():
            yield int(value)


def _wait(value: bytes, now: Micros) -> Micros | None:
    """One value in whichever form: a delta in seconds, epoch seconds, epoch milliseconds, an HTTP date.

    Epoch seconds may have been rounded down, so the wait is to the end of that second.
    """
    text = value.strip()
    if text.isdigit() and len(text) <= _MOST_DIGITS:
        number = int(text)
        if number >= _EPOCH_MILLISECONDS:
            wait = number * MILLISECOND - now
        elif number >= _EPOCH_SECONDS:
            wait = (number + 1) * SECOND - now
        else:
            wait = number * SECOND
    else:
        instant = _date(text)
        if instant is None:
            return None
        wait = instant - now
    return max(wait, 0) if wait <= LONGEST else None


def _date(value: bytes) -> Micros | None:
    parsed = parsedate_tz(value.decode("latin-1"))
    if parsed is None:
        return None
    try:
        return int(mktime_tz(parsed)) * SECOND
    except (ValueError, OverflowError):
        return None


def _error(fields: Fields, body: bytes) -> dict[str, Any]:
    """The error object of either family (`{"error": …}` or problem+json); empty when there is none."""
    try:
        document = json.loads(_plain(fields, body))
    except (ValueError, RecursionError, zlib.error):
        return {}
    if not isinstance(document, dict):
        return {}
    error = document.get("error", document)
    if not isinstance(error, dict):
        return {}
    return error if "message" in error else {**error, "message": error.get("detail", "")}


def _plain(fields: Fields, body: bytes) -> bytes:
    """The body without its content coding, as far as `BODY_LIMIT` goes."""
    coding = next((value.strip().lower() for name, value in fields if name.lower() == b"content-encoding"), b"")
    if coding in (b"gzip", b"x-gzip", b"deflate"):
        return zlib.decompressobj(wbits=47).decompress(body, BODY_LIMIT)
    return body
