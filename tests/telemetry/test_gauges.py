from proxy.core.events import BucketLevel, LaneLevel, Levels
from proxy.telemetry import Metrics
from tests.telemetry.samples import LEVELS, value


def test_gauges_are_read_at_each_scrape() -> None:
    """Between scrapes they cost nothing."""
    levels = [LEVELS]
    metrics = Metrics()
    metrics.watch(lambda: levels[0])
    assert value(metrics, "tokens_at_hand", pool="default", quota="k0", limit="60/60s") == 17
    assert value(metrics, "tokens_limit", pool="default", quota="k0", limit="60/60s") == 60
    assert value(metrics, "waiting", pool="default", client="ci") == 3
    assert value(metrics, "in_flight", pool="default") == 7
    levels[0] = Levels((), (), ())
    assert value(metrics, "waiting", pool="default", client="ci") is None


def test_no_series_appears_twice() -> None:
    """A client may wait in several lanes, and limits of one size for different paths share a name."""
    metrics = Metrics()
    burst = BucketLevel("default", "k0", "10/10s", 4, 10)
    metrics.watch(
        lambda: Levels(
            (burst, BucketLevel("default", "k0", "10/10s", 9, 10), BucketLevel("default", "k1", "10/10s", 1, 10)),
            (LaneLevel("default", "ci", 3), LaneLevel("default", "ci", 4)),
            (("default", 1), ("default", 2)),
        )
    )
    samples = [
        (sample.name, *sorted(sample.labels.items())) for f in metrics.registry.collect() for sample in f.samples
    ]
    assert len(samples) == len(set(samples))
    assert value(metrics, "waiting", pool="default", client="ci") == 7
    assert value(metrics, "in_flight", pool="default") == 3
    assert value(metrics, "tokens_at_hand", pool="default", quota="k0", limit="10/10s") == 4
    assert value(metrics, "tokens_at_hand", pool="default", quota="k0", limit="10/10s#2") == 9
    assert value(metrics, "tokens_at_hand", pool="default", quota="k1", limit="10/10s") == 1
