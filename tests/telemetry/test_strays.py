import gc
import json
import logging
import sys
import threading
import warnings

import pytest
from keyturn.telemetry import set_up_logs, strays_logged
from keyturn.telemetry.strays import LONGEST

from tests.telemetry.stderr import Stderr, entries


def test_what_is_printed_becomes_lines_of_the_log(stderr: Stderr) -> None:
    """Whole ones, of the form of all others; a line that does not end is cut."""
    set_up_logs("info", "json")
    with strays_logged():
        sys.stderr.write("from a ")
        sys.stderr.write("library\n\nand more\n")
        sys.stderr.write("x" * (LONGEST + 1))
        assert not sys.stderr.isatty()
    first, second, cut = entries(stderr)
    assert (first["event"], first["level"], first["logger"]) == ("from a library", "warning", "stderr")
    assert (second["event"], len(cut["event"])) == ("and more", LONGEST + 1)


@pytest.mark.filterwarnings("always")
def test_warnings_of_python_become_lines_of_the_log(stderr: Stderr) -> None:
    """One line each, in JSON."""
    set_up_logs("info", "json")
    with strays_logged():
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    (entry,) = entries(stderr)
    assert (entry["logger"], "DeprecationWarning: old" in entry["event"]) == ("py.warnings", True)


def fail() -> None:
    """Break in a thread."""
    raise ValueError("broken in a thread")


def test_exceptions_that_nobody_catches_become_lines_of_the_log(stderr: Stderr) -> None:
    """Those of threads, and those of finalizers."""

    class Last:
        def __del__(self) -> None:
            raise ValueError("broken at the end")

    set_up_logs("info", "json")
    with strays_logged():
        thread = threading.Thread(target=fail, name="a-thread")
        thread.start()
        thread.join()
        Last()
        gc.collect()
        silent = threading.Thread(target=sys.exit)
        silent.start()
        silent.join()
    first, second = entries(stderr)
    assert (first["event"], first["level"]) == ("uncaught exception in the thread a-thread", "error")
    assert "ValueError: broken in a thread" in first["exception"]
    assert "ValueError: broken at the end" in second["exception"]


def test_all_is_as_before_behind_it(stderr: Stderr) -> None:
    """Of stderr and of the hooks."""
    before = sys.stderr, threading.excepthook, sys.unraisablehook, warnings.showwarning
    with strays_logged():
        assert sys.stderr is not before[0]
    assert (sys.stderr, threading.excepthook, sys.unraisablehook, warnings.showwarning) == before


class Unspeakable:
    """Cannot be shown."""

    def __str__(self) -> str:
        raise ValueError("cannot be shown")


def test_a_line_that_cannot_be_formatted_is_told_of(stderr: Stderr) -> None:
    """Without a traceback beside the log, and without telling of it for ever."""
    set_up_logs("info", "json")
    with strays_logged():
        logging.getLogger("aiohttp.server").warning("%s", Unspeakable())
    (line,) = stderr.getvalue().splitlines()
    assert json.loads(line)["event"] == "a line of the log could not be formatted"
