"""The form of log lines: structlog's own, those that libraries log, and text that would bypass the log.

Warnings, uncaught exceptions of threads and finalizers, and text that a library prints to stderr become lines of the
log, so that they neither block nor break its form.
"""

import io
import logging
import re
import sys
import threading
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any, Literal, TextIO

from aiohttp.http_exceptions import HttpProcessingError

from keyturn.logger import structlog
from keyturn.telemetry.log_writer import LogWriter

LEVELS = ("debug", "info", "warning", "error")


def set_up_logs(level: str, form: Literal["text", "json"] | None, out: TextIO | LogWriter | None = None) -> None:
    """Log to stderr or `out`: text on a terminal, JSON elsewhere, unless the form is given; also what libraries log.

    Tracebacks come without the values of local variables. Access logs of aiohttp stay off: they show queries.
    """
    stream = out or sys.stderr
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
    )
    handler = _Handler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                _without_what_was_sent,
                structlog.processors.format_exc_info,
                _without_credentials,
                console(stream) if is_text(form, stream) else structlog.processors.JSONRenderer(),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    logging.getLogger("aiohttp.access").setLevel(logging.CRITICAL)
    if isinstance(out, LogWriter):
        out.gap = handler.gap


class _Handler(logging.StreamHandler[TextIO | LogWriter]):
    """Write to a stream; for a record that cannot be formatted, a line says so in place of a traceback."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # the base class's name
        """See `logging.Handler`."""
        self.stream.write(self._line(record.name, logging.ERROR, "a log line could not be formatted"))

    def gap(self, number: int) -> str:
        """The line in place of dropped ones."""
        text = f"{number} log lines were dropped here: they were not read in time or could not be written"
        return self._line("keyturn", logging.WARNING, text)

    def _line(self, name: str, level: int, text: str) -> str:
        return self.format(logging.LogRecord(name, level, "", 0, text, (), None)) + self.terminator


def is_text(form: Literal["text", "json"] | None, stream: TextIO | LogWriter) -> bool:
    """Whether lines are text: as configured, else on a terminal."""
    return stream.isatty() if form is None else form == "text"


def console(stream: TextIO | LogWriter) -> "structlog.typing.Processor":
    """Render text lines, in colours on a terminal.

    The default renderer shows local variables where rich is installed, and so the contents of requests.
    """
    return structlog.dev.ConsoleRenderer(
        colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback, sort_keys=False
    )


class LogLevel:
    """The log level of all loggers; it can be changed while the process runs."""

    def __init__(self, configured: str) -> None:
        self.configured = configured

    @property
    def current(self) -> str:
        """Its name."""
        return logging.getLevelName(logging.getLogger().level).lower()

    def set(self, level: str) -> bool:
        """Set the level and log that, while warnings are visible. Return whether the level exists."""
        if level not in LEVELS:
            return False
        root, log = logging.getLogger(), structlog.get_logger("keyturn")
        seen = root.isEnabledFor(logging.WARNING)
        if seen:
            log.warning("the log level is changed", to=level)
        root.setLevel(level.upper())
        if not seen:
            log.warning("the log level was changed", to=level)
        return True

    def toggle(self) -> None:
        """Toggle between `debug` and the configured level, or `info` if that is `debug`."""
        usual = self.configured if self.configured != "debug" else "info"
        self.set("debug" if self.current != "debug" else usual)


_CREDENTIAL = re.compile(
    r"(\b(?:api_?key=|access_key=|x-api-key\W{1,4}|authorization\W{1,4}(?:\w+\s+)?|bearer\s+))[^\s&\"',;]+"
    r"|\bPMAK-[\w-]+",
    re.IGNORECASE,
)


def _without_credentials(_: Any, __: str, entry: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Mask what looks like a credential in all texts of an entry."""
    for name, value in entry.items():
        if isinstance(value, str):
            entry[name] = without_credentials(value)
    return entry


def without_credentials(text: str) -> str:
    """Mask what looks like a credential as `…`."""
    small = text.lower()
    if not ("key" in small or "pmak" in small or "auth" in small or "bearer" in small):
        return text  # nearly every text, in a tenth of the time
    return _CREDENTIAL.sub(lambda found: f"{found[1] or ''}…", text)


def _without_what_was_sent(_: Any, __: str, entry: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Drop the message of aiohttp's parse errors, which quotes the bytes received."""
    exc_info = entry.get("exc_info")
    problem = exc_info[1] if isinstance(exc_info, tuple) else exc_info
    if isinstance(problem, HttpProcessingError):
        entry["exc_info"] = None
        entry["problem"] = type(problem).__name__
    return entry


MAX_LINE = 8192
"""Characters after which text without a line end is logged as a line."""

_log = logging.getLogger("stderr")


class StderrLog(io.TextIOBase):
    """Replaces `sys.stderr`: each line that is printed to it is logged as a warning."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._rest = ""

    def write(self, text: str) -> int:
        """Log the complete lines."""
        *lines, self._rest = (self._rest + text).split("\n")
        if len(self._rest) > MAX_LINE:
            lines, self._rest = [*lines, self._rest], ""
        for line in lines:
            if line.strip():
                _log.warning("%s", line)
        return len(text)

    def fileno(self) -> int:
        """The descriptor of the stream that it replaces."""
        return self._stream.fileno()

    def isatty(self) -> bool:
        """Whether a person reads it."""
        return self._stream.isatty()


@contextmanager
def logging_stray_output() -> Iterator[None]:
    """Within this block, log what would bypass the log."""
    before = sys.stderr, threading.excepthook, sys.unraisablehook
    sys.stderr, threading.excepthook, sys.unraisablehook = StderrLog(sys.stderr), _in_thread, _unraisable
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
