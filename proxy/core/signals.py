"""What an answer says about limits: pure functions from fields and bodies to value objects.

How a value is read: below 10^9 as seconds from the answer, below 10^11 as epoch seconds, above as epoch milliseconds,
else as an HTTP date (RFC 9110, sections 5.6.7 and 10.2.3). Instants are read against the answer's own `Date`, so that a
local clock that is off does no harm. What is malformed, past or more than 31 days away is as good as not said.

What counts when several things are said:

1.  An instruction beats a description. `Retry-After`, `RetryAfter`, `X-RateLimit-RetryAfter` and the error's text and
    details tell when to come again; of several the latest counts. A reset only describes a window, in a rolling one
    the whole of it, and counts where nothing tells more.
2.  A description counts if its budget is used up. What has requests left, such as a month's or another limit's, is not
    what was hit: neither its reset nor its size is taken. Of several that are used up the latest reset counts.
3.  Fields that speak of a month (`X-RateLimit-Remaining-Month`) say nothing about waiting.

The wait is never shorter than the upstream meant, and at most a second longer per rounding of its own: `Date` is
rounded down, and so is a reset in epoch seconds (as captured), of which the whole second is therefore waited out.
Delays and HTTP dates are taken at their word.
"""

import json
import re
import zlib
from calendar import timegm
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from email.utils import parsedate_tz
from math import ceil
from typing import Any, Literal

from proxy.core.http import Fields
from proxy.core.model import MILLISECOND, SECOND, Limit, Micros

LONGEST: Micros = 31 * 24 * 3600 * SECOND
"""A longer wait is not believed."""

BODY_LIMIT = 64 * 1024
"""Bytes of an error body that are read for what they say."""

PLAN = "serviceLimitExhausted"
"""The name of the error that no waiting within the month cures."""

_EPOCH_SECONDS = 1_000_000_000
_EPOCH_MILLISECONDS = 100_000_000_000
_LONGEST_DATE = 64

_NUMBER = re.compile(rb"\d{1,14}(?:\.\d{1,20})?")
_COUNT = re.compile(rb"\s*(\d{1,9})\s*(?:[,;]|\Z)")
_RETRY_AT = re.compile(r"retry at (\d{10,14})\b", re.IGNORECASE)
_MEMBER = re.compile(rb'(?:[^",]|"[^"]*+"?)+')
_ITEM = re.compile(rb'\s*("[^"]*"|[^;=\s]+)')
_PARAMETER = re.compile(rb";\s*([a-z]+)=(\d{1,14}(?:\.\d{1,3})?)(?=\s|;|\Z)")
_PAIR = re.compile(rb"(?:\A|[,;])\s*(limit|remaining|reset)=(\d{1,14}(?:\.\d{1,3})?)(?=\s|[,;]|\Z)", re.IGNORECASE)

_INSTRUCTIONS = frozenset((b"retry-after", b"retryafter", b"x-ratelimit-retryafter"))
_FAMILIES = (b"x-ratelimit-", b"ratelimit-")


@dataclass(frozen=True, slots=True)
class Throttle:
    """A 429: how long until the upstream wants another try (`None`: it does not say), and what it is about."""

    wait: Micros | None
    kind: Literal["window", "plan"]
    limit: int | None = None
    """The size of the limit that was hit, if named."""

    def parks(self, limits: tuple[int, ...], of: tuple[Limit, ...]) -> tuple[int, ...]:
        """Which of a request's limits to close: those of the named size, else all, since any of them may be full.

        `limits` are indices into `of`, the pool's limits.
        """
        named = tuple(index for index in limits if of[index].requests == self.limit)
        return named or limits


@dataclass(frozen=True, slots=True)
class _Budget:
    """One limit as an answer's fields describe it; `None` for what they do not say."""

    size: int | None
    left: int | None
    reset: Micros | None


def throttle(fields: Fields, body: bytes, wall: Micros) -> Throttle:
    """Read a 429; `wall` is the local time in epoch microseconds, used when the answer has no `Date`."""
    now = _now(fields, wall)
    error = _error(fields, body)
    used_up = _used_up(fields, now)
    wait = _latest((*_instructions(fields, now), *_told(error, now)), used_up)
    kind: Literal["window", "plan"] = "plan" if PLAN in (error.get("name"), error.get("title")) else "window"
    sizes = {budget.size for budget in used_up if budget.size is not None}
    return Throttle(wait, kind, sizes.pop() if len(sizes) == 1 else None)


def announced_wait(fields: Fields, wall: Micros) -> Micros | None:
    """The wait that an answer's fields ask for, in any of their forms; `wall` as in `throttle`."""
    now = _now(fields, wall)
    return _latest(tuple(_instructions(fields, now)), _used_up(fields, now))


def sent_at(fields: Fields) -> Micros | None:
    """The answer's own `Date`, in epoch microseconds."""
    return next((_date(value) for name, value in fields if name.lower() == b"date"), None)


def _now(fields: Fields, wall: Micros) -> Micros:
    date = sent_at(fields)
    return wall if date is None else date


def _latest(instructions: tuple[Micros, ...], budgets: Iterable[_Budget]) -> Micros | None:
    if instructions:
        return max(instructions)
    return max((budget.reset for budget in budgets if budget.reset is not None), default=None)


def _instructions(fields: Fields, now: Micros) -> Iterator[Micros]:
    """Waits that fields tell."""
    for name, value in fields:
        if name.lower() in _INSTRUCTIONS and (wait := _wait(value, now)) is not None:
            yield wait


def _told(error: dict[str, Any], now: Micros) -> Iterator[Micros]:
    """Waits that an error's text and details tell."""
    details = error.get("details")
    said: list[object] = [found[1] for found in _RETRY_AT.finditer(str(error.get("message", "")))]
    said += [holder.get("retryAfter") for holder in (error, details) if isinstance(holder, dict)]
    for value in said:
        if (
            isinstance(value, str | int | float)
            and (wait := _wait(str(value).encode(errors="replace"), now)) is not None
        ):
            yield wait


def _used_up(fields: Fields, now: Micros) -> list[_Budget]:
    said: dict[bytes, list[bytes]] = {}
    for name, value in fields:
        said.setdefault(name.lower(), []).append(value)
    described = [_family(said, prefix, now) for prefix in _FAMILIES]
    described += _combined(said, now)
    return [budget for budget in described if not budget.left]


def _family(said: dict[bytes, list[bytes]], prefix: bytes, now: Micros) -> _Budget:
    """One field for each thing: up to draft 6, and `X-RateLimit-*`."""
    resets = (_wait(value, now) for value in said.get(prefix + b"reset", ()))
    return _Budget(
        _count(said.get(prefix + b"limit", ())),
        _count(said.get(prefix + b"remaining", ())),
        max((reset for reset in resets if reset is not None), default=None),
    )


def _count(values: Iterable[bytes]) -> int | None:
    """The first number; draft 5 has quota policies behind it (`60, 60;w=60`)."""
    return next((int(found[1]) for value in values if (found := _COUNT.match(value))), None)


def _combined(said: dict[bytes, list[bytes]], now: Micros) -> Iterator[_Budget]:
    """One field for everything: `limit=60, remaining=0, reset=34` (draft 7), or `"name";r=0;t=34` (draft 8 and on)."""
    policies = dict(_items(said.get(b"ratelimit-policy", ())))
    for value in said.get(b"ratelimit", ()):
        pairs = {name.lower(): number for name, number in _PAIR.findall(value)}
        if pairs:
            yield _budget(pairs.get(b"limit"), pairs.get(b"remaining"), pairs.get(b"reset"), now)
        else:
            for name, parameters in _items((value,)):
                size = policies.get(name, {}).get(b"q")
                yield _budget(size, parameters.get(b"r"), parameters.get(b"t"), now)


def _items(values: Iterable[bytes]) -> Iterator[tuple[bytes, dict[bytes, bytes]]]:
    """The items of a structured list (RFC 9651, section 3.1), each with its numeric parameters."""
    for value in values:
        for member in _MEMBER.findall(value):
            if found := _ITEM.match(member):
                yield found[1], dict(_PARAMETER.findall(member, found.end()))


def _budget(size: bytes | None, left: bytes | None, reset: bytes | None, now: Micros) -> _Budget:
    return _Budget(
        int(size) if size and size.isdigit() else None,
        int(left) if left and left.isdigit() else None,
        _wait(reset, now) if reset else None,
    )


def _wait(value: bytes, now: Micros) -> Micros | None:
    """The time from the answer to what a value names, in whichever form; `None` if that is past or absurd."""
    text = value.strip()
    if not _NUMBER.fullmatch(text):
        instant = _date(text)
        wait = instant - now if instant is not None else -1
    elif (number := float(text)) < _EPOCH_SECONDS:
        wait = _units(text, SECOND)
    elif number < _EPOCH_MILLISECONDS:
        wait = _units(text, SECOND) + (0 if b"." in text else SECOND) - now
    else:
        wait = _units(text, MILLISECOND) - now
    return wait if 0 <= wait <= LONGEST else None


def _units(text: bytes, unit: Micros) -> Micros:
    """A decimal number of units, rounded up."""
    return int(text) * unit if text.isdigit() else ceil(float(text) * unit)


def _date(value: bytes) -> Micros | None:
    """An HTTP date in any of its three forms; one without a zone (`asctime`) is in GMT."""
    try:
        parsed = parsedate_tz(value[:_LONGEST_DATE].decode("latin-1"))
        if parsed is None or not _in_range(*parsed[2:6]):
            return None
        return (timegm(parsed[:6]) - (parsed[9] or 0)) * SECOND
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def _in_range(day: int, hour: int, minute: int, second: int) -> bool:
    return 1 <= day <= 31 and 0 <= hour <= 23 and 0 <= minute <= 59 and 0 <= second <= 60  # noqa: PLR2004  # a calendar


def _error(fields: Fields, body: bytes) -> dict[str, Any]:
    """The error object of either family: `{"error": …}`, or a problem (RFC 9457) with its `detail` as the message.

    A body that is no JSON object is all message.
    """
    text = _plain(fields, body[:BODY_LIMIT])
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        return {"message": text.decode("latin-1")}
    inner = document.get("error")
    error: dict[str, Any] = inner if isinstance(inner, dict) else document
    return error if "message" in error else {**error, "message": error.get("detail", "")}


def _plain(fields: Fields, body: bytes) -> bytes:
    """The body without its content coding, as far as `BODY_LIMIT` goes; empty when it is not what it says."""
    coding = next((value.strip().lower() for name, value in fields if name.lower() == b"content-encoding"), b"")
    if coding not in (b"gzip", b"x-gzip", b"deflate"):
        return body
    try:
        return zlib.decompressobj(wbits=47).decompress(body, BODY_LIMIT)
    except zlib.error:
        return b""
