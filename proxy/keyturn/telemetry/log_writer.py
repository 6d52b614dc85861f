"""Write log lines to stderr through a bounded queue and a thread.

Laws of this module:

- Logging never blocks, neither on the reader of a pipe nor on a disk. A line that finds the queue full is dropped and
  counted.
- Dropped lines are reported in their place, as soon as lines are accepted again.
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

QUEUE_BYTES = 2**20
"""The most bytes that wait to be written: two to three thousand lines of requests."""

BATCH_BYTES = 2**16
"""The most bytes that are written at once."""

GATHER_SECONDS = 0.05
"""Seconds in which lines are collected: each time the thread wakes up, it takes the interpreter from the event loop."""

_GAP = b""
"""Marks the place of dropped lines in the queue."""

CLOSE_TIMEOUT = 1.0
"""Seconds for which the process waits at its end for the last lines to be written."""


class LogWriter:
    """A text file that writes lines to the file descriptor of a stream, from a thread.

    It bypasses the stream's own buffer, whose lock a thread that is stuck in a write would hold for ever. A stream
    without a descriptor is used as it is.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        try:
            self._descriptor: int | None = stream.fileno()
        except OSError:
            self._descriptor = None
        self.dropped = 0
        """Lines dropped so far."""
        self.gap: Callable[[int], str] = "{} log lines were dropped\n".format
        """Formats the line in place of dropped ones."""
        self._missing = 0
        """Dropped lines that were not reported yet."""
        self._marked = False
        """Whether `_GAP` is queued."""
        self._held = 0
        self._lock = threading.RLock()  # a line may be logged by what the garbage collector calls, anywhere
        self._lines: SimpleQueue[bytes | None] = SimpleQueue()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log writer", daemon=True)

    # Called by loggers

    def write(self, text: str) -> None:
        """Queue one or more whole lines; never blocks."""
        data = text.encode("utf-8", "backslashreplace")
        with self._lock:
            if self._held + len(data) > QUEUE_BYTES:
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
        """Write a line that its reader waits for: at once if that does not block, else through the queue.

        Raises:
            OSError: it cannot be written.
        """
        if self._descriptor is None or not _is_taken(self._descriptor, 0):
            self.write(f"{line}\n")
        else:
            os.write(self._descriptor, f"{line}\n".encode())

    # Lifetime

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Write what is queued, for at most `CLOSE_TIMEOUT`."""
        self._closing.set()
        self._lines.put(None)
        self._thread.join(CLOSE_TIMEOUT)

    # In the thread

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
                self._closing.wait(GATHER_SECONDS)

    def _next(self) -> tuple[list[bytes], bytes | None]:
        """Take some of the queued lines; return them and the last entry taken: a line, `_GAP` or `None`."""
        found: list[bytes] = []
        size = 0
        while (entry := self._lines.get()) is not None and entry is not _GAP:
            found.append(entry)
            size += len(entry)
            if size >= BATCH_BYTES or self._lines.empty():
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
    """Wait until a short line can be written without blocking, or fails at once. Return whether it can."""
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(milliseconds))
