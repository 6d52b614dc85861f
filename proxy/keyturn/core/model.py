"""Secrets, limits, keys, pools, issuers and clients.

Durations and instants are integers in microseconds throughout (`Micros`), so that Lua and Python agree to the digit.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from hmac import compare_digest
from urllib.parse import quote, quote_plus

from keyturn.core.policy import Rule

Micros = int
SECOND: Micros = 1_000_000
MILLISECOND: Micros = 1_000
SHORTEST_SECRET = 8
"""Characters: a shorter text is no secret, and may stand somewhere by chance."""


class Secret:
    """Text that no log, traceback, page or `repr` shows; only the line that writes the header reveals it (law 11)."""

    __slots__ = ("_forms", "_identity", "_value")

    def __init__(self, value: str) -> None:
        self._value = value
        self._identity = ""
        self._forms: tuple[bytes, ...] = _forms(value)
        """The forms in which others may have written it, the longest first."""

    def reveal(self) -> str:
        """The text itself."""
        return self._value

    def digest(self) -> str:
        """Its SHA-256 in hexadecimal."""
        return sha256(self._value.encode()).hexdigest()

    @property
    def identity(self) -> str:
        """The first 64 bits of its SHA-256 behind `#`, with which no configured name begins; computed once."""
        if not self._identity:
            self._identity = f"#{self.digest()[:16]}"
        return self._identity

    def is_in(self, data: bytes) -> bool:
        """Whether data contains it, plain or percent-encoded."""
        for form in self._forms:  # noqa: SIM110  # every answer is looked through, and `any` and `in` take twice as long
            if data.find(form) >= 0:
                return True
        return False

    def mask(self, data: bytes) -> bytes:
        """Data with `***` in its place."""
        for form in self._forms:
            data = data.replace(form, b"***")
        return data

    def __repr__(self) -> str:
        return "Secret(…)"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and compare_digest(self._value.encode(), other._value.encode())

    def __hash__(self) -> int:
        return hash((Secret, self._value))

    def __reduce__(self) -> str | tuple[object, ...]:
        raise TypeError("a Secret is not written anywhere")


def _forms(value: str) -> tuple[bytes, ...]:
    """The forms of a secret in a field, the longest first; none for one that is too short to be searched for."""
    if len(value) < SHORTEST_SECRET:
        return ()
    written = {value, quote(value, safe=""), quote_plus(value)}
    return tuple(sorted((form.encode() for form in written), key=len, reverse=True))


@dataclass(frozen=True, slots=True)
class Limit:
    """`requests` in `window` on each quota, for what `match` names (empty: everything).

    `window` is what the upstream counts by, in microseconds; tokens return after a stretched one (`Pool.stretched`).
    """

    requests: int
    window: Micros
    match: tuple[Rule, ...] = ()
    name: str = ""
    """A short public name, unique in its pool, for metrics and messages; by default in the form `60/60s`."""

    def __post_init__(self) -> None:
        if not self.name:
            seconds, rest = divmod(self.window, SECOND)
            window = f"{self.window // MILLISECOND}ms" if rest else f"{seconds}s"
            object.__setattr__(self, "name", f"{self.requests}/{window}")

    def covers(self, method: str, path: str) -> bool:
        """Whether a request (its path normalised) falls under this limit."""
        return not self.match or any(rule.matches(method, path) for rule in self.match)


@dataclass(frozen=True, slots=True)
class Key:
    """One upstream API key: a public name, the secret, and the quota that it counts against.

    `quota` is the quota's identity, by which the store counts; `label` is its public name where that is another.
    """

    name: str
    secret: Secret
    quota: str
    label: str = ""

    @classmethod
    def alone(cls, name: str, secret: Secret) -> "Key":
        """A key that is a quota of its own, by its secret: under any name and in any pool."""
        return cls(name, secret, secret.identity, name)

    @property
    def identity(self) -> str:
        """The secret's identity, which does not depend on the key's name."""
        return self.secret.identity


@dataclass(frozen=True)
class Pool:
    """Interchangeable quotas, and the limits that hold on each of them."""

    name: str
    keys: tuple[Key, ...]
    limits: tuple[Limit, ...]
    guard: Micros = 100 * MILLISECOND
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)

    def stretched(self, limit: Limit) -> Micros:
        """The window by which a token of `limit` returns: with the guard, and 0.05 % for the rates of two clocks."""
        return limit.window + self.guard + limit.window // 2000

    @cached_property
    def fields(self) -> tuple[tuple[bytes, bytes], ...]:
        """The fields that are set on each request, as bytes."""
        return tuple((name.encode(), value.encode()) for name, value in self.headers)

    @cached_property
    def quotas(self) -> tuple[str, ...]:
        """Names of the quotas, in the order of their first keys."""
        return tuple(dict.fromkeys(key.quota for key in self.keys))

    @cached_property
    def keys_of(self) -> Mapping[str, tuple[Key, ...]]:
        """The keys that count against each quota."""
        found: dict[str, list[Key]] = {}
        for key in self.keys:
            found.setdefault(key.quota, []).append(key)
        return {quota: tuple(keys) for quota, keys in found.items()}

    def label(self, quota: str) -> str:
        """The public name of a quota: the one that the configuration gives it, else that of its key."""
        return next((key.label for key in self.keys_of.get(quota, ()) if key.label), quota)

    def key(self, name: str) -> Key | None:
        """The key of that name."""
        return next((key for key in self.keys if key.name == name), None)

    def lowered(self, limit: int, requests: int) -> "Pool":
        """The pool with another size of one limit."""
        limits = [*self.limits]
        limits[limit] = replace(limits[limit], requests=requests)
        return replace(self, limits=tuple(limits))

    def limits_on(self, method: str, path: str | None) -> tuple[int, ...]:
        """The limits that a request falls under, as indices into `limits`.

        A path that cannot be normalised (`None`) falls under every limit: the upstream may read it as any of them.
        """
        if path is None or self._undivided:
            return self._every_limit
        return tuple([index for index, limit in enumerate(self.limits) if limit.covers(method, path)])

    @cached_property
    def _every_limit(self) -> tuple[int, ...]:
        return tuple(range(len(self.limits)))

    @cached_property
    def _undivided(self) -> bool:
        return not any(limit.match for limit in self.limits)


ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""Signatures of JSON Web Tokens: by public keys only, so that verifying does not enable signing."""


@dataclass(frozen=True, slots=True)
class Issuer:
    """A signer of JSON Web Tokens, and where its public keys (a JWKS, RFC 7517) are.

    They are in `jwks_file`, else at `jwks_url`, else where the issuer's discovery document says. `ca` is a PEM file of
    the authorities to trust in place of the system's, `bearer_file` holds a token to show when asking. With
    `strict_certificates` the site's certificate has to be in all as RFC 5280 asks.
    """

    name: str
    """The token's `iss`."""
    jwks_file: str | None = None
    jwks_url: str | None = None
    ca: str | None = None
    bearer_file: str | None = None
    strict_certificates: bool = False
    algorithms: tuple[str, ...] = ALGORITHMS
    leeway: Micros = 30 * SECOND
    """The largest accepted difference between the issuer's clock and ours."""


@dataclass(frozen=True, slots=True)
class Jwt:
    """The JSON Web Tokens of a client. In `subject`, `*` stands within one of the parts between colons."""

    issuer: Issuer
    audience: str
    subject: str


@dataclass(frozen=True, slots=True)
class Client:
    """A caller and what it may do."""

    name: str
    pool: str = "default"
    weight: int = 1
    urgency: int = 3
    max_waiting: int | None = None
    max_in_flight: int | None = None
    """Requests at the upstream at once; `None`: as many as there are connections."""
    rate: tuple[int, Micros] | None = None
    allow: tuple[Rule, ...] | None = None
    pin: bool = False
    digests: tuple[str, ...] = field(default=(), repr=False)
    san: str | None = None
    """A subject alternative name of its certificate."""
    jwt: Jwt | None = None

    def may(self, method: str, path: str | None) -> bool:
        """Whether its allow list permits this; a path that cannot be normalised matches no list."""
        if self.allow is None:
            return True
        return path is not None and any(rule.matches(method, path) for rule in self.allow)


def by_name(pools: Iterable[Pool]) -> dict[str, Pool]:
    """The pools under their names."""
    return {pool.name: pool for pool in pools}
