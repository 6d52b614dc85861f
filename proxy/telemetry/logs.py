"""Where log lines go and what they look like: structlog's own, and what libraries log through `logging`."""

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any, Literal

import structlog
from aiohttp.http_exceptions import HttpProcessingError
from structlog.typing import Processor


def set_up_logs(level: str, form: Literal["text", "json"] | None) -> None:
    """Log to stderr: text on a terminal, JSON elsewhere, unless the form is given; also what libraries log.

    Tracebacks come without the values of local variables. Access logs of aiohttp stay off: they show queries.
    """
    as_text = sys.stderr.isatty() if form is None else form == "text"
    shared: list[Processor] = [
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                _without_what_was_sent,
                structlog.processors.format_exc_info,
                _without_credentials,
                _renderer(as_text=as_text),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    logging.getLogger("aiohttp.access").setLevel(logging.CRITICAL)


def _renderer(*, as_text: bool) -> Processor:
    if not as_text:
        return structlog.processors.JSONRenderer()
    # Its default shows local variables where rich is installed, and so whatever a request carried.
    return structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)


_CREDENTIAL = re.compile(
    r"(\b(?:api_?key=|access_key=|x-api-key\W{1,4}|authorization\W{1,4}(?:\w+\s+)?|bearer\s+))[^\s&\"',;]+"
    r"|\bPMAK-[\w-]+",
    re.IGNORECASE,
)


def _without_credentials(_: Any, __: str, entry: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Put `…` for what looks like a credential in any text of an entry."""
    for name, value in entry.items():
        if isinstance(value, str):
            entry[name] = _CREDENTIAL.sub(lambda found: f"{found[1] or ''}…", value)
    return entry


def _without_what_was_sent(_: Any, __: str, entry: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Of what aiohttp could not parse, only the kind of mistake: its message quotes the bytes."""
    exc_info = entry.get("exc_info")
    problem = exc_info[1] if isinstance(exc_info, tuple) else exc_info
    if isinstance(problem, HttpProcessingError):
        entry["exc_info"] = None
        entry["problem"] = type(problem).__name__
    return entry
