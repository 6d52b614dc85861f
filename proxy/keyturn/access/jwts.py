"""Callers known by a JSON Web Token: its signature verified by PyJWT, its claims judged by `claims`.

Law 11 for such tokens: one of a known issuer is a credential of this proxy's and never goes on to the upstream, whether
it lets its bearer in or not; one of any other issuer is none of ours. What is verified once is remembered by its digest
for as long as it is valid and its issuer's keys stay as they are.
"""

import asyncio
import json
from base64 import urlsafe_b64decode
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from aiohttp import ClientSession
from jwt import PyJWS, PyJWTError

from keyturn.access.claims import Accepted, Holder, Rejected, judge
from keyturn.access.keeper import Keeper
from keyturn.access.keysets import KeySet
from keyturn.access.refusals import NotYetKnown
from keyturn.access.sources import Source, open_session, source_of
from keyturn.core.events import Observer
from keyturn.core.model import ALGORITHMS, Client, Issuer, Micros
from keyturn.core.values import value_object
from keyturn.tasks import finish

LONGEST = 8192
"""Bytes of a token: a Kubernetes service account's has about 1,200."""
REMEMBERED = 10_000
"""Tokens that have been verified; the one not seen for longest is forgotten first."""
_TYPES = frozenset({"jwt", "at+jwt", "application/at+jwt"})
"""Other types are tokens for another purpose (RFC 8725, section 3.11)."""

_jws = PyJWS(algorithms=list(ALGORITHMS))


@value_object
class _Verified:
    """A token that has been verified: by which keys, whose it is, until when."""

    keys: KeySet
    accepted: Accepted


class _Issuer:
    """An issuer, its keys, and the clients that its tokens may be of."""

    def __init__(self, keeper: Keeper) -> None:
        self.keeper = keeper
        self.holders: tuple[Holder, ...] = ()


class Jwts:
    """The issuers that are known; `source` gives where one's keys are read."""

    def __init__(
        self,
        clock: Callable[[], Micros],
        wall: Callable[[], Micros],
        observer: Observer | None = None,
        source: Callable[[Issuer, Callable[[], ClientSession]], Source] = source_of,
    ) -> None:
        self._clock = clock
        self._wall = wall
        self._observer = observer
        self._source = source
        self._issuers: dict[str, _Issuer] = {}
        self._verified: OrderedDict[str, tuple[Keeper, _Verified]] = OrderedDict()
        self._tasks: dict[Keeper, set[asyncio.Task[None]]] = {}
        self._session: ClientSession | None = None
        self._runs = False

    def __bool__(self) -> bool:
        return bool(self._issuers)

    def replace(self, clients: Iterable[Client]) -> None:
        """Know the tokens of these clients only; an issuer whose settings stay the same keeps its keys."""
        holders = [Holder.of(client, client.jwt) for client in clients if client.jwt is not None]
        before, self._issuers = self._issuers, {}
        for issuer in dict.fromkeys(holder.jwt.issuer for holder in holders):
            known = before.get(issuer.name)
            kept = known is not None and known.keeper.issuer == issuer
            keeper = known.keeper if known is not None and kept else self._keeper(issuer)
            keeper.look_again()
            entry = self._issuers[issuer.name] = _Issuer(keeper)
            entry.holders = tuple(holder for holder in holders if holder.jwt.issuer.name == issuer.name)
        self._verified.clear()
        if self._runs:
            self._run()

    def _keeper(self, issuer: Issuer) -> Keeper:
        return Keeper(issuer, self._source(issuer, self._client), self._clock, self._observer)

    # Life

    def start(self) -> None:
        """Begin to read the issuers' keys; who comes meanwhile with a token of theirs waits for them."""
        self._runs = True
        self._run()

    def _run(self) -> None:
        """Give each keeper its task, and end those of issuers that are no longer known."""
        keepers = {entry.keeper for entry in self._issuers.values()}
        for keeper in self._tasks.keys() - keepers:
            for task in self._tasks[keeper]:
                task.cancel()
        self._tasks = {keeper: tasks for keeper, tasks in self._tasks.items() if tasks}
        for keeper in keepers - self._tasks.keys():
            self._tasks[keeper] = set()
            keeper.start(self._tasks[keeper])

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

    def owner(self, token: bytes, digest: str) -> Client | Rejected | None:
        """Whose a token is; `None` when it is none of a known issuer's. `digest` is its SHA-256.

        Raises:
            NotYetKnown: its issuer has to be asked for its keys first.
        """
        known = self._verified.get(digest)
        if known is not None:
            keeper, verified = known
            if verified.keys is keeper.keys and self._wall() < verified.accepted.until:
                self._verified.move_to_end(digest)
                return verified.accepted.client
            del self._verified[digest]
        return self._look_at(token, digest)

    def _look_at(self, token: bytes, digest: str) -> Client | Rejected | None:
        parts = _read(token)
        entry = self._issuers.get(str(parts[1].get("iss"))) if parts else None
        if parts is None or entry is None:
            return None
        if len(token) > LONGEST:
            return Rejected(f"has more than {LONGEST} bytes")
        found = self._verify(token, parts[0], entry)
        if isinstance(found, Rejected):
            return found
        self._remember(digest, entry.keeper, found)
        return found.accepted.client

    def _verify(self, token: bytes, header: Mapping[str, Any], entry: _Issuer) -> _Verified | Rejected:
        keeper = entry.keeper
        fault = _unusual(header, keeper.issuer)
        if fault:
            return Rejected(fault)
        name, algorithm = header.get("kid"), header["alg"]
        keys = keeper.keys
        if keys is None or not keys.knows(name):
            if keeper.may_learn:
                raise NotYetKnown(keeper)
            return Rejected(
                "cannot be verified: the keys of its issuer are not at hand"
                if keys is None
                else "is signed with a key that its issuer does not publish"
            )
        claims = _claims(token, keys, name, algorithm)
        if claims is None or claims.get("iss") != keeper.issuer.name:
            return Rejected("is not signed by its issuer")
        found = judge(claims, entry.holders, leeway=keeper.issuer.leeway, now=self._wall())
        return _Verified(keys, found) if isinstance(found, Accepted) else found

    def _remember(self, digest: str, keeper: Keeper, verified: _Verified) -> None:
        self._verified[digest] = (keeper, verified)
        if len(self._verified) > REMEMBERED:
            self._verified.popitem(last=False)


def _unusual(header: Mapping[str, Any], issuer: Issuer) -> str:
    """What keeps a token from being looked at further, empty when nothing does."""
    kind = header.get("typ", "JWT")
    if not isinstance(kind, str) or kind.lower() not in _TYPES:
        return "is of a type that lets nobody in (`typ`)"
    if header.get("alg") not in issuer.algorithms:
        return "is signed in a way that is not permitted (`alg`)"
    if "crit" in header or "b64" in header:
        return "asks for an extension that is not understood (`crit`)"
    return "" if isinstance(header.get("kid", ""), str) else "names its key in a way that is not understood (`kid`)"


def _claims(token: bytes, keys: KeySet, name: str | None, algorithm: str) -> dict[str, Any] | None:
    """What the token says, when one of the keys has signed it."""
    for key in keys.fitting(name, algorithm):
        try:
            payload = _jws.decode_complete(token, key, algorithms=[algorithm])["payload"]
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
