"""Overload protection: what callers may make this process hold, do at once, and wait for."""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Bounds:
    """Bounds of one listener; sizes in bytes, times in seconds. The defaults are those of the section `inbound`."""

    connections: int = 10_000
    """Open at once."""
    per_peer: int = 5_000
    """Open at once from one network (`access.rate_limits.network_of`)."""
    head: int = 2**16
    """A request's line and fields."""
    fields: int = 128
    target: int = 2**15
    head_time: float = 10.0
    """From the first byte of a head to its last, and for a TLS handshake."""
    write_time: float = 60.0
    """While the caller takes nothing of what is written to it."""
    keep_alive: float = 75.0
    """Without a request: longer than most clients keep an idle connection."""


DEFAULT_BYTE_BUDGET = 64 * 2**20
BYTES_FLOOR = 4096
"""Bytes that a connection may always hold."""
_WORTH_RESUMING = 2048
"""Bytes of room for which a paused connection is resumed."""
_UNLIMITED = 1 << 30
"""Room of the favoured connection, which its own bounds limit further."""
_MAX_RESUMED = 4
"""Paused connections that one release looks at, so that no release takes long."""


class ByteBudget:
    """One byte budget for everything that requests hold on their way in, on all connections of the process.

    It is shared by dynamic thresholds: a connection may hold as much as is free, so those that hold most are paused
    first. Each may always hold `BYTES_FLOOR` bytes, and one paused connection at a time, the favoured one, goes on
    whatever is free; otherwise all could wait for each other. No more than the limit, the floor of every connection and
    the bytes of the favoured one is ever held.

    `limit` may be exchanged. Requests that have not been admitted hold at most a quarter of it.
    """

    def __init__(self, limit: int = DEFAULT_BYTE_BUDGET) -> None:
        self.limit = limit
        self.admitted = 0
        """Bytes held by requests that have been admitted."""
        self.unadmitted = 0
        self._paused: dict[ConnectionBytes, None] = {}
        self.favoured: ConnectionBytes | None = None
        """The connection that goes on whatever is free; none while no connection lacks room."""

    def __repr__(self) -> str:
        return f"<ByteBudget {self.held}/{self.limit}, {self.unadmitted} unadmitted, {self.paused} paused>"

    @property
    def held(self) -> int:
        """Bytes that are held now."""
        return self.admitted + self.unadmitted

    @property
    def paused(self) -> int:
        """Connections that are not read because too little is free."""
        return len(self._paused)

    def pause(self, account: "ConnectionBytes") -> bool:
        """Pause a connection until it has room; false when it becomes the favoured one instead."""
        if self.favoured is None:
            self.favoured = account
            return False
        self._paused[account] = None
        account.paused = True
        return True

    def forget(self, account: "ConnectionBytes") -> None:
        """Take a connection off those that are paused."""
        account.paused = False
        del self._paused[account]

    def release(self, account: "ConnectionBytes") -> None:
        """Resume some paused connections, the oldest first, after one has given bytes back."""
        if account is self.favoured:
            self.favoured = None
        if not self._paused:
            return
        for _ in range(min(_MAX_RESUMED, len(self._paused))):
            first = next(iter(self._paused))
            del self._paused[first]
            if self.favoured is None:
                self.favoured = first
            if first.room() >= _WORTH_RESUMING:
                first.paused = False
                first.resume()
            else:
                self._paused[first] = None


class ConnectionBytes:
    """The bytes that one connection holds of the budget; `resume` is called when it was paused and has room again."""

    __slots__ = ("_budget", "admitted", "held", "paused", "resume")

    def __init__(self, budget: ByteBudget, resume: Callable[[], None]) -> None:
        self._budget = budget
        self.resume = resume
        self.held = 0
        self.admitted = False
        """Whether its request has been admitted."""
        self.paused = False

    def room(self) -> int:
        """How many bytes more it may hold."""
        budget = self._budget
        if budget.favoured is self:
            return _UNLIMITED
        free = budget.limit - budget.admitted - budget.unadmitted
        if not self.admitted:
            free = min(free, budget.limit // 4 - budget.unadmitted)
        return max(BYTES_FLOOR, free) - self.held

    def hold(self, held: int) -> None:
        """Hold so many bytes from now on."""
        more = held - self.held
        if not more:
            return
        self.held, budget = held, self._budget
        if self.admitted:
            budget.admitted += more
        else:
            budget.unadmitted += more
        if more < 0 and budget.favoured is not None:
            budget.release(self)

    def admit(self, *, admitted: bool) -> None:
        """Count its bytes as those of an admitted request, or of one that is not."""
        if admitted == self.admitted:
            return
        self.admitted, budget = admitted, self._budget
        if moved := self.held if admitted else -self.held:
            budget.admitted += moved
            budget.unadmitted -= moved
            if budget.favoured is not None:
                budget.release(self)

    def end(self) -> None:
        """Hold nothing, for a request that has been answered; the next one is not admitted yet."""
        self.hold(0)
        self.admitted = False

    @property
    def crowded(self) -> bool:
        """Whether admitted requests hold more than the whole budget."""
        return self._budget.admitted > self._budget.limit

    def pause(self) -> bool:
        """Wait for room; returns whether it has to."""
        return self._budget.pause(self)

    def unpause(self) -> None:
        """Wait for room no more."""
        if self.paused:
            self._budget.forget(self)

    def close(self) -> None:
        """Hold nothing any more."""
        self.unpause()
        self.hold(0)
        self._budget.release(self)


_HEAD_END = b"\r\n\r\n"
_SEAM = len(_HEAD_END) - 1
_HEAD_COST, _HEAD_COST_BEYOND_ASCII = 2, 5
"""Bytes of memory for each byte of a head: the parser keeps every field as bytes and as text, and text with one
character outside ASCII may take four bytes for each."""


class HeadCounter:
    """Counts the bytes of one head after another, as they come in pieces."""

    __slots__ = ("_cost", "_seam", "received")

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Expect another head."""
        self.received = 0
        """Bytes of a head that has begun and is not complete."""
        self._seam = b""
        """The last few of them, where its end may have begun."""
        self._cost = _HEAD_COST

    @property
    def cost(self) -> int:
        """Bytes of memory that what has been received takes."""
        return self.received * self._cost

    def affordable(self, room: int) -> int:
        """How many bytes of a head fit into so much memory."""
        return room // self._cost

    def length(self, data: bytes, at: int) -> int:
        """How many of the bytes from `at` on belong to this head."""
        if self._seam:
            across = (self._seam + data[at : at + _SEAM]).find(_HEAD_END)
            if across >= 0:
                return across + len(_HEAD_END) - len(self._seam)
        end = data.find(_HEAD_END, at)
        return (len(data) if end < 0 else end + len(_HEAD_END)) - at

    def add(self, piece: bytes) -> None:
        """Count a piece of it."""
        self.received += len(piece)
        self._seam = piece[-_SEAM:] if len(piece) >= _SEAM else (self._seam + piece)[-_SEAM:]
        if not piece.isascii():
            self._cost = _HEAD_COST_BEYOND_ASCII


SLOWEST_READER = 16 * 1024
"""Bytes taken that buy one second more."""
_MAX_CHECKS = 16
"""How often a timeout is checked at most."""


class WriteTimeout:
    """Times a caller while bytes wait for it.

    Waiting for one answer may take `timeout` seconds in all, and one more for each `SLOWEST_READER` bytes that are
    taken meanwhile; and `timeout` without any. `unsent` tells how many bytes wait. `expired` is called once, with
    whether some were taken of late.
    """

    __slots__ = (
        "_expired", "_left", "_loop", "_moved", "_since", "_taken", "_timeout", "_timer", "_unsent", "_waited",
    )  # fmt: skip

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        timeout: float,
        unsent: Callable[[], int],
        expired: Callable[[bool], None],
    ) -> None:
        self._loop = loop
        self._timeout = timeout
        self._unsent = unsent
        self._expired = expired
        self._timer: asyncio.TimerHandle | None = None
        self._since: float | None = None
        """When it was last counted; `None` while nothing waits."""
        self._moved = 0.0
        """When the caller last took something, or the waiting began."""
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
        self._left = self._unsent()
        if self._timer is None:
            self._timer = self._loop.call_later(self._timeout, self._check)

    def resume(self) -> None:
        """Wait no more: the caller has taken enough."""
        if self._since is not None:
            self._count(self._loop.time())
            self._since = None

    def stop(self) -> None:
        """Check no more."""
        self._since = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _count(self, now: float) -> None:
        assert self._since is not None
        left = self._unsent()
        if left < self._left:
            self._taken += self._left - left
            self._moved = now
        self._left = left
        self._waited += now - self._since
        self._since = now

    def _check(self) -> None:
        self._timer = None
        if self._since is None:
            return
        now = self._loop.time()
        self._count(now)
        ends = min(self._moved + self._timeout, now + self._timeout + self._taken / SLOWEST_READER - self._waited)
        if ends > now:
            delay = max(ends - now, self._timeout / _MAX_CHECKS)
            self._timer = self._loop.call_later(delay, self._check)
        else:
            self._since = None
            self._expired(self._moved + self._timeout > now)


Waiting = deque[tuple[asyncio.Future[None], int]]


class IterationBudget:
    """Work permitted in one iteration of the event loop: up to `size`, and anything larger in one of its own.

    An iteration serves whatever is ready, and lasts as long as all of it takes. With a hundred large answers, or a
    thousand connections that are not admitted yet, a small request would wait for all of them at each of its steps.

    Each party is served in the order of its requests, and the parties one after another, so that one with many requests
    delays itself only.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, size: int) -> None:
        self._loop = loop
        self._size = size
        self._left = size
        self._waiting: dict[str, Waiting] = {}
        """Callbacks that wait, by party; the first of the first party is next."""
        self._next: asyncio.Handle | None = None

    def try_take(self, number: int) -> bool:
        """Take so much of this iteration; false when that has to be waited for."""
        if self._next is None:
            self._next = self._loop.call_soon(self._begin)
        return not self._waiting and self._fits(number)

    async def take(self, number: int, party: str = "") -> None:
        """Take so much of this iteration or, when nothing is left, of a later one."""
        if not self.try_take(number):
            future = self._loop.create_future()
            self._waiting.setdefault(party, deque()).append((future, number))
            await future

    def _fits(self, number: int) -> bool:
        fits = number <= self._left or self._left == self._size
        if fits:
            self._left -= number
        return fits

    def _begin(self) -> None:
        """Begin another iteration."""
        self._next, self._left = None, self._size
        while self._waiting:
            party, waiting = next(iter(self._waiting.items()))
            future, number = waiting[0]
            if not future.done():
                if not self._fits(number):
                    break
                future.set_result(None)
            del self._waiting[party]
            if len(waiting) > 1:
                waiting.popleft()
                self._waiting[party] = waiting
        if self._waiting:
            self._next = self._loop.call_soon(self._begin)
