"""The access log: one line for each request at its end.

It bypasses `logging` (but for the level) and, in JSON, structlog's processors, since a line is written for every
request; names and order of the fields are theirs. Long and hostile parts (path, `User-Agent`) are cut and escaped.
"""

import json
import logging
import sys
import time
from collections.abc import Callable
from functools import lru_cache
from json.encoder import encode_basestring
from random import random
from typing import Any, Literal, TextIO, cast

from keyturn.core.events import RequestLog
from keyturn.core.model import SECOND, Micros
from keyturn.logger import structlog
from keyturn.telemetry.log_writer import LogWriter
from keyturn.telemetry.logs import console, is_text, without_credentials

REQUEST_LOGGER = "keyturn.requests"

MAX_PATH, MAX_USER_AGENT = 512, 256
"""Characters of a path and a `User-Agent` that are logged; longer ones end in `…`."""

BYTE_UNITS = ("B", "kB", "MB", "GB")

CLIENT_ERRORS = 400
SERVER_ERRORS = 500


class AccessLog:
    """Writes to stderr, or to `stream`; `sample` is the part of the successful requests that is written.

    `chance` returns random numbers from 0 up to 1.
    """

    def __init__(
        self,
        form: Literal["text", "json"] | None = None,
        sample: float = 1.0,
        *,
        stream: TextIO | LogWriter | None = None,
        chance: Callable[[], float] = random,
    ) -> None:
        self.sample = sample
        self._chance = chance
        self._level = logging.getLogger(REQUEST_LOGGER)
        self._out = out = stream or sys.stderr
        self._flushes = not isinstance(out, LogWriter)
        self._text = _text_log(out) if is_text(form, out) else None

    def write(self, log: RequestLog) -> None:
        """The line of a request that has ended."""
        failed = log.outcome == "failed" or log.code >= SERVER_ERRORS
        level = logging.WARNING if failed else logging.INFO
        if self._level.isEnabledFor(level) and (self.sample >= 1 or self._wanted(log)):
            if self._text is not None:
                text, values = _words(log)
                self._text.log(level, text, **values)
            else:
                self._out.write(_json_line(log, "warning" if failed else "info"))
                if self._flushes:
                    self._out.flush()

    def _wanted(self, log: RequestLog) -> bool:
        if log.outcome != "forwarded" or log.code >= CLIENT_ERRORS:
            return True
        return self._chance() < self.sample


def _text_log(out: TextIO | LogWriter) -> Any:
    processors: list[structlog.typing.Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        console(out),
    ]
    level = structlog.make_filtering_bound_logger(logging.DEBUG)
    return structlog.wrap_logger(
        structlog.WriteLogger(cast("TextIO", out)), processors=processors, wrapper_class=level
    ).bind()


def _json_line(log: RequestLog, level: str) -> str:
    """The JSON line, without empty texts.

    It is formatted by hand, since `json.dumps` takes as long as all the rest.
    """
    said = (
        f"{_said('id', without_credentials(log.id))}"
        f"{_names(log.client, log.pool, log.key, log.method)}"
        f"{_said('path', shown_path(log.path))}"
        f"{_caller(log.address, log.agent[: MAX_USER_AGENT + 1])}"
        f"{_end(log.outcome, log.reason)}"
    )
    if log.problem:
        said += _said("problem", without_credentials(log.problem))
    if trace_id := log.trace_id:
        said += _said("trace_id", trace_id)
    reading = f'"body_seconds": {log.reading / SECOND}, ' if log.reading else ""
    retried = f', "retry_reasons": {json.dumps(log.retried)}' if log.retried else ""
    return (
        f'{{{said}"code": {log.code}, "received_bytes": {log.received}, "sent_bytes": {log.sent}, '
        f'{reading}"queue_seconds": {log.queued / SECOND}, "upstream_seconds": {log.upstream / SECOND}, '
        f'"total_seconds": {log.total / SECOND}, "attempts": {log.attempts}{retried}, "logger": "{REQUEST_LOGGER}", '
        f'"event": "request", "level": "{level}", "timestamp": "{_timestamp(time.time_ns() // 1000)}"}}\n'
    )


def _said(name: str, text: str) -> str:
    return f'"{name}": {encode_basestring(text)}, ' if text else ""


@lru_cache(maxsize=1024)
def _names(client: str, pool: str, key: str, method: str) -> str:
    """The fields that are the same in many lines."""
    return _said("client", client) + _said("pool", pool) + _said("key", key) + _said("method", method)


@lru_cache(maxsize=1024)
def _caller(address: str, agent: str) -> str:
    return _said("client_address", address) + _said("user_agent", shown_agent(agent))


@lru_cache(maxsize=64)
def _end(outcome: str, reason: str) -> str:
    return _said("outcome", outcome) + _said("reason", reason)


def _timestamp(wall: Micros) -> str:
    """An instant in epoch microseconds as ISO 8601 in UTC."""
    second, rest = divmod(wall, SECOND)
    return f"{_second(second)}.{rest:06d}Z"


@lru_cache(maxsize=2)
def _second(epoch: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(epoch))


def _words(log: RequestLog) -> tuple[str, dict[str, Any]]:
    """The text line: the most important fields first, and without usual values."""
    values: dict[str, Any] = {
        "client": log.client or "unknown",
        "key": log.key,
        "time": _span(log.total),
        "body": _span(log.reading) if log.reading >= SECOND // 100 else "",
        "waited": _span(log.queued) if log.queued >= SECOND // 100 else "",
        "upstream": _span(log.upstream) if log.tries else "",
        "sent": _size(log.sent),
        "received": _size(log.received),
        "reason": without_credentials(log.problem) or log.reason or (log.outcome if log.outcome != "forwarded" else ""),
        "attempts": str(log.attempts) if log.attempts > 1 else "",
        "retry_reasons": ",".join(log.retried),
        "from": log.address,
        "agent": shown_agent(log.agent),
        "id": without_credentials(log.id),
        "trace": log.trace_id,
    }
    text = f"{log.code or '---'} {log.method} {shown_path(log.path) or '?'}"
    return text, {name: value for name, value in values.items() if value}


def shown_path(path: str) -> str:
    """A path as logged: cut, on one line, with what looks like a credential masked."""
    return _shown(path, MAX_PATH)


def shown_agent(agent: str) -> str:
    """A `User-Agent` as logged, treated like a path."""
    return _shown(agent, MAX_USER_AGENT)


def _shown(text: str, most: int) -> str:
    shown = without_credentials(text if len(text) <= most else f"{text[:most]}…")
    return shown if shown.isprintable() else shown.encode("unicode_escape").decode("ascii")


def _span(duration: Micros) -> str:
    return f"{duration / SECOND:.3f}s" if duration < 100 * SECOND else f"{duration / SECOND:.0f}s"


def _size(number: int) -> str:
    power = min(len(BYTE_UNITS) - 1, (len(str(number)) - 1) // 3)
    return "" if not number else f"{number / 1000**power:.{1 if power else 0}f}{BYTE_UNITS[power]}"
