"""A listener: the sockets that callers connect to, and the connections that they make."""

import asyncio
import errno
import logging
import os
import socket
import ssl
import stat
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from aiohttp import web
from aiohttp.http import HttpProcessingError
from aiohttp.http_exceptions import InvalidHeader, InvalidURLError, LineTooLong
from aiohttp.http_parser import RawRequestMessage

from proxy.config.units import TcpListener, UnixListener, parse_listener
from proxy.core.errors import BadRequest, Refusal, StartError
from proxy.core.events import Journal
from proxy.web import errors
from proxy.web.departures import Departures
from proxy.web.relay import CLOSED, KEPT, has_begun, write

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

_KEPT_ALIVE = 75.0
"""Seconds for which an idle connection is kept: more than most clients wait before they use it again."""
_BUFFER = 2**16
"""Bytes of a body that are read ahead, for each request that waits for its turn; at most twice as many."""
_LONGEST_LINE = 2**15
_BACKLOG = 1024
_SOCKET_MODE = 0o660

_log = logging.getLogger("keyturn")


class Listener:
    """Serves one handler at one or several addresses, `host:port` or `unix:/path`.

    From `start` to `stop`. A caller that goes away cancels its handler.
    """

    def __init__(
        self,
        handler: Handler,
        bind: Sequence[str | TcpListener | UnixListener],
        *,
        tls: ssl.SSLContext | None = None,
        keep_alive: float = _KEPT_ALIVE,
    ) -> None:
        self._handler = handler
        self._bind = [parse_listener(address) for address in bind]
        self._tls = tls
        self._keep_alive = keep_alive
        self._protocols: _Server | None = None
        self._servers: list[asyncio.Server] = []
        self._paths: list[Path] = []
        self.addresses: list[str] = []
        """Where it listens, as URLs; the path of a socket as `unix:/path`."""

    async def start(self) -> None:
        """Listen at every address.

        Raises:
            StartError: one of them cannot be listened at; then none is.
        """
        self._protocols = _Server(self._handler, self._keep_alive)
        try:
            for address in self._bind:
                await self._listen(address)
        except BaseException:
            await self.stop_accepting()
            raise

    async def _listen(self, address: TcpListener | UnixListener) -> None:
        loop = asyncio.get_running_loop()
        assert self._protocols is not None
        try:
            if isinstance(address, UnixListener):
                sock = _unix_socket(Path(address.path))
                self._paths.append(Path(address.path))
                self._servers.append(
                    await loop.create_unix_server(self._protocols, sock=sock, ssl=self._tls, backlog=_BACKLOG)
                )
                self.addresses.append(str(address))
            else:
                server = await loop.create_server(
                    self._protocols, address.host, address.port, ssl=self._tls, backlog=_BACKLOG
                )
                self._servers.append(server)
                self.addresses += [self._url(sock.getsockname()) for sock in server.sockets]
        except OSError as error:
            raise StartError(f"cannot listen on {address}: {_why(error)}") from error

    def _url(self, name: tuple[Any, ...]) -> str:
        return f"{'https' if self._tls else 'http'}://{TcpListener(name[0], name[1])}"

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


class _Server(web.Server):
    """Makes a protocol for each connection, and knows which are open."""

    def __init__(self, handler: Handler, keep_alive: float) -> None:
        super().__init__(
            handler,
            handler_cancellation=True,
            access_log=None,
            auto_decompress=False,
            keepalive_timeout=keep_alive,
            read_bufsize=_BUFFER,
            max_line_size=_LONGEST_LINE,
            max_field_size=_LONGEST_LINE,
            logger=_log,
        )
        self.departures = Departures(self._loop)
        self.retired = False
        self.quiet = asyncio.Event()
        """Set while no connection is open."""
        self.quiet.set()
        self._open: set[_Connection] = set()
        self._ending: set[asyncio.Task[None]] = set()

    def __call__(self) -> "_Connection":
        return _Connection(self, loop=self._loop, **self._kwargs)

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        """A caller has connected."""
        super().connection_made(handler, transport)
        assert isinstance(handler, _Connection)
        self._open.add(handler)
        self.quiet.clear()

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        """A connection is closed."""
        super().connection_lost(handler, exc)
        assert isinstance(handler, _Connection)
        self._open.discard(handler)
        if not self._open:
            self.quiet.set()

    def retire(self) -> None:
        """Close idle connections now and the others behind their answers."""
        self.retired = True
        for handler in list(self._open):
            if handler.idle:
                handler.force_close()

    def ends(self, task: asyncio.Task[None]) -> None:
        """Remember the handler of a lost connection until it has come to its end."""
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def cut(self) -> None:
        """End every connection, and wait until its handler has ended too."""
        for handler in list(self._open):
            handler.cut()
        await self.quiet.wait()
        await asyncio.gather(*self._ending, return_exceptions=True)
        self.departures.close()


class _Connection(web.RequestHandler):
    """One caller's connection."""

    __slots__ = ("_owner", "_watched")

    def __init__(self, manager: _Server, **kwargs: Any) -> None:
        super().__init__(manager, **kwargs)
        self._owner = manager
        self._watched = -1
        """The file descriptor under which its caller's leaving is watched for, while nothing is read."""

    @property
    def idle(self) -> bool:
        """Whether it waits for a request, its first or its next."""
        return not self._request_count or (self._waiter is not None and not self._waiter.done())

    def cut(self) -> None:
        """End the connection at once; its handler is cancelled."""
        if self.transport is not None:
            self.transport.abort()

    def pause_reading(self) -> None:
        """Read nothing for a while, and notice all the same when the caller leaves."""
        super().pause_reading()
        sock = self.transport.get_extra_info("socket") if self.transport is not None else None
        if sock is not None and self._watched < 0:
            self._watched = sock.fileno()
            self._owner.departures.watch(self._watched, self.cut)

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Go on reading."""
        self._watch_no_more()
        super().resume_reading(resume_parser)

    def _watch_no_more(self) -> None:
        if self._watched >= 0:
            self._owner.departures.forget(self._watched)
            self._watched = -1

    def connection_lost(self, exc: BaseException | None) -> None:
        """The connection is closed, its handler cancelled."""
        self._watch_no_more()
        if self._task_handler is not None:
            self._owner.ends(self._task_handler)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what has come in.

        A body that stops being HTTP in its middle fails its reader: aiohttp would only note it for the next request.
        """
        super().data_received(data)
        if self._messages and not isinstance(self._messages[-1][0], RawRequestMessage):
            request = self._current_request
            if request is not None and not request.content.is_eof():
                request.content.set_exception(web.RequestPayloadError())

    def log_exception(self, *args: Any, **kwargs: Any) -> None:
        """Log what nobody expected; a caller that breaks its body off, behind its answer, is no such thing."""
        if isinstance(kwargs.get("exc_info"), web.RequestPayloadError):
            _log.debug("a body broke off behind its answer")
        else:
            super().log_exception(*args, **kwargs)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Behind the answer: a listener that has stopped accepting keeps no connection."""
        reset = False
        if resp is not KEPT or self._upgraded:
            resp, reset = await super().finish_response(request, resp, start_time)
        return (CLOSED if self._owner.retired else resp), reset

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002  # it may quote a credential
    ) -> web.StreamResponse:
        """Answer what is no request, or what a handler has failed to answer; the connection ends."""
        if isinstance(exc, HttpProcessingError) and status == BadRequest.status:
            refusal: Refusal = BadRequest(_what_is_wrong(exc))
            _log.debug("malformed request: %s", refusal.message)
        else:
            refusal = Refusal("Something unexpected happened in this proxy; its log says what.")
            _log.error("unexpected error in a handler", exc_info=exc)
        if has_begun(request):
            raise ConnectionResetError("the answer has begun")
        write(request, errors.answer(refusal, Journal(id=uuid4().hex, method=request.method), (), b"close"))
        return CLOSED


def _what_is_wrong(error: HttpProcessingError) -> str:
    """The parser's complaint without the part of it that quotes the request."""
    match error:
        case LineTooLong():
            return f"The request line or a field is too long. At most {_LONGEST_LINE} bytes are read."
        case InvalidURLError():
            return "The request target is malformed. Send a path, or a URL."
        case InvalidHeader():
            return "A field is malformed. Send it without NUL."
        case _:
            return f"The request is malformed: {error.message.partition(':')[0].rstrip('. ')}. Send HTTP/1.1."


def _unix_socket(path: Path) -> socket.socket:
    """A socket bound to `path`, for its owner and group; a socket that nobody listens on any more makes room.

    Raises:
        OSError: something else is there.
    """
    _make_room(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(str(path))
        path.chmod(_SOCKET_MODE)
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


def _why(error: OSError) -> str:
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
