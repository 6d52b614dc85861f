"""The observer of a process: what lower floors emit becomes metrics, log lines, and what is remembered of them."""

import logging
import time
from collections.abc import Callable

from keyturn.core.events import Event, Exchanged, RequestLog, UpstreamAnswered
from keyturn.core.model import Micros
from keyturn.logger import structlog
from keyturn.telemetry.changes import line_of
from keyturn.telemetry.history import History
from keyturn.telemetry.metrics import Metrics
from keyturn.telemetry.requests import AccessLog

_COUNTED_ONLY = (UpstreamAnswered, Exchanged)
"""Events of which there is one for every request, and nothing else to tell."""


def _monotonic() -> Micros:
    return time.monotonic_ns() // 1000


def _wall() -> Micros:
    return time.time_ns() // 1000  # people read it


class Telemetry:
    """Counts every event, remembers the last of some, and logs what somebody has to know.

    `clock` is monotonic, `wall` epoch, both in microseconds.
    """

    def __init__(
        self,
        clock: Callable[[], Micros] = _monotonic,
        wall: Callable[[], Micros] = _wall,
        requests: AccessLog | None = None,
    ) -> None:
        self.metrics = Metrics()
        self.history = History(clock, wall)
        self._requests = requests or AccessLog()
        self._log = structlog.get_logger("keyturn")

    def observe(self, event: Event) -> None:
        """See `core.events.Observer`."""
        self.metrics.observe(event)
        if isinstance(event, _COUNTED_ONLY):
            return
        self.history.observe(event)
        if isinstance(event, RequestLog):
            self._requests.write(event)
            event.trace.end(event)
        elif line := line_of(event):
            values = {name: value for name, value in line.values.items() if value not in ("", None)}
            self._log.log(getattr(logging, line.level.upper()), line.text, **values)
