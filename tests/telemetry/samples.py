"""A request, events of every kind, and metrics that have seen them."""

from dataclasses import dataclass

from keyturn.core.events import (
    CallerRejected,
    ConnectionEnded,
    Event,
    Exchanged,
    ForeignSpent,
    Joined,
    RequestLog,
    Retried,
    SignalsIgnored,
    UpstreamAnswered,
    UpstreamThrottled,
)
from keyturn.core.health import KeySnapshot
from keyturn.core.http import Fields
from keyturn.core.inferred_limits import HigherLimit
from keyturn.core.levels import BreakerLevel, BucketLevel, ClientLevel, Levels
from keyturn.core.model import SECOND
from keyturn.telemetry import Metrics
from keyturn.telemetry.exposition import Form
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

LEVELS = Levels(
    buckets=(BucketLevel("default", "k0", "60/60s", 17, 60), BucketLevel("default", "k1", "60/60s", 60, 60)),
    clients=(
        ClientLevel("default", "ci", 3, 1_500_000),
        ClientLevel("default", "portal", 0, 0),
        ClientLevel("default", "new", 1),
    ),
    in_flight=(("default", 7),),
    bodies=(("memory", 10), ("file", 20)),
    keys=(
        ("default", KeySnapshot("k0", "k0", "ready", 0, month_left=812)),
        ("default", KeySnapshot("k1", "k1", "quarantined", 0, "401", 9)),
    ),
    breakers=(BreakerLevel("default", "pool", 0), BreakerLevel("default", "route", 2)),
    higher=(("default", HigherLimit(0, "60/60s", 60, 300)),),
)


@dataclass(frozen=True)
class Arrived:
    """A request as it has arrived; see `core.tracing`."""

    method: str = "GET"
    raw_headers: Fields = ()
    scheme: str = "http"
    version: tuple[int, int] = (1, 1)


def request_log(**story: object) -> RequestLog:
    """A request that was forwarded, but for what is told otherwise."""
    made = RequestLog(
        id="r-1", method="GET", path="/collections", client="ci", pool="default", key="k0", code=200,
        outcome="forwarded", queued=SECOND, upstream=2 * SECOND, streamed=3 * SECOND, total=6 * SECOND + 400, tries=1,
        attempts=1, address="192.0.2.7", agent="curl/8.9",
    )  # fmt: skip
    for name, value in story.items():
        setattr(made, name, value)
    return made


EVENTS: tuple[Event, ...] = (
    request_log(),
    request_log(outcome="refused", code=429, reason="deadline", tries=0),
    UpstreamAnswered("default", "k0", 200),
    UpstreamThrottled("default", "k0", "k0", "window", SECOND),
    Retried("default", "throttled"),
    Joined("default", "ci"),
    Exchanged("default", 0.002, 3),
    ForeignSpent("default", "k0", 2),
    SignalsIgnored("default", ("retry-after", "body")),
    CallerRejected("192.0.2.1", "token", "at_once"),
    ConnectionEnded("head_timeout"),
)


def full() -> Metrics:
    """Metrics with a series of every kind but gauges."""
    metrics = Metrics()
    for event in EVENTS:
        metrics.observe(event)
    return metrics


def text(metrics: Metrics, levels: Levels | None = None, form: Form = Form.TEXT) -> str:
    """The answer to a scrape."""
    return "".join(metrics.exposition(form, levels))


def families(metrics: Metrics, levels: Levels | None = None) -> list[Metric]:
    """The families that a scraper reads."""
    return list(text_string_to_metric_families(text(metrics, levels)))


def value(metrics: Metrics, name: str, levels: Levels | None = None, /, **labels: str) -> float | None:
    """The value of a series."""
    samples = (sample for family in families(metrics, levels) for sample in family.samples)
    found = [sample.value for sample in samples if (sample.name, sample.labels) == (f"keyturn_{name}", labels)]
    assert len(found) <= 1
    return found[0] if found else None
