"""Request bodies that can be read a second time, as far as they fit into memory."""

from collections.abc import AsyncGenerator, AsyncIterator

from proxy.core.http import Body

SPOOL = 2**20
"""Bytes of a body that are kept."""


class ReplayBody:
    """A body that remembers what was read of it, so that a request refused with a 429 can be sent again.

    `chunks` may be called again when the earlier iteration is over (at its end, cancelled, or just left): it begins
    with what was read before and goes on with the live stream. Beyond `spool` bytes all that is remembered is dropped,
    and the body is no longer `replayable`.
    """

    __slots__ = ("_body", "_kept", "_live", "_room", "replayable")

    def __init__(self, body: Body, spool: int = SPOOL) -> None:
        self._body = body
        self._live: AsyncIterator[bytes] | None = None
        self._kept: list[bytes] = []
        self._room = spool
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
        if self._room >= 0:
            self._kept.append(chunk)
        else:
            self.replayable = False
            self._kept.clear()


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
