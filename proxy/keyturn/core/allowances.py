"""Limits as the fields of an answer describe them: how many requests, how many are left, until when.

The fields are `X-RateLimit-Limit`, `-Remaining`, `-Reset` and the same without `X-` (drafts 3 to 6 of
draft-ietf-httpapi-ratelimit-headers, with the quota policies that draft 5 put behind the limit), `RateLimit: limit=300,
remaining=12, reset=34` (draft 7) and `RateLimit: "name";r=50;t=30` (draft 8 and later), each with its
`RateLimit-Policy`; a month's plan by `…-Limit-Month` and `…-Remaining-Month`. Structured fields (RFC 9651) are parsed
by a library: one mistake makes the whole field unread.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from decimal import Decimal
from functools import lru_cache
from typing import Any, NamedTuple

import http_sf
from http_sf import StructuredFieldError

from keyturn.core.headers import names_of
from keyturn.core.http import Fields
from keyturn.core.model import SECOND, Micros
from keyturn.core.moments import wait
from keyturn.core.values import value_object

INSTRUCTIONS = (b"retry-after", b"retryafter", b"x-ratelimit-retryafter", b"x-ratelimit-retry-after")
"""Fields that say when to retry."""

_FAMILIES = tuple(
    (family + b"limit", family + b"remaining", family + b"reset") for family in (b"x-ratelimit-", b"ratelimit-")
)
_POLICY, _COMBINED = b"ratelimit-policy", b"ratelimit"
_MONTH_LEFT = b"remaining-month"
CACHE_STATUS = b"cache-status"
CACHES = (b"age", CACHE_STATUS, b"x-cache", b"x-cache-status", b"x-proxy-cache", b"cf-cache-status")
"""Fields that caches add."""

AUXILIARY_FIELDS = frozenset((b"date", b"content-encoding", *CACHES))
"""Fields that are needed to read the others, and say nothing about limits."""

_READ = AUXILIARY_FIELDS.union(INSTRUCTIONS, (_POLICY, _COMBINED), *_FAMILIES)
_ABSENT: tuple[bytes, ...] = ()
_NO_LIMIT: tuple[None, tuple[()]] = None, ()
_REQUESTS = "requests"
_DIGITS = 9
_MAX_NUMBER = 10**_DIGITS

Said = dict[bytes, list[bytes]]
"""The values of the fields that are read here, by their lower-case names."""


@value_object
class Allowance:
    """One limit as an answer describes it; `None` for what is not said. Durations in microseconds."""

    size: int | None = None
    left: int | None = None
    reset: Micros | None = None
    """Until its window is over, from the answer; at most `moments.ROUNDING` too long."""
    window: Micros | None = None

    @property
    def tells(self) -> bool:
        """Whether anything is said about requests."""
        return self.left is not None or self.size is not None or self.reset is not None


def _role(name: bytes) -> bytes:
    if name.endswith(_MONTH_LEFT):
        return _MONTH_LEFT
    plain = name.replace(b"rate-limit", b"ratelimit")
    return plain if plain in _READ else b""


class Layout(NamedTuple):
    """Where the fields stand that are read here, among all fields of an answer."""

    places: tuple[tuple[bytes, int], ...]
    """The lower-case name and the index of each."""
    date: int | None
    """The index of the first `Date`."""
    describes: bool
    """Whether any says something about limits."""
    may_be_cached: bool
    """Whether any is a cache's."""
    plain: tuple[int, int, int] | None
    """The indices of limit, remaining and reset, if each stands there once and nothing else describes limits."""


def layout_of(fields: Fields) -> Layout:
    """The layout of an answer: that of nearly all answers is known, for they have the same names."""
    return _layout(names_of(fields))


@lru_cache(maxsize=64)
def _layout(names: tuple[bytes, ...]) -> Layout:
    places = tuple([(role, index) for index, name in enumerate(names) if (role := _role(name.lower()))])
    roles = [role for role, _ in places]
    told = sorted(role for role in roles if role not in AUXILIARY_FIELDS)
    family = next((family for family in _FAMILIES if told == sorted(family)), None)
    at = dict(reversed(places))  # of several the first
    plain = None if family is None else (at[family[0]], at[family[1]], at[family[2]])
    return Layout(places, at.get(b"date"), bool(told), not set(CACHES).isdisjoint(roles), plain)


def said(fields: Fields, layout: Layout) -> Said:
    """The values of the fields of an answer that are read here."""
    found: Said = {}
    for role, index in layout.places:
        found.setdefault(role, []).append(fields[index][1])
    return found


def plain(fields: Fields, layout: Layout, now: Micros) -> Allowance | None:
    """The limit of an answer that tells each thing once and as a number; `None` where more is to be read.

    Nearly every answer is like that. An `AllowanceReader` finds the same in it, in three times the time.
    """
    if layout.plain is None:
        return None
    limit, remaining, reset = layout.plain
    return _plain(fields[limit][1], fields[remaining][1], fields[reset][1], now)


def _plain(size: bytes, left: bytes, end: bytes, now: Micros) -> Allowance | None:
    if not (size.isdigit() and left.isdigit() and len(size) <= _DIGITS and len(left) <= _DIGITS):
        return None
    number, rest = int(size), int(left)
    if not number or rest > number:
        return None
    try:
        return Allowance(number, rest, wait(end, now))
    except ValueError:
        return None


class AllowanceReader:
    """Reads the fields of one answer, made at `now` (epoch); `ignored` names those that cannot be read."""

    def __init__(self, values: Said, now: Micros) -> None:
        self.ignored: list[str] = []
        self._said = values
        self._now = now

    def instructions(self) -> list[Micros]:
        """The waits in the fields."""
        values = self._said
        if values.keys().isdisjoint(INSTRUCTIONS):
            return []
        told = [self._wait(name, value) for name in INSTRUCTIONS for value in values.get(name, ())]
        return [wait for wait in told if wait is not None]

    def month_left(self) -> int | None:
        """Requests left in the month's plan: the fewest, if several are told."""
        if _MONTH_LEFT not in self._said:
            return None
        counts = [self._count(_MONTH_LEFT, value) for value in self._said.get(_MONTH_LEFT, ())]
        return min((count for count in counts if count is not None), default=None)

    def allowances(self) -> tuple[Allowance, ...]:
        """Every limit that is described."""
        values = self._said
        policies = tuple(self._policies()) if _POLICY in values else ()
        windows = _windows(policies)
        told = [family for family in _FAMILIES if not values.keys().isdisjoint(family)]
        found = [one for family in told for one in self._family(family, windows)]
        if _COMBINED in values:
            named = {policy.name: policy for policy in policies if policy.name}
            found += [one for value in _lines(values[_COMBINED]) for one in self._combined(value, named, windows)]
        return tuple([self._plausible(one) for one in found if one.tells])

    def _plausible(self, allowance: Allowance) -> Allowance:
        """The allowance without impossible values: more requests left than there are, or a limit of 0."""
        size, left = allowance.size, allowance.left
        if size is None or (size and (left is None or left <= size)):
            return allowance
        if not size:
            self.ignored.append("limit")
            return Allowance(None, left, allowance.reset, allowance.window)
        self.ignored.append("remaining")
        return Allowance(size, None, allowance.reset, allowance.window)

    def _family(self, family: Sequence[bytes], windows: "_Windows") -> list[Allowance]:
        """One field for each thing; where all stand equally often, each speaks of another limit, in their order."""
        columns = [self._said.get(name, _ABSENT) for name in family]
        most = max(map(len, columns))
        if most == 1 or any(0 < len(column) < most for column in columns):
            return [self._one(family, columns, windows)]
        rows = zip(*[[[value] for value in column] or [[]] * most for column in columns], strict=True)
        return [self._one(family, row, windows) for row in rows]

    def _one(self, family: Sequence[bytes], row: Sequence[Sequence[bytes]], windows: "_Windows") -> Allowance:
        """One limit; of several values of a kind the first size counts, the fewest that are left, the latest reset."""
        limit, remaining, reset = family
        sizes, lefts, ends = row
        size, more = self._limit(limit, sizes) if sizes else _NO_LIMIT
        left = self._fewest(remaining, lefts) if lefts else None
        until = self._latest(reset, ends) if ends else None
        window = _window(size, windows, _windows(more)) if more or windows else None
        return Allowance(size, left, until, window)

    def _fewest(self, name: bytes, values: Sequence[bytes]) -> int | None:
        if len(values) == 1:
            return self._count(name, values[0])
        return min((count for value in values if (count := self._count(name, value)) is not None), default=None)

    def _latest(self, name: bytes, values: Sequence[bytes]) -> Micros | None:
        if len(values) == 1:
            return self._wait(name, values[0])
        return max((told for value in values if (told := self._wait(name, value)) is not None), default=None)

    def _limit(self, name: bytes, sizes: Sequence[bytes]) -> tuple[int | None, Sequence["_Policy"]]:
        """The number of a limit; draft 5 has quota policies behind it (`60, 60;w=60`)."""
        for value in sizes:
            if value.isdigit():
                return self._count(name, value), ()
            members = self._list(name, value)
            if (
                members
                and isinstance(size := members[0][0], int)
                and not isinstance(size, bool)
                and 0 <= size < _MAX_NUMBER
            ):
                return size, [_Policy("", number, _seconds(told.get("w"))) for number, told in _numbers(members[1:])]
            self._ignore(name)
        return _NO_LIMIT

    def _policies(self) -> Iterator["_Policy"]:
        """The policies about requests: `300;w=60` up to draft 7, `"name";q=300;w=60` later."""
        for value in self._said.get(_POLICY, ()):
            for name, told in self._list(_POLICY, value):
                window = _seconds(told.get("w"))
                if isinstance(name, int):
                    yield _Policy("", name, window)
                elif told.get("qu", _REQUESTS) == _REQUESTS:
                    yield _Policy(str(name), _whole(told.get("q")), window)
                else:
                    yield _Policy(str(name), None, window, other_unit=True)

    def _combined(self, value: bytes, named: Mapping[str, "_Policy"], windows: "_Windows") -> Iterator[Allowance]:
        """One field for everything."""
        try:
            members = _list(value)
        except StructuredFieldError:
            yield from self._pairs(value, windows)
            return
        for name, told in members:
            policy = named.get(str(name), _Policy(str(name), None, None))
            if not policy.other_unit:
                left, reset = _whole(told.get("r")), self._moment(told.get("t"))
                yield Allowance(policy.size, left, reset, policy.window)

    def _pairs(self, value: bytes, windows: "_Windows") -> Iterator[Allowance]:
        try:
            told = _dictionary(value)
        except StructuredFieldError:
            self._ignore(_COMBINED)
            return
        size, left, reset = (told.get(name) for name in ("limit", "remaining", "reset"))
        yield Allowance(_whole(size), _whole(left), self._moment(reset), _window(_whole(size), windows))

    def _list(self, name: bytes, value: bytes) -> list["_Member"]:
        try:
            return _list(value)
        except StructuredFieldError:
            self._ignore(name)
            return []

    def _count(self, name: bytes, value: bytes) -> int | None:
        text = value.strip()
        if text.isdigit() and len(text) <= _DIGITS:
            return int(text)
        self._ignore(name)
        return None

    def _moment(self, told: object) -> Micros | None:
        return self._wait(_COMBINED, str(told).encode()) if isinstance(told, int | Decimal) else None

    def _wait(self, name: bytes, value: bytes) -> Micros | None:
        try:
            return wait(value, self._now)
        except ValueError:
            self._ignore(name)
            return None

    def _ignore(self, name: bytes) -> None:
        self.ignored.append(name.decode("ascii"))


@value_object
class _Policy:
    """A limit as a `RateLimit-Policy` describes it."""

    name: str
    size: int | None
    window: Micros | None
    other_unit: bool = False
    """Whether it counts another unit than requests."""


_Windows = dict[int, set[Micros | None]]
"""The windows of policies by size; at most two of each."""

_Member = tuple[object, dict[str, object]]
"""A member of a structured list: its value and its parameters (RFC 9651, section 3.1)."""


def _list(value: bytes) -> list[_Member]:
    members: Any = http_sf.parse(value, tltype="list")  # what it parses always has this form, its annotation is wider
    return list(members)


def _lines(values: Sequence[bytes]) -> Sequence[bytes]:
    """A field's values; those of a dictionary that stands in several lines as one (RFC 9651, section 3.2)."""
    if len(values) > 1:
        whole = b", ".join(values)
        with suppress(StructuredFieldError):
            _dictionary(whole)
            return [whole]
    return values


def _dictionary(value: bytes) -> dict[str, object]:
    """The values of a structured dictionary, without their parameters."""
    members: Any = http_sf.parse(value, tltype="dictionary")
    return {key: member for key, (member, _) in members.items()}


def _numbers(members: Sequence[_Member]) -> Iterator[tuple[int, dict[str, object]]]:
    for value, told in members:
        if isinstance(value, int):
            yield value, told


def _windows(policies: Iterable[_Policy]) -> _Windows:
    """The windows of policies by size, so that each limit needs one look-up."""
    found: _Windows = {}
    for policy in policies:
        if policy.size is not None:
            windows = found.setdefault(policy.size, set())
            if len(windows) < 2:  # noqa: PLR2004  # two are as ambiguous as more
                windows.add(policy.window)
    return found


def _window(size: int | None, *told: _Windows) -> Micros | None:
    """The only window that policies of that size have."""
    windows = {window for one in told for window in one.get(size, ())} if size is not None else set()
    return windows.pop() if len(windows) == 1 else None


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MAX_NUMBER else None


def _seconds(value: object) -> Micros | None:
    whole = _whole(value)
    return whole * SECOND if whole else None
