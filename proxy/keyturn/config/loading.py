"""Load config.yaml, the environment and key files into a `Config`, or report everything that is wrong with them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import PrivateAttr, ValidationError

from keyturn.config.checks import CheckedDocument, check
from keyturn.config.fields import BASE
from keyturn.config.files import KeyFiles, digest, with_environment_keys
from keyturn.config.models import CallerSettings, ClientSettings, Document, KeySettings, PoolSettings, RateSettings
from keyturn.config.problems import Node, path_of, problems_of
from keyturn.config.urls import StoreUrl, merge_issuer_settings, parse_store_url
from keyturn.config.yaml_document import MAX_BYTES, Interpolation, parse
from keyturn.core.errors import ConfigError, Problem
from keyturn.core.model import ALGORITHMS, SECOND, Client, Issuer, Jwt, Key, Limit, Micros, Pool, Secret


@dataclass(frozen=True, slots=True)
class Files:
    """The files that were read: the document, secrets, and the key files of each `keys_dir`."""

    document: Path | None = None
    secrets: Mapping[Path, Secret] = field(default_factory=dict)
    listed: Mapping[Path, tuple[Path, ...]] = field(default_factory=dict)
    passwords: Mapping[Path, Secret] = field(default_factory=dict)
    """Passwords of the store, by file."""
    plain: tuple[str, ...] = ()
    """Settings whose secret is in the document itself."""
    contents: Mapping[Path, bytes] = field(default_factory=dict, repr=False, compare=False)
    """Digests of all that was read (`keyturn.config.files`)."""


class Config(Document):
    """The configuration of a Keyturn process."""

    _files: Files = PrivateAttr(default_factory=Files)

    @property
    def files(self) -> Files:
        """The files that were read."""
        return self._files

    @property
    def authentication_required(self) -> bool:
        """Whether requests need a credential: as configured, else with clients or a listener that is not loopback."""
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
            replace(self._client(settings, _token_digests_of(settings)), **_proofs(settings, issuers))
            for settings in self.clients
        )

    def _issuers(self) -> Mapping[str, Issuer]:
        said: dict[str, dict[str, Any]] = {}
        for jwt in (client.jwt for client in self.clients if client.jwt):
            said[jwt.issuer] = merge_issuer_settings(said.get(jwt.issuer), dict(jwt))
        return {name: _issuer(name, settings, strict=self.strict_certificates) for name, settings in said.items()}

    def anonymous_client(self) -> Client | None:
        """The client that callers without a credential are; `None` when authentication is required."""
        return None if self.authentication_required else self._client(self.anonymous, ())

    @property
    def usual_in_flight(self) -> int:
        """The default of a client's `max_in_flight`, so that no single client takes all connections."""
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
        """The store's URL, with the user names and passwords that are configured separately."""
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
    """The limits, with unique names: the second `10/10s` is `10/10s-2`."""
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
    """A client's credentials other than tokens."""
    jwt = client.jwt
    return {
        "san": client.certificate.san if client.certificate else None,
        "jwt": Jwt(issuers[jwt.issuer], jwt.audience, jwt.subject) if jwt else None,
    }


def _rate(settings: RateSettings | None) -> tuple[int, Micros] | None:
    return (settings.requests, settings.window) if settings else None


def _token_digests_of(client: ClientSettings) -> tuple[str, ...]:
    given = (client.token.digest() if client.token else None, client.token_sha256)
    return tuple(dict.fromkeys(digest for digest in given if digest))


def load(path: Path | None, environ: Mapping[str, str]) -> Config:
    """Read the configuration; without a path the defaults, with the keys of `POSTMAN_API_KEYS`.

    Relative paths in the file start from its directory.

    Raises:
        ConfigError: with all problems.
    """
    data = _read(path) if path else b""
    written, problems = _parse(data, path) if path else ({}, [])
    interpolation = Interpolation(environ)
    settings = interpolation.apply(written)
    plain = tuple(path_of(node.loc) for node in _secrets(Node(settings)) if node.loc not in interpolation.supplied)
    tree, missing = with_environment_keys(settings, environ)
    keys = KeyFiles(path.parent if path else Path())
    keys.collect(Node(tree))
    config, found = _validate(tree, keys.base)
    found += [*missing, *keys.problems, *check(CheckedDocument(Node(tree), keys))]
    broken = {path_of(loc) for loc in interpolation.broken}
    problems += interpolation.problems + [problem for problem in found if problem.path not in broken]
    if config is None or problems:
        raise ConfigError(tuple(dict.fromkeys(problems))) from None
    contents = {**({path: digest(data)} if path else {}), **keys.contents}
    config._files = Files(path, keys.secrets, keys.listed, keys.passwords, plain, contents)  # noqa: SLF001  # no setting, so no field
    return config


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError((Problem("", f"{path} cannot be read: {error.strerror}"),)) from None


def _parse(data: bytes, path: Path) -> tuple[dict[str, Any], list[Problem]]:
    """Read the document; problems of the file as a whole have its name in place of a setting."""
    try:
        return parse(data)
    except ConfigError as error:
        raise ConfigError(tuple(Problem(str(path), problem.message) for problem in error.problems)) from None


def _validate(tree: dict[str, Any], base: Path) -> tuple[Config | None, list[Problem]]:
    try:
        return Config.model_validate(tree, context={BASE: base}), []
    except ValidationError as error:
        return None, problems_of(error, Config, tree)


def _secrets(root: Node) -> list[Node]:
    """All secrets in the document itself."""
    nodes = [root["admin_token"], *(client["token"] for client in root["clients"].items())]
    nodes += [root["store"]["password"], root["store"]["sentinel_password"]]
    nodes += [key["secret"] for _, pool in root["pools"].entries() for key in pool["keys"].items()]
    return [node for node in nodes if node.text] + (
        [root["store"]["url"]] if _has_password(root["store"]["url"]) else []
    )


def _has_password(url: Node) -> bool:
    try:
        return parse_store_url(url.value).has_password
    except ValueError:
        return False
