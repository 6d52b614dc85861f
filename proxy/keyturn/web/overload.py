"""Overload protection: what callers may make this process hold, do at once, and wait for."""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Bounds:
    """Sizes in bytes, times in seconds; the defaults are those of the section `inbound`."""

    connections: int = 10_000
    """Open at once."""
    per_peer: int = 5_000
    """Of these from one network address, as `access.failures.origin_of` tells them apart."""
    head: int = 2**16
    """A request's line and fields."""
    fields: int = 128
    target: int = 2**15
    head_time: float = 10.0
    """From the first byte of a head to its last, and for the handshake of TLS."""
    write_time: float = 60.0
    """Without a caller's taking anything of what is written to it."""
    keep_alive: float = 75.0
    """Without a request: longer than most clients wait before they use a connection again."""


DEFAULT_BYTE_BUDGET = 64 * 2**20
BYTES_FLOOR = 4096
"""Bytes that a connection may hold however little is free."""
_WORTH_RESUMING = 2048
"""Bytes of room that are worth going on for."""
_UNLIMITED = 1 << 30
"""Room for one that goes on whatever is free; its own bounds are narrower."""
_MAX_RESUMED = 4
"""Connections that one release looks at, so that no release takes long."""


class ByteBudget:
    """The budget: `limit` bytes (it may be exchanged), of which strangers hold at most a quarter.

    Strangers are requests that have not been admitted yet.
    """

    def __init__(self, limit: int = DEFAULT_BYTE_BUDGET) -> None:
        self.limit = limit
        self.of_strangers = 0
        self.of_clients = 0
        self._paused: dict[ConnectionBytes, None] = {}
        self._favoured: ConnectionBytes | None = None
        """The one that goes on whatever is free, until it gives something back."""

    @property
    def held(self) -> int:
        """Bytes that are held now."""
        return self.of_strangers + self.of_clients

    @property
    def paused(self) -> int:
        """Connections that are not read since too little is free."""
        return len(self._paused)

    def free(self, *, known: bool) -> int:
        """Bytes that nobody holds, of the part of clients or of that of strangers."""
        left = self.limit - self.of_strangers - self.of_clients
        return left if known else min(left, self.limit // 4 - self.of_strangers)

    def favours(self, account: "ConnectionBytes") -> bool:
        """Whether it goes on whatever is free."""
        return account is self._favoured

    def pauses(self, account: "ConnectionBytes") -> bool:
        """Whether it is paused."""
        return account in self._paused

    def pause(self, account: "ConnectionBytes") -> bool:
        """Let a connection go on only when it has room; whether it is paused indeed."""
        if self._favoured is None:
            self._favoured = account
            return False
        self._paused[account] = None
        return True

    def forget(self, account: "ConnectionBytes") -> None:
        """It is no longer paused."""
        self._paused.pop(account, None)

    def release(self, account: "ConnectionBytes") -> None:
        """It has given something back: let some of those that are paused go on, the first of them first."""
        if self.favours(account):
            self._favoured = None
        for _ in range(min(_MAX_RESUMED, len(self._paused))):
            first = next(iter(self._paused))
            del self._paused[first]
            if self._favoured is None:
                self._favoured = first
            if first.room() >= _WORTH_RESUMING:
                first.go_on()
            else:
                self._paused[first] = None


class ConnectionBytes:
    """What one connection holds; `go_on` is called when it has been paused and has room again."""

    __slots__ = ("_buffers", "go_on", "held", "known")

    def __init__(self, buffers: ByteBudget, go_on: Callable[[], None]) -> None:
        self._buffers = buffers
        self.go_on = go_on
        self.held = 0
        self.known = False
        """Whether its request has been admitted."""

    def room(self) -> int:
        """How many bytes more it may hold."""
        if self._buffers.favours(self):
            return _UNLIMITED
        return max(BYTES_FLOOR, self._buffers.free(known=self.known)) - self.held

    def hold(self, held: int) -> None:
        """Hold that many bytes from now on."""
        more = held - self.held
        if not more:
            return
        self.held = held
        if self.known:
            self._buffers.of_clients += more
        else:
            self._buffers.of_strangers += more
        if more < 0:
            self._buffers.release(self)

    def know(self, *, known: bool) -> None:
        """Count what it holds as a client's, or as a stranger's."""
        held = self.held
        self.hold(0)
        self.known = known
        self.hold(held)

    @property
    def crowded(self) -> bool:
        """Whether clients hold everything that there is."""
        return self._buffers.of_clients > self._buffers.limit

    @property
    def paused(self) -> bool:
        """Whether it waits for room."""
        return self._buffers.pauses(self)

    def pause(self) -> bool:
        """Wait for room; whether it has to."""
        return self._buffers.pause(self)

    def go_on_anyway(self) -> None:
        """Wait for room no more."""
        self._buffers.forget(self)

    def close(self) -> None:
        """Hold nothing any more."""
        self._buffers.forget(self)
        self.hold(0)
        self._buffers.release(self)


SLOWEST_READER = 16 * 1024
"""Bytes taken that buy one second more."""
_MAX_CHECKS = 16
"""How often at the most a patience is looked at."""


class WriteTimeout:
    """Times a caller while bytes wait for it.

    All the waiting for one answer may take `patience` seconds, and one more for each `SLOWEST` bytes that are taken
    meanwhile; and `patience` without any. `left` tells how many bytes wait; `too_slow` is called once, with whether
    some were taken of late.
    """

    __slots__ = ("_left", "_loop", "_moved", "_patience", "_since", "_size", "_taken", "_timer", "_too_slow", "_waited")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        patience: float,
        left: Callable[[], int],
        too_slow: Callable[[bool], None],
    ) -> None:
        self._loop = loop
        self._patience = patience
        self._size = left
        self._too_slow = too_slow
        self._timer: asyncio.TimerHandle | None = None
        self._since: float | None = None
        """When it was last counted; `None` while nobody waits."""
        self._moved = 0.0
        """When it last took something, or the waiting began."""
        self._left = 0
        self._waited = 0.0
        self._taken = 0

    def begin(self) -> None:
        """Count for another answer."""
        self._waited, self._taken = 0.0, 0

    def wait(self) -> None:
        """Wait for the caller from now on."""
        if self._since is not None:
            return
        self._since = self._moved = self._loop.time()
        self._left = self._size()
        if self._timer is None:
            self._timer = self._loop.call_later(self._patience, self._look)

    def go_on(self) -> None:
        """Wait no more: it has taken enough."""
        if self._since is not None:
            self._count(self._loop.time())
            self._since = None

    def stop(self) -> None:
        """Look no more."""
        self._since = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _count(self, now: float) -> None:
        assert self._since is not None
        left = self._size()
        if left < self._left:
            self._taken += self._left - left
            self._moved = now
        self._left = left
        self._waited += now - self._since
        self._since = now

    def _look(self) -> None:
        self._timer = None
        if self._since is None:
            return
        now = self._loop.time()
        self._count(now)
        ends = min(self._moved + self._patience, now + self._patience + self._taken / SLOWEST_READER - self._waited)
        if ends > now:
            delay = max(ends - now, self._patience / _MAX_CHECKS)
            self._timer = self._loop.call_later(delay, self._look)
        else:
            self._since = None
            self._too_slow(self._moved + self._patience > now)


Waiting = deque[tuple[asyncio.Future[None], int]]


class IterationBudget:
    """Up to `most` in each turn; one that asks for more than that has a turn of its own.

    Those that wait are served one of each party after another, and each party in the order of asking: a crowd of one
    party holds up itself.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, most: int) -> None:
        self._loop = loop
        self._most = most
        self._left = most
        self._waiting: dict[str, Waiting] = {}
        """By party; the first of the first party is next."""
        self._begins: asyncio.Handle | None = None

    async def take(self, number: int, party: str = "") -> None:
        """Go on at once if this turn has room for so much, else in a later one."""
        if self._begins is None:
            self._begins = self._loop.call_soon(self._begin)
        if not self._waiting and self._fits(number):
            return
        future = self._loop.create_future()
        self._waiting.setdefault(party, deque()).append((future, number))
        await future

    def _fits(self, number: int) -> bool:
        fits = number <= self._left or self._left == self._most
        if fits:
            self._left -= number
        return fits

    def _begin(self) -> None:
        """Begin another turn."""
        self._begins, self._left = None, self._most
        while self._waiting:
            party, waiting = next(iter(self._waiting.items()))
            future, number = waiting[0]
            if not future.done() and not self._fits(number):
                break
            waiting.popleft()
            del self._waiting[party]
            if waiting:
                self._waiting[party] = waiting
            if not future.done():
                future.set_result(None)
        if self._waiting:
            self._begins = self._loop.call_soon(self._begin)
