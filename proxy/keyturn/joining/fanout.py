"""One answer's body for several readers, none of which sets the pace for the others.

Laws of this module:

- Each reader reads at its own pace, and the source is read only when a reader has read all that there is.
- Parts that the slowest reader has not taken yet are kept, up to `BOUND` bytes for one answer and `Kept.bound` for all
  answers together; at most one part more of each answer.
- At the bound of an answer its other readers wait for the slowest one, in all no longer than the answer has taken
  otherwise, and `GRACE`. Then they go on, and the slowest is cut off: a reader is safe while it is half as fast as the
  fastest.
- At the bound of all answers the slowest reader of the answer that holds most is cut off at once.
- Work is constant for each part that a reader takes, however many readers there are.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from itertools import islice

from keyturn.core.errors import Broken
from keyturn.core.http import AnswerBody

BOUND = 8 * 2**20
"""Bytes of one answer that are kept for its slower readers."""
KEPT = 64 * 2**20
"""Bytes of all shared answers that are kept."""
PART = 128
"""Bytes that are counted for each part beside its data: what it costs to keep many small ones."""
GRACE = 0.1
"""Seconds that the slowest reader may hold up the others of even the shortest answer."""


class FellBehind(ConnectionError):
    """This reader was too slow for the others and gets no more; its caller has to see that the answer is truncated."""


class Kept:
    """What shared answers keep for their slower readers, all together."""

    def __init__(self, bound: int = KEPT) -> None:
        self._bound = bound
        self.size = 0
        self._fanouts: set[Fanout] = set()

    def change(self, fanout: "Fanout", by: int) -> None:
        """Note that an answer keeps so many bytes more, or less."""
        self.size += by
        if fanout.size:
            self._fanouts.add(fanout)
        else:
            self._fanouts.discard(fanout)

    def make_room(self) -> None:
        """Beyond the bound, have the answers that hold most cut off their slowest readers."""
        while self.size > self._bound and max(self._fanouts, key=lambda fanout: fanout.size).cut_slowest():
            pass


class _Part:
    """Some bytes of the body, and how many readers have not taken them yet."""

    __slots__ = ("data", "readers")

    def __init__(self, data: bytes, readers: int) -> None:
        self.data = data
        self.readers = readers


class Fanout:
    """The owner of the one body; `pump` has to run for the readers to get anything."""

    def __init__(self, body: AnswerBody, kept: Kept, *, bound: int = BOUND) -> None:
        self._body = body
        self._kept = kept
        self._bound = bound
        self._parts: deque[_Part] = deque()
        self._first = 0
        """The position of the first part that is kept."""
        self.size = 0
        """Bytes that are kept."""
        self._readers: set[Reader] = set()
        self._hungry: set[Reader] = set()
        """Readers that have taken all that there is and wait for more."""
        self._end: Exception | None = None
        """What a reader meets behind the last part; `None` while that may not be the last."""
        self._changed = asyncio.Event()
        """A reader waits for more, has gone, or was the last to take a part."""
        self._began = asyncio.get_running_loop().time()
        self._waited = 0.0
        """Seconds that the others have waited for the slowest reader."""

    def reader(self, cut: Callable[[], None] | None = None) -> "Reader":
        """One more reader, from the beginning; all are made before the pump runs.

        `cut` is called when it is cut off.
        """
        reader = Reader(self, cut)
        self._readers.add(reader)
        return reader

    async def pump(self) -> None:
        """Read the source for as long as a reader wants it, to its end."""
        problem: Exception = Broken("The exchange that carried the answer was ended.")
        try:
            while self._readers:
                self._changed.clear()
                if not self._hungry:
                    await self._changed.wait()
                elif self.size > self._bound:
                    await self._wait_for_slowest()
                elif data := await self._body.read():
                    self._keep(data)
                else:
                    break
            problem = EOFError()
        except Exception as broken:  # noqa: BLE001  # whatever it is, it is each reader's to meet
            problem = broken
        finally:
            self._end = problem
            self._feed()

    async def _wait_for_slowest(self) -> None:
        """Wait until it has taken something, or cut it off when the others have waited for it long enough."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        without = began - self._began - self._waited
        try:
            async with asyncio.timeout(without + GRACE - self._waited):
                await self._changed.wait()
        except TimeoutError:
            self.cut_slowest()
        finally:
            self._waited += loop.time() - began

    def cut_slowest(self) -> bool:
        """Cut off the readers that are farthest behind; returns whether there were any behind others."""
        positions = {reader.position for reader in self._readers}
        if len(positions) < 2:  # noqa: PLR2004  # of one position none is ahead
            return False
        last = min(positions)
        for reader in [reader for reader in self._readers if reader.position == last]:
            reader.cut_off()
        return True

    def _keep(self, data: bytes) -> None:
        if self._readers:
            self._parts.append(_Part(data, len(self._readers)))
            self._change(PART + len(data))
            self._feed()
            self._kept.make_room()

    def _feed(self) -> None:
        for reader in self._hungry:
            reader.due.set()
        self._hungry.clear()

    def _change(self, by: int) -> None:
        self.size += by
        self._kept.change(self, by)

    # What readers do

    def take(self, position: int) -> bytes | None:
        """The part of that position, once for each reader; `b""` behind the last one, `None` while it is not there.

        Raises:
            Broken: the body ended early.
        """
        index = position - self._first
        if index < len(self._parts):
            part = self._parts[index]
            part.readers -= 1
            self._let_go()
            return part.data
        if self._end is None:
            return None
        if isinstance(self._end, EOFError):
            return b""
        raise self._end.with_traceback(None)

    def want(self, reader: "Reader") -> None:
        """A reader waits for more than there is."""
        self._hungry.add(reader)
        self._changed.set()

    def leave(self, reader: "Reader") -> None:
        """A reader wants nothing any more."""
        if reader not in self._readers:
            return
        self._readers.discard(reader)
        self._hungry.discard(reader)
        for part in islice(self._parts, reader.position - self._first, None):
            part.readers -= 1
        self._let_go()
        self._changed.set()

    def _let_go(self) -> None:
        """Drop the parts that every reader has taken."""
        while self._parts and not self._parts[0].readers:
            self._change(-PART - len(self._parts.popleft().data))
            self._first += 1
            self._changed.set()


class Reader:
    """One reader's way through the body: an `AnswerBody` of its own."""

    __slots__ = ("_cut", "_is_cut", "_source", "due", "position")

    def __init__(self, source: Fanout, cut: Callable[[], None] | None) -> None:
        self._source = source
        self._cut = cut
        self._is_cut = False
        self.position = 0
        self.due = asyncio.Event()

    async def read(self) -> bytes:
        """See `AnswerBody`.

        Raises:
            FellBehind: it was cut off.
        """
        while not self._is_cut:
            part = self._source.take(self.position)
            if part is not None:
                self.position += bool(part)
                return part
            self.due.clear()
            self._source.want(self)
            await self.due.wait()
        raise FellBehind("this reader was too slow for the others")

    def cut_off(self) -> None:
        """Take it off the answer: its next `read` fails."""
        self._is_cut = True
        self._source.leave(self)
        if self._cut is not None:
            self._cut()

    async def discard(self) -> None:
        """See `AnswerBody`."""
        self.abort()

    def abort(self) -> None:
        """Leave; the others read on."""
        self._source.leave(self)
