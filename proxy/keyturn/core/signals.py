"""Signals about limits, keys and outages, read from the header and body of an upstream response.

If a response has several signals:

1.  Instructions take precedence over descriptions. `Retry-After`, `RetryAfter`, `X-RateLimit-RetryAfter` and the
    error's text and details say when to retry; the latest time counts. A reset only describes a window (of a rolling
    one the whole of it), and counts if a 429 has nothing else.
2.  A description counts if its budget is used up. A budget with requests left, such as a month's or another limit's,
    was not the one that was hit: its reset and size are ignored. If several are used up, the latest reset counts.
3.  Fields about a month (`X-RateLimit-Remaining-Month`) do not affect waiting.

Law 9: signals can only take tokens away. A 401 (its headers were seen to describe another bucket), a response from a
cache (`Age`, `Cache-Status`) and ambiguous values give no signals.
"""

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from keyturn.core.allowances import (
    CACHE_STATUS,
    CACHES,
    Allowance,
    AllowanceReader,
    Layout,
    Said,
    layout_of,
    plain,
    said,
)
from keyturn.core.complaints import Complaint, complaint
from keyturn.core.exchange import ObservedLimit
from keyturn.core.http import Fields
from keyturn.core.model import SECOND, Limit, Micros
from keyturn.core.moments import ROUNDING, date, wait
from keyturn.core.values import value_object

About = Literal["nothing", "limit", "plan", "key", "outage"]

UNAUTHORIZED, FORBIDDEN, TOO_MANY_REQUESTS = 401, 403, 429
OUTAGES = frozenset((502, 503, 504))
"""Statuses of an API that is out of order, or of gateways before it."""

SPEAKING = OUTAGES | {UNAUTHORIZED, FORBIDDEN, TOO_MANY_REQUESTS}
"""Statuses of answers whose bodies are read."""


BEYOND_WINDOW_WAIT: Micros = 3600 * SECOND
"""A wait longer than a limit's window by this much is another limit's, even if penalties add to it."""


MAX_FIRST_SEGMENT = 64
"""Characters of a path's first segment in a route: routes are remembered, and callers choose paths."""

MAX_TEMPLATE = 8
"""Segments of a path in a route's text."""


class Route(NamedTuple):
    """Requests that an upstream would limit together: their method, and the shape of their path."""

    method: str
    first: str
    segments: int

    @classmethod
    def of(cls, method: str, path: str | None) -> "Route":
        """The route of a request by its normalised path; HEAD falls under what GET falls under."""
        segments = (path or "").strip("/").split("/")
        return cls("GET" if method == "HEAD" else method, segments[0][:MAX_FIRST_SEGMENT], len(segments))

    def __str__(self) -> str:
        """Its template, `GET /collections/{}`; a first segment that looks like an id is left out, too."""
        segments = [self.first if _RESOURCE.fullmatch(self.first) else "{}", *["{}"] * (self.segments - 1)]
        if len(segments) > MAX_TEMPLATE:
            segments[MAX_TEMPLATE:] = ["..."]
        return f"{self.method} /{'/'.join(segments)}"


_RESOURCE = re.compile(r"[A-Za-z_-]{0,32}")


@value_object
class Signals:
    """Everything that one answer says."""

    about: About = "nothing"
    """The subject of a refusal."""
    wait: Micros | None = None
    """From the answer until the upstream wants another try."""
    allowances: tuple[Allowance, ...] = ()
    over_within: Micros | None = None
    """The time within which an outage is usually over, in the upstream's words."""
    month_left: int | None = None
    """Requests left in the month's plan."""
    own: bool = True
    """Whether it is about this key's limits now, so that something may be learnt from it."""
    ignored: tuple[str, ...] = ()
    """The fields whose values were malformed or absurd."""

    def throttle(self, limits: Sequence[int], of: Sequence[Limit]) -> "Throttle":
        """The buckets that a 429 closes; `limits` are the request's, as indices into `of`, the pool's."""
        if self.about == "plan":
            return Throttle("plan", self.wait)
        used_up = [allowance for allowance in self.allowances if not allowance.left]
        sizes = {allowance.size for allowance in used_up} - {None}
        named = tuple([index for index in limits if of[index].requests in sizes])
        if named or not limits:
            return Throttle("window", self.wait, named)
        if (self.allowances and not used_up) or any(_is_less(size, limits, of) for size in sizes):
            return Throttle("endpoint", self.wait)
        if self.wait is not None and self.wait > max(of[index].window for index in limits) + BEYOND_WINDOW_WAIT:
            return Throttle("endpoint", self.wait)
        return Throttle("window", self.wait, tuple(limits))

    def seen(self, limits: Sequence[int], of: Sequence[Limit]) -> tuple[ObservedLimit, ...]:
        """The limits of the request that the answer describes: how many requests remain, until when (law 9)."""
        if not self.own:
            return ()
        found = []
        for allowance in self.allowances:
            size, left, reset = allowance.size, allowance.left, allowance.reset
            if size is None or left is None:
                continue
            meant = [index for index in limits if of[index].requests == size and _fits(allowance, of[index])]
            if len(meant) == 1:
                found.append(ObservedLimit(meant[0], left, reset if reset is not None else of[meant[0]].window))
        return tuple(found)

    def lower(self, limits: Sequence[int], of: Sequence[Limit]) -> tuple[int, int] | None:
        """A limit that the answer tells to be lower than configured, and its size."""
        if not self.own:
            return None
        general = [index for index in limits if not of[index].match]
        sizes = {of[index].requests for index in limits}
        for allowance in self.allowances:
            meant = [index for index in general if _fits(allowance, of[index])]
            if len(meant) == 1 and allowance.size and allowance.size < min(sizes):
                return meant[0], allowance.size
        return None

    def above(self, limits: Sequence[int], of: Sequence[Limit]) -> tuple[tuple[int | None, int], ...]:
        """Sizes above the configured ones, each with the limit that has its window, or `None`."""
        if not self.own:
            return ()
        most = max([of[index].requests for index in limits], default=0)
        found: list[tuple[int | None, int]] = []
        for allowance in self.allowances:
            size = allowance.size
            if size is None or size <= most or (allowance.window is None and allowance.reset is None):
                continue
            meant = [index for index in limits if _fits(allowance, of[index])]
            found.append((meant[0] if len(meant) == 1 else None, size))
        return tuple(found)


@value_object
class Throttle:
    """A 429: `window` a limit that is known is full, `endpoint` another one that is not known, `plan` a month's."""

    kind: Literal["window", "endpoint", "plan"]
    wait: Micros | None
    limits: tuple[int, ...] = ()
    """The limits that are full: those of the size that is told, else all of the request's, for any of them may be."""


def read(status: int, fields: Fields, wall: Micros, body: bytes = b"") -> Signals:
    """Read an answer; `wall` is the local time in epoch microseconds, used when the answer has no `Date`.

    `body` is needed of the `SPEAKING` statuses only, as it came over the wire.
    """
    layout = layout_of(fields)
    if not body and not layout.describes:
        return _REFUSED if status == TOO_MANY_REQUESTS else _NO_SIGNALS
    now = sent_at(fields, layout, wall)
    if layout.plain is not None and not (body or layout.may_be_cached or status in SPEAKING):
        only = plain(fields, layout, now)
        if only is not None:
            return Signals("nothing", None, (only,))
    values = said(fields, layout)
    own = status != UNAUTHORIZED and not (layout.may_be_cached and _cached(values))
    reader = AllowanceReader(values, now)
    found = complaint(body, values.get(b"content-encoding", [b""])[0]) if body else _SILENCE
    waits = reader.instructions()
    if found.moments:
        waits += _told(found, now, reader.ignored)
    allowances = reader.allowances()
    about = _about(status, found) if status in SPEAKING else "nothing"
    if about == "limit" and not waits:
        waits = [one.reset for one in allowances if not one.left and one.reset is not None]
    return Signals(
        about,
        max(waits) if waits else None,
        allowances,
        found.over_within if about == "outage" else None,
        reader.month_left(),
        own,
        tuple(reader.ignored),
    )


_NO_SIGNALS, _REFUSED, _SILENCE = Signals(), Signals("limit"), Complaint()


def sent_at(fields: Fields, layout: Layout, wall: Micros) -> Micros:
    """The answer's own `Date`, in epoch microseconds."""
    instant = None if layout.date is None else date(fields[layout.date][1])
    return wall if instant is None else instant


def _told(found: Complaint, now: Micros, ignored: list[str]) -> list[Micros]:
    """The waits in an error's text and details."""
    waits = []
    for moment in found.moments:
        try:
            if isinstance(moment, bool) or not isinstance(moment, str | int | float):
                raise ValueError("no moment")  # noqa: TRY301, TRY004  # as what `wait` raises
            told = wait(str(moment).encode(errors="replace"), now)
        except ValueError:
            ignored.append("body")
        else:
            waits += [told] if told is not None else []
    return waits


def _about(status: int, found: Complaint) -> About:
    if status == TOO_MANY_REQUESTS:
        return "plan" if found.of_plan else "limit"
    if status in OUTAGES:
        return "outage"
    return "key" if found.about_key(status) else "nothing"


_HIT = re.compile(rb";\s*hit(?:=\?1)?\s*(?:[;,]|\Z)")
_STORED = (b"hit", b"stale", b"updating", b"revalidated")


def _cached(values: Said) -> bool:
    """Whether a cache gave the answer, by RFC 9111 (section 5.1), RFC 9211 (section 2.1), or a field of its own."""
    if any(value.strip().lstrip(b"0") for value in values.get(b"age", ())):
        return True
    if any(_HIT.search(value) for value in values.get(CACHE_STATUS, ())):
        return True
    told = [value.lower() for name in CACHES[2:] for value in values.get(name, ())]
    return any(word in value for value in told for word in _STORED)


def _fits(allowance: Allowance, limit: Limit) -> bool:
    """Whether an allowance may speak of a limit, by its window, or by when that is over."""
    if allowance.window is not None:
        return allowance.window == limit.window
    return allowance.reset is None or allowance.reset <= limit.window + ROUNDING


def _is_less(size: int | None, limits: Sequence[int], of: Sequence[Limit]) -> bool:
    return size is not None and all(size < of[index].requests for index in limits)
