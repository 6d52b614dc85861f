"""A listener: the addresses at which callers connect, from its start to its end."""

import asyncio
import ssl
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from proxy.config.units import TcpListener, UnixListener, parse_listener
from proxy.core.errors import StartError
from proxy.core.events import Observer
from proxy.web.bounds import Bounds
from proxy.web.connections import Connections, Handler
from proxy.web.sockets import unix_socket, why

_BACKLOG = 1024
_SOCKET_MODE = 0o660


class Listener:
    """Serves one handler at one or several addresses, `host:port` or `unix:/path`.

    From `start` to `stop`. A caller that goes away cancels its handler. `socket_mode` are the permissions of sockets in
    the file system; the observer is told of connections that are refused or cut.
    """

    def __init__(
        self,
        handler: Handler,
        bind: Sequence[str | TcpListener | UnixListener],
        *,
        tls: ssl.SSLContext | None = None,
        socket_mode: int = _SOCKET_MODE,
        bounds: Bounds | None = None,
        observer: Observer | None = None,
    ) -> None:
        self._handler = handler
        self._bind = [parse_listener(address) for address in bind]
        self._tls = tls
        self._socket_mode = socket_mode
        self._bounds = bounds or Bounds()
        self._observer = observer
        self._protocols: Connections | None = None
        self._servers: list[asyncio.Server] = []
        self._paths: list[Path] = []
        self.addresses: list[str] = []
        """Where it listens, as URLs; the path of a socket as `unix:/path`."""

    async def start(self) -> None:
        """Listen at every address.

        Raises:
            StartError: one of them cannot be listened at; then none is.
        """
        self._protocols = Connections(self._handler, self._bounds, self._observer)
        try:
            for address in self._bind:
                await self._listen(address)
        except BaseException:
            await self.stop_accepting()
            raise

    async def _listen(self, address: TcpListener | UnixListener) -> None:
        try:
            if isinstance(address, UnixListener):
                self._servers.append(await self._at_path(Path(address.path)))
                self.addresses.append(str(address))
            else:
                server = await self._at_port(address)
                self._servers.append(server)
                self.addresses += [self._url(sock.getsockname()) for sock in server.sockets]
        except OSError as error:
            raise StartError(f"cannot listen on {address}: {why(error)}") from error

    async def _at_path(self, path: Path) -> asyncio.Server:
        assert self._protocols is not None
        sock = unix_socket(path, self._socket_mode)
        self._paths.append(path)
        return await asyncio.get_running_loop().create_unix_server(
            self._protocols,
            sock=sock,
            backlog=_BACKLOG,
            ssl=self._tls,
            ssl_handshake_timeout=self._bounds.head_time if self._tls else None,
            ssl_shutdown_timeout=self._bounds.write_time if self._tls else None,
        )

    async def _at_port(self, address: TcpListener) -> asyncio.Server:
        assert self._protocols is not None
        return await asyncio.get_running_loop().create_server(
            self._protocols,
            address.host,
            address.port,
            backlog=_BACKLOG,
            ssl=self._tls,
            ssl_handshake_timeout=self._bounds.head_time if self._tls else None,
            ssl_shutdown_timeout=self._bounds.write_time if self._tls else None,
        )

    def _url(self, name: tuple[Any, ...]) -> str:
        return f"{'https' if self._tls else 'http'}://{TcpListener(name[0], name[1])}"

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._protocols) if self._protocols is not None else 0

    async def stop_accepting(self) -> None:
        """Close the listening sockets and idle connections; requests under way are the last on theirs."""
        for server in self._servers:
            server.close()
        for path in self._paths:
            path.unlink(missing_ok=True)
        self._servers.clear()
        self._paths.clear()
        if self._protocols is not None:
            self._protocols.retire()

    async def quiet(self, patience: float) -> None:
        """Wait until no connection is open, at the longest `patience` seconds."""
        if self._protocols is None:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await self._protocols.quiet.wait()

    async def stop(self, grace: float) -> None:
        """Stop accepting, give requests under way `grace` seconds, then end what is left."""
        await self.stop_accepting()
        await self.quiet(grace)
        if self._protocols is not None:
            await self._protocols.cut()
