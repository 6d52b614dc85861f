"""Request bodies that can be read a second time, as far as they fit into memory: each, and all of them together."""

from collections.abc import AsyncGenerator, AsyncIterator

from proxy.core.http import Body

SPOOL = 2**20
"""Bytes of a body that are kept."""
SHELF = 2**26
"""Bytes of all bodies that are kept: what comes when there is no room streams through, and is sent once only."""


class Shelf:
    """The room for what is kept of bodies."""

    __slots__ = ("room",)

    def __init__(self, room: int = SHELF) -> None:
        self.room = room

    def take(self, number: int) -> bool:
        """Take room for so many bytes; false when there is none."""
        if number > self.room:
            return False
        self.room -= number
        return True

    def give_back(self, number: int) -> None:
        """Leave room again."""
        self.room += number


SHARED = Shelf()
"""The process has one memory."""


class ReplayBody:
    """A body that remembers what was read of it, so that a request refused with a 429 can be sent again.

    `chunks` may be called again when the earlier iteration is over (at its end, cancelled, or just left): it begins
    with what was read before and goes on with the live stream. Beyond `spool` bytes, or when the shelf is full, all
    that is remembered is dropped, and the body is no longer `replayable`. `forget` it when nobody reads it again.
    """

    __slots__ = ("_body", "_kept", "_live", "_room", "_shelf", "_taken", "replayable")

    def __init__(self, body: Body, spool: int = SPOOL, shelf: Shelf = SHARED) -> None:
        self._body = body
        self._live: AsyncIterator[bytes] | None = None
        self._kept: list[bytes] = []
        self._room = spool
        self._shelf = shelf
        self._taken = 0
        self.replayable: bool = True
        """Whether nothing that was read has been dropped."""

    @property
    def length(self) -> int | None:
        """Its `Content-Length` in bytes; `None` when it came in chunks."""
        return self._body.length

    def chunks(self) -> AsyncIterator[bytes]:
        """The bytes from the beginning.

        Raises:
            RuntimeError: the beginning has been dropped.
            TooLarge, BadRequest, ConnectionError: from the body itself.
        """
        if not self.replayable:
            raise RuntimeError("this body cannot be read again: ask `replayable` first")
        return _Replay(self)

    async def at(self, position: int) -> bytes | None:
        """The chunk of that position, from memory or live; `None` at the end."""
        if position < len(self._kept):
            return self._kept[position]
        if self._live is None:
            self._live = self._body.chunks()
        try:
            chunk = await anext(self._live, None)
        except BaseException:
            # A generator ends with what it raises: read on, it would pretend that the body ends here.
            self.replayable = self.replayable and not isinstance(self._live, AsyncGenerator)
            raise
        if chunk is not None and self.replayable:
            self._keep(chunk)
        return chunk

    def _keep(self, chunk: bytes) -> None:
        self._room -= len(chunk)
        if self._room >= 0 and self._shelf.take(len(chunk)):
            self._taken += len(chunk)
            self._kept.append(chunk)
        else:
            self.forget()

    def forget(self) -> None:
        """Drop what is remembered; nobody reads it from the beginning any more."""
        self.replayable = False
        self._kept.clear()
        self._shelf.give_back(self._taken)
        self._taken = 0


class _Replay:
    """One reading of a `ReplayBody`."""

    __slots__ = ("_body", "_position")

    def __init__(self, body: ReplayBody) -> None:
        self._body = body
        self._position = 0

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        chunk = await self._body.at(self._position)
        if chunk is None:
            raise StopAsyncIteration
        self._position += 1
        return chunk
