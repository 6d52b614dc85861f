import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from keyturn.access.jwks_cache import (
    MAX_JWKS_AGE,
    MAX_KEYS,
    MIN_INTERVAL,
    REFRESH_SECONDS,
    RETRY_SECONDS,
    JwksCache,
    KeySet,
    parse_jwks,
)
from keyturn.core.events import Event, IssuerAsked
from keyturn.core.model import ALGORITHMS, SECOND, Issuer
from keyturn.tasks import finish, spawn

from tests.access.issuers import ED25519, ISSUER, OTHER_RSA, P256, P384, RSA, SMALL_RSA, Publisher, jwk, jwks
from tests.virtual import micros, virtual


def able(*keys: dict[str, Any], permitted: tuple[str, ...] = ALGORITHMS) -> list[str]:
    """Return what the keys of a set may verify."""
    found = parse_jwks(jwks(*keys), permitted)
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
    found = parse_jwks(jwks(key, jwk(RSA, "RS256", "two")), ALGORITHMS)
    assert len(found) == 1
    assert found.fitting("two", "RS256")


def test_only_permitted_algorithms_count() -> None:
    """A key that could verify more does not."""
    assert able(jwk(RSA, "RS256"), jwk(P256, "ES256"), permitted=("PS384", "ES256")) == ["PS384", "ES256"]


def test_a_key_is_found_by_its_name() -> None:
    """A token without a `kid` is tried with those of its algorithm, unless they are many."""
    found = parse_jwks(jwks(jwk(RSA, "RS256", "a"), jwk(RSA, "RS256", None), jwk(P256, "ES256", "b")), ALGORITHMS)
    assert len(found) == 3
    assert [found.knows(name) for name in ("a", "b", "c", None)] == [True, True, False, True]
    assert len(found.fitting("a", "RS256")) == 1
    assert len(found.fitting(None, "RS256")) == 2
    assert found.fitting("b", "RS256") == []
    many = parse_jwks(jwks(*(jwk(P256, "ES256", str(number)) for number in range(5))), ALGORITHMS)
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
        (json.dumps({"keys": [{}] * (MAX_KEYS + 1)}).encode(), "more than"),
    ],
)
def test_what_is_no_set_of_keys_is_refused(data: bytes, why: str) -> None:
    """So that the keys that are there stay in use."""
    with pytest.raises(ValueError, match=why):
        parse_jwks(data, ALGORITHMS)


def test_a_set_may_be_empty() -> None:
    """An issuer that withdraws all its keys is believed; what is no key in the list is passed over."""
    assert len(parse_jwks(b'{"keys": []}', ALGORITHMS)) == 0
    assert len(parse_jwks(b'{"keys": [7, "x", null]}', ALGORITHMS)) == 0


ONE, TWO = jwk(RSA, "RS256"), jwk(OTHER_RSA, "RS256", "two")


class Kept:
    """A JWKS cache that runs on virtual time."""

    def __init__(self, *keys: dict[str, Any]) -> None:
        self.publisher = Publisher(*keys)
        self.events: list[Event] = []
        self.cache = JwksCache(Issuer(ISSUER), self.publisher, micros, self)

    def observe(self, event: Event) -> None:
        self.events.append(event)

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Kept"]:
        """Until the end of the block."""
        tasks: set[asyncio.Task[None]] = set()
        self.cache.start(tasks)
        await asyncio.sleep(0.001)
        try:
            yield self
        finally:
            await finish(tasks)

    def knows(self, name: str) -> bool:
        """Whether a key is at hand."""
        return self.cache.keys is not None and self.cache.keys.knows(name)


@virtual
async def test_keys_are_read_at_once_and_now_and_again() -> None:
    """A newly published key is known within `REFRESH_SECONDS`; an unchanged key set stays the same object."""
    async with Kept(ONE).running() as kept:
        first = kept.cache.keys
        assert kept.knows("one")
        await asyncio.sleep(REFRESH_SECONDS)
        assert kept.publisher.asked == 2
        assert kept.cache.keys is first
        kept.publisher.document = jwks(TWO)
        await asyncio.sleep(REFRESH_SECONDS)
        assert kept.knows("two")
        assert not kept.knows("one")
        assert kept.events == [IssuerAsked(ISSUER, 1)] * 3


@virtual
async def test_keys_outlive_a_failure_but_not_for_ever() -> None:
    """An issuer that does not answer is asked more often; after `STALE` its keys are no longer relied on."""
    async with Kept(ONE).running() as kept:
        kept.publisher.fails = True
        await asyncio.sleep(REFRESH_SECONDS + 10 * RETRY_SECONDS)
        assert kept.publisher.asked == 12
        assert kept.knows("one")
        assert kept.events[-1] == IssuerAsked(ISSUER, 1, "not reached")
        await asyncio.sleep(MAX_JWKS_AGE / SECOND)
        assert kept.cache.keys is None
        kept.publisher.fails = False
        await asyncio.sleep(RETRY_SECONDS)
        assert kept.knows("one")


@virtual
async def test_what_is_no_set_of_keys_is_a_failure() -> None:
    """The keys that are there stay."""
    async with Kept(ONE).running() as kept:
        kept.publisher.document = b"<html>"
        await asyncio.sleep(REFRESH_SECONDS)
        assert kept.knows("one")
        assert kept.events[-1] == IssuerAsked(ISSUER, 1, "what was read is no JSON")


@virtual
async def test_a_bug_does_not_end_it() -> None:
    """An error that nobody expected is a failure like any other."""
    kept = Kept(ONE)
    read, kept.publisher.read = kept.publisher.read, _fail  # type: ignore[method-assign]
    async with kept.running():
        assert kept.cache.keys is None
        kept.publisher.read = read  # type: ignore[method-assign]
        await asyncio.sleep(RETRY_SECONDS)
        assert kept.knows("one")


async def _fail() -> bytes:
    raise ZeroDivisionError


@virtual
async def test_a_withdrawn_key_is_gone() -> None:
    """Also when it was the only one."""
    async with Kept(ONE).running() as kept:
        kept.publisher.document = jwks()
        kept.cache.refresh_soon()
        await asyncio.sleep(1)
        assert kept.cache.keys is not None
        assert not kept.knows("one")


@virtual
async def test_an_unknown_key_is_asked_for_once() -> None:
    """An unknown key is fetched once for all that wait, and again only after `MIN_INTERVAL`."""
    async with Kept(ONE).running() as kept:
        before = kept.cache.may_refresh
        await asyncio.sleep(MIN_INTERVAL / SECOND)
        assert (before, kept.cache.may_refresh) == (False, True)
        kept.publisher.document = jwks(ONE, TWO)
        kept.publisher.open.clear()
        waiting: set[asyncio.Task[Any]] = set()
        tasks = [spawn(kept.cache.refresh(), name="waits", owner=waiting) for _ in range(100)]
        await asyncio.sleep(1)
        late = spawn(kept.cache.refresh(), name="waits", owner=waiting)
        assert kept.cache.may_refresh
        kept.publisher.open.set()
        await asyncio.gather(*tasks, late)
        assert kept.publisher.asked == 2
        assert kept.knows("two")
        assert not kept.cache.may_refresh


@virtual
async def test_nobody_waits_for_ever() -> None:
    """For an issuer that hangs, or for a cache that has been stopped."""
    kept = Kept(ONE)
    assert not kept.cache.may_refresh
    async with kept.running():
        await asyncio.sleep(MIN_INTERVAL / SECOND)
        kept.publisher.open.clear()
        await kept.cache.refresh()
        learning = spawn(kept.cache.refresh(), name="waits", owner=set())
        await asyncio.sleep(0)
    await learning
    assert not kept.cache.may_refresh


@virtual
async def test_the_log_says_what_is_wrong() -> None:
    """An issuer that cannot be asked, and one without a key that could be used."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[assignment,method-assign]
    logger = logging.getLogger("keyturn")
    logger.addHandler(handler)
    try:
        async with Kept().running() as kept:
            kept.publisher.fails = True
            await asyncio.sleep(REFRESH_SECONDS)
    finally:
        logger.removeHandler(handler)
    first, second = (record.getMessage() for record in records)
    assert first == f"issuer {ISSUER} publishes no key that may be used: its tokens are refused"
    assert second == f"the keys of issuer {ISSUER}: not reached; 0 known ones stay in use"
