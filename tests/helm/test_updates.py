"""Updates that neither stop half way nor run two pods on one budget: strategy and spread together."""

from typing import Any

import pytest

from tests.helm.charts import NEWEST, OLDEST, VERSIONS, refusal, render
from tests.helm.kubernetes import check

REDIS: dict[str, Any] = {"redis": {"existingSecret": "keyturn-redis"}}
HARD: dict[str, Any] = {"spread": "hard", "replicas": 3, **REDIS}
SURGE = {"maxSurge": 1, "maxUnavailable": 0}
BEFORE = VERSIONS[: VERSIONS.index("1.31.0")]


def update(version: str, **values: Any) -> Any:
    """How pods are replaced."""
    return render(values, version=version).one("Deployment")["spec"]["strategy"]["rollingUpdate"]


@pytest.mark.parametrize("version", [OLDEST, "1.30.0", "1.31.0", NEWEST])
def test_an_update_needs_no_node_more(version: str) -> None:
    """With a node of its own for each pod, the new one need not find a node that has no old one.

    Else an update of three pods on three nodes would wait for ever: the new pod for a node, the old ones for it.
    """
    rendered = render(HARD, version=version)
    check(rendered.one("Deployment"), version)
    (term,) = rendered.gateway["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    among_new_ones = term.get("matchLabelKeys") == ["pod-template-hash"]
    one_goes_first = rendered.one("Deployment")["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 1
    assert (among_new_ones, one_goes_first) == (version not in BEFORE, version in BEFORE)


def test_one_pod_never_goes_first() -> None:
    """A single pod, and pods that only prefer another node, stay until the new one is ready."""
    assert update(OLDEST, **{**HARD, "replicas": 1}) == SURGE
    assert update(OLDEST, **{**HARD, "spread": "soft"}) == SURGE
    assert update(OLDEST, **{**HARD, "affinity": {"nodeAffinity": {}}}) == SURGE
    assert update(NEWEST, **HARD) == SURGE


@pytest.mark.parametrize(("version", "keys"), [("1.26.0", None), ("1.27.0", ["pod-template-hash"])])
def test_zones_are_counted_among_pods_of_one_kind(version: str, keys: list[str] | None) -> None:
    """Old pods that are about to go do not push new ones into the same zone, where Kubernetes can tell them apart."""
    (zones,) = render(version=version).gateway["topologySpreadConstraints"]
    assert zones.get("matchLabelKeys") == keys


SENTENCE = "strategy lets a new pod run beside the old one"


@pytest.mark.parametrize(
    "strategy",
    [
        {"type": "RollingUpdate"},
        {"rollingUpdate": {"maxUnavailable": 1}},
        {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 0}},
    ],
)
def test_the_memory_store_has_one_pod_in_updates_too(strategy: dict[str, Any]) -> None:
    """A strategy that runs the new pod beside the old one is refused: each would spend the whole budget."""
    said = refusal({"strategy": strategy})
    assert f"{SENTENCE}, and with the memory store each would spend the whole budget" in said
    assert render({"strategy": strategy, **REDIS}).one("Deployment")["spec"]["strategy"] == strategy


@pytest.mark.parametrize(
    "strategy",
    [
        {"type": "Recreate"},
        {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}},
        {"rollingUpdate": {"maxSurge": "0%", "maxUnavailable": "100%"}},
    ],
)
def test_strategies_that_end_the_old_pod_first(strategy: dict[str, Any]) -> None:
    """Any of them is fit for the memory store."""
    assert render({"strategy": strategy}).one("Deployment")["spec"]["strategy"] == strategy


@pytest.mark.parametrize(
    ("values", "path"),
    [
        ({"podDisruptionBudget": {"maxUnavailable": "0%"}}, "/podDisruptionBudget/maxUnavailable"),
        ({"podDisruptionBudget": {"maxUnavailable": "101%"}}, "/podDisruptionBudget/maxUnavailable"),
        ({"probes": {"liveness": {"successThreshold": 2}}}, "/probes/liveness"),
        ({"probes": {"startup": {"successThreshold": 2}}}, "/probes/startup"),
        ({"probes": {"readiness": {"terminationGracePeriodSeconds": 9}}}, "/probes/readiness"),
    ],
)
def test_numbers_that_clusters_refuse(values: dict[str, Any], path: str) -> None:
    """So they are refused here: a budget that empties no node, and what a kind of probe may not have."""
    assert path in refusal(values)
