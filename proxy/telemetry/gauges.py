"""Gauges: numbers that are not kept here but read from where they are when somebody asks."""

from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from proxy.core.events import BucketLevel, Levels
from proxy.telemetry.series import Labels


class LevelsCollector(Collector):
    """Gauges that are read when they are asked for."""

    def __init__(self, levels: Callable[[], Levels]) -> None:
        self._levels = levels

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """What `collect` tells, without asking for it."""
        return self._families()

    def collect(self) -> Iterator[Metric]:
        """See `prometheus_client.registry.Collector`."""
        waiting, in_flight, at_hand, size = families = self._families()
        levels = self._levels()
        _add_sums(waiting, (((lane.pool, lane.client), lane.waiting) for lane in levels.lanes))
        _add_sums(in_flight, (((pool,), number) for pool, number in levels.in_flight))
        for labels, bucket in _distinct(levels.buckets):
            at_hand.add_metric(labels, bucket.at_hand)
            size.add_metric(labels, bucket.size)
        yield from families
        open_now = GaugeMetricFamily("keyturn_connections", "Connections of callers that are open.")
        open_now.add_metric((), levels.connections)
        yield open_now
        up = GaugeMetricFamily("keyturn_store_up", "Whether the store of the tokens answers.")
        up.add_metric((), int(levels.store_up))
        yield up
        degraded = CounterMetricFamily("keyturn_degraded_seconds", "Seconds without the store of the tokens.")
        degraded.add_metric((), levels.degraded)
        yield degraded

    def _families(self) -> tuple[GaugeMetricFamily, GaugeMetricFamily, GaugeMetricFamily, GaugeMetricFamily]:
        return (
            GaugeMetricFamily("keyturn_waiting", "Requests that wait for their turn.", labels=("pool", "client")),
            GaugeMetricFamily("keyturn_in_flight", "Requests that hold a lease.", labels=("pool",)),
            GaugeMetricFamily(
                "keyturn_tokens_at_hand", "Requests that a quota may send now.", labels=("pool", "quota", "limit")
            ),
            GaugeMetricFamily(
                "keyturn_tokens_limit", "Requests per window of a quota.", labels=("pool", "quota", "limit")
            ),
        )


def _add_sums(family: GaugeMetricFamily, values: Iterable[tuple[Labels, int]]) -> None:
    """Add one sample for each set of labels: a client waits in several lanes, a scraper wants one number."""
    sums: dict[Labels, int] = {}
    for labels, value in values:
        sums[labels] = sums.get(labels, 0) + value
    for labels, value in sums.items():
        family.add_metric(labels, value)


def _distinct(buckets: Iterable[BucketLevel]) -> Iterator[tuple[Labels, BucketLevel]]:
    """Labels for each bucket: limits of one size that match different paths share a name, the later get a number."""
    seen: Tally[Labels] = Tally()
    for bucket in buckets:
        labels = (bucket.pool, bucket.quota, bucket.limit)
        seen[labels] += 1
        number = seen[labels]
        yield (labels if number == 1 else (bucket.pool, bucket.quota, f"{bucket.limit}#{number}")), bucket
