"""The two forms in which metrics are exposed, the choice between them by `Accept`, and what Python itself exposes."""

from collections.abc import Callable, Iterator
from enum import Enum

from aiohttp.helpers import parse_mimetype
from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.openmetrics import exposition as openmetrics

_generate_openmetrics: Callable[[CollectorRegistry], bytes] = openmetrics.generate_latest

OPENMETRICS_END = "# EOF\n"

_RANGES_OF_TEXT = ("text/plain", "text/*", "*/*")


class Form(Enum):
    """A form of exposition; its value is the content type."""

    TEXT = "text/plain; version=0.0.4; charset=utf-8"
    OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


def chosen(accept: str) -> Form:
    """Choose the form by an `Accept` field (RFC 9110, section 12.5.1).

    OpenMetrics 1.0.0 where it is named and not less welcome than text, else the text format 0.0.4: also for versions
    that are not known here, and for what is malformed.
    """
    openmetrics, text = 0.0, dict.fromkeys(_RANGES_OF_TEXT, 0.0)
    for name, version, quality in _ranges(accept):
        if name == "application/openmetrics-text" and version in ("", "1.0.0"):
            openmetrics = max(openmetrics, quality)
        elif name in text:
            text[name] = max(text[name], quality)
    return Form.OPENMETRICS if openmetrics > 0 and openmetrics >= max(text.values()) else Form.TEXT


def _ranges(accept: str) -> Iterator[tuple[str, str, float]]:
    """Media ranges with their version and their quality; those of no valid quality are left out."""
    for member in accept.split(","):
        found = parse_mimetype(member.strip())
        try:
            quality = float(found.parameters.get("q", "1"))
        except ValueError:
            continue
        if 0 <= quality <= 1:
            yield f"{found.type}/{found.subtype}", found.parameters.get("version", ""), quality


class ProcessMetrics:
    """`process_*` and `python_*`: memory, CPU time, file descriptors, garbage collection, the version of Python.

    They are read from `/proc`, so there is no `process_*` where that does not exist.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)

    def exposition(self, form: Form) -> str:
        """Read and write them; this opens files, so it belongs into a thread."""
        if form is Form.TEXT:
            return generate_latest(self._registry).decode()
        return _generate_openmetrics(self._registry).decode().removesuffix(OPENMETRICS_END)
