import json
from typing import Any

import pytest
from keyturn.access.keysets import MOST_KEYS, KeySet, read_key_set
from keyturn.core.model import ALGORITHMS

from tests.access.issuers import ED25519, P256, P384, RSA, SMALL_RSA, jwk, jwks


def able(*keys: dict[str, Any], permitted: tuple[str, ...] = ALGORITHMS) -> list[str]:
    """What the keys of a set may verify."""
    found = read_key_set(jwks(*keys), permitted)
    return [algorithm for algorithm in (*ALGORITHMS, "HS256", "none") if found.fitting("one", algorithm)]


@pytest.mark.parametrize(
    ("key", "algorithms"),
    [
        (jwk(RSA, "RS256"), ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"]),
        (jwk(RSA, "RS256", alg="PS256"), ["PS256"]),
        (jwk(P256, "ES256"), ["ES256"]),
        (jwk(P384, "ES384"), ["ES384"]),
        (jwk(ED25519, "EdDSA"), ["EdDSA"]),
        (jwk(RSA, "RS256", use="sig", key_ops=["verify"]), ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"]),
    ],
)
def test_a_keys_type_says_what_it_verifies(key: dict[str, Any], algorithms: list[str]) -> None:
    """And its own `alg`, when it has one."""
    assert able(key) == algorithms


@pytest.mark.parametrize(
    "key",
    [
        {"kty": "oct", "k": "c2VjcmV0", "kid": "one"},
        {"kty": "oct", "k": "c2VjcmV0", "kid": "one", "alg": "RS256"},
        jwk(RSA, "RS256", use="enc"),
        jwk(RSA, "RS256", key_ops=["encrypt"]),
        jwk(RSA, "RS256", key_ops="verify"),
        jwk(RSA, "RS256", alg="HS256"),
        jwk(RSA, "RS256", alg="ES256"),
        jwk(RSA, "RS256", d="AQAB"),
        jwk(SMALL_RSA, "RS256"),
        {**jwk(P256, "ES256"), "crv": "secp256k1"},
        {**jwk(P256, "ES256"), "x": "AAAA"},
        {"kty": "RSA", "kid": "one", "n": "!", "e": 7},
        {"kty": "RSA", "kid": "one"},
        {"kty": ["RSA"], "kid": "one"},
        {},
    ],
)
def test_what_cannot_be_used_is_left_out(key: dict[str, Any]) -> None:
    """Symmetric, private and small keys, those for another use, and broken ones; the others stay."""
    assert able(key) == []
    found = read_key_set(jwks(key, jwk(RSA, "RS256", "two")), ALGORITHMS)
    assert len(found) == 1
    assert found.fitting("two", "RS256")


def test_only_permitted_algorithms_count() -> None:
    """A key that could verify more does not."""
    assert able(jwk(RSA, "RS256"), jwk(P256, "ES256"), permitted=("PS384", "ES256")) == ["PS384", "ES256"]


def test_a_key_is_found_by_its_name() -> None:
    """A token without a `kid` is tried with those of its algorithm, unless they are many."""
    found = read_key_set(jwks(jwk(RSA, "RS256", "a"), jwk(RSA, "RS256", None), jwk(P256, "ES256", "b")), ALGORITHMS)
    assert len(found) == 3
    assert [found.knows(name) for name in ("a", "b", "c", None)] == [True, True, False, True]
    assert len(found.fitting("a", "RS256")) == 1
    assert len(found.fitting(None, "RS256")) == 2
    assert found.fitting("b", "RS256") == []
    many = read_key_set(jwks(*(jwk(P256, "ES256", str(number)) for number in range(5))), ALGORITHMS)
    assert many.fitting(None, "ES256") == []
    assert not KeySet().knows(None)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"<html>", "no JSON"),
        (b"\xff", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"[]", "no set of keys"),
        (b"{}", "no set of keys"),
        (b'{"keys": {}}', "no set of keys"),
        (json.dumps({"keys": [{}] * (MOST_KEYS + 1)}).encode(), "more than"),
    ],
)
def test_what_is_no_set_of_keys_is_refused(data: bytes, why: str) -> None:
    """So that the keys that are there stay in use."""
    with pytest.raises(ValueError, match=why):
        read_key_set(data, ALGORITHMS)


def test_a_set_may_be_empty() -> None:
    """An issuer that withdraws all its keys is believed; what is no key in the list is passed over."""
    assert len(read_key_set(b'{"keys": []}', ALGORITHMS)) == 0
    assert len(read_key_set(b'{"keys": [7, "x", null]}', ALGORITHMS)) == 0
