from keyturn.core.errors import Refusal, UpstreamError
from keyturn.telemetry import Metrics
from prometheus_client import Metric as Family

from tests.observability.documents import metrics
from tests.telemetry.samples import families


def name_of(family: Family) -> str:
    """The name of a family, as a scraper and the table see it."""
    return f"{family.name}_total" if family.type == "counter" else family.name


def test_every_metric_that_is_told_is_in_the_table() -> None:
    """With its name and type."""
    told = {name_of(family): family.type for family in families(Metrics()) if family.name.startswith("keyturn_")}
    documented = {name: metric.type for name, metric in metrics().items()}
    assert told
    assert told.items() <= documented.items()


def test_every_metric_is_explained() -> None:
    """A sentence for each, names that say their units, counters that say that they are."""
    found = metrics()
    assert len(found) >= 20
    for metric in found.values():
        assert len(metric.meaning) > 20, metric.name
        assert (metric.type == "counter") == metric.name.endswith("_total")
        if metric.type == "histogram":
            assert metric.name.endswith(("_seconds", "_grants"))


def reasons(of: type[Refusal] = Refusal) -> set[str]:
    """The reasons of all refusals that are no fault of the upstream's."""
    own = set() if of is UpstreamError or "reason" not in vars(of) else {of.reason}
    return own.union(*(reasons(below) for below in of.__subclasses__() if below is not UpstreamError))


def test_every_reason_of_a_refusal_is_explained() -> None:
    """Those of requests; a connection that is one too many is refused before there is one."""
    meaning = metrics()["keyturn_refused_total"].meaning
    assert {reason for reason in reasons() if f"`{reason}`" not in meaning} == {"too_many_connections"}
