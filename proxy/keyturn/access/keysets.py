"""The public keys of an issuer of JSON Web Tokens, as its JWKS lists them (RFC 7517), and what each may verify.

The algorithm of a signature is pinned by the type of its key: an RSA key verifies RS* and PS*, a curve its own ES* or
EdDSA, nothing else. Symmetric keys, private keys, keys for encryption and RSA keys below 2048 bits are left out.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from jwt import PyJWK, PyJWTError

MOST_KEYS = 100
_MOST_TRIES = 4
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

    def __init__(self, groups: Iterable[Sequence[tuple[str | None, PyJWK]]] = ()) -> None:
        """From what each key may verify: its `kid`, and the key bound to the algorithm."""
        self._by_name: dict[tuple[str, str], list[PyJWK]] = {}
        self._by_algorithm: dict[str, list[PyJWK]] = {}
        self._names: set[str] = set()
        self._size = 0
        for group in groups:
            self._size += bool(group)
            self._add(group)

    def _add(self, group: Sequence[tuple[str | None, PyJWK]]) -> None:
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

    def fitting(self, name: str | None, algorithm: str) -> list[PyJWK]:
        """The keys that a token of that `kid` and `alg` may be signed with."""
        if name is not None:
            return self._by_name.get((name, algorithm), [])
        keys = self._by_algorithm.get(algorithm, [])
        return keys if len(keys) <= _MOST_TRIES else []


def read_key_set(data: bytes, algorithms: Iterable[str]) -> KeySet:
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
    if len(listed) > MOST_KEYS:
        raise ValueError(f"has more than {MOST_KEYS} keys")
    permitted = frozenset(algorithms)
    return KeySet([list(_usable(jwk, permitted)) for jwk in listed if isinstance(jwk, dict)])


def _usable(jwk: Mapping[str, Any], permitted: frozenset[str]) -> Iterator[tuple[str | None, PyJWK]]:
    name = jwk.get("kid")
    for algorithm in _algorithms(jwk):
        key = _public_key(jwk, algorithm) if algorithm in permitted else None
        if key is not None:
            yield name if isinstance(name, str) else None, key


def _algorithms(jwk: Mapping[str, Any]) -> tuple[str, ...]:
    """What a key may verify: what its type can, of that only its `alg` if it has one; nothing if it has another use."""
    operations = jwk.get("key_ops", ["verify"])
    if jwk.get("use", "sig") != "sig" or not isinstance(operations, list) or "verify" not in operations or "d" in jwk:
        return ()
    able = _RSA if jwk.get("kty") == "RSA" else _BY_CURVE.get((str(jwk.get("kty")), str(jwk.get("crv"))), ())
    return tuple(algorithm for algorithm in able if jwk.get("alg", algorithm) == algorithm)


def _public_key(jwk: Mapping[str, Any], algorithm: str) -> PyJWK | None:
    with suppress(PyJWTError, ValueError, TypeError, KeyError):
        key = PyJWK(dict(jwk), algorithm)
        return None if key.Algorithm.check_key_length(key.key) else key
    return None
