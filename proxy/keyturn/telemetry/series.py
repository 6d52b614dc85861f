"""Counters, gauges and histograms as plain numbers, written line by line when somebody asks.

prometheus_client's own take a lock for each number, and make an object of each sample before they write it. Here one
thread counts, every request does so about ten times, and a scrape may stop at any line and go on later.
"""

import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from typing import Literal, NamedTuple

from prometheus_client.utils import floatToGoString

from keyturn.telemetry.exposition import Form

Labels = tuple[str, ...]

NANOSECONDS = 10**9

number: Callable[[float], str] = floatToGoString
"""A number as the formats of exposition write it."""


class Metric:
    """Base of all kinds: name, type, help text and the names of labels."""

    def __init__(self, kind: Literal["counter", "gauge", "histogram"], name: str, text: str, labels: Labels) -> None:
        self.kind = kind
        self.name = name
        self._text = text
        self._places = sorted((label, place) for place, label in enumerate(labels))
        """The names of labels in alphabetical order, and where the value of each stands."""
        self._sample = f"{name}_total" if kind == "counter" else name

    def head(self, form: Form) -> str:
        """The lines before its samples; only the text format names a counter as its sample is named."""
        name = self._sample if form is Form.TEXT else self.name
        return f"# HELP {name} {self._text}\n# TYPE {name} {self.kind}\n"

    def pairs(self, labels: Labels) -> str:
        """Labels as they are written between braces."""
        return ",".join([f'{name}="{_escaped(labels[place])}"' for name, place in self._places])

    def sample(self, labels: Labels, value: float) -> str:
        """The line of one number."""
        return f"{self._sample}{_braced(self.pairs(labels))} {number(value)}\n"

    def lines(self, form: Form) -> Iterator[str]:
        """Its head and its samples. Samples that are added meanwhile may show or not; each line is whole."""
        raise NotImplementedError


class Gauge(Metric):
    """Numbers that are kept elsewhere and read while they are written; also a counter of that kind."""

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
        """Count so many."""
        self._counts[labels] = self._counts.get(labels, 0) + times

    def expect(self, labels: Labels) -> None:
        """Expose a count of 0, too: a scraper sees a growth only from a number that it has seen before."""
        self._counts.setdefault(labels, 0)

    def lines(self, form: Form) -> Iterator[str]:
        """See `Metric`."""
        yield self.head(form)
        for labels, count in list(self._counts.items()):
            yield self.sample(labels, count)

    def __len__(self) -> int:
        return len(self._counts)


class _Exemplar(NamedTuple):
    """A value of a trace, and when it was taken (epoch, seconds)."""

    trace: str
    value: float
    at: float

    def __str__(self) -> str:
        return f' # {{trace_id="{self.trace}"}} {number(self.value)} {self.at}'


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
        row = self._rows.get(labels)
        if row is None:
            row = self._rows[labels] = [0] * (len(self._bounds) + 2)
        index = bisect_left(self._bounds, value)
        row[index] += 1
        row[-1] += value
        if trace:
            exemplar = _Exemplar(trace, value, self._wall() / NANOSECONDS)
            self._exemplars.setdefault(labels, {})[index] = exemplar

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
