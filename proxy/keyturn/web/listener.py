"""A listener: its addresses and sockets, from start to stop."""

import asyncio
import errno
import os
import socket
import ssl
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from keyturn.config.units import TcpListener, UnixListener, parse_listener
from keyturn.core.errors import StartError
from keyturn.core.events import Observer
from keyturn.core.forwarded import TrustedProxies
from keyturn.keepalive import keep_alive
from keyturn.web.acceptor import Acceptor, ProxyHeaderReader, watch
from keyturn.web.connection import CallerConnection, Handler
from keyturn.web.connections import Connections
from keyturn.web.overload import Bounds, ByteBudget

_SOCKET_MODE = 0o660
_UNSENT = 2**17
"""Bytes of an answer that the system keeps of a connection before they are sent. It would keep megabytes of each answer
that is not read, all of which have to be relayed first; bytes in flight are not counted."""
_OF_TLS = 2**13
"""Bytes that the system keeps of a TLS connection until a request has been admitted on it. An event loop reads all that
there is, up to 256 KiB, to decrypt it, and keeps it twice."""


class Listener:
    """Serves one handler at one or several addresses, `host:port` or `unix:/path`.

    From `start` to `stop`. A caller that goes away cancels its handler. `socket_mode` are the permissions of sockets in
    the file system; `buffers` may be shared with other listeners; the observer learns of connections that are
    refused or cut; `proxies` may tell their callers' addresses at listeners with `proxy_protocol`.
    """

    def __init__(
        self,
        handler: Handler,
        bind: Sequence[str | TcpListener | UnixListener],
        *,
        tls: ssl.SSLContext | None = None,
        socket_mode: int = _SOCKET_MODE,
        bounds: Bounds | None = None,
        buffers: ByteBudget | None = None,
        observer: Observer | None = None,
        proxies: TrustedProxies | None = None,
    ) -> None:
        self._handler = handler
        self._bind = [parse_listener(address) for address in bind]
        self._tls = tls
        self._socket_mode = socket_mode
        self._bounds = bounds or Bounds()
        self._buffers = buffers or ByteBudget()
        self._observer = observer
        self._proxies = proxies or TrustedProxies()
        self._connections: Connections | None = None
        self._acceptors: dict[Acceptor, TcpListener | UnixListener] = {}
        self._paths: list[Path] = []
        self.addresses: list[str] = []
        """The addresses that it listens at, as URLs; the path of a socket as `unix:/path`."""

    async def start(self) -> None:
        """Listen at every address.

        Raises:
            StartError: one of them cannot be listened at; then none is.
        """
        self._connections = Connections(self._bounds, self._observer, self._buffers, self._proxies)
        try:
            for address in self._bind:
                await self._listen(address)
        except BaseException:
            await self.stop_accepting()
            raise

    def adopt(self, bounds: Bounds, proxies: TrustedProxies) -> None:
        """Bound and trust what comes from now on otherwise; connections that are open stay as they are."""
        self._bounds, self._proxies = bounds, proxies
        if self._connections is not None:
            self._connections.bounds, self._connections.proxies = bounds, proxies

    def renew(self, tls: ssl.SSLContext) -> None:
        """Serve new connections with another certificate; open ones go on with theirs."""
        self._tls = tls
        for acceptor, address in self._acceptors.items():
            acceptor.factory, acceptor.secured = self._serving(address)

    async def _listen(self, address: TcpListener | UnixListener) -> None:
        try:
            socks = await self._sockets(address)
            try:
                while socks:
                    self._accept_at(socks[0], address)
                    del socks[0]
            finally:
                for sock in socks:
                    sock.close()
        except OSError as error:
            raise StartError(f"cannot listen on {address}: {why(error)}") from error

    async def _sockets(self, address: TcpListener | UnixListener) -> list[socket.socket]:
        if isinstance(address, UnixListener):
            path = Path(address.path)
            sock = unix_socket(path, self._socket_mode)
            self._paths.append(path)
            return [sock]
        socks = await tcp_sockets(address.host, address.port)
        for listening in socks:
            keep_alive(listening)
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT)
            if self._tls is not None:
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _OF_TLS)
        return socks

    def _accept_at(self, sock: socket.socket, address: TcpListener | UnixListener) -> None:
        assert self._connections is not None
        acceptor = Acceptor(sock, self._connections, *self._serving(address))
        self._acceptors[acceptor] = address
        self.addresses.append(str(address) if isinstance(address, UnixListener) else self._url(acceptor.name))

    def _serving(
        self, address: TcpListener | UnixListener
    ) -> tuple[Callable[[], asyncio.BaseProtocol], dict[str, Any]]:
        """The factory of protocols for connections at an address, and the arguments of TLS."""
        assert self._connections is not None
        tls = self._tls
        if tls is not None:
            watch(tls, self._connections.mention_handshake)
        if address.proxy_protocol:
            return partial(ProxyHeaderReader, self._connections, self._handler, tls), {}
        made = partial(CallerConnection, self._connections, self._handler)
        if tls is None:
            return made, {}
        times = {"ssl_handshake_timeout": self._bounds.head_time, "ssl_shutdown_timeout": self._bounds.write_time}
        return made, {"ssl": tls, **times}

    def _url(self, name: tuple[Any, ...]) -> str:
        return f"{'https' if self._tls else 'http'}://{TcpListener(name[0], name[1])}"

    @property
    def connections(self) -> int:
        """Open connections."""
        return len(self._connections) if self._connections is not None else 0

    @property
    def unfinished(self) -> int:
        """Connections with an unanswered request, or an answer that is not taken."""
        return self._connections.unfinished if self._connections is not None else 0

    def most(self) -> int:
        """The most that were open at once since the last call."""
        return self._connections.most() if self._connections is not None else 0

    def retire(self) -> None:
        """Close idle connections; requests in flight are the last on theirs, and so is the first on each new one."""
        if self._connections is not None:
            self._connections.retire()

    async def stop_accepting(self) -> None:
        """Accept what has connected, close the listening sockets, and retire."""
        acceptors, self._acceptors = self._acceptors, {}
        for path in self._paths:
            path.unlink(missing_ok=True)
        self._paths.clear()
        for acceptor in acceptors:
            await acceptor.close()
        self.retire()

    async def quiet(self, patience: float) -> None:
        """Wait until the connections that were open when it retired are closed, for at most `patience` seconds."""
        if self._connections is None:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await self._connections.quiet.wait()

    async def stop(self, grace: float) -> None:
        """Stop accepting, give requests in flight `grace` seconds, then end what is left."""
        await self.stop_accepting()
        await self.quiet(grace)
        if self._connections is not None:
            await self._connections.cut()


_NOT_HERE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
"""An address is not this machine's."""
_NOBODY = 0o177
"""Masks every permission but the owner's."""


def unix_socket(path: Path, mode: int) -> socket.socket:
    """A socket bound to `path` with these permissions; at no moment it has wider ones.

    A stale socket, on which no process listens, is replaced.

    Raises:
        OSError: something else is there.
    """
    _make_room(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(_NOBODY)
    try:
        sock.bind(str(path))
        path.chmod(mode)
    except BaseException:
        sock.close()
        raise
    finally:
        os.umask(mask)
    return sock


async def tcp_sockets(host: str, port: int) -> list[socket.socket]:
    """Sockets bound to each address of a host that this machine has.

    Raises:
        OSError: one of them is in use, or none is this machine's.
    """
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    socks: list[socket.socket] = []
    addresses = list(dict.fromkeys(found))
    try:
        for family, kind, protocol, _, address in addresses:
            try:
                socks.append(_bound(socket.socket(family, kind, protocol), address))
            except OSError as error:
                if error.errno not in _NOT_HERE or (address == addresses[-1][4] and not socks):
                    raise
    except BaseException:
        for sock in socks:
            sock.close()
        raise
    return socks


def _bound(sock: socket.socket, address: tuple[Any, ...]) -> socket.socket:
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
    except BaseException:
        sock.close()
        raise
    return sock


def _make_room(path: Path) -> None:
    if not (path.exists() and stat.S_ISSOCK(path.stat().st_mode)):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
        else:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def why(error: OSError) -> str:
    """Why an address cannot be listened at, and what to do."""
    match error.errno:
        case errno.EADDRINUSE:
            return "address in use. Stop what listens there, or choose another in `listen`."
        case errno.EACCES | errno.EPERM:
            return "not permitted. Choose a port from 1024 up, or a path that this user may write to."
        case errno.EADDRNOTAVAIL | None:
            # From Python 3.13 on asyncio tries each address of a name and tells no number when none is there.
            return "this machine has no such address. Choose one that it has, or 0.0.0.0 for all."
        case _:
            return f"{error.strerror or error}. Choose another address in `listen`."
