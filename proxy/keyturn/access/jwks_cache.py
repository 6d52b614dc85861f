"""Keeps an issuer's public keys fresh: read again in the background, and when a token names a key that is not there.

Keys that were read stay in use while their issuer cannot be reached, but not for ever: after `MAX_JWKS_AGE` the
issuer may have withdrawn them.
"""

import asyncio
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from keyturn.access.jwks_sources import FETCH_SECONDS, JwksSource, SourceError
from keyturn.core.events import IssuerAsked, Observer
from keyturn.core.model import SECOND, Issuer, Micros
from keyturn.tasks import spawn

if TYPE_CHECKING:
    from jwt import PyJWK

MAX_KEYS = 100
_MAX_KEYS_TRIED = 4
"""Keys that a token without a `kid` is tried with."""

_RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_BY_CURVE = {
    ("EC", "P-256"): ("ES256",),
    ("EC", "P-384"): ("ES384",),
    ("EC", "P-521"): ("ES512",),
    ("OKP", "Ed25519"): ("EdDSA",),
}


class KeySet:
    """The keys of one issuer that may be used, as they were at one moment."""

    def __init__(self, groups: Iterable[Sequence[tuple[str | None, "PyJWK"]]] = ()) -> None:
        """From what each key may verify: its `kid`, and the key bound to the algorithm."""
        self._by_name: dict[tuple[str, str], list[PyJWK]] = {}
        self._by_algorithm: dict[str, list[PyJWK]] = {}
        self._names: set[str] = set()
        self._size = 0
        for group in groups:
            self._size += bool(group)
            self._add(group)

    def _add(self, group: Sequence[tuple[str | None, "PyJWK"]]) -> None:
        for name, key in group:
            self._by_algorithm.setdefault(key.algorithm_name, []).append(key)
            if name is not None:
                self._names.add(name)
                self._by_name.setdefault((name, key.algorithm_name), []).append(key)

    def __len__(self) -> int:
        return self._size

    def knows(self, name: str | None) -> bool:
        """Whether a key of that `kid` is there; for a token without one, whether any is."""
        return bool(self._by_algorithm) if name is None else name in self._names

    def fitting(self, name: str | None, algorithm: str) -> list["PyJWK"]:
        """The keys that a token of that `kid` and `alg` may be signed with."""
        if name is not None:
            return self._by_name.get((name, algorithm), [])
        keys = self._by_algorithm.get(algorithm, [])
        return keys if len(keys) <= _MAX_KEYS_TRIED else []


def parse_jwks(data: bytes, algorithms: Iterable[str]) -> KeySet:
    """Read a JWKS. Keys that cannot be used are left out, as RFC 7517 (section 5) asks.

    Raises:
        ValueError: it is none; the message goes on from what was read.
    """
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError("is no JSON") from None
    listed = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(listed, list):
        raise ValueError("is no set of keys: it has no list `keys`")  # noqa: TRY004  # one kind of error for all of it
    if len(listed) > MAX_KEYS:
        raise ValueError(f"has more than {MAX_KEYS} keys")
    permitted = frozenset(algorithms)
    return KeySet([list(_usable(jwk, permitted)) for jwk in listed if isinstance(jwk, dict)])


def _usable(jwk: Mapping[str, Any], permitted: frozenset[str]) -> Iterator[tuple[str | None, "PyJWK"]]:
    name = jwk.get("kid")
    for algorithm in _algorithms(jwk):
        key = _public_key(jwk, algorithm) if algorithm in permitted else None
        if key is not None:
            yield name if isinstance(name, str) else None, key


def _algorithms(jwk: Mapping[str, Any]) -> tuple[str, ...]:
    """The algorithms that a key may verify: those of its type, or only its `alg`; none if it has another use."""
    operations = jwk.get("key_ops", ["verify"])
    if jwk.get("use", "sig") != "sig" or not isinstance(operations, list) or "verify" not in operations or "d" in jwk:
        return ()
    able = _RSA if jwk.get("kty") == "RSA" else _BY_CURVE.get((str(jwk.get("kty")), str(jwk.get("crv"))), ())
    return tuple(algorithm for algorithm in able if jwk.get("alg", algorithm) == algorithm)


def _public_key(jwk: Mapping[str, Any], algorithm: str) -> "PyJWK | None":
    from jwt import PyJWK, PyJWTError  # noqa: PLC0415  # PyJWT and its cryptography are not needed without an issuer

    with suppress(PyJWTError, ValueError, TypeError, KeyError):
        key = PyJWK(dict(jwk), algorithm)
        return None if key.Algorithm.check_key_length(key.key) else key
    return None


REFRESH_SECONDS = 300.0
"""Seconds after which keys are read again."""
RETRY_SECONDS = 30.0
"""Seconds after which an issuer that could not be reached is asked again."""
MIN_INTERVAL: Micros = 10 * SECOND
"""The least time between two reads, however many tokens name unknown keys."""
MAX_JWKS_AGE: Micros = 24 * 3600 * SECOND

_log = logging.getLogger("keyturn")


class JwksCache:
    """The public keys of one issuer; `start` begins to keep them, until its task is cancelled."""

    def __init__(
        self, issuer: Issuer, source: JwksSource, clock: Callable[[], Micros], observer: Observer | None = None
    ) -> None:
        self.issuer = issuer
        self._source = source
        self._clock = clock
        self._observer = observer
        self._raw = b""
        self._keys: KeySet | None = None
        self._read_at: Micros = 0
        self._asked_at: Micros | None = None
        self._asking = False
        self._runs = False
        self._wake = asyncio.Event()
        self._answered = asyncio.Event()

    @property
    def keys(self) -> KeySet | None:
        """The keys; the same object as long as they are the same, `None` when there are none to rely on."""
        return self._keys if self._clock() - self._read_at < MAX_JWKS_AGE else None

    @property
    def may_refresh(self) -> bool:
        """Whether a key that is not there may be found by asking now."""
        if not self._runs:
            return False
        return self._asking or self._asked_at is None or self._clock() - self._asked_at >= MIN_INTERVAL

    def refresh_soon(self) -> None:
        """Read the keys soon, since they may have changed."""
        self._wake.set()

    async def refresh(self) -> None:
        """Wait for the issuer's answer to the read in progress, or to one more."""
        answered = self._answered
        if not self._asking:
            self._wake.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(FETCH_SECONDS + 1):
                await answered.wait()

    def start(self, owner: set[asyncio.Task[None]]) -> None:
        """Run; who comes before the first answer waits for it."""
        self._runs = True
        spawn(self.run(), name=f"keys of {self.issuer.name}", owner=owner)

    async def run(self) -> None:
        """Read the keys now and again, until it is cancelled."""
        try:
            while True:
                self._wake.clear()
                pause = REFRESH_SECONDS if await self._ask() else RETRY_SECONDS
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._wake.wait()
        finally:
            self._runs = False
            self._answered.set()

    async def _ask(self) -> bool:
        self._asking = True
        try:
            self._take(await self._source.read())
        except SourceError as error:
            self._note(str(error))
            return False
        except ValueError as error:
            self._note(f"what was read {error}")
            return False
        except Exception:  # noqa: BLE001  # a bug must not end the reading of keys for good
            _log.exception("unexpected error while reading the keys of issuer %s", self.issuer.name)
            return False
        finally:
            self._asking = False
            self._asked_at = self._clock()
            self._answered.set()
            self._answered = asyncio.Event()
        self._note("")
        return True

    def _take(self, raw: bytes) -> None:
        if self._keys is None or raw != self._raw:
            self._keys, self._raw = parse_jwks(raw, self.issuer.algorithms), raw
        self._read_at = self._clock()

    def _note(self, problem: str) -> None:
        count = len(self._keys or ())
        if problem:
            _log.warning("the keys of issuer %s: %s; %d known ones stay in use", self.issuer.name, problem, count)
        elif not count:
            _log.warning("issuer %s publishes no key that may be used: its tokens are refused", self.issuer.name)
        if self._observer is not None:
            self._observer.observe(IssuerAsked(self.issuer.name, count, problem))
