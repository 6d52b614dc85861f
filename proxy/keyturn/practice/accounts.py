"""Who calls the practice API: keys, the users that own them, and the bucket that each counts against."""

from hashlib import sha256

from keyturn.practice.settings import PracticeSettings
from keyturn.practice.target import Endpoint
from keyturn.practice.windows import FirstWindow, Verdict, Window, admit_all, window_of

NARROW: frozenset[Endpoint] = frozenset(
    {("GET", "collections", 1), ("GET", "workspaces", 1), ("GET", "workspaces", 2), ("POST", "monitors", 3)}
)
"""The endpoints that the real API limits more tightly."""

_STRANGERS_LIMIT = 400
_STRANGERS_WINDOW = 60.0


class Bucket:
    """What one user (or one key that belongs to nobody else) may still send."""

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
        """What the limit for all endpoints would decide now; no place is taken."""
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
