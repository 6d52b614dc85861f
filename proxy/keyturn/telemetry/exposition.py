"""Formats of exposition, and the counters, gauges and histograms that are written in them.

prometheus_client's own metrics take a lock for each number and build an object of each sample before they write it.
Here one thread counts, about ten times for each request, and a scrape may pause after any line.
"""

import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from itertools import accumulate
from typing import Literal, NamedTuple

from aiohttp.helpers import parse_mimetype
from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.utils import floatToGoString

_generate_openmetrics: Callable[[CollectorRegistry], bytes] = openmetrics.generate_latest

OPENMETRICS_END = "# EOF\n"

_RANGES_OF_TEXT = ("text/plain", "text/*", "*/*")


class Form(Enum):
    """A form of exposition; its value is the content type."""

    TEXT = "text/plain; version=0.0.4; charset=utf-8"
    OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


def choose_form(accept: str) -> Form:
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


Labels = tuple[str, ...]

NANOSECONDS = 10**9

number: Callable[[float], str] = floatToGoString
"""Write a number as the exposition formats do."""


class Metric:
    """Base of all kinds: name, type, help text and the names of labels."""

    def __init__(self, kind: Literal["counter", "gauge", "histogram"], name: str, text: str, labels: Labels) -> None:
        self.kind = kind
        self.name = name
        self._text = text
        self._places = sorted((label, place) for place, label in enumerate(labels))
        """The names of labels in alphabetical order, and the position of each value."""
        self._sample = f"{name}_total" if kind == "counter" else name

    def head(self, form: Form) -> str:
        """The lines before its samples; only the text format names a counter like its samples."""
        name = self._sample if form is Form.TEXT else self.name
        return f"# HELP {name} {self._text}\n# TYPE {name} {self.kind}\n"

    def pairs(self, labels: Labels) -> str:
        """Labels as written between braces."""
        return ",".join([f'{name}="{_escaped(labels[place])}"' for name, place in self._places])

    def sample(self, labels: Labels, value: float) -> str:
        """The line of one number."""
        return f"{self._sample}{_braced(self.pairs(labels))} {number(value)}\n"

    def lines(self, form: Form) -> Iterator[str]:
        """Its head and its samples. Samples that are added meanwhile may be missing; each line is complete."""
        raise NotImplementedError


class Gauge(Metric):
    """Numbers that are kept elsewhere and read when they are written; also a counter of that kind."""

    def __init__(
        self,
        name: str,
        text: str,
        labels: Labels,
        samples: Iterable[tuple[Labels, float]],
        kind: Literal["counter", "gauge"] = "gauge",
    ) -> None:
        super().__init__(kind, name, text, labels)
        self._samples = samples

    def lines(self, form: Form) -> Iterator[str]:
        """See `Metric`."""
        yield self.head(form)
        for labels, value in self._samples:
            yield self.sample(labels, value)


class Counter(Metric):
    """A counter for each set of labels; as bounded as the labels are."""

    def __init__(self, name: str, text: str, labels: Labels) -> None:
        super().__init__("counter", name, text, labels)
        self._counts: dict[Labels, int] = {}

    def add(self, labels: Labels, times: int = 1) -> None:
        """Add to a count."""
        self._counts[labels] = self._counts.get(labels, 0) + times

    def expect(self, labels: Labels) -> None:
        """Expose a count of 0: a scraper sees growth only from a number that it has seen before."""
        self._counts.setdefault(labels, 0)

    def lines(self, form: Form) -> Iterator[str]:
        """See `Metric`."""
        yield self.head(form)
        for labels, count in list(self._counts.items()):
            yield self.sample(labels, count)

    def __len__(self) -> int:
        return len(self._counts)


class _Exemplar(NamedTuple):
    """A value of a trace, and its time (epoch, seconds)."""

    trace: str
    value: float
    at: float

    def __str__(self) -> str:
        return f' # {{trace_id="{self.trace}"}} {number(self.value)} {self.at}'


def add_to(row: list[float], bounds: tuple[float, ...], value: float) -> int:
    """Count a value in a histogram's row; returns its bucket."""
    index = bisect_left(bounds, value)
    row[index] += 1
    row[-1] += value
    return index


class Histogram(Metric):
    """How many values fell into each bucket, and their sum, for each set of labels; as bounded as the labels are.

    The last value of each bucket that belongs to a trace is kept as its exemplar, with its wall time; OpenMetrics only
    shows them.
    """

    def __init__(
        self, name: str, text: str, labels: Labels, bounds: tuple[float, ...], wall: Callable[[], int] = time.time_ns
    ) -> None:
        super().__init__("histogram", name, text, labels)
        self._bounds = bounds
        self._shown_bounds = [*map(number, bounds), "+Inf"]
        self._wall = wall
        self._rows: dict[Labels, list[float]] = {}
        """The count of each bucket, then the sum."""
        self._exemplars: dict[Labels, dict[int, _Exemplar]] = {}

    def add(self, labels: Labels, value: float, trace: str = "") -> None:
        """Take a value; a bound belongs to the bucket below it."""
        index = add_to(self.row(labels), self._bounds, value)
        if trace:
            exemplar = _Exemplar(trace, value, self._wall() / NANOSECONDS)
            self._exemplars.setdefault(labels, {})[index] = exemplar

    def row(self, labels: Labels) -> list[float]:
        """The numbers of one set of labels, to be kept and counted in by `add_to`; they are exposed from now on."""
        row = self._rows.get(labels)
        if row is None:
            row = self._rows[labels] = [0] * (len(self._bounds) + 2)
        return row

    def lines(self, form: Form) -> Iterator[str]:
        """See `Metric`; the lines of one set of labels are of one moment."""
        yield self.head(form)
        for labels, row in list(self._rows.items()):
            yield from self._row(labels, row, form)

    def _row(self, labels: Labels, row: list[float], form: Form) -> list[str]:
        *counts, total = row
        pairs = self.pairs(labels)
        others, braced = pairs and f",{pairs}", _braced(pairs)
        exemplars = self._exemplars.get(labels, {}) if form is Form.OPENMETRICS else {}
        lines = [
            f'{self.name}_bucket{{le="{bound}"{others}}} {number(count)}{exemplars.get(index, "")}\n'
            for index, (bound, count) in enumerate(zip(self._shown_bounds, accumulate(counts), strict=True))
        ]
        lines.append(f"{self.name}_count{braced} {number(sum(counts))}\n")
        lines.append(f"{self.name}_sum{braced} {number(total)}\n")
        return lines

    def __len__(self) -> int:
        return len(self._rows)


def _braced(pairs: str) -> str:
    return pairs and f"{{{pairs}}}"


def _escaped(value: str) -> str:
    if "\\" in value or '"' in value or "\n" in value:
        return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    return value
