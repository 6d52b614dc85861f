"""Issuers of JSON Web Tokens with real keys, for tests: their tokens, and their JWKS."""

import asyncio
import json
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from jwt.algorithms import get_default_algorithms
from keyturn.access.jwks_sources import SourceError
from keyturn.core.model import SECOND, Client, Issuer, Jwt

ISSUER = "https://issuer.example"
AUDIENCE = "keyturn"
SUBJECT = "system:serviceaccount:team-a:builder"
NOW = 1_800_000_000
"""Seconds of wall time."""

RSA = rsa.generate_private_key(65537, 2048)
SMALL_RSA = rsa.generate_private_key(65537, 1024)
P256, P384 = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP384R1())
ED25519 = ed25519.Ed25519PrivateKey.generate()
OTHER_RSA = rsa.generate_private_key(65537, 2048)


def jwk(key: Any, algorithm: str, kid: str | None = "one", **more: Any) -> dict[str, Any]:
    """The public key as a JWK."""
    found = get_default_algorithms()[algorithm].to_jwk(key.public_key(), as_dict=True)
    found.pop("key_ops", None)
    return {**found, **({"kid": kid} if kid else {}), **more}


def jwks(*keys: dict[str, Any]) -> bytes:
    """A JWKS."""
    return json.dumps({"keys": keys}).encode()


def token(
    key: PrivateKeyTypes | bytes | None = RSA,
    algorithm: str = "RS256",
    kid: str | None = "one",
    headers: dict[str, Any] | None = None,
    **claims: Any,
) -> bytes:
    """A token; a claim given as `None` is left out."""
    usual = {"iss": ISSUER, "aud": AUDIENCE, "sub": SUBJECT, "exp": NOW + 600, "nbf": NOW - 5, "iat": NOW - 5}
    payload = {name: value for name, value in {**usual, **claims}.items() if value is not None}
    named = {**({"kid": kid} if kid else {}), **(headers or {})}
    raw = json.dumps(payload).encode()
    return jwt.PyJWS().encode(raw, key, algorithm, headers=named).encode()  # type: ignore[arg-type]


def client(name: str = "builder", *, subject: str = SUBJECT, audience: str = AUDIENCE, **issuer: Any) -> Client:
    """A client that is known by its token."""
    return Client(name, jwt=Jwt(Issuer(ISSUER, **issuer), audience, subject))


class Publisher:
    """A source that publishes what it is told, counts who asks, and lets them wait if it is told to."""

    def __init__(self, *keys: dict[str, Any]) -> None:
        self.document = jwks(*keys)
        self.asked = 0
        self.fails = False
        self.open = asyncio.Event()
        self.open.set()

    async def read(self) -> bytes:
        self.asked += 1
        await self.open.wait()
        if self.fails:
            raise SourceError("not reached")
        return self.document


class Clock:
    """Microseconds that a test moves."""

    def __init__(self, seconds: float) -> None:
        self.now = round(seconds * SECOND)

    def __call__(self) -> int:
        return self.now

    def go_on(self, seconds: float) -> None:
        """Let time pass."""
        self.now += round(seconds * SECOND)
