"""Anonymous temporary files for request bodies, written and read by one thread beside the event loop.

Writing to the page cache takes microseconds until the kernel makes writers wait for the disk, which may take seconds:
so no file is touched on the event loop. One thread does all work in the order in which it was submitted. So a cancelled
write is over before its file is closed, and its descriptor cannot be another file's meanwhile. A stalled disk holds up
nothing but this thread: no caller waits longer than `DISK_PATIENCE`, and nothing more is submitted until it recovers.
"""

import asyncio
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO, TypeVar

READ_SIZE = 2**17
"""Bytes that are read at once."""

DISK_PATIENCE = 10.0
"""Seconds for one read or write, and for those submitted before it."""

Result = TypeVar("Result")


class Spool:
    """Makes files in `folder`, by default in $TMPDIR or the system's folder for temporary files."""

    def __init__(self, folder: str | None = None, patience: float = DISK_PATIENCE) -> None:
        self._folder = folder
        self._patience = patience
        self._mute: Future[None] | None = None
        """Done when the thread has recovered from a stalled disk."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="spool")

    async def check(self) -> None:
        """Check that files can be made.

        Raises:
            OSError: they cannot.
        """
        await self.run(lambda: self.make().close())

    def make(self) -> IO[bytes]:
        """Make a file without a name, which is gone when it is closed. Blocks."""
        if self._folder is None:
            self._folder = os.environ.get("TMPDIR") or tempfile.gettempdir()
        return tempfile.TemporaryFile(buffering=0, dir=self._folder)

    @property
    def mute(self) -> bool:
        """Whether the disk is stalled."""
        return self._mute is not None and not self._mute.done()

    async def run(self, work: Callable[[], Result]) -> Result:
        """Do this in the thread, after what was submitted before.

        Raises:
            OSError: the disk is stalled.
        """
        if self.mute:
            raise OSError(_MUTE)
        try:
            async with asyncio.timeout(self._patience):
                return await asyncio.wrap_future(self._thread.submit(work))
        except TimeoutError:
            self._mute = self.later(lambda: None)
            raise OSError(_MUTE) from None

    def later(self, work: Callable[[], None]) -> Future[None]:
        """Do this in the thread, without waiting for it."""
        return self._thread.submit(work)

    def close(self) -> None:
        """End the thread when it has done what was submitted."""
        self._thread.shutdown(wait=False)


_MUTE = "the disk does not answer"


class SpoolFile:
    """One file; it is made with the first bytes."""

    __slots__ = ("_begun", "_file", "_spool", "size")

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._file: IO[bytes] | None = None
        self._begun = False
        """Whether anything was submitted."""
        self.size = 0
        """Bytes that have been written."""

    async def append(self, data: bytes) -> None:
        """Append bytes.

        Raises:
            OSError: the disk is full, broken or stalled; then none of these bytes counts.
        """
        self._begun = self._begun or not self._spool.mute
        await self._spool.run(lambda: self._write(data, self.size))
        self.size += len(data)

    async def read(self, position: int) -> bytes:
        """The next bytes from a position on, empty at the end.

        Raises:
            OSError: the disk is broken or stalled.
        """
        return await self._spool.run(lambda: self._read(position))

    def close(self) -> None:
        """Close the file, after what is still being done with it."""
        if self._begun:
            self._spool.later(self._close)

    def _write(self, data: bytes, position: int) -> None:
        if self._file is None:
            self._file = self._spool.make()
        left = memoryview(data)
        while left:
            written = os.pwrite(self._file.fileno(), left, position)
            position += written
            left = left[written:]

    def _read(self, position: int) -> bytes:
        assert self._file is not None
        return os.pread(self._file.fileno(), min(READ_SIZE, self.size - position), position)

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
