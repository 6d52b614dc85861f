"""All that is made of a configuration before anything of it is used: it is right as a whole, or not used at all."""

import ssl
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from keyturn.access.jwks_cache import parse_jwks
from keyturn.app.fixed import needs_a_restart
from keyturn.app.parts import inbound_tls
from keyturn.config import Config
from keyturn.config.contents import content_of
from keyturn.core.errors import ConfigError, Problem, StartError
from keyturn.core.forwarded import TrustedProxies
from keyturn.core.model import Client, Pool
from keyturn.upstream import trust_of


@dataclass(frozen=True, slots=True)
class Plan:
    """A configuration, and what its files hold."""

    config: Config
    contents: Mapping[Path, bytes]
    """Digests of all files that it was made of."""
    tls: ssl.SSLContext | None
    """Of the data listeners."""
    trust: ssl.SSLContext
    """In the upstream's certificate."""
    pools: tuple[Pool, ...]
    clients: tuple[Client, ...]
    anonymous: Client | None
    proxies: TrustedProxies
    """Those in front of the data listeners that are trusted."""

    @classmethod
    def of(cls, config: Config) -> "Plan":
        """Make it.

        Raises:
            ConfigError: with everything that is wrong.
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
            problems.append(Problem("upstream.ca", "no certificates in PEM"))
        if problems or trust is None:
            raise ConfigError(tuple(problems))
        pools, clients = config.pools_of_model(), config.client_models()
        proxies = TrustedProxies(config.inbound.trusted_proxies)
        return cls(config, contents, tls, trust, pools, clients, config.anonymous_client(), proxies)

    def follow(self, config: Config) -> "Plan":
        """What is made of another configuration while this one is in use.

        Raises:
            ConfigError: with everything that is wrong, and everything that a running process cannot change.
        """
        fixed = tuple(needs_a_restart(self.config, config))
        try:
            plan = Plan.of(config)
        except ConfigError as error:
            raise ConfigError((*fixed, *error.problems)) from None
        if fixed:
            raise ConfigError(fixed)
        return plan

    @property
    def everybody(self) -> Mapping[str, Client]:
        """The callers that are known, by name, those without a credential among them."""
        return {client.name: client for client in (*self.clients, *filter(None, [self.anonymous]))}

    def tls_differs(self, other: "Plan") -> bool:
        """Whether callers meet another certificate, or other authorities are trusted for theirs."""
        return self.config.tls != other.config.tls or self._differ(other, _tls_files(self.config))

    def trust_differs(self, other: "Plan") -> bool:
        """Whether other authorities are trusted for the upstream's certificate."""
        ca = self.config.upstream.ca
        return ca != other.config.upstream.ca or self._differ(other, [ca] if ca else [])

    def _differ(self, other: "Plan", paths: Iterable[Path]) -> bool:
        return any(self.contents[path] != other.contents.get(path) for path in paths)


def _tls_files(config: Config) -> list[Path]:
    tls = config.tls
    return [path for path in (tls.cert, tls.key, tls.client_ca) if path] if tls else []


def _bad_key_sets(config: Config) -> Iterator[Problem]:
    for index, client in enumerate(config.clients):
        if client.jwt is None or client.jwt.jwks_file is None:
            continue
        try:
            parse_jwks(client.jwt.jwks_file.read_bytes(), ())
        except (OSError, ValueError):
            yield Problem(f"clients[{index}].jwt.jwks_file", "no set of public keys in JSON (RFC 7517)")
