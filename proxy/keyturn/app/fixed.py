"""What is settled when a process starts: a reload that would change it is refused, and says so."""

from collections.abc import Iterator
from operator import attrgetter

from keyturn.config import Config
from keyturn.core.errors import Problem

SETTINGS = (
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
"""Sockets that are bound, connections that are open, and what requests on their way and other replicas count on."""


def needs_a_restart(before: Config, after: Config) -> Iterator[Problem]:
    """Everything that differs and cannot be changed while the process runs."""
    for path in SETTINGS:
        setting = attrgetter(path)
        if setting(before) != setting(after):
            yield Problem(path, "needs a restart: put it back to what it was at the start, or restart the process")
    if (before.tls is None) != (after.tls is None):
        yield Problem("tls", "needs a restart: listeners begin with TLS or without it")
