"""The form of log lines: structlog's own, and those that libraries log through `logging`."""

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any, Literal, TextIO

from aiohttp.http_exceptions import HttpProcessingError

from keyturn.logger import structlog
from keyturn.telemetry.writer import LogWriter

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
    """Writes to a stream; a record that cannot be formatted is a line of its own, not a traceback beside the log."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # the base class's name
        """See `logging.Handler`."""
        self.stream.write(self._line(record.name, logging.ERROR, "a line of the log could not be formatted"))

    def gap(self, number: int) -> str:
        """The line that stands where so many are missing."""
        text = f"{number} lines of the log were dropped here: it was not read in time, or could not be written"
        return self._line("keyturn", logging.WARNING, text)

    def _line(self, name: str, level: int, text: str) -> str:
        return self.format(logging.LogRecord(name, level, "", 0, text, (), None)) + self.terminator


def is_text(form: Literal["text", "json"] | None, stream: TextIO | LogWriter) -> bool:
    """Whether lines are for people: by the configuration, else if somebody looks."""
    return stream.isatty() if form is None else form == "text"


def console(stream: TextIO | LogWriter) -> "structlog.typing.Processor":
    """Lines for people, in colours on a terminal.

    Its default shows local variables where rich is installed, and so whatever a request carried.
    """
    return structlog.dev.ConsoleRenderer(
        colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback, sort_keys=False
    )


class LogLevel:
    """The severity from which on is logged, by everybody; it may be changed while the process runs."""

    def __init__(self, configured: str) -> None:
        self.configured = configured

    @property
    def current(self) -> str:
        """Its name."""
        return logging.getLevelName(logging.getLogger().level).lower()

    def set(self, level: str) -> bool:
        """Log from this one on; whether there is such a one. It is said while warnings are still, or already, seen."""
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
        """Between everything and what is configured; between everything and `info` where that is the same."""
        usual = self.configured if self.configured != "debug" else "info"
        self.set("debug" if self.current != "debug" else usual)


_CREDENTIAL = re.compile(
    r"(\b(?:api_?key=|access_key=|x-api-key\W{1,4}|authorization\W{1,4}(?:\w+\s+)?|bearer\s+))[^\s&\"',;]+"
    r"|\bPMAK-[\w-]+",
    re.IGNORECASE,
)


def _without_credentials(_: Any, __: str, entry: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Put `…` for what looks like a credential in any text of an entry."""
    for name, value in entry.items():
        if isinstance(value, str):
            entry[name] = without_credentials(value)
    return entry


def without_credentials(text: str) -> str:
    """The text with `…` for what looks like a credential."""
    small = text.lower()
    if not ("key" in small or "pmak" in small or "auth" in small or "bearer" in small):
        return text  # so for nearly every text, in a tenth of the time
    return _CREDENTIAL.sub(lambda found: f"{found[1] or ''}…", text)


def _without_what_was_sent(_: Any, __: str, entry: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Of what aiohttp could not parse, only the kind of mistake: its message quotes the bytes."""
    exc_info = entry.get("exc_info")
    problem = exc_info[1] if isinstance(exc_info, tuple) else exc_info
    if isinstance(problem, HttpProcessingError):
        entry["exc_info"] = None
        entry["problem"] = type(problem).__name__
    return entry
