"""Parts that are built from their settings alone; what is wrong with them is a problem with its path."""

import os
import socket
import ssl
from typing import TYPE_CHECKING

from keyturn.bodies import BodySettings
from keyturn.config import Config
from keyturn.core.errors import ConfigError, Problem, StartError
from keyturn.core.model import SECOND
from keyturn.stores.links import Link
from keyturn.trust import apply_rules
from keyturn.upstream import UpstreamSettings
from keyturn.web.overload import Bounds

if TYPE_CHECKING:
    from keyturn.telemetry.traces import Traces

ADMIN_BOUNDS = Bounds(connections=512, per_peer=512)
"""The admin listener is for probes, scrapers and operators."""


def upstream_settings(config: Config) -> UpstreamSettings:
    """Where the upstream is and how long it may take."""
    given = config.upstream
    return UpstreamSettings(
        url=given.url,
        ca=given.ca,
        connect_timeout=given.connect_timeout,
        response_timeout=given.response_timeout,
        max_connections=given.max_connections,
        max_connection_age=given.max_connection_age,
        key_header=given.key_header,
    )


def link_to_store(config: Config) -> Link | None:
    """The way to the shared store; `None` when tokens live in this process.

    Raises:
        ConfigError: its URL names files that cannot be used.
    """
    url = config.store_url
    if url.scheme == "memory":
        return None
    try:
        strict = config.strict_certificates
        return Link(url.reveal(), shown=url.shown, timeout=config.store.timeout, strict_certificates=strict)
    except StartError as problem:
        raise ConfigError((Problem("store.url", str(problem).removeprefix("store.url: ")),)) from None


def traces(config: Config, replica: str) -> "Traces | None":
    """Who records requests; `None` when nobody does, and then nothing of OpenTelemetry is imported.

    Raises:
        ConfigError: the extra is not installed.
    """
    given = config.traces
    if given.endpoint is None:
        return None
    try:
        from keyturn.telemetry.traces import Exporting, Traces  # noqa: PLC0415  # not to be there while traces are off
    except ImportError:
        problem = "what traces need is not installed: `pip install keyturn[otel]`, or leave this out"
        raise ConfigError((Problem("traces.endpoint", problem),)) from None
    exporting = Exporting(given.endpoint, strict_certificates=config.strict_certificates)
    return Traces(exporting, sample=given.sample, replica=replica, upstream=config.upstream.url)


def inbound_bounds(config: Config) -> Bounds:
    """How much the data listeners take from callers, and how long they wait for them."""
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
    """How much of requests' bodies is read before their turn, and where it is kept."""
    given = config.inbound
    return BodySettings(given.spool_memory, given.max_spooled, given.spool_size, given.upload_timeout)


def inbound_tls(config: Config) -> ssl.SSLContext | None:
    """What the data listeners speak TLS with; `None` when they speak plain HTTP.

    Raises:
        ConfigError: the files hold no certificates, or none that belong together.
    """
    if config.tls is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    apply_rules(context, strict=config.strict_certificates)
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(config.tls.cert, config.tls.key)
    except (OSError, ssl.SSLError) as error:
        message = f"no certificate and private key that belong together, in PEM ({type(error).__name__})"
        raise ConfigError((Problem("tls", message),)) from None
    if config.tls.client_ca is not None:
        try:
            context.load_verify_locations(config.tls.client_ca)
        except (OSError, ssl.SSLError):
            raise ConfigError((Problem("tls.client_ca", "no certificate in PEM"),)) from None
        optional = config.tls.client_certificate == "optional"
        context.verify_mode = ssl.CERT_OPTIONAL if optional else ssl.CERT_REQUIRED
    return context


def replica_name() -> str:
    """A name that no other process has, not even an earlier one of this container."""
    host = "".join(letter if letter.isalnum() or letter in ".-" else "-" for letter in socket.gethostname())
    return f"{host or 'host'}-{os.getpid()}-{os.urandom(4).hex()}"
