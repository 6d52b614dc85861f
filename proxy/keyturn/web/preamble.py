"""The PROXY protocol's header in front of a connection, before any TLS: read, and then out of the way."""

import asyncio
import ssl
from typing import TYPE_CHECKING, cast

from keyturn.access.failures import address_of
from keyturn.core.events import WhyEnded
from keyturn.core.proxy_protocol import SHORTEST, Announced, NoHeader, read
from keyturn.web.handshakes import HandshakeFailed

if TYPE_CHECKING:
    from keyturn.web.connections import Connections


class Preamble(asyncio.BufferedProtocol):
    """Reads the header of one connection, and no byte more; the rest is the connection's, or its TLS handshake's.

    A connection of somebody who is not trusted, without a header, or with a malformed or late one is closed.
    """

    __slots__ = ("_loop", "_owner", "_read", "_timer", "_tls", "_wanted", "_wire", "address")

    def __init__(self, owner: "Connections", tls: ssl.SSLContext | None) -> None:
        self._owner = owner
        self._tls = tls
        self._loop = asyncio.get_running_loop()
        self._read = bytearray()
        self._wanted = memoryview(bytearray(SHORTEST))
        self._timer: asyncio.TimerHandle | None = None
        self._wire: asyncio.Transport | None = None
        self.address = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is there."""
        self._wire = cast("asyncio.Transport", transport)
        self.address = address_of(self._wire)
        if self.address not in self._owner.proxies:
            self._end("proxy_protocol", "a connection that `inbound.trusted_proxies` does not allow at this listener")
        elif not self._owner.expect(self._wire, self):
            self.cut()
        else:
            self._timer = self._loop.call_later(self._owner.bounds.head_time, self._is_late)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002  # what is read is what the header still has
        """Room for what the header has for certain."""
        return self._wanted

    def buffer_updated(self, nbytes: int) -> None:
        """So many bytes have been read."""
        self._read += self._wanted[:nbytes]
        try:
            found = read(bytes(self._read))
        except NoHeader as error:
            self._end("proxy_protocol", f"a connection without a header of the PROXY protocol ({error})")
            return
        if isinstance(found, Announced):
            self._go_on(found.address or self.address)
        else:
            self._wanted = memoryview(bytearray(found))

    def eof_received(self) -> None:
        """The header is not whole; a connection without a byte is a balancer's check of this port."""
        if self._read:
            self._end("proxy_protocol", "a connection that ended within its header of the PROXY protocol")

    def connection_lost(self, exc: BaseException | None) -> None:  # noqa: ARG002  # it is over in either case
        """The connection is closed."""
        self._done()

    def cut(self) -> None:
        """End the connection at once."""
        self._done()
        assert self._wire is not None
        self._wire.abort()

    def _done(self) -> None:
        self._stop_timer()
        if self._wire is not None:
            self._owner.expect_no_more(self._wire)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _is_late(self) -> None:
        self._timer = None
        self._end("head_timeout", "a connection whose header of the PROXY protocol is late")

    def _end(self, why: WhyEnded, what: str) -> None:
        self._owner.tell(why)
        self._owner.mention(what, self.address)
        self.cut()

    def _go_on(self, address: str) -> None:
        assert self._wire is not None
        self._stop_timer()
        self.address = address
        if self._tls is not None:
            self._wire.pause_reading()  # what comes now is for the handshake, which begins in the next turn of the loop
            self._owner.secure(self._secure(self._wire, self._tls))
        else:
            self._hand_over(self._wire, b"")

    def _hand_over(self, wire: asyncio.Transport, early: bytes) -> None:
        self._done()
        intake = self._owner.intake(self.address)
        wire.set_protocol(intake)
        intake.connection_made(wire)
        if early:
            intake.take(early)

    async def _secure(self, wire: asyncio.Transport, tls: ssl.SSLContext) -> None:
        """Shake hands, then hand over; what fails is told as it is for other connections."""
        early = _Early()
        bounds = self._owner.bounds
        try:
            secured = await self._loop.start_tls(
                wire,
                early,
                tls,
                server_side=True,
                ssl_handshake_timeout=bounds.head_time,
                ssl_shutdown_timeout=bounds.write_time,
            )
        except (OSError, HandshakeFailed):
            self.cut()
        else:
            if secured is None:  # the connection was lost meanwhile
                self.cut()
            else:
                self._hand_over(secured, bytes(early.data))


class _Early(asyncio.Protocol):
    """Keeps what comes in the moment between the handshake and the connection: no more than one read."""

    def __init__(self) -> None:
        self.data = bytearray()

    def data_received(self, data: bytes) -> None:
        """Keep it."""
        self.data += data
