"""Turn text that would bypass the log into lines of the log, so that it neither blocks nor breaks the log's form.

Covers warnings, uncaught exceptions of threads and of finalizers, and output that a library prints to stderr.
"""

import io
import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

LONGEST = 8192
"""Characters of a line that has no end yet; then it is taken for one."""

_log = logging.getLogger("stderr")


class Strays(io.TextIOBase):
    """Stands for `sys.stderr`: each line that is printed to it is logged as a warning."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._rest = ""

    def write(self, text: str) -> int:
        """Log the lines that have come to their end."""
        *lines, self._rest = (self._rest + text).split("\n")
        if len(self._rest) > LONGEST:
            lines, self._rest = [*lines, self._rest], ""
        for line in lines:
            if line.strip():
                _log.warning("%s", line)
        return len(text)

    def fileno(self) -> int:
        """The descriptor of what it stands for."""
        return self._stream.fileno()

    def isatty(self) -> bool:
        """Whether a person reads it."""
        return self._stream.isatty()


@contextmanager
def strays_logged() -> Iterator[None]:
    """Log them all, within this block."""
    before = sys.stderr, threading.excepthook, sys.unraisablehook
    sys.stderr, threading.excepthook, sys.unraisablehook = Strays(sys.stderr), _in_thread, _unraisable
    logging.captureWarnings(capture=True)
    try:
        yield
    finally:
        logging.captureWarnings(capture=False)
        sys.stderr, threading.excepthook, sys.unraisablehook = before


def _in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_type is not SystemExit:
        name = args.thread.name if args.thread else "that has gone"
        _log.error("uncaught exception in the thread %s", name, exc_info=args.exc_value)


def _unraisable(args: "sys.UnraisableHookArgs") -> None:
    _log.error("%s", args.err_msg or "an exception was ignored", exc_info=args.exc_value)
