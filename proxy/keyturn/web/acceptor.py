"""Accepting: the connections that wait at a listening socket are taken some in each turn of the event loop.

uvloop's servers accept one connection in each turn, so a caller that connects behind a thousand others waits for a
thousand turns, which are long while many are served. asyncio's servers accept all in one turn, which is then long
itself. Here each turn makes a bounded number of connections, one of each network address after another.
"""

import asyncio
import errno
import logging
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

from keyturn.access.failures import origin_of
from keyturn.core.forwarded import UNIX, parse_address
from keyturn.tasks import spawn
from keyturn.web.handshakes import HandshakeFailed

if TYPE_CHECKING:
    from keyturn.web.connections import Connections

BACKLOG = 1024
"""Connections that wait in the kernel."""
ACCEPTED = 128
"""Connections that are accepted in one turn of the loop, to see where they come from."""
MOST_WAITING = 512
"""Accepted connections that wait for their turn; those behind them wait in the kernel."""
_NOTHING_LEFT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""The system has no descriptor or memory for another connection."""
_AGAIN = 0.1
"""Seconds until it is asked again."""
_TELL_EVERY = 60.0
"""Seconds."""

_log = logging.getLogger("keyturn")


class Acceptor:
    """Takes the connections at one listening socket, which it owns, until it is closed.

    `factory` makes a protocol for each of them, and `secured` are the arguments of TLS; both may be exchanged at any
    time. It is made within the running loop.
    """

    def __init__(
        self,
        sock: socket.socket,
        owner: "Connections",
        factory: Callable[[], asyncio.BaseProtocol],
        secured: dict[str, Any],
    ) -> None:
        self.factory = factory
        self.secured = secured
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._owner = owner
        self._making: set[asyncio.Task[None]] = set()
        """Those that wait for their turn, or are just being made."""
        self._reading = False
        self._later: asyncio.TimerHandle | None = None
        """Until it asks again a system that had nothing left."""
        self._told = float("-inf")
        """When the log told last that the system has nothing left."""
        sock.setblocking(False)
        sock.listen(BACKLOG)
        self._go_on()

    @property
    def name(self) -> tuple[Any, ...]:
        """The address of its socket."""
        return cast("tuple[Any, ...]", self._sock.getsockname())

    async def close(self) -> None:
        """Take what has connected up to now, then listen no more; handshakes of TLS go on."""
        self._pause()
        for _ in range(BACKLOG):
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
        for _ in range(min(ACCEPTED, MOST_WAITING - len(self._making))):
            if not self._accept():
                break
        if len(self._making) >= MOST_WAITING:
            self._pause()

    def _accept(self) -> bool:
        """Accept a connection; returns whether more may wait."""
        try:
            sock, name = self._sock.accept()
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            if error.errno in _NOTHING_LEFT:
                self._ask_later(error)
                return False
            return True  # Linux tells here what went wrong on one connection; the next one may be well
        sock.setblocking(False)
        peer = origin_of(str(parse_address(name[0]))) if isinstance(name, tuple) else UNIX
        task = spawn(self._make(sock, peer), name="make a connection", owner=self._making)
        task.add_done_callback(self._go_on)
        return True

    def _ask_later(self, error: OSError) -> None:
        """Leave connections in the kernel for a moment."""
        self._pause()
        if self._later is None:
            self._later = self._loop.call_later(_AGAIN, self._ask_again)
        if self._loop.time() - self._told >= _TELL_EVERY:
            self._told = self._loop.time()
            _log.warning("connections wait, since the system has nothing left for them: %s", error.strerror)

    def _ask_again(self) -> None:
        self._later = None
        self._go_on()

    async def _make(self, sock: socket.socket, peer: str) -> None:
        """Make a protocol and its transport when it is this connection's turn."""
        await self._owner.making.take(1, peer)
        if self.secured:
            self._owner.secure(self._connect(sock))
        else:
            await self._connect(sock)

    async def _connect(self, sock: socket.socket) -> None:
        with suppress(OSError, HandshakeFailed):  # the loop's exception handler tells of handshakes that failed
            await self._loop.connect_accepted_socket(self.factory, sock, **self.secured)
