"""The open connections of callers: how many there may be, and the work that they share."""

import asyncio
import logging
import select
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress

from aiohttp import web

from keyturn.access.rate_limits import address_of, network_of
from keyturn.core.errors import TooManyConnections
from keyturn.core.events import ConnectionEnded, Observer, WhyEnded
from keyturn.core.forwarded import UNIX, TrustedProxies
from keyturn.tasks import finish, spawn
from keyturn.web.acceptor import ProxyHeaderReader
from keyturn.web.connection import BoundedReader, Connection
from keyturn.web.overload import Bounds, ByteBudget, IterationBudget

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

RELAYED_BYTES = 2**19
"""Bytes of answers that are relayed in one turn of the event loop."""
CONNECTIONS_MADE = 64
"""Connections that are made of accepted sockets in one turn."""
CREDENTIALS_CHECKED = 32
"""Requests whose credential is looked at in one turn, of connections from which none has been admitted yet."""
REQUESTS_BEGUN = 4
"""Requests that are begun, or refused, in one turn."""
_LOG_EVERY = 60.0
"""Seconds."""
_DRAINED = 64
"""Callers that are read at a time only to let them read their answer."""
_TURNED_AWAY = 64
"""Callers too many that may have a moment to read so."""

_log = logging.getLogger("keyturn")


class Connections(web.Server):
    """Makes a protocol for each connection, and knows which are open.

    `bounds` may be exchanged at any time, and so may `proxies`, which may announce other addresses by the PROXY
    protocol.
    """

    def __init__(
        self,
        handler: Handler,
        bounds: Bounds,
        observer: Observer | None,
        buffers: ByteBudget | None = None,
        proxies: TrustedProxies | None = None,
    ) -> None:
        super().__init__(handler, handler_cancellation=True)
        self.bounds = bounds
        self.buffers = buffers or ByteBudget()
        self.proxies = proxies or TrustedProxies()
        self.departures = DisconnectWatcher(self._loop)
        self.relaying = IterationBudget(self._loop, RELAYED_BYTES)
        self.making = IterationBudget(self._loop, CONNECTIONS_MADE)
        self.looking = IterationBudget(self._loop, CREDENTIALS_CHECKED)
        self.beginning = IterationBudget(self._loop, REQUESTS_BEGUN)
        self.retired = False
        self.quiet = asyncio.Event()
        """Set while no connection is open, but for those that came after `retire`; `cut` waits for these, too."""
        self.quiet.set()
        self._awaited = 0
        self._cutting = False
        self._observer = observer
        self._open: set[Connection] = set()
        self._expected: dict[asyncio.BaseTransport, ProxyHeaderReader] = {}
        """Those that have not told yet whose they are, or are not secured yet."""
        self._handshakes: set[asyncio.Task[None]] = set()
        self._turned_away: set[Connection] = set()
        """Those that are open for a moment more, and take no place."""
        self._most = 0
        """Open at once, since it was asked for last."""
        self._peers: Counter[str] = Counter()
        self._draining = 0
        self._crowded = False
        """Whether the log tells already that there are too many."""
        self._mentioned: dict[str, tuple[float, int]] = {}
        """When the log told of something last, and how often it has come since."""
        self._ending: set[asyncio.Task[None]] = set()

    def __call__(self) -> BoundedReader:  # type: ignore[override]  # what reads for aiohttp's protocol
        """A protocol for a connection that has just been accepted."""
        return self.intake("")

    def intake(self, address: str) -> BoundedReader:
        """A protocol for a connection that comes from an address; by default from where its transport says."""
        return BoundedReader(Connection(self, self.bounds, self._loop, address))

    def expect(self, transport: asyncio.BaseTransport, preamble: ProxyHeaderReader) -> bool:
        """Whether a connection may begin with a header of the PROXY protocol."""
        if len(self._open) + len(self._expected) >= self.bounds.connections:
            self.tell("too_many")
            return False
        self._expected[transport] = preamble
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
        """How many were open at once since this was asked last."""
        found, self._most = self._most, len(self._open)
        return found

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        """A caller has connected."""
        super().connection_made(handler, transport)
        assert isinstance(handler, Connection)
        handler.address = handler.address or address_of(transport)
        handler.peer = network_of(handler.address)
        handler.late = self.retired
        self._open.add(handler)
        self._most = max(self._most, len(self._open))
        self._peers[handler.peer] += 1
        self._awaited += not handler.late
        self._tell_quiet()

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        """A connection is closed."""
        super().connection_lost(handler, exc)
        assert isinstance(handler, Connection)
        self._turned_away.discard(handler)
        self._free(handler)

    def _free(self, handler: Connection) -> None:
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

    def let_linger(self, handler: Connection) -> bool:
        """Whether a caller that cannot stay may have a moment; its place it has no more."""
        if len(self._turned_away) >= _TURNED_AWAY or self.retired:
            return False
        self._free(handler)
        self._turned_away.add(handler)
        return True

    def one_too_many(self, peer: str) -> TooManyConnections | None:
        """Why the connection that has just come from there cannot stay, `None` when it can."""
        bounds = self.bounds
        if len(self._open) > bounds.connections:
            return self._too_many("too_many", "This proxy has too many connections. Try again.")
        if self._peers[peer] > bounds.per_peer and peer != UNIX:
            return self._too_many(
                "too_many_per_address", "There are too many connections from this address. Use fewer."
            )
        self._crowded = False
        return None

    def _too_many(self, reason: WhyEnded, message: str) -> TooManyConnections:
        if not self._crowded:
            self._crowded = True
            _log.warning("connections are refused: %d are open. See `inbound` in the configuration", len(self._open))
        self.tell(reason)
        return TooManyConnections(message, retry_after=1)

    def tell(self, why: WhyEnded) -> None:
        """Let the observer know that a connection was ended."""
        if self._observer is not None:
            self._observer.observe(ConnectionEnded(why))

    def mention_handshake(self, what: str, transport: asyncio.Transport | None) -> None:
        """Let the log tell of a handshake that failed, with the address that a header in front of it told."""
        preamble = self._expected.get(transport) if transport is not None else None
        self.mention(what, preamble.address if preamble is not None else address_of(transport))

    def mention(self, what: str, peer: str) -> None:
        """Let the log tell what somebody sent in place of HTTP: once a minute for each kind, which are few."""
        now = self._loop.time()
        told, since = self._mentioned.get(what, (now - _LOG_EVERY, 0))
        if now - told < _LOG_EVERY:
            self._mentioned[what] = (told, since + 1)
            return
        self._mentioned[what] = (now, 0)
        often = f", and {since} times since it was told" if since else ""
        _log.info("%s came from %s%s", what, peer or "somebody", often)

    @property
    def unfinished(self) -> int:
        """How many have a request that is not answered, or an answer that is not taken; of those that are awaited."""
        return sum(handler.unfinished for handler in self._open if not handler.late)

    @contextmanager
    def draining(self) -> Iterator[bool]:
        """For as long as a caller has time to read its last answer: whether what it sends meanwhile is read."""
        self._draining += 1
        try:
            yield self._draining <= _DRAINED
        finally:
            self._draining -= 1

    def retire(self) -> None:
        """Close idle connections now and the others behind their answers; nobody waits for those that still come."""
        self.retired = True
        for handler in list(self._open):
            handler.retire()
        for handler in list(self._turned_away):
            handler.force_close()

    def ends(self, task: asyncio.Task[None]) -> None:
        """Remember the handler of a lost connection until it has come to its end."""
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

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
        await asyncio.gather(*self._ending, return_exceptions=True)
        self.departures.close()


class DisconnectWatcher:
    """Watches sockets for the end of their peer only. Costs one file descriptor, from the first socket watched on."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._poll: select.epoll | None = None
        self._gone: dict[int, Callable[[], None]] = {}

    def watch(self, number: int, gone: Callable[[], None]) -> None:
        """Call `gone` once when the peer of the socket with that file descriptor has left."""
        if not hasattr(select, "epoll") or number < 0 or number in self._gone:
            return
        if self._poll is None:
            self._poll = select.epoll()
            self._loop.add_reader(self._poll.fileno(), self._look)
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

    def _look(self) -> None:
        assert self._poll is not None
        for number, _ in self._poll.poll(0):
            gone = self._gone.get(number)
            self.forget(number)
            if gone is not None:
                gone()
