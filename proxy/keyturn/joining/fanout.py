"""One answer's body for several readers, none of which sets the pace for the others.

Laws of this module:

- Each reader reads at its own pace, and the source is read only when a reader has read everything so far.
- Parts that the slowest reader has not taken yet are kept, up to `ANSWER_BOUND` bytes for one answer and `TOTAL_BOUND`
  for all answers together; at most one part more of each answer.
- At the bound of an answer its other readers wait for the slowest one, in total no longer than the answer has taken
  otherwise, and `SLOW_READER_GRACE`. Then they go on, and the slowest is cut off: a reader is safe while it is half as
  fast as the fastest.
- At the bound of all answers the slowest reader of the answer that keeps most is cut off at once.
- Work is constant for each part that a reader takes, however many readers there are.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from itertools import islice

from keyturn.core.errors import Broken
from keyturn.core.http import AnswerBody

ANSWER_BOUND = 8 * 2**20
"""Bytes of one answer that are kept for its slower readers."""
TOTAL_BOUND = 64 * 2**20
"""Bytes of all shared answers that are kept."""
PART_OVERHEAD = 128
"""Bytes that are counted for each part in addition to its data."""
SLOW_READER_GRACE = 0.1
"""Seconds that the slowest reader may hold up the others of even the shortest answer."""


class FellBehind(ConnectionError):
    """A reader was too slow for the others and was cut off; its caller has to see that the answer is truncated."""


class FanoutBudget:
    """The bytes that all shared answers keep for their slower readers."""

    def __init__(self, bound: int = TOTAL_BOUND) -> None:
        self._bound = bound
        self.size = 0
        self._fanouts: set[Fanout] = set()

    def change(self, fanout: "Fanout", by: int) -> None:
        """Note by how many bytes what an answer keeps has grown, or shrunk."""
        self.size += by
        if fanout.size:
            self._fanouts.add(fanout)
        else:
            self._fanouts.discard(fanout)

    def make_room(self) -> None:
        """While the bound is exceeded, let the answers that keep most cut off their slowest readers."""
        while self.size > self._bound and max(self._fanouts, key=lambda fanout: fanout.size).cut_slowest():
            pass


class _Part:
    """A part of the body, and the number of readers that have not taken it."""

    __slots__ = ("data", "readers")

    def __init__(self, data: bytes, readers: int) -> None:
        self.data = data
        self.readers = readers


class Fanout:
    """Owns the body and feeds its readers, as long as `pump` runs."""

    def __init__(self, body: AnswerBody, budget: FanoutBudget, *, bound: int = ANSWER_BOUND) -> None:
        self._body = body
        self._budget = budget
        self._bound = bound
        self._parts: deque[_Part] = deque()
        self._first = 0
        """The position of the first part that is kept."""
        self.size = 0
        """Bytes that are kept."""
        self._readers: set[FanoutReader] = set()
        self._waiting: set[FanoutReader] = set()
        """Readers that have taken every part and wait for more."""
        self._end: Exception | None = None
        """Raised after the last part (`EOFError`: the end); `None` while more may come."""
        self._changed = asyncio.Event()
        """A reader waits for more, has gone, or was the last to take a part."""
        self._began = asyncio.get_running_loop().time()
        self._waited = 0.0
        """Seconds that the others have waited for the slowest reader."""

    def reader(self, cut: Callable[[], None] | None = None) -> "FanoutReader":
        """Add a reader, before the pump runs; `cut` is called when it is cut off."""
        reader = FanoutReader(self, cut)
        self._readers.add(reader)
        return reader

    async def pump(self) -> None:
        """Read the source for as long as a reader wants it, to its end."""
        problem: Exception = Broken("The exchange that carried the answer was ended. Send the request again.")
        try:
            while self._readers:
                self._changed.clear()
                if not self._waiting:
                    await self._changed.wait()
                elif self.size > self._bound:
                    await self._wait_for_slowest()
                elif data := await self._body.read():
                    self._keep(data)
                else:
                    break
            problem = EOFError()
        except Exception as broken:  # noqa: BLE001  # each reader meets it
            problem = broken
        finally:
            self._end = problem
            self._feed()

    async def _wait_for_slowest(self) -> None:
        """Wait until the slowest reader takes something; cut it off when the others have waited long enough."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        without = began - self._began - self._waited
        try:
            async with asyncio.timeout(without + SLOW_READER_GRACE - self._waited):
                await self._changed.wait()
        except TimeoutError:
            self.cut_slowest()
        finally:
            self._waited += loop.time() - began

    def cut_slowest(self) -> bool:
        """Cut off the readers that are farthest behind; returns whether any was behind others."""
        positions = {reader.position for reader in self._readers}
        if len(positions) < 2:  # noqa: PLR2004  # at one position none is ahead
            return False
        last = min(positions)
        for reader in [reader for reader in self._readers if reader.position == last]:
            reader.cut_off()
        return True

    def _keep(self, data: bytes) -> None:
        if self._readers:
            self._parts.append(_Part(data, len(self._readers)))
            self._change(PART_OVERHEAD + len(data))
            self._feed()
            self._budget.make_room()

    def _feed(self) -> None:
        for reader in self._waiting:
            reader.more.set()
        self._waiting.clear()

    def _change(self, by: int) -> None:
        self.size += by
        self._budget.change(self, by)

    # What readers do

    def take(self, position: int) -> bytes | None:
        """The part at a position, once for each reader; `b""` after the last one, `None` while it has not arrived.

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

    def want(self, reader: "FanoutReader") -> None:
        """Note that a reader waits for more."""
        self._waiting.add(reader)
        self._changed.set()

    def leave(self, reader: "FanoutReader") -> None:
        """Remove a reader."""
        if reader not in self._readers:
            return
        self._readers.discard(reader)
        self._waiting.discard(reader)
        for part in islice(self._parts, reader.position - self._first, None):
            part.readers -= 1
        self._let_go()
        self._changed.set()

    def _let_go(self) -> None:
        """Drop the parts that all readers have taken."""
        while self._parts and not self._parts[0].readers:
            self._change(-PART_OVERHEAD - len(self._parts.popleft().data))
            self._first += 1
            self._changed.set()


class FanoutReader:
    """The body as one reader reads it: see `core.http.AnswerBody`."""

    __slots__ = ("_cut", "_is_cut", "_source", "more", "position")

    def __init__(self, source: Fanout, cut: Callable[[], None] | None) -> None:
        self._source = source
        self._cut = cut
        self._is_cut = False
        self.position = 0
        self.more = asyncio.Event()

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
            self.more.clear()
            self._source.want(self)
            await self.more.wait()
        raise FellBehind("too slow for the others that share this answer")

    def cut_off(self) -> None:
        """Remove the reader: its next `read` fails."""
        self._is_cut = True
        self._source.leave(self)
        if self._cut is not None:
            self._cut()

    async def discard(self) -> None:
        """See `AnswerBody`."""
        self.abort()

    def abort(self) -> None:
        """Remove the reader; the others read on."""
        self._source.leave(self)
