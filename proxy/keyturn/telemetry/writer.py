"""The way of log lines to stderr: a bounded queue, and a thread that writes.

Laws of this module:

- Logging never waits, neither for the reader of a pipe nor for a disk. A line that finds the queue full is dropped and
  counted.
- A gap is reported in its place, as soon as lines are taken again.
- The process ends in bounded time, even while the thread is stuck in a write that never returns.
"""

import os
import select
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from types import TracebackType
from typing import Self, TextIO

CAPACITY = 2**20
"""Bytes that wait to be written, at the most: two to three thousand lines of requests."""

BATCH = 2**16
"""Bytes that are written at once."""

PAUSE = 0.01
"""Seconds in which lines are gathered, so that the thread is not woken for each of them."""

_GAP = b""
"""Stands in the queue where lines are missing."""

LAST_WORDS = 1.0
"""Seconds for which the end of the process waits for lines that nobody takes."""


class LogWriter:
    """Writes lines to the file descriptor of a stream; looks like a text file to those who write to it.

    It bypasses the stream's own buffer, whose lock a thread that is stuck in a write would keep for ever. A stream
    without a descriptor is written to as it is.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        try:
            self._descriptor: int | None = stream.fileno()
        except OSError:
            self._descriptor = None
        self.dropped = 0
        """Lines that were not written, so far."""
        self.gap: Callable[[int], str] = "{} log lines were dropped\n".format
        """The line that is written in place of so many dropped ones."""
        self._missing = 0
        """Dropped lines that no gap has told of."""
        self._marked = False
        """Whether `_GAP` is queued."""
        self._held = 0
        self._lock = threading.RLock()  # a line may be logged by what the garbage collector calls, anywhere
        self._lines: SimpleQueue[bytes | None] = SimpleQueue()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log writer", daemon=True)

    # For those who log

    def write(self, text: str) -> None:
        """Queue one or more whole lines; never blocks."""
        data = text.encode("utf-8", "backslashreplace")
        with self._lock:
            if self._held + len(data) > CAPACITY:
                self._drop(data)
                return
            if self._missing and not self._marked:
                self._marked = True
                self._lines.put(_GAP)
            self._held += len(data)
            self._lines.put(data)

    def flush(self) -> None:
        """Do nothing: lines are written as soon as possible."""

    def isatty(self) -> bool:
        """Whether a person reads it."""
        return self._stream.isatty()

    def say(self, line: str) -> None:
        """Write a line that its reader waits for: at once where that does not block, else queue it.

        Raises:
            OSError: it cannot be written.
        """
        if self._descriptor is None or not _is_taken(self._descriptor, 0):
            self.write(f"{line}\n")
        else:
            os.write(self._descriptor, f"{line}\n".encode())

    # Its life

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Write what is queued, for `LAST_WORDS` at the most."""
        self._closing.set()
        self._lines.put(None)
        self._thread.join(LAST_WORDS)

    # The thread

    def _run(self) -> None:
        ended = False
        while not ended:
            lines, last = self._next()
            ended = last is None
            if lines:
                self._put_out(b"".join(lines))
            if self._missing and (last is _GAP or self._lines.empty()):
                self._tell_gap()
            if not ended:
                self._closing.wait(PAUSE)

    def _next(self) -> tuple[list[bytes], bytes | None]:
        """Take some of the queued lines, and tell the last entry that was taken: one of them, `_GAP`, or `None`."""
        found: list[bytes] = []
        size = 0
        while (entry := self._lines.get()) is not None and entry is not _GAP:
            found.append(entry)
            size += len(entry)
            if size >= BATCH or self._lines.empty():
                break
        return found, entry

    def _put_out(self, batch: bytes) -> None:
        try:
            self._write(batch)
        except OSError:
            with self._lock:
                self._drop(batch)
        with self._lock:
            self._held -= len(batch)

    def _drop(self, lines: bytes) -> None:
        number = lines.count(b"\n")
        self.dropped += number
        self._missing += number

    def _tell_gap(self) -> None:
        missing, self._marked = self._missing, False
        with suppress(OSError):
            self._write(self.gap(missing).encode("utf-8", "backslashreplace"))
            with self._lock:
                self._missing -= missing

    def _write(self, data: bytes) -> None:
        if self._descriptor is None:
            self._stream.write(data.decode())
            self._stream.flush()
            return
        while data:
            try:
                data = data[os.write(self._descriptor, data) :]
            except BlockingIOError:  # whoever shares the descriptor has made it so
                _is_taken(self._descriptor, None)


def _is_taken(descriptor: int, milliseconds: int | None) -> bool:
    """Wait until a short line can be written without waiting, or fails at once; whether that is so."""
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(milliseconds))
