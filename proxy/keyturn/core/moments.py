"""The moments that fields and texts name, read as waits: delays, instants since the epoch, HTTP dates.

How a value is read: below 10^9 as seconds from the answer, below 10^11 as epoch seconds, above as epoch milliseconds,
else as an HTTP date (RFC 9110, sections 5.6.7 and 10.2.3). Instants are read against the answer's own `Date`, so that a
local clock that is off does no harm.

A wait is never shorter than the upstream meant, and at most a second longer per rounding of its own: `Date` is rounded
down, and so is a reset in epoch seconds (as captured), of which the whole second is therefore waited out. Delays and
HTTP dates are taken at their word.
"""

import re
from calendar import timegm
from email.utils import parsedate_tz
from functools import lru_cache
from math import ceil

from keyturn.core.model import MILLISECOND, SECOND, Micros

MAX_DISTANCE: Micros = 31 * 24 * 3600 * SECOND
"""Largest distance of a reported instant, in either direction, that is believed."""

ROUNDING: Micros = 2 * SECOND
"""Largest rounding error of a wait between two rounded instants."""

_EPOCH_SECONDS = 1_000_000_000
_EPOCH_MILLISECONDS = 100_000_000_000
_LONGEST_DATE = 64
_DIGITS = 14
_DECIMAL = re.compile(rb"\d{1,14}\.\d{1,20}")


def wait(value: bytes, now: Micros) -> Micros | None:
    """The time from the answer, made at `now` (epoch), to what a value names; `None` if that is over.

    Raises:
        ValueError: it names no moment, or an absurd one.
    """
    text = value.strip()
    if text.isdigit() and len(text) <= _DIGITS:
        delay = _whole(int(text), now)
    elif _DECIMAL.fullmatch(text):
        delay = _decimal(float(text), now)
    else:
        instant = date(text)
        if instant is None:
            raise ValueError("no moment in any of the known forms")
        delay = instant - now
    if abs(delay) > MAX_DISTANCE:
        raise ValueError("farther away than anything that an API counts by")
    return delay if delay >= 0 else None


def _whole(number: int, now: Micros) -> Micros:
    if number < _EPOCH_SECONDS:
        return number * SECOND
    if number < _EPOCH_MILLISECONDS:
        return (number + 1) * SECOND - now
    return number * MILLISECOND - now


def _decimal(number: float, now: Micros) -> Micros:
    """Nothing is cut off a fraction; what is left below a microsecond is rounded up."""
    if number < _EPOCH_SECONDS:
        return ceil(number * SECOND)
    return ceil(number * (SECOND if number < _EPOCH_MILLISECONDS else MILLISECOND)) - now


@lru_cache(maxsize=64)
def date(value: bytes) -> Micros | None:
    """An HTTP date in any of its three forms, in epoch microseconds; one without a zone (`asctime`) is in GMT."""
    try:
        parsed = parsedate_tz(value[:_LONGEST_DATE].decode("latin-1"))
        if parsed is None or not _in_range(*parsed[2:6]):
            return None
        return (timegm(parsed[:6]) - (parsed[9] or 0)) * SECOND
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def _in_range(day: int, hour: int, minute: int, second: int) -> bool:
    return 1 <= day <= 31 and 0 <= hour <= 23 and 0 <= minute <= 59 and 0 <= second <= 60  # noqa: PLR2004  # a calendar
