"""The resolved configuration: everything that is built from a configuration before any of it takes effect."""

import os
import socket
import ssl
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING

from keyturn.access.jwks_cache import parse_jwks
from keyturn.bodies import BodySettings
from keyturn.config import Config
from keyturn.config.files import content_of
from keyturn.core.errors import ConfigError, Problem, StartError
from keyturn.core.forwarded import TrustedProxies
from keyturn.core.model import SECOND, Client, Pool
from keyturn.trust import apply_rules
from keyturn.upstream import UpstreamOptions, trust_of
from keyturn.web.overload import Bounds


@dataclass(frozen=True, slots=True)
class ResolvedConfig:
    """A configuration, and what was built from its files. It is valid as a whole, or not used at all."""

    config: Config
    contents: Mapping[Path, bytes]
    """Digests of all files that it was read from."""
    tls: ssl.SSLContext | None
    """TLS of the data listeners."""
    trust: ssl.SSLContext
    """Trust for the upstream's certificate."""
    pools: tuple[Pool, ...]
    clients: tuple[Client, ...]
    anonymous: Client | None
    proxies: TrustedProxies
    """The trusted proxies in front of the data listeners."""

    @classmethod
    def of(cls, config: Config) -> "ResolvedConfig":
        """Resolve a configuration.

        Raises:
            ConfigError: with all problems.
        """
        read = config.files.contents
        contents = {path: read[path] if path in read else content_of(path) for path in config.watched_files()}
        problems = [*_bad_key_sets(config)]
        tls = trust = None
        try:
            tls = inbound_tls(config)
        except ConfigError as error:
            problems += error.problems
        try:
            trust = trust_of(config.upstream.ca, strict=config.strict_certificates)
        except StartError:
            problems.append(Problem("upstream.ca", "this file holds no certificate in PEM"))
        if problems or trust is None:
            raise ConfigError(tuple(problems))
        pools, clients = config.pools_of_model(), config.client_models()
        proxies = TrustedProxies(config.inbound.trusted_proxies)
        return cls(config, contents, tls, trust, pools, clients, config.anonymous_client(), proxies)

    def follow(self, config: Config) -> "ResolvedConfig":
        """Resolve the configuration that is to replace this one in a running process.

        Raises:
            ConfigError: with all problems, and all changes that need a restart.
        """
        fixed = tuple(needs_a_restart(self.config, config))
        try:
            resolved = ResolvedConfig.of(config)
        except ConfigError as error:
            raise ConfigError((*fixed, *error.problems)) from None
        if fixed:
            raise ConfigError(fixed)
        return resolved

    @property
    def everybody(self) -> Mapping[str, Client]:
        """All clients by name, the anonymous one included."""
        return {client.name: client for client in (*self.clients, *filter(None, [self.anonymous]))}

    def tls_differs(self, other: "ResolvedConfig") -> bool:
        """Whether the certificate of the listeners differs, or the authorities for callers' certificates."""
        return self.config.tls != other.config.tls or self._differ(other, _tls_files(self.config))

    def trust_differs(self, other: "ResolvedConfig") -> bool:
        """Whether the authorities for the upstream's certificate differ."""
        ca = self.config.upstream.ca
        return ca != other.config.upstream.ca or self._differ(other, [ca] if ca else [])

    def _differ(self, other: "ResolvedConfig", paths: Iterable[Path]) -> bool:
        return any(self.contents[path] != other.contents.get(path) for path in paths)


def _tls_files(config: Config) -> list[Path]:
    tls = config.tls
    return [path for path in (tls.cert, tls.key, tls.client_ca) if path] if tls else []


def _bad_key_sets(config: Config) -> Iterator[Problem]:
    if any(client.jwt for client in config.clients):
        import jwt  # noqa: F401, PLC0415  # so that no request waits for it
    for index, client in enumerate(config.clients):
        if client.jwt is None or client.jwt.jwks_file is None:
            continue
        try:
            parse_jwks(client.jwt.jwks_file.read_bytes(), ())
        except (OSError, ValueError):
            yield Problem(
                f"clients[{index}].jwt.jwks_file",
                "this file holds no JWK set (RFC 7517): write the issuer's public keys into it",
            )


FIXED_SETTINGS = (
    "listen",
    "admin",
    "strict_certificates",
    "inbound.socket_mode",
    "upstream.url",
    "upstream.key_header",
    "upstream.key_query",
    "upstream.max_connections",
    "upstream.settle_bound",
    "store.url",
    "store.username",
    "store.password",
    "store.password_file",
    "store.sentinel_username",
    "store.sentinel_password",
    "store.sentinel_password_file",
    "store.prefix",
    "store.timeout",
    "store.on_loss",
    "log.format",
    "traces.endpoint",
    "traces.sample",
)
"""Settings that cannot change in a running process: bound sockets, open connections, what other replicas rely on."""


def needs_a_restart(before: Config, after: Config) -> Iterator[Problem]:
    """Report all differences that need a restart."""
    for path in FIXED_SETTINGS:
        setting = attrgetter(path)
        if setting(before) != setting(after):
            yield Problem(path, "needs a restart: undo the change, or restart the process")
    if (before.tls is None) != (after.tls is None):
        yield Problem("tls", "needs a restart to switch TLS on or off: undo the change, or restart the process")


if TYPE_CHECKING:
    from keyturn.stores.links import Link
    from keyturn.telemetry.traces import Traces

ADMIN_BOUNDS = Bounds(connections=512, per_peer=512)
"""Bounds of the admin listener, which serves probes, scrapers and operators."""


def upstream_settings(config: Config) -> UpstreamOptions:
    """Settings of the upstream."""
    given = config.upstream
    return UpstreamOptions(
        url=given.url,
        ca=given.ca,
        connect_timeout=given.connect_timeout,
        response_timeout=given.response_timeout,
        max_connections=given.max_connections,
        max_connection_age=given.max_connection_age,
        key_header=given.key_header,
    )


def link_to_store(config: Config) -> "Link | None":
    """Build the connection to the shared store; `None` with the memory store.

    Raises:
        ConfigError: the store's URL names files that cannot be used.
    """
    url = config.store_url
    if url.scheme == "memory":
        return None
    from keyturn.stores.links import Link  # noqa: PLC0415  # redis-py is not needed without a shared store

    try:
        strict = config.strict_certificates
        return Link(url.reveal(), shown=url.shown, timeout=config.store.timeout, strict_certificates=strict)
    except StartError as problem:
        raise ConfigError((Problem("store.url", str(problem).removeprefix("store.url: ")),)) from None


def traces(config: Config, replica: str) -> "Traces | None":
    """Build the recorder of traces; `None` without `traces.endpoint`, and then OpenTelemetry is not imported.

    Raises:
        ConfigError: the extra is not installed.
    """
    given = config.traces
    if given.endpoint is None:
        return None
    try:
        from keyturn.telemetry.traces import SpanSender, Traces  # noqa: PLC0415  # not to be there while traces are off
    except ImportError:
        problem = "OpenTelemetry is not installed: run `pip install keyturn[otel]`, or delete this setting"
        raise ConfigError((Problem("traces.endpoint", problem),)) from None
    exporting = SpanSender(given.endpoint, strict_certificates=config.strict_certificates)
    return Traces(exporting, sample=given.sample, replica=replica, upstream=config.upstream.url)


def inbound_bounds(config: Config) -> Bounds:
    """Bounds of the data listeners."""
    given = config.inbound
    return Bounds(
        connections=given.max_connections,
        per_peer=given.max_connections_per_address,
        head=given.max_head,
        fields=given.max_fields,
        target=given.max_target,
        head_time=given.head_timeout / SECOND,
        write_time=given.write_timeout / SECOND,
        keep_alive=given.idle_timeout / SECOND,
    )


def body_settings(config: Config) -> BodySettings:
    """How much of request bodies is read before the request is queued, and where it is kept."""
    given = config.inbound
    return BodySettings(given.spool_memory, given.max_spooled, given.spool_size, given.upload_timeout)


def inbound_tls(config: Config) -> ssl.SSLContext | None:
    """Build the TLS context of the data listeners; `None` for plain HTTP.

    Raises:
        ConfigError: the files hold no certificates, or certificate and key do not match.
    """
    if config.tls is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    apply_rules(context, strict=config.strict_certificates)
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(config.tls.cert, config.tls.key)
    except (OSError, ssl.SSLError) as error:
        message = f"`cert` and `key` hold no matching certificate and private key in PEM ({type(error).__name__})"
        raise ConfigError((Problem("tls", message),)) from None
    if config.tls.client_ca is not None:
        try:
            context.load_verify_locations(config.tls.client_ca)
        except (OSError, ssl.SSLError):
            raise ConfigError((Problem("tls.client_ca", "this file holds no certificate in PEM"),)) from None
        optional = config.tls.client_certificate == "optional"
        context.verify_mode = ssl.CERT_OPTIONAL if optional else ssl.CERT_REQUIRED
    return context


def replica_name() -> str:
    """Make a name that no other process has, not even an earlier one in the same container."""
    host = "".join(letter if letter.isalnum() or letter in ".-" else "-" for letter in socket.gethostname())
    return f"{host or 'host'}-{os.getpid()}-{os.urandom(4).hex()}"
