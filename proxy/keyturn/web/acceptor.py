"""From a listening socket to a connection: accepting, the PROXY protocol's header, and TLS handshakes that fail.

uvloop's servers accept one connection in each iteration of the event loop, so a caller that connects behind a thousand
others waits for a thousand iterations. asyncio's servers accept all in one iteration, which is then long itself. Here
each iteration makes a bounded number of connections, one of each network address after another.
"""

import asyncio
import errno
import logging
import os
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

from keyturn.access.rate_limits import address_of, network_of
from keyturn.core.errors import BadRequest
from keyturn.core.events import ConnectionEndReason
from keyturn.core.forwarded import UNIX, parse_address
from keyturn.core.proxy_protocol import SHORTEST_HEADER, InvalidProxyHeader, ProxyHeader, read
from keyturn.tasks import spawn
from keyturn.web.connection import CallerConnection, Handler
from keyturn.web.connections import Connections, PendingConnection
from keyturn.web.error_responses import plain_response

ACCEPT_BACKLOG = 1024
"""Connections that wait in the kernel."""
ACCEPTED_AT_ONCE = 128
"""Connections that are accepted in one iteration of the loop, to see where they come from."""
MAX_ACCEPTED_WAITING = 512
"""Accepted connections that wait to be served; those behind them wait in the kernel."""
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""The system has no descriptor or memory left for another connection."""
_RETRY_SECONDS = 0.1
"""Seconds until accepting is tried again then."""
_WARN_EVERY = 60.0
"""Seconds."""

_log = logging.getLogger("keyturn")


class Acceptor:
    """Accepts the connections at one listening socket, which it owns, until it is closed.

    `factory` makes a protocol for each of them, and `secured` holds the arguments of TLS; both may be exchanged at any
    time. Must be created within the running loop.
    """

    def __init__(
        self,
        sock: socket.socket,
        owner: Connections,
        factory: Callable[[], asyncio.BaseProtocol],
        secured: dict[str, Any],
    ) -> None:
        self.factory = factory
        self.secured = secured
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._owner = owner
        self._making: set[asyncio.Task[None]] = set()
        """The accepted connections that wait, or are being made."""
        self._reading = False
        self._later: asyncio.TimerHandle | None = None
        """Runs while accepting is paused because the system had nothing left."""
        self._told = float("-inf")
        """When the log last said so."""
        sock.setblocking(False)
        sock.listen(ACCEPT_BACKLOG)
        self._go_on()

    @property
    def name(self) -> tuple[Any, ...]:
        """The address of its socket."""
        return cast("tuple[Any, ...]", self._sock.getsockname())

    async def close(self) -> None:
        """Accept what has connected up to now, then stop listening; TLS handshakes go on."""
        self._pause()
        for _ in range(ACCEPT_BACKLOG):
            if not self._accept():
                break
        if self._later is not None:
            self._later.cancel()
        self._sock.close()
        if self._making:
            await asyncio.wait(self._making)

    def _go_on(self, _: object = None) -> None:
        if not self._reading and self._later is None and self._sock.fileno() >= 0:
            self._reading = True
            self._loop.add_reader(self._sock, self._accept_some)

    def _pause(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._sock)

    def _accept_some(self) -> None:
        for _ in range(min(ACCEPTED_AT_ONCE, MAX_ACCEPTED_WAITING - len(self._making))):
            if not self._accept():
                break
        if len(self._making) >= MAX_ACCEPTED_WAITING:
            self._pause()

    def _accept(self) -> bool:
        """Accept a connection; returns whether more may wait."""
        try:
            sock, name = self._sock.accept()
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            if error.errno in _EXHAUSTED:
                self._ask_later(error)
                return False
            return True  # Linux reports here what went wrong on one connection; the next one may be well
        sock.setblocking(False)
        peer = network_of(str(parse_address(name[0]))) if isinstance(name, tuple) else UNIX
        task = spawn(self._make(sock, peer), name="make a connection", owner=self._making)
        task.add_done_callback(self._go_on)
        return True

    def _ask_later(self, error: OSError) -> None:
        """Leave connections in the kernel for a moment."""
        self._pause()
        if self._later is None:
            self._later = self._loop.call_later(_RETRY_SECONDS, self._ask_again)
        if self._loop.time() - self._told >= _WARN_EVERY:
            self._told = self._loop.time()
            _log.warning(
                "connections wait, since the system has nothing left for them (%s): "
                "raise its limit of open files, or its memory",
                error.strerror,
            )

    def _ask_again(self) -> None:
        self._later = None
        self._go_on()

    async def _make(self, sock: socket.socket, peer: str) -> None:
        """Make a protocol and its transport, within the budget of the iteration."""
        await self._owner.making.take(1, peer)
        if self.secured:
            self._owner.secure(self._connect(sock))
        else:
            await self._connect(sock)

    async def _connect(self, sock: socket.socket) -> None:
        with suppress(OSError, TlsHandshakeError):  # the loop's exception handler reports failed handshakes
            await self._loop.connect_accepted_socket(self.factory, sock, **self.secured)


class ProxyHeaderReader(PendingConnection, asyncio.BufferedProtocol):
    """Reads the PROXY protocol's header of one connection, and no byte more; TLS and requests follow behind it.

    A connection from an untrusted address, or without a header, or with a malformed or late one is closed.
    """

    __slots__ = ("_handler", "_loop", "_owner", "_read", "_timer", "_tls", "_wanted", "_wire")

    def __init__(self, owner: Connections, handler: Handler, tls: ssl.SSLContext | None) -> None:
        self._owner = owner
        self._handler = handler
        self._tls = tls
        self._loop = asyncio.get_running_loop()
        self._read = bytearray()
        self._wanted = memoryview(bytearray(SHORTEST_HEADER))
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
        except InvalidProxyHeader as error:
            self._end("proxy_protocol", f"a connection without a header of the PROXY protocol ({error})")
            return
        if isinstance(found, ProxyHeader):
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

    def _end(self, why: ConnectionEndReason, what: str) -> None:
        self._owner.tell(why)
        self._owner.mention(what, self.address)
        self.cut()

    def _go_on(self, address: str) -> None:
        assert self._wire is not None
        self._stop_timer()
        self.address = address
        if self._tls is not None:
            self._wire.pause_reading()  # what comes now is for the handshake, which begins in the next iteration
            self._owner.secure(self._secure(self._wire, self._tls))
        else:
            self._hand_over(self._wire, b"")

    def _hand_over(self, wire: asyncio.Transport, early: bytes) -> None:
        self._done()
        connection = CallerConnection(self._owner, self._handler, self.address)
        wire.set_protocol(connection)
        connection.connection_made(wire)
        if early:
            connection.receive(early)

    async def _secure(self, wire: asyncio.Transport, tls: ssl.SSLContext) -> None:
        """Do the TLS handshake, then hand over; failures are reported as for other connections."""
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
        except (OSError, TlsHandshakeError):
            self.cut()
        else:
            if secured is None:  # the connection was lost meanwhile
                self.cut()
            else:
                self._hand_over(secured, bytes(early.data))


class _Early(asyncio.Protocol):
    """Keeps what arrives between the handshake and the connection: no more than one read."""

    def __init__(self) -> None:
        self.data = bytearray()

    def data_received(self, data: bytes) -> None:
        """Keep it."""
        self.data += data


Mention = Callable[[str, asyncio.Transport | None], None]
"""Called with what happened, and the connection on which it did."""

_PLAIN = {"HTTP_REQUEST", "HTTPS_PROXY_REQUEST"}
"""OpenSSL's reasons for a handshake that is plain HTTP."""
_HANDSHAKE_GOES_ON = (ssl.SSLWantReadError, ssl.SSLWantWriteError, ssl.SSLSyscallError)


class TlsHandshakeError(Exception):
    """A handshake failed; `why` is OpenSSL's reason.

    Event loops swallow the `OSError` of a failed handshake. An error that is none goes to the loop's exception handler,
    together with the transport, and so with the caller's address.
    """

    def __init__(self, why: str, mention: Mention) -> None:
        super().__init__(why)
        self.why = why
        self.mention = mention


def watch(tls: ssl.SSLContext, mention: Mention) -> None:
    """Report the failed handshakes of this context; must be called within the running loop."""

    class Handshake(ssl.SSLObject):
        def do_handshake(self) -> None:
            try:
                super().do_handshake()
            except _HANDSHAKE_GOES_ON:
                raise
            except ssl.SSLError as error:
                raise TlsHandshakeError(error.reason or type(error).__name__, mention) from None

    tls.sslobject_class = Handshake
    loop = asyncio.get_running_loop()
    if loop.get_exception_handler() is not _hear:
        loop.set_exception_handler(_hear)


def _hear(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    error, transport = context.get("exception"), context.get("transport")
    if not isinstance(error, TlsHandshakeError):
        loop.default_exception_handler(context)
    elif error.why in _PLAIN:
        error.mention("plain HTTP on a port of TLS", transport)
        refusal = BadRequest("This port speaks TLS, and was sent plain HTTP. Use https://, not http://.")
        with suppress(OSError, AttributeError):  # the transport is being closed, its socket is still there
            os.write(transport.get_extra_info("socket").fileno(), plain_response(refusal))  # type: ignore[union-attr]
    else:
        error.mention(f"a TLS handshake that failed ({error.why.lower().replace('_', ' ')})", transport)
