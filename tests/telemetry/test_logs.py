import gc
import json
import logging
import sys
import threading
import warnings

import pytest
import structlog
from aiohttp.http_exceptions import BadHttpMessage
from keyturn.core.events import UpstreamThrottled
from keyturn.core.model import MILLISECOND, SECOND, Secret
from keyturn.telemetry import LogLevel, Telemetry, logging_stray_output, set_up_logs
from keyturn.telemetry.logs import MAX_LINE

from tests.telemetry.stderr import Stderr, entries


def test_json_has_one_entry_a_line(stderr: Stderr) -> None:
    """With level, logger and instant, whether we log or a library does."""
    set_up_logs("info", "json")
    structlog.get_logger("keyturn").info("served\nwell", pool="default", number=3)
    logging.getLogger("aiohttp.server").warning("from %s", "a library")
    ours, theirs = entries(stderr)
    assert ours.pop("timestamp").endswith("Z")
    assert ours == {"event": "served\nwell", "pool": "default", "number": 3, "logger": "keyturn", "level": "info"}
    assert (theirs["event"], theirs["logger"], theirs["level"]) == ("from a library", "aiohttp.server", "warning")


def test_text_reads_well(stderr: Stderr) -> None:
    """Level, message and values in a line, without colours where nobody looks."""
    set_up_logs("info", "text")
    structlog.get_logger("keyturn").warning("parked", key="k0")
    logging.getLogger("aiohttp.server").error("broken")
    first, second = stderr.getvalue().splitlines()
    assert "warning" in first
    assert "parked" in first
    assert "key=k0" in first
    assert "\x1b" not in first
    assert "broken" in second


@pytest.mark.parametrize(("tty", "as_text"), [(True, True), (False, False)])
def test_the_form_follows_the_terminal(
    stderr: Stderr, monkeypatch: pytest.MonkeyPatch, tty: bool, as_text: bool
) -> None:
    """Text for a person, JSON for a machine, unless the configuration says which."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: tty)
    set_up_logs("info", None)
    structlog.get_logger("keyturn").info("here")
    assert (not stderr.getvalue().startswith("{")) == as_text


def test_setting_up_again_does_not_log_twice(stderr: Stderr) -> None:
    """The last form counts, for loggers that were used before too."""
    telemetry = Telemetry()
    set_up_logs("info", "text")
    telemetry.observe(UpstreamThrottled("default", "k0", "k0", "window", SECOND))
    set_up_logs("info", "json")
    stderr.forget()
    telemetry.observe(UpstreamThrottled("default", "k0", "q0", "window", 1500 * MILLISECOND))
    logging.getLogger("aiohttp.server").warning("once")
    ours, theirs = entries(stderr)
    assert (ours["key"], ours["quota"], ours["wait_seconds"]) == ("k0", "q0", 1.5)
    assert theirs["event"] == "once"


def test_the_level_holds_for_all(stderr: Stderr) -> None:
    """Ours and the libraries'; asyncio never says more than warnings."""
    set_up_logs("warning", "json")
    structlog.get_logger("keyturn").info("too fine")
    logging.getLogger("aiohttp.server").info("too fine")
    assert stderr.getvalue() == ""
    set_up_logs("debug", "json")
    structlog.get_logger("keyturn").debug("fine")
    logging.getLogger("asyncio").debug("Using selector")
    assert [entry["event"] for entry in entries(stderr)] == ["fine"]


def fail(message: str) -> None:
    """Break."""
    raise ValueError(message)


def fail_with_locals() -> None:
    """Break while holding what a request carried."""
    held = b"X-Api-Key: " + b"held-in-a-frame"
    raise RuntimeError(f"broken after {len(held)} bytes")


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("who", ["keyturn", "library"])
def test_exceptions_are_shown_without_local_variables(stderr: Stderr, form: str, who: str) -> None:
    """The traceback and the message; what the frames held may be a credential."""
    set_up_logs("info", "json" if form == "json" else "text")
    try:
        fail_with_locals()
    except RuntimeError:
        if who == "keyturn":
            structlog.get_logger("keyturn").exception("that was unexpected")
        else:
            logging.getLogger("aiohttp.server").exception("that was unexpected")
    shown = stderr.getvalue()
    assert "RuntimeError: broken after 26 bytes" in shown
    assert "fail_with_locals" in shown
    assert "that was unexpected" in shown
    assert "held-in-a-frame" not in shown
    if form == "json":
        assert len(entries(stderr)) == 1


TOKEN = "kt-0123456789abcdef"


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize(
    "message",
    [
        f"GET /collections?apikey={TOKEN}&workspace=1",
        f"GET /collections?workspace=1&api_key={TOKEN}",
        f"GET /collections/1?access_key={TOKEN} HTTP/1.1",
        f"bad field: b'X-Api-Key: {TOKEN}'",
        f"{{'x-api-key': '{TOKEN}'}}",
        f"Authorization: Bearer {TOKEN}",
        f"authorization: {TOKEN}",
        f"bearer  {TOKEN}",
        f"the key PMAK-{TOKEN} is wrong",
    ],
)
def test_what_looks_like_a_credential_is_not_logged(stderr: Stderr, form: str, message: str) -> None:
    """Law 11, for what libraries put into messages, values and exceptions."""
    set_up_logs("info", "json" if form == "json" else "text")
    logging.getLogger("aiohttp.server").warning(message)
    try:
        fail(message)
    except ValueError:
        structlog.get_logger("keyturn").exception("failed", detail=message, held=Secret(TOKEN))
    assert TOKEN not in stderr.getvalue()
    assert "…" in stderr.getvalue() or "\\u2026" in stderr.getvalue()


def test_bytes_that_could_not_be_parsed_are_not_logged(stderr: Stderr) -> None:
    """The server's parser quotes them, and they may be any part of a credential."""
    set_up_logs("info", "json")
    problem = BadHttpMessage(f"Invalid header value char:\n\n  b'{TOKEN}\\x00'")
    logging.getLogger("aiohttp.server").error("Error handling request from %s", "127.0.0.1", exc_info=problem)
    (entry,) = entries(stderr)
    assert TOKEN not in stderr.getvalue()
    assert (entry["event"], entry["problem"]) == ("Error handling request from 127.0.0.1", "BadHttpMessage")


def test_access_logs_of_libraries_are_off(stderr: Stderr) -> None:
    """They show queries."""
    set_up_logs("debug", "json")
    logging.getLogger("aiohttp.access").info("GET /collections?token=%s", TOKEN)
    assert stderr.getvalue() == ""


def test_what_cannot_be_written_as_json_does_not_break_the_log(stderr: Stderr) -> None:
    """It is shown as Python would."""
    set_up_logs("info", "json")
    structlog.get_logger("keyturn").info("odd", value={1, 2}, raw=b"\xff")
    (entry,) = entries(stderr)
    assert entry["value"] == "{1, 2}"


def test_the_level_changes_while_it_runs(stderr: Stderr) -> None:
    """For everybody at once; the change is told as long as warnings are seen."""
    set_up_logs("info", "json")
    level = LogLevel("info")
    assert level.set("error")
    logging.getLogger("aiohttp.server").warning("unheard")
    assert level.set("debug")
    structlog.get_logger("keyturn").debug("heard")
    assert level.current == "debug"
    assert [(entry["event"], entry.get("to")) for entry in entries(stderr)] == [
        ("the log level is changed", "error"),
        ("the log level was changed", "debug"),
        ("heard", None),
    ]


def test_there_are_four_levels(stderr: Stderr) -> None:
    """Another is not taken."""
    set_up_logs("info", "json")
    assert not LogLevel("info").set("loud")
    assert LogLevel("info").current == "info"


@pytest.mark.parametrize(("configured", "other"), [("info", "debug"), ("error", "debug"), ("debug", "info")])
def test_a_signal_switches_between_two_levels(stderr: Stderr, configured: str, other: str) -> None:
    """The configured level, and every level."""
    set_up_logs(configured, "json")
    level = LogLevel(configured)
    for expected in (other, configured, other):
        level.toggle()
        assert level.current == expected


def test_what_is_printed_becomes_lines_of_the_log(stderr: Stderr) -> None:
    """Whole ones, of the form of all others; a line that does not end is cut."""
    set_up_logs("info", "json")
    with logging_stray_output():
        sys.stderr.write("from a ")
        sys.stderr.write("library\n\nand more\n")
        sys.stderr.write("x" * (MAX_LINE + 1))
        assert not sys.stderr.isatty()
    first, second, cut = entries(stderr)
    assert (first["event"], first["level"], first["logger"]) == ("from a library", "warning", "stderr")
    assert (second["event"], len(cut["event"])) == ("and more", MAX_LINE + 1)


@pytest.mark.filterwarnings("always")
def test_warnings_of_python_become_lines_of_the_log(stderr: Stderr) -> None:
    """One line each, in JSON."""
    set_up_logs("info", "json")
    with logging_stray_output():
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    (entry,) = entries(stderr)
    assert (entry["logger"], "DeprecationWarning: old" in entry["event"]) == ("py.warnings", True)


def fail_in_thread() -> None:
    """Break in a thread."""
    raise ValueError("broken in a thread")


def test_exceptions_that_nobody_catches_become_lines_of_the_log(stderr: Stderr) -> None:
    """Those of threads, and those of finalizers."""

    class Last:
        def __del__(self) -> None:
            raise ValueError("broken at the end")

    set_up_logs("info", "json")
    with logging_stray_output():
        thread = threading.Thread(target=fail_in_thread, name="a-thread")
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
    """Stderr and the hooks are restored."""
    before = sys.stderr, threading.excepthook, sys.unraisablehook, warnings.showwarning
    with logging_stray_output():
        assert sys.stderr is not before[0]
    assert (sys.stderr, threading.excepthook, sys.unraisablehook, warnings.showwarning) == before


class Unspeakable:
    """Cannot be shown."""

    def __str__(self) -> str:
        raise ValueError("cannot be shown")


def test_a_line_that_cannot_be_formatted_is_told_of(stderr: Stderr) -> None:
    """Without a traceback beside the log, and without telling of it for ever."""
    set_up_logs("info", "json")
    with logging_stray_output():
        logging.getLogger("aiohttp.server").warning("%s", Unspeakable())
    (line,) = stderr.getvalue().splitlines()
    assert json.loads(line)["event"] == "a log line could not be formatted"
