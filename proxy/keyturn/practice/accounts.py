"""Callers of the practice API: request targets, keys and their users, and the windows that requests count in.

Three kinds of window, with time as an argument, in seconds of any one clock:

1. No window of its kind admits more requests than the limit.
2. A rejected request is not counted.
3. A request at the `retry` instant of a rejection is admitted if no other came in between.
"""

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from hashlib import sha256
from typing import NamedTuple
from urllib.parse import unquote, unquote_plus

from keyturn.practice.settings import PracticeSettings, WindowKind

Endpoint = tuple[str, str, int]
"""Method, first segment and number of segments: enough to tell the API's endpoints apart."""

_KEY_NAME = "apikey"


class Target(NamedTuple):
    """The parts of a target.

    Attributes:
        raw: The target as it came.
        shown: The same with `…` in place of the value of `apikey`, for the log.
        segments: The path's segments, each decoded by itself, so that an encoded slash does not divide; a slash at its
            end begins none.
        query: The first value of each parameter, decoded.
    """

    raw: str
    shown: str
    segments: tuple[str, ...]
    query: dict[str, str]

    @property
    def key(self) -> str:
        """The key in the query, or nothing."""
        return self.query.get(_KEY_NAME, "")


def parse_target(raw: str) -> Target:
    """Take a target apart, in origin-form or absolute-form (RFC 9112, section 3.2)."""
    before, mark, after = raw.partition("?")
    path = before if before.startswith("/") else _path_of_absolute(before)
    segments = tuple(map(unquote, (path.removesuffix("/") or "/").split("/")[1:]))
    if not mark:
        return Target(raw, raw, segments, {})
    query: dict[str, str] = {}
    return Target(raw, f"{before}?{'&'.join(_take(pair, query) for pair in after.split('&'))}", segments, query)


def _path_of_absolute(target: str) -> str:
    _scheme, _mark, rest = target.partition("://")
    _authority, slash, path = rest.partition("/")
    return slash + path or "/"


def _take(pair: str, query: dict[str, str]) -> str:
    """Put a parameter into `query`, and return it as it may be shown."""
    encoded, equals, value = pair.partition("=")
    name = unquote_plus(encoded)
    query.setdefault(name, unquote_plus(value.partition("#")[0]))
    return f"{encoded}{equals}…" if name == _KEY_NAME else pair


class Verdict(NamedTuple):
    """The verdict of a window on one request.

    Attributes:
        allowed: Whether it may pass.
        limit: Requests in each window.
        window: The window's length in seconds.
        remaining: How many more could pass now.
        reset: The instant at which places return: all of them, or of a rolling window the oldest.
        retry: The earliest instant at which a request like this one may pass; now, if it was allowed.
    """

    allowed: bool
    limit: int
    window: float
    remaining: int
    reset: float
    retry: float


class Window(ABC):
    """A limit of so many requests in so many seconds; instants given to it never go backwards."""

    def __init__(self, limit: int, window: float) -> None:
        self.limit = limit
        self.window = window

    def admit(self, now: float) -> Verdict:
        """Let a request that arrives now pass, if a place is free, and take that place."""
        free = self.limit - self._spent(now)
        if free > 0:
            self._spend(now)
        return self._verdict(now, free, max(free - 1, 0))

    def look(self, now: float) -> Verdict:
        """The verdict that `admit` would give, without counting a request."""
        free = self.limit - self._spent(now)
        return self._verdict(now, free, free)

    def _verdict(self, now: float, free: int, remaining: int) -> Verdict:
        reset = self._reset(now)
        return Verdict(free > 0, self.limit, self.window, remaining, reset, now if free > 0 else reset)

    @abstractmethod
    def _spent(self, now: float) -> int:
        """How many places are taken now; forgets what is over."""

    @abstractmethod
    def _spend(self, now: float) -> None:
        """Take a place."""

    @abstractmethod
    def _reset(self, now: float) -> float:
        """When places return."""


class FirstWindow(Window):
    """A window that the first request after the last one's end starts: what the real API was seen to do."""

    def __init__(self, limit: int, window: float) -> None:
        super().__init__(limit, window)
        self._count = 0
        self._end = -math.inf

    def _spent(self, now: float) -> int:
        if now >= self._end:
            self._count = 0
        return self._count

    def _spend(self, now: float) -> None:
        if self._count == 0:
            self._end = self._end_of(now)
        self._count += 1

    def _reset(self, now: float) -> float:
        return self._end if self._count else self._end_of(now)

    def _end_of(self, now: float) -> float:
        return now + self.window


class FixedWindow(FirstWindow):
    """Windows `[k * length, (k + 1) * length)` of the clock, whoever calls when."""

    def _end_of(self, now: float) -> float:
        index = math.floor(now / self.window)
        # The quotient may be rounded over a whole number; the boundaries are the products.
        if index * self.window > now:
            index -= 1
        elif (index + 1) * self.window <= now:
            index += 1
        return (index + 1) * self.window


class RollingWindow(Window):
    """Any half-open interval of the length, by a log of the instants that were let through."""

    def __init__(self, limit: int, window: float) -> None:
        super().__init__(limit, window)
        self._log: deque[float] = deque()

    def _spent(self, now: float) -> int:
        while self._log and self._log[0] + self.window <= now:
            self._log.popleft()
        return len(self._log)

    def _spend(self, now: float) -> None:
        self._log.append(now)

    def _reset(self, now: float) -> float:
        return (self._log[0] if self._log else now) + self.window


_KINDS: dict[WindowKind, type[Window]] = {"fixed": FixedWindow, "first": FirstWindow, "rolling": RollingWindow}


def window_of(kind: WindowKind, limit: int, window: float) -> Window:
    """A new window of that kind, `window` in seconds."""
    return _KINDS[kind](limit, window)


def admit_all(windows: Sequence[Window], now: float) -> Verdict:
    """Let a request pass if every window does, and then take a place in each; else in none.

    Returns:
        The verdict with least remaining, or the refusal that lasts longest.
    """
    if len(windows) == 1:
        return windows[0].admit(now)
    refusals = [verdict for verdict in (window.look(now) for window in windows) if not verdict.allowed]
    if refusals:
        return max(refusals, key=lambda verdict: verdict.retry)
    return min((window.admit(now) for window in windows), key=lambda verdict: verdict.remaining)


NARROW: frozenset[Endpoint] = frozenset(
    {("GET", "collections", 1), ("GET", "workspaces", 1), ("GET", "workspaces", 2), ("POST", "monitors", 3)}
)
"""The endpoints that the real API limits more tightly."""

_STRANGERS_LIMIT = 400
_STRANGERS_WINDOW = 60.0


class Bucket:
    """The budget of one user, or of one key without a user."""

    def __init__(self, settings: PracticeSettings) -> None:
        self.plan = settings.plan
        """Requests that are left of the month's, `None` without a plan."""
        self._whole = window_of(settings.kind, settings.limit, settings.window)
        self._narrow: dict[Endpoint, Window] = {}
        if settings.narrow:
            self._narrow = {
                endpoint: window_of(settings.kind, settings.narrow_limit, settings.narrow_window) for endpoint in NARROW
            }

    def admit(self, endpoint: Endpoint, now: float) -> Verdict:
        """Whether a request for that endpoint may pass now; takes its places if so."""
        narrow = self._narrow.get(endpoint)
        verdict = self._whole.admit(now) if narrow is None else admit_all((self._whole, narrow), now)
        if self.plan is not None and verdict.allowed:
            self.plan = max(0, self.plan - 1)
        return verdict

    def look(self, now: float) -> Verdict:
        """The verdict that the limit for all endpoints would give now, without counting a request."""
        return self._whole.look(now)


class Account:
    """An accepted key by its public name, its user, and their bucket."""

    __slots__ = ("bucket", "name", "user")

    def __init__(self, name: str, user: str, bucket: Bucket) -> None:
        self.name = name
        self.user = user
        self.bucket = bucket


class Accounts:
    """The keys that are accepted now, and one bucket for all whose keys are not."""

    def __init__(self, settings: PracticeSettings) -> None:
        self._settings = settings
        self._names = {key: f"key-{number}" for number, key in enumerate(settings.keys or (), start=1)}
        self._accounts: dict[str, Account] = {}
        self._buckets: dict[str, Bucket] = {}
        self._revoked: set[str] = set()
        self._disabled: set[str] = set()
        self.strangers = FirstWindow(_STRANGERS_LIMIT, _STRANGERS_WINDOW)

    def find(self, key: str) -> Account | None:
        """The account of a key, unless it is not accepted."""
        account = self._accounts.get(key)
        return account if account is not None else self._open(key)

    def name_of(self, key: str) -> str:
        """A key's public name: its number among the given ones, else the start of its SHA-256."""
        account = self._accounts.get(key)
        if account is not None:
            return account.name
        return self._names.get(key) or f"key-{sha256(key.encode(errors='surrogateescape')).hexdigest()[:8]}"

    def revoke(self, key: str) -> None:
        """Accept a key no longer."""
        self._revoked.add(key)
        self._accounts.pop(key, None)

    def disable(self, key: str) -> None:
        """Know a key, and accept it no longer."""
        self._disabled.add(key)

    def disabled(self, key: str) -> bool:
        """Whether a key is known and not accepted."""
        return key in self._disabled

    def restore(self, key: str) -> None:
        """Accept a revoked or disabled key again; what it had spent stays spent."""
        self._revoked.discard(key)
        self._disabled.discard(key)

    def _open(self, key: str) -> Account | None:
        known = bool(key) if self._settings.keys is None else key in self._names
        if not known or key in self._revoked:
            return None
        name = self.name_of(key)
        user = (self._settings.users or {}).get(key, name)
        bucket = self._buckets.setdefault(user, Bucket(self._settings))
        account = self._accounts[key] = Account(name, user, bucket)
        return account
