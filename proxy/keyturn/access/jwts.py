"""Callers known by a JSON Web Token: its signature verified by PyJWT, its claims judged by `claims`.

Law 11 for such tokens: one of a known issuer is a credential of this proxy's and never goes on to the upstream, whether
it is accepted or not; one of any other issuer is none of ours. A verified token is remembered by its digest
for as long as it is valid and its issuer's keys stay as they are.
"""

import asyncio
import functools
import json
import re
from base64 import urlsafe_b64decode
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from aiohttp import ClientSession

from keyturn.access.jwks_cache import JwksCache, KeySet
from keyturn.access.jwks_sources import JwksSource, jwks_source, open_session
from keyturn.access.rate_limits import SigningKeyUnknown
from keyturn.core.events import Observer
from keyturn.core.model import ALGORITHMS, SECOND, Client, Issuer, Jwt, Micros
from keyturn.core.values import value_object
from keyturn.tasks import finish

if TYPE_CHECKING:
    from jwt import PyJWS

_STARS = re.compile(r"\*+")
_MAX_TIMESTAMP = 2**53
"""Seconds beyond which a number of JSON is no whole one any more."""


@value_object
class RejectedJwt:
    """Why a JSON Web Token of a known issuer is refused. It is false."""

    why: str
    """Goes on from "The JSON Web Token"; shows nothing of the token."""

    def __bool__(self) -> Literal[False]:
        return False


@value_object
class AcceptedJwt:
    """The client of a token, and the wall time until which it is valid."""

    client: Client
    until: Micros


@dataclass(frozen=True, slots=True)
class JwtHolder:
    """A client and the tokens that are its own."""

    client: Client
    jwt: Jwt
    subject: re.Pattern[str] = field(repr=False)

    @classmethod
    def of(cls, client: Client, jwt: Jwt) -> "JwtHolder":
        """With its subject's pattern made ready."""
        return cls(client, jwt, subject_pattern(jwt.subject))


def subject_pattern(text: str) -> re.Pattern[str]:
    """The pattern of a configured subject: `*` stands for one or more characters, but no colon.

    Matching takes time linear in the subject for each star, whatever a caller sends: all stars but the last of a part
    take the least that they can and are never tried again (atomic groups), as in `core.policy`.
    """
    return re.compile(":".join(map(_part, text.split(":"))), re.DOTALL)


def _part(text: str) -> str:
    first, *others = map(re.escape, _STARS.split(text))
    if not others:
        return first
    held = "".join(f"(?>[^:]+?{piece})" for piece in others[:-1])
    return f"{first}{held}[^:]+{others[-1]}"


def check_claims(
    claims: Mapping[str, Any], holders: Iterable[JwtHolder], *, leeway: Micros, now: Micros
) -> AcceptedJwt | RejectedJwt:
    """Say whose token it is; `now` is wall time, the signature has been verified.

    Of several clients that it could be, the first counts.
    """
    times = [_instant(claims.get(name)) for name in ("exp", "nbf", "iat")]
    expiry, *begins = times
    if expiry is None:
        return RejectedJwt("has no time at which it expires (`exp`)")
    if any(time is None and claims.get(name) is not None for time, name in zip(begins, ("nbf", "iat"), strict=True)):
        return RejectedJwt("holds a time that is no number")
    if now >= expiry + leeway:
        return RejectedJwt("has expired")
    if any(time is not None and now < time - leeway for time in begins):
        return RejectedJwt("is not valid yet")
    return _owner(claims, holders, expiry + leeway)


def _owner(claims: Mapping[str, Any], holders: Iterable[JwtHolder], until: Micros) -> AcceptedJwt | RejectedJwt:
    subject, audiences = claims.get("sub"), _texts(claims.get("aud"))
    if not isinstance(subject, str):
        return RejectedJwt("has no subject (`sub`)")
    fitting = [holder for holder in holders if holder.jwt.audience in audiences]
    if not fitting:
        return RejectedJwt("is for another audience (`aud`)")
    for holder in fitting:
        if holder.subject.fullmatch(subject):
            return AcceptedJwt(holder.client, until)
    return RejectedJwt("has a subject (`sub`) that is no client's")


def _texts(value: object) -> frozenset[str]:
    if isinstance(value, str):
        return frozenset({value})
    return frozenset(item for item in value if isinstance(item, str)) if isinstance(value, list) else frozenset()


def _instant(value: object) -> Micros | None:
    """A `NumericDate` (RFC 7519, section 2) in microseconds, `None` when it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return round(value * SECOND) if abs(value) < _MAX_TIMESTAMP else None  # false for NaN and infinity too


MAX_JWT_BYTES = 8192
"""Bytes of a token: a Kubernetes service account's has about 1,200."""
MAX_VERIFIED = 10_000
"""Tokens that have been verified; the one not seen for longest is forgotten first."""
_TYPES = frozenset({"jwt", "at+jwt", "application/at+jwt"})
"""Other types are tokens for another purpose (RFC 8725, section 3.11)."""


@functools.cache
def _verifier() -> "PyJWS":
    from jwt import PyJWS  # noqa: PLC0415  # as in `jwks_cache`

    return PyJWS(algorithms=list(ALGORITHMS))


@value_object
class _Verified:
    """A token that has been verified: by which keys, whose it is, until when."""

    keys: KeySet
    accepted: AcceptedJwt


class _Issuer:
    """An issuer, its keys, and the clients that its tokens may be of."""

    def __init__(self, cache: JwksCache) -> None:
        self.cache = cache
        self.holders: tuple[JwtHolder, ...] = ()


class Jwts:
    """The issuers that are known; `source` gives where one's keys are read."""

    def __init__(
        self,
        clock: Callable[[], Micros],
        wall: Callable[[], Micros],
        observer: Observer | None = None,
        source: Callable[[Issuer, Callable[[], ClientSession]], JwksSource] = jwks_source,
    ) -> None:
        self._clock = clock
        self._wall = wall
        self._observer = observer
        self._source = source
        self._issuers: dict[str, _Issuer] = {}
        self._verified: OrderedDict[str, tuple[JwksCache, _Verified]] = OrderedDict()
        self._tasks: dict[JwksCache, set[asyncio.Task[None]]] = {}
        self._session: ClientSession | None = None
        self._runs = False

    def __bool__(self) -> bool:
        return bool(self._issuers)

    def replace(self, clients: Iterable[Client]) -> None:
        """Know the tokens of these clients only; an issuer whose settings stay the same keeps its keys."""
        holders = [JwtHolder.of(client, client.jwt) for client in clients if client.jwt is not None]
        before, self._issuers = self._issuers, {}
        for issuer in dict.fromkeys(holder.jwt.issuer for holder in holders):
            known = before.get(issuer.name)
            kept = known is not None and known.cache.issuer == issuer
            cache = known.cache if known is not None and kept else self._new_cache(issuer)
            cache.refresh_soon()
            entry = self._issuers[issuer.name] = _Issuer(cache)
            entry.holders = tuple(holder for holder in holders if holder.jwt.issuer.name == issuer.name)
        self._verified.clear()
        if self._runs:
            self._run()

    def _new_cache(self, issuer: Issuer) -> JwksCache:
        return JwksCache(issuer, self._source(issuer, self._client), self._clock, self._observer)

    # Life

    def start(self) -> None:
        """Begin to read the issuers' keys; who comes meanwhile with a token of theirs waits for them."""
        self._runs = True
        self._run()

    def _run(self) -> None:
        """Start a task for each JWKS cache, and end those of issuers that are no longer known."""
        caches = {entry.cache for entry in self._issuers.values()}
        for cache in self._tasks.keys() - caches:
            for task in self._tasks[cache]:
                task.cancel()
        self._tasks = {cache: tasks for cache, tasks in self._tasks.items() if tasks}
        for cache in caches - self._tasks.keys():
            self._tasks[cache] = set()
            cache.start(self._tasks[cache])

    async def stop(self) -> None:
        """End what runs, and close the connections to issuers."""
        self._runs = False
        for tasks in self._tasks.values():
            await finish(tasks)
        self._tasks.clear()
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _client(self) -> ClientSession:
        if self._session is None:
            self._session = open_session()
        return self._session

    # Tokens

    def owner(self, token: bytes, digest: str) -> Client | RejectedJwt | None:
        """The client of a token; `None` when it is none of a known issuer's. `digest` is its SHA-256.

        Raises:
            NotYetKnown: its issuer has to be asked for its keys first.
        """
        known = self._verified.get(digest)
        if known is not None:
            cache, verified = known
            if verified.keys is cache.keys and self._wall() < verified.accepted.until:
                self._verified.move_to_end(digest)
                return verified.accepted.client
            del self._verified[digest]
        return self._look_at(token, digest)

    def _look_at(self, token: bytes, digest: str) -> Client | RejectedJwt | None:
        parts = _read(token)
        entry = self._issuers.get(str(parts[1].get("iss"))) if parts else None
        if parts is None or entry is None:
            return None
        if len(token) > MAX_JWT_BYTES:
            return RejectedJwt(f"has more than {MAX_JWT_BYTES} bytes")
        found = self._verify(token, parts[0], entry)
        if isinstance(found, RejectedJwt):
            return found
        self._remember(digest, entry.cache, found)
        return found.accepted.client

    def _verify(self, token: bytes, header: Mapping[str, Any], entry: _Issuer) -> _Verified | RejectedJwt:
        cache = entry.cache
        fault = _unusual(header, cache.issuer)
        if fault:
            return RejectedJwt(fault)
        name, algorithm = header.get("kid"), header["alg"]
        keys = cache.keys
        if keys is None or not keys.knows(name):
            if cache.may_refresh:
                raise SigningKeyUnknown(cache.refresh)
            return RejectedJwt(
                "cannot be verified: the keys of its issuer are not available"
                if keys is None
                else "is signed with a key that its issuer does not publish"
            )
        claims = _claims(token, keys, name, algorithm)
        if claims is None or claims.get("iss") != cache.issuer.name:
            return RejectedJwt("is not signed by its issuer")
        found = check_claims(claims, entry.holders, leeway=cache.issuer.leeway, now=self._wall())
        return _Verified(keys, found) if isinstance(found, AcceptedJwt) else found

    def _remember(self, digest: str, cache: JwksCache, verified: _Verified) -> None:
        self._verified[digest] = (cache, verified)
        if len(self._verified) > MAX_VERIFIED:
            self._verified.popitem(last=False)


def _unusual(header: Mapping[str, Any], issuer: Issuer) -> str:
    """The reason to refuse a token by its header, empty when there is none."""
    kind = header.get("typ", "JWT")
    if not isinstance(kind, str) or kind.lower() not in _TYPES:
        return "is of a type that is not accepted (`typ`)"
    if header.get("alg") not in issuer.algorithms:
        return "is signed in a way that is not permitted (`alg`)"
    if "crit" in header or "b64" in header:
        return "asks for an extension that is not understood (`crit`)"
    return "" if isinstance(header.get("kid", ""), str) else "names its key in a way that is not understood (`kid`)"


def _claims(token: bytes, keys: KeySet, name: str | None, algorithm: str) -> dict[str, Any] | None:
    """The claims of a token that one of the keys has signed."""
    from jwt import PyJWTError  # noqa: PLC0415  # as in `jwks_cache`

    for key in keys.fitting(name, algorithm):
        try:
            payload = _verifier().decode_complete(token, key, algorithms=[algorithm])["payload"]
        except (PyJWTError, ValueError):
            continue
        return _json_object(payload)
    return None


def _read(token: bytes) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Header and claims as they stand there, not verified; `None` when it is no JSON Web Token."""
    parts = token.split(b".")
    if len(parts) != 3 or not token.startswith(b"ey"):  # noqa: PLR2004  # header, claims, signature; `ey` begins `{"`
        return None
    try:
        header, claims = (_json_object(urlsafe_b64decode(part + b"==")) for part in parts[:2])
    except ValueError:
        return None
    return (header, claims) if header is not None and claims is not None else None


def _json_object(data: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
