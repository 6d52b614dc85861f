import asyncio
import hmac
import json
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st
from keyturn.access import jwts
from keyturn.access.jwts import MAX_JWT_BYTES, AcceptedJwt, JwtHolder, Jwts, RejectedJwt, check_claims, subject_pattern
from keyturn.access.rate_limits import SigningKeyUnknown
from keyturn.core.model import SECOND, Client, Issuer, Jwt

from tests.access.issuers import (
    ED25519,
    ISSUER,
    NOW,
    OTHER_RSA,
    P256,
    P384,
    RSA,
    Clock,
    Publisher,
    client,
    jwk,
    jwks,
    token,
)

LEEWAY = 30
CLAIMS_NOW = 1000.0
USUAL = {"aud": "keyturn", "sub": "a:b", "exp": 2000}


def holders(*jwts: tuple[str, str, str]) -> list[JwtHolder]:
    """Clients by name, audience and subject."""
    issuer = Issuer("i")
    return [JwtHolder.of(Client(name), Jwt(issuer, audience, subject)) for name, audience, subject in jwts]


def verdict(claims: dict[str, Any], now: float = CLAIMS_NOW) -> AcceptedJwt | RejectedJwt:
    """Judge with the usual client and leeway."""
    return check_claims(
        {**USUAL, **claims}, holders(("ci", "keyturn", "a:*")), leeway=LEEWAY * SECOND, now=round(now * SECOND)
    )


@pytest.mark.parametrize(
    ("pattern", "subject", "matches"),
    [
        ("system:serviceaccount:team-a:*", "system:serviceaccount:team-a:builder", True),
        ("system:serviceaccount:team-a:*", "system:serviceaccount:team-a:", False),
        ("system:serviceaccount:team-a:*", "system:serviceaccount:team-a", False),
        ("system:serviceaccount:team-a:*", "system:serviceaccount:team-a:x:y", False),
        ("system:serviceaccount:team-a:*", "system:serviceaccount:team-ab:x", False),
        ("system:serviceaccount:*:builder", "system:serviceaccount:team-b:builder", True),
        ("system:serviceaccount:*:builder", "system:serviceaccount:a:b:builder", False),
        ("a:ci-*-job", "a:ci-7-job", True),
        ("a:ci-*-job", "a:ci--job", False),
        ("a:ci-*-*-job", "a:ci-1-2-3-job", True),
        ("a.b", "axb", False),
        ("A", "a", False),
        ("a", "a\n", False),
        ("*", "a", True),
        ("*", "a:b", False),
        ("**", "a:b", False),
    ],
)
def test_a_star_stays_within_its_part(pattern: str, subject: str, matches: bool) -> None:
    """It stands for one or more characters but no colon; everything else is compared letter by letter."""
    assert bool(subject_pattern(pattern).fullmatch(subject)) is matches


@pytest.mark.parametrize(
    ("claims", "now", "why"),
    [
        ({"exp": None}, CLAIMS_NOW, "no time at which it expires"),
        ({"exp": "2000"}, CLAIMS_NOW, "no time at which it expires"),
        ({"exp": True}, CLAIMS_NOW, "no time at which it expires"),
        ({"exp": float("inf")}, CLAIMS_NOW, "no time at which it expires"),
        ({"exp": float("nan")}, CLAIMS_NOW, "no time at which it expires"),
        ({"exp": 10**400}, CLAIMS_NOW, "no time at which it expires"),
        ({"nbf": "x"}, CLAIMS_NOW, "a time that is no number"),
        ({"iat": [1]}, CLAIMS_NOW, "a time that is no number"),
        ({}, 2000 + LEEWAY, "has expired"),
        ({"nbf": CLAIMS_NOW + LEEWAY + 1}, CLAIMS_NOW, "not valid yet"),
        ({"iat": CLAIMS_NOW + LEEWAY + 1}, CLAIMS_NOW, "not valid yet"),
        ({"aud": "other"}, CLAIMS_NOW, "another audience"),
        ({"aud": None}, CLAIMS_NOW, "another audience"),
        ({"aud": {"keyturn": 1}}, CLAIMS_NOW, "another audience"),
        ({"aud": ["other", 7]}, CLAIMS_NOW, "another audience"),
        ({"sub": "b:a"}, CLAIMS_NOW, "no client's"),
        ({"sub": None}, CLAIMS_NOW, "has no subject"),
        ({"sub": ["a:b"]}, CLAIMS_NOW, "has no subject"),
    ],
)
def test_what_is_not_right_lets_nobody_in(claims: dict[str, Any], now: float, why: str) -> None:
    """Each claim that counts has to be there and right."""
    found = verdict(claims, now)
    assert isinstance(found, RejectedJwt)
    assert not found
    assert why in found.why


@pytest.mark.parametrize(
    ("claims", "now"),
    [
        ({}, CLAIMS_NOW),
        ({}, 2000 + LEEWAY - 0.001),
        ({"exp": 2000.5}, 2000 + LEEWAY),
        ({"nbf": CLAIMS_NOW + LEEWAY, "iat": CLAIMS_NOW + LEEWAY}, CLAIMS_NOW),
        ({"aud": ["other", "keyturn"]}, CLAIMS_NOW),
    ],
)
def test_clocks_may_differ_by_the_leeway(claims: dict[str, Any], now: float) -> None:
    """At both ends of a token's time."""
    found = verdict(claims, now)
    assert isinstance(found, AcceptedJwt)
    assert found.client.name == "ci"
    assert found.until == round((claims.get("exp", 2000) + LEEWAY) * SECOND)


def test_the_first_client_that_fits_counts() -> None:
    """By audience and subject together."""
    several = holders(("a", "x", "a:b"), ("b", "y", "a:*"), ("c", "x", "a:*"))
    for audience, subject, name in (("x", "a:b", "a"), ("y", "a:b", "b"), ("x", "a:z", "c"), (["y", "x"], "a:b", "a")):
        found = check_claims({"exp": 2, "aud": audience, "sub": subject}, several, leeway=0, now=0)
        assert isinstance(found, AcceptedJwt)
        assert found.client.name == name


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(["exp", "nbf", "iat", "aud", "sub"]), JSON))
def test_any_claims_are_judged(claims: dict[str, Any]) -> None:
    """Whatever an issuer signs, judging it ends with a verdict."""
    assert isinstance(verdict(claims), AcceptedJwt | RejectedJwt)


KEYS = (
    jwk(RSA, "RS256"),
    jwk(P256, "ES256", "p256"),
    jwk(P384, "ES384", "p384"),
    jwk(ED25519, "EdDSA", "ed"),
)
CLIENT = client()


class Office:
    """Jwts with an issuer that publishes, and clocks that a test moves."""

    def __init__(self, *clients: Client, keys: tuple[dict[str, Any], ...] = KEYS) -> None:
        self.publisher = Publisher(*keys)
        self.clock, self.wall = Clock(1000), Clock(NOW)
        self.jwts = Jwts(self.clock, self.wall, None, lambda *_: self.publisher)
        self.jwts.replace(clients or (CLIENT,))

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Office"]:
        """With the issuer's keys at hand."""
        self.jwts.start()
        await self.settle()
        try:
            yield self
        finally:
            await self.jwts.stop()

    async def settle(self) -> None:
        """Let the JWKS caches read."""
        for _ in range(5):
            await asyncio.sleep(0)

    def owner(self, text: bytes) -> Client | RejectedJwt | None:
        """Whose it is."""
        return self.jwts.owner(text, sha256(text).hexdigest())

    def why(self, text: bytes) -> str:
        """Why it is nobody's."""
        found = self.owner(text)
        assert isinstance(found, RejectedJwt)
        return found.why


def part(value: object) -> bytes:
    """A part of a token."""
    return urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=")


@pytest.mark.parametrize(
    ("key", "algorithm", "kid"),
    [
        (RSA, "RS256", "one"),
        (RSA, "PS512", "one"),
        (P256, "ES256", "p256"),
        (P384, "ES384", "p384"),
        (ED25519, "EdDSA", "ed"),
        (RSA, "RS256", None),
    ],
)
async def test_a_signed_token_says_who_calls(key: Any, algorithm: str, kid: str | None) -> None:
    """With any public key of its issuer; a second time without another look at the signature."""
    async with Office().running() as office:
        text = token(key, algorithm, kid)
        assert office.owner(text) is CLIENT
        assert office.owner(text) is CLIENT


def confused() -> bytes:
    """A token whose HMAC is made with the issuer's public key, which everybody knows."""
    public = RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    signed = part({"alg": "HS256", "kid": "one"}) + b"." + token().split(b".")[1]
    return signed + b"." + urlsafe_b64encode(hmac.digest(public, signed, "sha256")).rstrip(b"=")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (token(None, "none"), "not permitted"),
        (confused(), "not permitted"),
        (token(OTHER_RSA), "not signed by its issuer"),
        (token(OTHER_RSA, kid=None), "not signed by its issuer"),
        (token(P256, "ES256", "one"), "not signed by its issuer"),
        (token(P256, "ES256", "p384"), "not signed by its issuer"),
        (token(kid="unheard"), "does not publish"),
        (token(headers={"typ": "logout+jwt"}), "type"),
        (token(headers={"crit": ["x"], "x": 1}), "extension"),
        (token(exp=NOW - 31), "expired"),
        (token(exp=None), "no time at which it expires"),
        (token(aud="other"), "another audience"),
        (token(sub="system:serviceaccount:team-b:builder"), "no client's"),
        (token(x="x" * MAX_JWT_BYTES), "bytes"),
        (token()[:-5] + b"AAAAA", "not signed by its issuer"),
        (token().rpartition(b".")[0] + b".", "not signed by its issuer"),
        (part({"alg": "RS256", "kid": 7}) + b"." + part({"iss": ISSUER}) + b".x", "kid"),
        (part({"alg": ["RS256"]}) + b"." + part({"iss": ISSUER}) + b".x", "alg"),
        (part({"alg": "RS256", "typ": 1}) + b"." + part({"iss": ISSUER}) + b".x", "typ"),
    ],
)
async def test_no_other_token_of_the_issuer_does(text: bytes, why: str) -> None:
    """Nothing is taken on trust: neither an algorithm, nor a key, nor what is claimed without a signature."""
    async with Office().running() as office:
        assert why in office.why(text)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"token",
        b"a.b.c",
        b"ey.ey.ey",
        token(iss="https://another.example"),
        token(iss=None),
        part({"alg": "RS256"}) + b"." + part([ISSUER]) + b".x",
        part({"alg": "RS256"}) + b"." + part({"iss": [ISSUER]}) + b".x",
        part({"alg": "RS256"}) + b"." + urlsafe_b64encode(b"[" * 3000) + b".x",
        token() + b".x",
        b"ey\xff.\xff.\xff",
    ],
)
async def test_what_no_known_issuer_has_made_is_none_of_ours(text: bytes) -> None:
    """Such a bearer token may be the upstream's."""
    async with Office().running() as office:
        assert office.owner(text) is None


async def test_a_type_that_is_meant_for_access_is_fine() -> None:
    """With or without one (RFC 9068, section 2.1)."""
    async with Office().running() as office:
        for kind in ("JWT", "jwt", "at+jwt", "application/at+jwt"):
            assert office.owner(token(headers={"typ": kind})) is CLIENT


async def test_an_issuer_may_be_held_to_some_algorithms() -> None:
    """A signature of another kind is refused, however good it is."""
    narrow = client(algorithms=("ES256",))
    async with Office(narrow).running() as office:
        assert office.owner(token(P256, "ES256", "p256")) is narrow
        assert "not permitted" in office.why(token())


async def test_a_verified_token_ends_when_it_expires() -> None:
    """A verified token is remembered no longer than it is valid and its signing key is known."""
    async with Office().running() as office:
        text = token(exp=NOW + 60)
        assert office.owner(text) is CLIENT
        office.wall.go_on(89)
        assert office.owner(text) is CLIENT
        office.wall.go_on(1)
        assert "expired" in office.why(text)
        other = token()
        assert office.owner(other) is CLIENT
        office.publisher.document = jwks(jwk(OTHER_RSA, "RS256"))
        office.jwts.replace([CLIENT])
        await office.settle()
        assert "not signed" in office.why(other)
        assert office.owner(token(OTHER_RSA)) is CLIENT


async def test_only_so_many_tokens_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one not seen for longest is verified again."""
    monkeypatch.setattr(jwts, "MAX_VERIFIED", 2)
    async with Office().running() as office:
        texts = [token(P256, "ES256", "p256", jti=str(number)) for number in range(3)]
        for text in (texts[0], texts[1], texts[0], texts[2], texts[1]):
            assert office.owner(text) is CLIENT
        assert len(office.jwts._verified) == 2


async def test_a_key_that_is_new_is_learned() -> None:
    """A token signed with it asks for a second look; when there is nothing to learn it is refused for good."""
    async with Office().running() as office:
        text = token(OTHER_RSA, kid="two")
        assert "does not publish" in office.why(text)
        office.clock.go_on(10)
        with pytest.raises(SigningKeyUnknown) as caught:
            office.owner(text)
        office.publisher.document = jwks(*KEYS, jwk(OTHER_RSA, "RS256", "two"))
        await caught.value.refresh()
        assert office.owner(text) is CLIENT
        assert "does not publish" in office.why(token(kid="three"))
        assert office.publisher.asked == 2


async def test_without_keys_nobody_is_known() -> None:
    """Before the first answer of the issuer a token waits for it; one that never comes lets nobody in."""
    office = Office()
    assert "not available" in office.why(token())
    office.publisher.open.clear()
    async with office.running():
        with pytest.raises(SigningKeyUnknown):
            office.owner(token())
        office.publisher.fails = True
        office.publisher.open.set()
        await office.settle()
        assert "not available" in office.why(token())


async def test_clients_can_be_replaced() -> None:
    """An issuer whose settings stay keeps its keys over a reload, one that is gone is nobody's."""
    async with Office().running() as office:
        text = token()
        assert office.owner(text) is CLIENT
        office.publisher.fails = True
        again = client("again")
        office.jwts.replace([Client("token"), again])
        await office.settle()
        assert office.owner(text) is again
        office.jwts.replace([Client("token")])
        assert not office.jwts
        assert office.owner(text) is None
        office.publisher.fails = False
        office.jwts.replace([client(leeway=0)])
        await office.settle()
        assert isinstance(office.owner(text), Client)
        assert sum(len(tasks) for tasks in office.jwts._tasks.values()) == 1


async def test_it_can_be_started_again() -> None:
    """And stopped without having been started."""
    office = Office()
    await office.jwts.stop()
    for _ in range(2):
        async with office.running():
            assert office.owner(token()) is CLIENT


@given(st.binary(max_size=50), st.binary(max_size=50), st.binary(max_size=20))
def test_noise_is_nobodys(header: bytes, claims: bytes, signature: bytes) -> None:
    """Bytes of any kind are no token."""
    encoded = [urlsafe_b64encode(piece) for piece in (b'{"' + header, claims, signature)]
    assert Office().owner(b".".join(encoded)) is None
    assert Office().owner(b"ey" + header + b"." + claims + b"." + signature) is None
