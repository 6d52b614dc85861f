"""The whole configuration as the rest of the house uses it: the settings, and the model's objects made of them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import PrivateAttr

from keyturn.config.issuers import merged
from keyturn.config.models import CallerSettings, ClientSettings, Document, KeySettings, PoolSettings, RateSettings
from keyturn.config.urls import StoreUrl
from keyturn.core.model import ALGORITHMS, SECOND, Client, Issuer, Jwt, Key, Limit, Micros, Pool, Secret


@dataclass(frozen=True, slots=True)
class Files:
    """What loading read: the document, the secrets in files of their own, and the key files of each `keys_dir`."""

    document: Path | None = None
    secrets: Mapping[Path, Secret] = field(default_factory=dict)
    listed: Mapping[Path, tuple[Path, ...]] = field(default_factory=dict)
    passwords: Mapping[Path, Secret] = field(default_factory=dict)
    """In files of their own, of the store."""
    plain: tuple[str, ...] = ()
    """Paths of the secrets that stand in the document itself."""
    contents: Mapping[Path, bytes] = field(default_factory=dict, repr=False, compare=False)
    """Digests of all that was read (`keyturn.config.contents`)."""


class Config(Document):
    """The configuration of a Keyturn process."""

    _files: Files = PrivateAttr(default_factory=Files)

    @property
    def files(self) -> Files:
        """What loading read."""
        return self._files

    @property
    def authentication_required(self) -> bool:
        """Whether a request needs a credential: as written, else with clients or a listener beyond loopback."""
        if self.authentication is not None:
            return self.authentication == "required"
        return bool(self.clients) or any(not listener.loopback for listener in self.listen)

    @property
    def has_keys(self) -> bool:
        """Whether any pool has a key."""
        return any(pool.keys for pool in self.pools_of_model())

    def pools_of_model(self) -> tuple[Pool, ...]:
        """The pools with their keys, those in files included."""
        return tuple(self._pool(name, settings) for name, settings in self.pools.items())

    def client_models(self) -> tuple[Client, ...]:
        """The clients, each with the digests of its tokens."""
        issuers = self._issuers()
        return tuple(
            replace(self._client(settings, _digests(settings)), **_proofs(settings, issuers))
            for settings in self.clients
        )

    def _issuers(self) -> Mapping[str, Issuer]:
        said: dict[str, dict[str, Any]] = {}
        for jwt in (client.jwt for client in self.clients if client.jwt):
            said[jwt.issuer] = merged(said.get(jwt.issuer), dict(jwt))
        return {name: _issuer(name, settings, strict=self.strict_certificates) for name, settings in said.items()}

    def anonymous_client(self) -> Client | None:
        """Who callers without a credential are; `None` when authentication is required."""
        return None if self.authentication_required else self._client(self.anonymous, ())

    @property
    def usual_in_flight(self) -> int:
        """A client's `max_in_flight` where it says none: no single client takes all connections from the others."""
        return max(1, self.upstream.max_connections // 2)

    def _client(self, caller: CallerSettings, digests: tuple[str, ...]) -> Client:
        return Client(
            name=caller.name,
            pool=caller.pool,
            weight=caller.weight,
            urgency=caller.urgency,
            max_waiting=caller.max_waiting,
            max_in_flight=caller.max_in_flight or self.usual_in_flight,
            rate=_rate(caller.rate),
            allow=caller.allow,
            pin=caller.pin,
            digests=digests,
        )

    @property
    def store_url(self) -> StoreUrl:
        """The store's URL, with the user names and passwords that are given apart from it."""
        given, files = self.store, self._files.passwords
        login: dict[str, str | None] = {"username": given.username, "sentinel_username": given.sentinel_username}
        for name, secret, path in (
            ("password", given.password, given.password_file),
            ("sentinel_password", given.sentinel_password, given.sentinel_password_file),
        ):
            told = secret or (files.get(path) if path else None)
            login[name] = told.reveal() if told else None
        if given.url.scheme == "memory":  # a password may be there for when it is a Redis
            return given.url
        return given.url.with_login({name: value for name, value in login.items() if value})

    def watched_files(self) -> tuple[Path, ...]:
        """Files and folders whose change may change the configuration, each once."""
        return tuple(dict.fromkeys(self._sources()))

    def _sources(self) -> Iterator[Path]:
        if self._files.document:
            yield self._files.document
        yield from self._files.secrets
        yield from self._files.listed
        yield from self._files.passwords
        tls = (self.tls.cert, self.tls.key, self.tls.client_ca) if self.tls else ()
        keys = (client.jwt.jwks_file for client in self.clients if client.jwt)
        yield from (path for path in (*tls, self.upstream.ca, *keys) if path)

    def _pool(self, name: str, settings: PoolSettings) -> Pool:
        limits = _limits(settings)
        keys = tuple(self._keys(settings))
        return Pool(name, keys, limits, settings.guard, tuple(settings.headers.items()))

    def _keys(self, pool: PoolSettings) -> Iterator[Key]:
        for settings in pool.keys:
            secret = self._secret(settings)
            if secret:
                quota = settings.quota
                yield Key(settings.name, secret, quota) if quota else Key.alone(settings.name, secret)
        for path in self._files.listed.get(pool.keys_dir, ()) if pool.keys_dir else ():
            yield Key.alone(path.name, self._files.secrets[path])

    def _secret(self, key: KeySettings) -> Secret | None:
        if key.secret or not key.secret_file:
            return key.secret
        return self._files.secrets.get(key.secret_file)


def _limits(pool: PoolSettings) -> tuple[Limit, ...]:
    """The limits, each with a name of its own: the second of `10/10s` is `10/10s-2`."""
    limits: list[Limit] = []
    for settings in pool.limits:
        limit = Limit(settings.requests, settings.window, settings.match)
        same = sum(1 for other in limits if other.name.partition("-")[0] == limit.name)
        limits.append(replace(limit, name=f"{limit.name}-{same + 1}") if same else limit)
    return tuple(limits)


def _issuer(name: str, settings: Mapping[str, Any], *, strict: bool) -> Issuer:
    files = {key: str(settings[key]) for key in ("jwks_file", "ca", "bearer_file") if key in settings}
    return Issuer(
        name,
        jwks_url=settings.get("jwks_url"),
        strict_certificates=strict,
        algorithms=settings.get("algorithms", ALGORITHMS),
        leeway=settings.get("leeway", 30 * SECOND),
        **files,
    )


def _proofs(client: ClientSettings, issuers: Mapping[str, Issuer]) -> dict[str, Any]:
    """What proves that a caller is the client, beside its tokens."""
    jwt = client.jwt
    return {
        "san": client.certificate.san if client.certificate else None,
        "jwt": Jwt(issuers[jwt.issuer], jwt.audience, jwt.subject) if jwt else None,
    }


def _rate(settings: RateSettings | None) -> tuple[int, Micros] | None:
    return (settings.requests, settings.window) if settings else None


def _digests(client: ClientSettings) -> tuple[str, ...]:
    given = (client.token.digest() if client.token else None, client.token_sha256)
    return tuple(dict.fromkeys(digest for digest in given if digest))
