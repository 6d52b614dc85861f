"""Request bodies that are read before their request waits, and can be sent again.

A request holds a lease only while it is being sent. So its body is read first, as fast as its caller sends it, without
a lease. A small body stays in memory, a larger one goes to a temporary file. Of one that is larger still, the beginning
goes to a file, and the rest streams under the lease, within `upload_time`.

A body keeps the room that it has taken until its request ends, also while its rest streams: so that bounds what one
client may stream at once, too.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from keyturn.bodies.budget import CLIENT_SHARE, BodyBudget
from keyturn.bodies.spool import Spool, SpoolFile
from keyturn.core.errors import Refusal, TooMany, TooSlow
from keyturn.core.events import Observer, SpoolFailed
from keyturn.core.http import Body
from keyturn.core.model import SECOND, Micros
from keyturn.core.recent import RecentCauses
from keyturn.core.translate import whole_seconds
from keyturn.oserrors import words

MEMORY_BOUND = 2**26
"""Bytes of all bodies in memory."""


@dataclass(frozen=True, slots=True)
class BodySettings:
    """Sizes in bytes, the time in microseconds; the defaults are those of the section `inbound`."""

    memory: int = 2**18
    """Bytes of one body kept in memory."""
    ahead: int = 2**24
    """Bytes of one body read before its request waits."""
    files: int = 2**30
    """Bytes of all bodies in temporary files; 0 for none."""
    upload_time: Micros = 120 * SECOND
    """For the rest of a body, from the lease on."""


class Bodies:
    """The bodies of all requests, and the room that they share."""

    def __init__(
        self, settings: BodySettings, observer: Observer, clock: Callable[[], Micros], spool: Spool | None = None
    ) -> None:
        """Without `spool`, or before it is checked, bodies are kept in memory only."""
        self.clock = clock
        self.memory = BodyBudget(MEMORY_BOUND)
        self.files = BodyBudget(settings.files)
        self.spool = spool
        self._observer = observer
        self._usable = False
        self._causes = RecentCauses()
        self._take(settings)

    def _take(self, settings: BodySettings) -> None:
        self.files.size = settings.files
        self.upload_time: float = settings.upload_time / SECOND
        self.in_file: int = min(settings.ahead, settings.files // CLIENT_SHARE) if self._usable else 0
        """Bytes of a body that may go to a file."""
        self.in_memory: int = min(settings.memory, settings.ahead, MEMORY_BOUND // CLIENT_SHARE)
        self._settings = settings

    def adopt(self, settings: BodySettings) -> None:
        """Use these settings from the next request on."""
        self._take(settings)

    async def open(self) -> None:
        """Check that files can be made; if not, larger bodies stream."""
        if self.spool is None:
            return
        try:
            await self.spool.check()
        except OSError as error:
            if self._settings.files:
                self.failed(error)
        else:
            self._usable = True
            self._take(self._settings)

    def close(self) -> None:
        """End the spool."""
        if self.spool is not None:
            self.spool.close()

    @property
    def taken(self) -> list[tuple[str, int]]:
        """The bytes that bodies take in memory and in files."""
        return [("memory", self.memory.used), ("file", self.files.used)]

    def failed(self, error: OSError) -> None:
        """Report that a body could not be written to a file: its rest streams."""
        cause = words(error)
        self._observer.observe(SpoolFailed(cause, is_new=self._causes.is_new(cause, self.clock())))


class ReplayBody:
    """A body that is read ahead, and sent from its beginning each time that its request is sent.

    `chunks` may be called again when the earlier iteration is over (at its end, cancelled, or just left), as long as
    the body is `replayable`. `close` it when it is not read again.
    """

    __slots__ = (
        "_bodies", "_body", "_client", "_complete", "_file", "_in_file", "_in_memory", "_kept", "_live",
        "_patience", "_size", "replayable", "waited",
    )  # fmt: skip

    def __init__(self, body: Body, client: str, bodies: Bodies) -> None:
        """`client`: the name of the client whose share of the room it takes."""
        self._body = body
        self._client = client
        self._bodies = bodies
        self._patience: Micros = 0
        """How long to wait for room."""
        self._live: AsyncIterator[bytes] = body.chunks()
        self._complete = body.length == 0
        self._file: SpoolFile | None = None
        self._kept: list[bytes] = []
        """Chunks kept in memory; they follow the bytes in the file."""
        self._size = 0
        """Bytes of both."""
        self._in_memory = 0
        """Bytes taken of the room in memory."""
        self._in_file = 0
        """Bytes taken of the room in files."""
        self.replayable: bool = True
        """Whether everything that was read is still there."""
        self.waited: Micros = 0
        """Spent waiting for room."""

    @property
    def length(self) -> int | None:
        """Its `Content-Length` in bytes; `None` when it came in chunks."""
        return self._body.length

    # Before its request waits

    async def read_ahead(self, patience: Micros) -> None:
        """Read to the end, or as far as permitted; `patience` is how long to wait for room.

        Raises:
            TooMany: there was no room in time.
            TooLarge, TooSlow, BadRequest, ConnectionError: from the body itself.
        """
        self._patience = patience
        bound = await self._make_room()
        while not self._complete:
            if self._size >= bound:
                bound = await self._outgrow()
                if self._size >= bound:
                    break
            chunk = await anext(self._live, None)
            if chunk is None:
                self._complete = True
                break
            self._size += len(chunk)
            self._complete = self._size == self.length
            if not await self._keep(chunk):
                break
        self._settle_room()

    async def _make_room(self) -> int:
        """Take room for what will be read; returns how much."""
        bodies, length = self._bodies, self.length
        if length is None or length <= bodies.in_memory or not bodies.in_file:
            number = bodies.in_memory if length is None else min(length, bodies.in_memory)
            if bodies.memory.take(self._client, number):
                self._in_memory = number
                return number
            if not bodies.in_file:
                await self._wait(bodies.memory, number)
                self._in_memory = number
                return number
        return await self._reserve()

    async def _reserve(self) -> int:
        """Take room in a file; returns how much."""
        bodies = self._bodies
        number = bodies.in_file if self.length is None else min(self.length, bodies.in_file)
        if not bodies.files.take(self._client, number):
            await self._wait(bodies.files, number)
        self._in_file = number
        assert bodies.spool is not None
        self._file = SpoolFile(bodies.spool)
        return number

    async def _outgrow(self) -> int:
        """Move a body of unknown length from memory to a file; returns its room there, 0 if it has to stay."""
        if self._file is not None or self.length is not None or self._size >= self._bodies.in_file:
            return 0
        bound = await self._reserve()
        kept, self._kept = self._kept, []
        written = await self._keep(b"".join(kept))
        return bound if written else 0

    async def _wait(self, room: BodyBudget, number: int) -> None:
        began = self._bodies.clock()
        try:
            async with asyncio.timeout((self._patience - self.waited) / SECOND):
                await room.wait(self._client, number)
        except TimeoutError:
            raise _no_room(self._client, self._patience) from None
        finally:
            self.waited += self._bodies.clock() - began

    async def _keep(self, chunk: bytes) -> bool:
        """Keep what was read; false when it could not be written to its file, and stays in memory."""
        if self._file is not None:
            try:
                await self._file.append(chunk)
            except OSError as error:
                self._bodies.failed(error)
            else:
                return True
        self._kept.append(chunk)
        return self._file is None

    def _settle_room(self) -> None:
        """Return the room that is not needed, now that this is known; a body that still streams keeps its room."""
        in_file = self._file.size if self._file is not None else 0
        in_memory = self._size - in_file
        if not self._complete:
            in_file = max(in_file, self._in_file)
            in_memory = max(in_memory, 0 if self._file is not None else self._in_memory)
        self._resize(in_memory, in_file)

    def _resize(self, in_memory: int, in_file: int) -> None:
        self._bodies.memory.change(self._client, in_memory - self._in_memory)
        self._bodies.files.change(self._client, in_file - self._in_file)
        self._in_memory, self._in_file = in_memory, in_file

    # While it is sent

    def chunks(self) -> AsyncIterator[bytes]:
        """The bytes from the beginning.

        Raises:
            RuntimeError: the beginning has been dropped.
            TooSlow: the rest, which was not read ahead, does not come in time.
            TooLarge, BadRequest, ConnectionError: from the body itself.
            Refusal: a file cannot be read back.
        """
        if not self.replayable:
            raise RuntimeError("this body cannot be read again: ask `replayable` first")
        return self._bytes()

    async def _bytes(self) -> AsyncIterator[bytes]:
        position = 0
        while self._file is not None and position < self._file.size:
            piece = await _read_back(self._file, position)
            position += len(piece)
            yield piece
        for chunk in self._kept.copy():
            yield chunk
        if not self._complete:
            self._drop()
            deadline = asyncio.get_running_loop().time() + self._bodies.upload_time
            while (live := await self._rest(deadline)) is not None:
                yield live

    async def _rest(self, deadline: float) -> bytes | None:
        """The next bytes that were not read ahead; `None` at the end."""
        try:
            async with asyncio.timeout_at(deadline):
                if asyncio.get_running_loop().time() < deadline:
                    return await anext(self._live, None)
        except TimeoutError:
            pass
        raise TooSlow(
            f"The rest of the body did not come within {self._bodies.upload_time:g} s of its request's lease "
            "(`inbound.upload_timeout`). Send it faster, or in smaller parts."
        )

    def _drop(self) -> None:
        self.replayable = False
        self._kept.clear()
        if self._file is not None:
            self._file.close()
            self._file = None

    def close(self) -> None:
        """Let go of everything that is kept."""
        self._drop()
        self._resize(0, 0)


async def _read_back(file: SpoolFile, position: int) -> bytes:
    try:
        if piece := await file.read(position):
            return piece
    except OSError:
        pass
    raise Refusal("This proxy cannot read the body back from its temporary file. Send the request again.")


def _no_room(client: str, waited: Micros) -> TooMany:
    """When there will be room is unknown: it is told to wait as long as it has waited in vain."""
    return TooMany(
        f"The bodies of requests of {client} that wait or are sent take all the room that it has. "
        "Send fewer large bodies at once, or come back later.",
        reason="bodies",
        retry_after=max(1, whole_seconds(waited)),
    )
