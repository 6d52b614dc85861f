"""Counters and histograms as plain numbers, put into families when somebody asks.

prometheus_client's own take a lock for each number and walk through the buckets. Here one thread counts, and every
request does so about ten times.
"""

import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, Exemplar, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

Labels = tuple[str, ...]

NANOSECONDS = 10**9


class Counter(Collector):
    """A counter for each set of labels; as bounded as the labels are."""

    def __init__(self, name: str, text: str, labels: Labels) -> None:
        self._name = name
        self._text = text
        self._labels = labels
        self._counts: dict[Labels, int] = {}

    def add(self, labels: Labels, number: int = 1) -> None:
        """Count so many."""
        self._counts[labels] = self._counts.get(labels, 0) + number

    def expect(self, labels: Labels) -> None:
        """Tell of what has not happened, too: a scraper sees a growth only from a number that it has seen before."""
        self._counts.setdefault(labels, 0)

    def collect(self) -> Iterator[CounterMetricFamily]:
        """See `prometheus_client.registry.Collector`."""
        family = CounterMetricFamily(self._name, self._text, labels=self._labels)
        for labels, count in self._counts.items():
            family.add_metric(labels, count)
        yield family

    def __len__(self) -> int:
        return len(self._counts)


class Histogram(Collector):
    """How many values fell into each bucket, and their sum, for each set of labels; as bounded as the labels are.

    Of each bucket the last value that belongs to a trace is kept as its exemplar, with its wall time.
    """

    def __init__(
        self, name: str, text: str, labels: Labels, bounds: tuple[float, ...], wall: Callable[[], int] = time.time_ns
    ) -> None:
        self._name = name
        self._text = text
        self._labels = labels
        self._bounds = bounds
        self._wall = wall
        self._rows: dict[Labels, list[float]] = {}
        """The count of each bucket, then the sum."""
        self._exemplars: dict[Labels, dict[int, Exemplar]] = {}

    def add(self, labels: Labels, value: float, trace: str = "") -> None:
        """Take a value; a bound belongs to the bucket below it."""
        row = self._rows.get(labels)
        if row is None:
            row = self._rows[labels] = [0] * (len(self._bounds) + 2)
        index = bisect_left(self._bounds, value)
        row[index] += 1
        row[-1] += value
        if trace:
            exemplar = Exemplar({"trace_id": trace}, value, self._wall() / NANOSECONDS)
            self._exemplars.setdefault(labels, {})[index] = exemplar

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """See `prometheus_client.registry.Collector`."""
        family = HistogramMetricFamily(self._name, self._text, labels=self._labels)
        names = [*map(floatToGoString, self._bounds), "+Inf"]
        for labels, (*counts, total) in self._rows.items():
            buckets: list[tuple[str, float] | tuple[str, float, Exemplar]] = [
                *zip(names, accumulate(counts), strict=True)
            ]
            for index, exemplar in self._exemplars.get(labels, {}).items():
                buckets[index] = (*buckets[index][:2], exemplar)
            family.add_metric(labels, buckets, total)
        yield family

    def __len__(self) -> int:
        return len(self._rows)
