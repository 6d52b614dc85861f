"""The open connections of callers: how many there may be, and the work that they share."""

import asyncio
import logging
import select
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress

from keyturn.access.rate_limits import address_of, network_of
from keyturn.core.errors import TooManyConnections
from keyturn.core.events import ConnectionEnded, ConnectionEndReason, Observer
from keyturn.core.forwarded import UNIX, TrustedProxies
from keyturn.tasks import finish, spawn
from keyturn.web.overload import Bounds, ByteBudget, IterationBudget

RELAYED_BYTES = 2**19
"""Bytes of answers that are relayed in one iteration of the event loop."""
CONNECTIONS_MADE = 64
"""Connections that are made of accepted sockets in one iteration."""
CREDENTIALS_CHECKED = 32
"""Requests whose credential is checked in one iteration, on connections where none has been admitted yet."""
REQUESTS_BEGUN = 4
"""Requests that are begun, or refused, in one iteration."""
_LOG_EVERY = 60.0
"""Seconds."""
_MAX_DRAINED = 64
"""Lingering connections that are read at a time."""
_MAX_TURNED_AWAY = 64
"""Connections beyond the bound that are kept open for a moment, so that their callers can read why they are refused."""

_log = logging.getLogger("keyturn")


class PendingConnection(ABC):
    """A connection of which the caller's address, or its TLS, is still awaited."""

    __slots__ = ("address",)

    address: str
    """Where it comes from."""

    @abstractmethod
    def cut(self) -> None:
        """End it at once."""


class OpenConnection(PendingConnection):
    """A connection on which requests may come."""

    __slots__ = ("late", "peer")

    peer: str
    """The network that its connections are counted by (`access.rate_limits.network_of`)."""
    late: bool
    """Whether it came when no connection was to be kept any more."""

    @property
    @abstractmethod
    def unfinished(self) -> bool:
        """Whether a request has not been answered, or its answer not been taken as a whole."""

    @abstractmethod
    def retire(self) -> None:
        """Close it now if it is idle, else behind its answer."""

    @abstractmethod
    def force_close(self) -> None:
        """Close it once what has been written is taken; no request is answered any more."""


class Connections:
    """The open connections of one listener.

    `bounds` may be exchanged at any time, and so may `proxies`, the proxies that may tell their callers' addresses by
    the PROXY protocol.
    """

    def __init__(
        self,
        bounds: Bounds,
        observer: Observer | None,
        buffers: ByteBudget | None = None,
        proxies: TrustedProxies | None = None,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.bounds = bounds
        self.buffers = buffers or ByteBudget()
        self.proxies = proxies or TrustedProxies()
        self.disconnects = DisconnectWatcher(self.loop)
        self.relaying = IterationBudget(self.loop, RELAYED_BYTES)
        self.making = IterationBudget(self.loop, CONNECTIONS_MADE)
        self.looking = IterationBudget(self.loop, CREDENTIALS_CHECKED)
        self.beginning = IterationBudget(self.loop, REQUESTS_BEGUN)
        self.retired = False
        self.quiet = asyncio.Event()
        """Set while no connection is open; those that came after `retire` count once `cut` is called."""
        self.quiet.set()
        self._awaited = 0
        self._cutting = False
        self._observer = observer
        self._open: set[OpenConnection] = set()
        self._expected: dict[asyncio.BaseTransport, PendingConnection] = {}
        """Connections whose PROXY header or TLS handshake is not complete."""
        self._handshakes: set[asyncio.Task[None]] = set()
        self._turned_away: set[OpenConnection] = set()
        """Refused connections that stay open for a moment, and do not count."""
        self._most = 0
        """The most that were open at once since `most` was called last."""
        self._peers: Counter[str] = Counter()
        self._draining = 0
        self._crowded = False
        """Whether the log has said that there are too many."""
        self._mentioned: dict[str, tuple[float, int]] = {}
        """When something was logged last, and how often it has come since."""
        self.serving: set[asyncio.Task[None]] = set()
        """The task of each connection, until it has ended."""

    def __repr__(self) -> str:
        return f"<Connections {len(self._open)} open, {self.unfinished} unfinished>"

    def expect(self, transport: asyncio.BaseTransport, connection: PendingConnection) -> bool:
        """Whether one more connection may begin with a header of the PROXY protocol."""
        if len(self._open) + len(self._expected) >= self.bounds.connections:
            self.tell("too_many")
            return False
        self._expected[transport] = connection
        return True

    def expect_no_more(self, transport: asyncio.BaseTransport) -> None:
        """The header is there, or will not come."""
        self._expected.pop(transport, None)

    def secure(self, handshake: Coroutine[None, None, None]) -> None:
        """Shake hands beside everything else."""
        spawn(handshake, name="secure a connection", owner=self._handshakes)

    def __len__(self) -> int:
        return len(self._open)

    def most(self) -> int:
        """The most that were open at once since the last call."""
        found, self._most = self._most, len(self._open)
        return found

    def connection_made(self, handler: OpenConnection, transport: asyncio.Transport) -> None:
        """A caller has connected."""
        handler.address = handler.address or address_of(transport)
        handler.peer = network_of(handler.address)
        handler.late = self.retired
        self._open.add(handler)
        self._most = max(self._most, len(self._open))
        self._peers[handler.peer] += 1
        self._awaited += not handler.late
        self._tell_quiet()

    def connection_lost(self, handler: OpenConnection) -> None:
        """A connection is closed."""
        self._turned_away.discard(handler)
        self._free(handler)

    def _free(self, handler: OpenConnection) -> None:
        """Give back the place of a connection, if it still has it."""
        if handler not in self._open:
            return
        self._open.discard(handler)
        self._peers[handler.peer] -= 1
        if not self._peers[handler.peer]:
            del self._peers[handler.peer]
        self._awaited -= not handler.late
        self._tell_quiet()

    def _tell_quiet(self) -> None:
        if len(self._open) if self._cutting else self._awaited:
            self.quiet.clear()
        else:
            self.quiet.set()

    def let_linger(self, handler: OpenConnection) -> bool:
        """Whether a refused connection may stay open for a moment; it does not count any more."""
        if len(self._turned_away) >= _MAX_TURNED_AWAY or self.retired:
            return False
        self._free(handler)
        self._turned_away.add(handler)
        return True

    def one_too_many(self, peer: str) -> TooManyConnections | None:
        """The refusal of a new connection from that network, `None` when it may stay."""
        bounds = self.bounds
        if len(self._open) > bounds.connections:
            return self._too_many("too_many", "This proxy has too many connections. Try again.")
        if self._peers[peer] > bounds.per_peer and peer != UNIX:
            return self._too_many(
                "too_many_per_address", "There are too many connections from this address. Use fewer."
            )
        self._crowded = False
        return None

    def _too_many(self, reason: ConnectionEndReason, message: str) -> TooManyConnections:
        if not self._crowded:
            self._crowded = True
            _log.warning(
                "connections are refused: %d are open. Raise `inbound.max_connections` or `max_connections_per_peer`",
                len(self._open),
            )
        self.tell(reason)
        return TooManyConnections(message, retry_after=1)

    def tell(self, why: ConnectionEndReason) -> None:
        """Report that a connection was ended, and why."""
        if self._observer is not None:
            self._observer.observe(ConnectionEnded(why))

    def mention_handshake(self, what: str, transport: asyncio.Transport | None) -> None:
        """Log a failed handshake, with the address that a PROXY header in front of it told."""
        preamble = self._expected.get(transport) if transport is not None else None
        self.mention(what, preamble.address if preamble is not None else address_of(transport))

    def mention(self, what: str, peer: str) -> None:
        """Log what came in place of HTTP, once a minute for each kind, of which there are few."""
        now = self.loop.time()
        told, since = self._mentioned.get(what, (now - _LOG_EVERY, 0))
        if now - told < _LOG_EVERY:
            self._mentioned[what] = (told, since + 1)
            return
        self._mentioned[what] = (now, 0)
        often = f", and {since} times since the last such line" if since else ""
        _log.info("%s came from %s%s", what, peer or "a closed connection", often)

    @property
    def unfinished(self) -> int:
        """Connections with an unanswered request or an answer that is not taken, but for those after `retire`."""
        return sum(handler.unfinished for handler in self._open if not handler.late)

    @contextmanager
    def draining(self) -> Iterator[bool]:
        """Count a lingering connection; yields whether what it still sends is read."""
        self._draining += 1
        try:
            yield self._draining <= _MAX_DRAINED
        finally:
            self._draining -= 1

    def retire(self) -> None:
        """Close idle connections now and the others behind their answers; later ones are not waited for."""
        self.retired = True
        for handler in list(self._open):
            handler.retire()
        for handler in list(self._turned_away):
            handler.force_close()

    async def cut(self) -> None:
        """End every connection, and wait until its handler has ended too."""
        self._cutting = True
        self._tell_quiet()
        for preamble in list(self._expected.values()):
            preamble.cut()
        await finish(self._handshakes)
        for handler in (*self._open, *self._turned_away):
            handler.cut()
        await self.quiet.wait()
        await asyncio.gather(*self.serving, return_exceptions=True)
        self.disconnects.close()


class DisconnectWatcher:
    """Notices callers that disconnect while their connection is not being read.

    A request whose body waits is not read beyond a buffer, and a paused transport does not see its peer go: the request
    would keep its place in the queue (law 6). Linux tells of a closed peer apart from what there is to read
    (EPOLLRDHUP, epoll_ctl(2)); elsewhere such a caller is noticed at its deadline. Takes one file descriptor, from the
    first watched socket on.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._poll: select.epoll | None = None
        self._gone: dict[int, Callable[[], None]] = {}

    def watch(self, number: int, gone: Callable[[], None]) -> None:
        """Call `gone` once when the peer of the socket with that file descriptor has disconnected."""
        if not hasattr(select, "epoll") or number < 0 or number in self._gone:
            return
        if self._poll is None:
            self._poll = select.epoll()
            self._loop.add_reader(self._poll.fileno(), self._poll_once)
        self._gone[number] = gone
        self._poll.register(number, select.EPOLLRDHUP)

    def forget(self, number: int) -> None:
        """Watch a socket no longer."""
        if self._gone.pop(number, None) is not None and self._poll is not None:
            with suppress(OSError):  # closed meanwhile: it is not watched any more either
                self._poll.unregister(number)

    def close(self) -> None:
        """Watch nothing any more."""
        self._gone.clear()
        if self._poll is not None:
            self._loop.remove_reader(self._poll.fileno())
            self._poll.close()
            self._poll = None

    def _poll_once(self) -> None:
        assert self._poll is not None
        for number, _ in self._poll.poll(0):
            gone = self._gone.get(number)
            self.forget(number)
            if gone is not None:
                gone()
