"""One byte budget over everything that requests hold on their way in, on all connections of the process.

It is shared by dynamic thresholds: a connection may hold as much as is free. So those that hold most are paused first,
and however many they are, one that holds little is read. `FLOOR` bytes each connection may always hold: neither a
request that comes in nor one that is being served is starved. And one of those that are paused goes on at a time, or
all would wait for each other. No more than the limit, the floor of every connection and that one is ever held.
"""

from collections.abc import Callable

DEFAULT = 64 * 2**20
FLOOR = 4096
"""Bytes that a connection may hold however little is free."""
_ENOUGH = 2048
"""Bytes of room that are worth going on for."""
_ANY = 1 << 30
"""Room for one that goes on whatever is free; its own bounds are narrower."""
_LOOKS = 4
"""Connections that one release looks at, so that no release takes long."""


class Buffers:
    """The budget: `limit` bytes (it may be exchanged), of which strangers hold at most a quarter.

    Strangers are requests that have not been admitted yet.
    """

    def __init__(self, limit: int = DEFAULT) -> None:
        self.limit = limit
        self.of_strangers = 0
        self.of_clients = 0
        self._paused: dict[Account, None] = {}
        self._favoured: Account | None = None
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

    def favours(self, account: "Account") -> bool:
        """Whether it goes on whatever is free."""
        return account is self._favoured

    def pauses(self, account: "Account") -> bool:
        """Whether it is paused."""
        return account in self._paused

    def pause(self, account: "Account") -> bool:
        """Let a connection go on only when it has room; whether it is paused indeed."""
        if self._favoured is None:
            self._favoured = account
            return False
        self._paused[account] = None
        return True

    def forget(self, account: "Account") -> None:
        """It is no longer paused."""
        self._paused.pop(account, None)

    def release(self, account: "Account") -> None:
        """It has given something back: let some of those that are paused go on, the first of them first."""
        if self.favours(account):
            self._favoured = None
        for _ in range(min(_LOOKS, len(self._paused))):
            first = next(iter(self._paused))
            del self._paused[first]
            if self._favoured is None:
                self._favoured = first
            if first.room() >= _ENOUGH:
                first.go_on()
            else:
                self._paused[first] = None


class Account:
    """What one connection holds; `go_on` is called when it has been paused and has room again."""

    __slots__ = ("_buffers", "go_on", "held", "known")

    def __init__(self, buffers: Buffers, go_on: Callable[[], None]) -> None:
        self._buffers = buffers
        self.go_on = go_on
        self.held = 0
        self.known = False
        """Whether its request has been admitted."""

    def room(self) -> int:
        """How many bytes more it may hold."""
        if self._buffers.favours(self):
            return _ANY
        return max(FLOOR, self._buffers.free(known=self.known)) - self.held

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
