"""One answer's body for several readers, each at its own pace.

What the slowest has not read yet is kept, up to a bound; while less is kept than that, nobody waits for anybody else.
The source is read only when somebody has read all that there is, so one slow reader alone does not fill the memory.
"""

import asyncio
from collections import deque

from proxy.core.errors import Broken
from proxy.core.http import AnswerBody

BOUND = 8 * 2**20
"""Bytes that are kept for the slower readers; from there on the slowest sets the pace."""


class Fanout:
    """The owner of the one body; `pump` has to run for the readers to get anything."""

    def __init__(self, body: AnswerBody, *, bound: int = BOUND) -> None:
        self._body = body
        self._bound = bound
        self._parts: deque[bytes] = deque()
        self._first = 0
        """The position of the first part that is kept."""
        self._size = 0
        self._readers: set[Reader] = set()
        self._end: Exception | None = None
        self._over = False
        self._changed = asyncio.Event()
        """A reader wants more, has read something, or has gone."""

    def reader(self) -> "Reader":
        """One more reader, from the beginning; all are made before the pump runs."""
        reader = Reader(self)
        self._readers.add(reader)
        return reader

    async def pump(self) -> None:
        """Read the source for as long as somebody wants it, to its end."""
        problem: Exception = Broken("The exchange that carried the answer was ended.")
        try:
            while self._readers:
                self._changed.clear()
                if not self._wanted():
                    await self._changed.wait()
                    continue
                part = await self._body.read()
                if not part:
                    break
                self._parts.append(part)
                self._size += len(part)
                self._tell()
            problem = StopReading()
        except Exception as broken:  # noqa: BLE001  # whatever it is, it is each reader's to meet
            problem = broken
        finally:
            self._end, self._over = problem, True
            self._tell()

    def _wanted(self) -> bool:
        """Whether somebody has read all that there is; beyond the bound nothing more is taken in."""
        end = self._first + len(self._parts)
        return self._size < self._bound and any(reader.wants and reader.position == end for reader in self._readers)

    def _tell(self) -> None:
        for reader in self._readers:
            reader.due.set()

    # What readers do

    def at(self, position: int) -> bytes | None:
        """The part of that position, `b""` behind the last one, `None` while it is not there.

        Raises:
            Broken: the body ended early.
        """
        if position < self._first + len(self._parts):
            return self._parts[position - self._first]
        if not self._over:
            return None
        if isinstance(self._end, StopReading) or self._end is None:
            return b""
        raise self._end.with_traceback(None)

    def stir(self) -> None:
        """A reader wants more or has moved on: let go of what all have read."""
        behind = min((reader.position for reader in self._readers), default=self._first + len(self._parts))
        while self._first < behind and self._parts:
            self._size -= len(self._parts.popleft())
            self._first += 1
        self._changed.set()

    def leave(self, reader: "Reader") -> None:
        """A reader wants nothing any more."""
        self._readers.discard(reader)
        self.stir()


class StopReading(Exception):
    """The body came to its proper end."""


class Reader:
    """One reader's way through the body: an `AnswerBody` of its own."""

    __slots__ = ("_source", "due", "position", "wants")

    def __init__(self, source: Fanout) -> None:
        self._source = source
        self.position = 0
        self.wants = False
        self.due = asyncio.Event()

    async def read(self) -> bytes:
        """See `AnswerBody`."""
        while (part := self._source.at(self.position)) is None:
            self.wants = True
            self.due.clear()
            self._source.stir()
            await self.due.wait()
        self.wants = False
        if part:
            self.position += 1
            self._source.stir()
        return part

    async def discard(self) -> None:
        """See `AnswerBody`."""
        self.abort()

    def abort(self) -> None:
        """Leave; the others read on."""
        self._source.leave(self)
