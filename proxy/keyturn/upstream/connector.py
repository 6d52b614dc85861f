"""Connections to the upstream: opened, kept alive for further requests, and closed.

A bounded number may be in use at once. Waiting for one is no failure of the upstream's; nor is an error of this
machine. An old connection is not used again, so that changes of the upstream's address take effect.
"""

import asyncio
import ssl
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp.connector import Connection
from yarl import URL

from keyturn.aiohttp_internals import (
    RequestTemplate,
    UpstreamConnector,
    check_aiohttp,
    check_private_names,
    protocol_of,
)
from keyturn.core.errors import LocalError, StartError, Unreachable
from keyturn.core.model import SECOND, Micros
from keyturn.core.references import OwnReferences
from keyturn.oserrors import words
from keyturn.tasks import finish, spawn
from keyturn.trust import client_context, refusal
from keyturn.upstream.connect_errors import CAUSE_MESSAGES, local_cause
from keyturn.upstream.request_writer import HeadWriter
from keyturn.upstream.transmission import Sending, Transmission


class ConnectionSlots:
    """The queue for a free connection; `in_use` tells how many are taken."""

    def __init__(self, most: int, in_use: Callable[[], int]) -> None:
        self.most = most
        self._in_use = in_use
        self._line: deque[asyncio.Future[None]] = deque()
        self._promised = 0
        """Freed for a waiter that has not taken it yet."""

    @property
    def full(self) -> bool:
        """Whether a connection has to be waited for."""
        return bool(self._line) or self._none_left

    @property
    def _none_left(self) -> bool:
        return self._in_use() + self._promised >= self.most

    async def wait(self) -> None:
        """Wait until one is free, in the order of arrival. It has to be taken before anything else is awaited."""
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.append(place)
        try:
            self.freed()
            await place
        except BaseException:
            if place.done() and not place.cancelled():  # woken in the iteration in which it was cancelled
                self._promised -= 1
                self.freed()
            elif place in self._line:
                self._line.remove(place)
            raise
        self._promised -= 1

    def freed(self) -> None:
        """Wake as many waiters as there are free connections, the first ones first."""
        while self._line and not self._none_left:
            place = self._line.popleft()
            if not place.done():
                self._promised += 1
                place.set_result(None)


@dataclass(frozen=True, slots=True)
class UpstreamOptions:
    """Address and timeouts of the upstream; `ca` is a file of certificates trusted beside the system's."""

    url: str
    ca: Path | None = None
    connect_timeout: Micros = 5 * SECOND
    response_timeout: Micros = 310 * SECOND
    max_connections: int = 256
    max_connection_age: Micros = 300 * SECOND
    key_header: str = "X-Api-Key"


class Upstream(Sending):
    """The connections to one upstream."""

    def __init__(self, settings: UpstreamOptions, trust: ssl.SSLContext | None = None) -> None:
        """`trust`: what `trust_of` has made of the settings, if it was asked already."""
        url = URL(settings.url)
        self.authority: str = url.host_port_subcomponent or ""
        self._settings = settings
        self._trust = trust
        self._origin = url.origin()
        self.head = HeadWriter(self.authority, settings.key_header)
        self.references = OwnReferences(settings.url)
        self._slots = ConnectionSlots(settings.max_connections, lambda: self.in_use)
        self._take_times(settings)
        self.uploads: set[asyncio.Task[Any]] = set()
        self._connector: UpstreamConnector | None = None
        self._retired: list[UpstreamConnector] = []
        """Replaced connectors whose connections are still in use."""
        self._template: RequestTemplate

    def _take_times(self, settings: UpstreamOptions) -> None:
        self._timeout = aiohttp.ClientTimeout(
            connect=settings.connect_timeout / SECOND, ceil_threshold=settings.connect_timeout / SECOND + 1
        )
        self.response_timeout = settings.response_timeout / SECOND
        self._max_age = settings.max_connection_age / SECOND

    def adopt(self, settings: UpstreamOptions, trust: ssl.SSLContext | None) -> None:
        """Take other times from the next connection on, and other certificates if `trust` is given.

        Connections that were made with the old ones are then not used for another request; requests in flight go on.
        """
        self._take_times(settings)
        if self._connector is None:
            return
        self._connector.max_age = self._max_age
        if trust is None:
            return
        self._connector.retire()
        retired = [*self._retired, self._connector]
        self._connector = self._made(trust)
        self._retired = [connector for connector in retired if connector.in_use]
        for connector in retired:
            if not connector.in_use:
                spawn(connector.close_all(), name="close connections", owner=self.uploads)

    async def open(self) -> None:
        """Get ready to connect.

        Raises:
            StartError: the certificates cannot be read, or aiohttp is not the one that this package was written for.
        """
        check_aiohttp()
        await check_private_names()
        self._connector = self._made(self._trust or trust_of(self._settings.ca))
        self._template = RequestTemplate("GET", self._origin, loop=asyncio.get_running_loop())

    def _made(self, trust: ssl.SSLContext) -> UpstreamConnector:
        return UpstreamConnector(trust, self._max_age, self._slots.freed)

    async def close(self) -> None:
        """Close every connection, also those in use, and wait until they are closed."""
        await finish(self.uploads)
        for connector in (*self._retired, *filter(None, [self._connector])):
            await connector.close_all()
        self._slots.freed()

    @property
    def limit(self) -> int:
        """Connections that may be in use at once."""
        return self._slots.most

    @property
    def in_use(self) -> int:
        """Connections that are in use, or being made."""
        current = 0 if self._connector is None else self._connector.in_use
        return current + sum([connector.in_use for connector in self._retired]) if self._retired else current

    @property
    def full(self) -> bool:
        """Whether `free` has to be awaited before a connection is taken."""
        return self._slots.full

    async def wait_until_free(self) -> None:
        """Wait until a connection may be taken; that has to be done before anything else is awaited."""
        await self._slots.wait()

    def idle_connection(self) -> Transmission | None:
        """A connection that was kept alive and is fit for a request, if there is one."""
        connector = self._connector
        assert connector is not None
        found = connector.reuse()
        return None if found is None else Transmission(self, connector, *found, kept=True)

    async def connect(self, *, fresh: bool = False) -> Transmission:
        """A kept-alive or a new connection, within `connect_timeout` for DNS, TCP and TLS; not while it is `full`.

        `fresh`: a new one, since one that was kept turned out dead; the others that are idle are let go, too.

        Raises:
            LocalError: this machine cannot make one.
            Unreachable: there is none; not `transient` when the upstream's certificate is refused.
        """
        assert self._connector is not None
        if fresh:
            self._connector.close_idle()
        connector = self._connector
        if (found := connector.reuse()) is not None:
            return Transmission(self, connector, *found, kept=True)
        while True:
            connection = await self._connect(connector)
            protocol = protocol_of(connection)
            if not protocol.should_close:
                return Transmission(self, connector, connection, protocol, kept=False)
            connection.close()  # it spoke unasked

    async def _connect(self, connector: UpstreamConnector) -> Connection:
        try:
            return await connector.connect(self._template, [], self._timeout)
        except (aiohttp.ClientError, OSError, RuntimeError) as error:
            raise self._unreachable(error, looking_up=connector.looking_up) from error

    def _unreachable(self, error: Exception, *, looking_up: bool) -> Unreachable:
        name = self.authority
        late = isinstance(error, TimeoutError) and not isinstance(error, aiohttp.ClientConnectorError)
        cause = "resolver" if late and looking_up else local_cause(error)
        if cause is not None:
            lookup = "dns_timeout" if late else "dns_error"
            kind = lookup if cause == "resolver" else ""
            return LocalError(f"This machine {CAUSE_MESSAGES[cause].format(name=name)}.", cause=cause, proxy_error=kind)
        if isinstance(error, aiohttp.ClientConnectorCertificateError):
            reason = refusal(error.certificate_error, "check `upstream.url` and `upstream.ca`")
            return Unreachable(
                f"The certificate of {name} is refused: {reason}.",
                transient=False,
                proxy_error="tls_certificate_error",
            )
        if isinstance(error, TimeoutError):
            message = f"No connection to {name} within {self._timeout.connect:g} s. Try again later."
            return Unreachable(message, proxy_error="connection_timeout")
        return Unreachable(f"No connection to {name}: {_reason(error)}. Try again later.", proxy_error=_kind(error))


def _reason(error: Exception) -> str:
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    return words(cause) if isinstance(cause, OSError) else type(error).__name__


def _kind(error: Exception) -> str:
    """The proxy error type (RFC 9209, section 2.3) of an error."""
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "dns_error"
    if isinstance(error, aiohttp.ClientConnectorSSLError):
        return "tls_protocol_error"
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    return "connection_refused" if isinstance(cause, ConnectionRefusedError) else "destination_unavailable"


def trust_of(ca: Path | None, *, strict: bool = False) -> ssl.SSLContext:
    """The system's certificates and those of `ca`; host names are checked, `strict`: by all of RFC 5280.

    Raises:
        StartError: the file holds none, or cannot be read.
    """
    try:
        context = client_context(strict=strict, ca=ca)
    except OSError as error:
        raise StartError(f"cannot read certificates from upstream.ca {ca}: {error.strerror or error}") from error
    context.set_alpn_protocols(["http/1.1"])
    return context
