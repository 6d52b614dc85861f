"""Names that meet: labels, variables, volumes and objects of the user's own beside those of the chart."""

from typing import Any

import pytest

from tests.helm.charts import CHART, CI, Rendered, helm_template, refusal, render

EVERY_LABEL = {
    "commonLabels": {"team": "platform", "release": "all"},
    "podLabels": {"team": "edge"},
    "metrics": {
        "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "rules": {"enabled": True, "labels": {"release": "prometheus"}},
        "dashboards": {"enabled": True, "labels": {"release": "grafana"}},
    },
}


def labels(thing: Any) -> tuple[str, str]:
    """The component in an object's labels."""
    return thing["metadata"]["labels"]["team"], thing["metadata"]["labels"]["release"]


def test_a_label_of_one_kind_counts_before_one_of_all() -> None:
    """A name that stands in `commonLabels` and at the pods or the monitoring is there once, with the nearer value."""
    rendered = render(EVERY_LABEL)
    assert labels(rendered.one("Service")) == ("platform", "all")
    assert labels(rendered.one("Deployment")["spec"]["template"]) == ("edge", "all")
    for kind, name, release in (
        ("PodMonitor", "", "prometheus"),
        ("PrometheusRule", "", "prometheus"),
        ("ConfigMap", "-dashboards", "grafana"),
    ):
        assert labels(rendered.one(kind, name)) == ("platform", release)


@pytest.mark.parametrize("values", CI, ids=lambda path: path.name.removesuffix("-values.yaml"))
def test_no_name_stands_twice_in_one_object(values: Any) -> None:
    """The test's own reader refuses such a document, which YAML forbids and clusters read as they like."""
    assert render(EVERY_LABEL, values).objects
    with pytest.raises(ValueError, match="stands twice"):
        Rendered.read("kind: Pod\nmetadata: {labels: {a: b, a: c}}")


OWN = ("app.kubernetes.io/name", "app.kubernetes.io/instance", "app.kubernetes.io/component", "helm.sh/chart")


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("place", ["commonLabels", "podLabels", "metrics.podMonitor.labels", "metrics.rules.labels"])
def test_labels_of_the_chart_stay_the_chart_s(place: str, name: str) -> None:
    """Objects find each other by them, so the schema refuses others of these names."""
    values: Any = {name: "mine"}
    for part in reversed(place.split(".")):
        values = {part: values}
    assert f"invalid propertyName '{name}'" in refusal(values)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"podAnnotations": {"checksum/config": "mine"}}, "invalid propertyName 'checksum/config'"),
        ({"commonLabels": {"team": "two words"}}, "/commonLabels/team"),
        ({"podLabels": {"team": "a" * 64}}, "/podLabels/team"),
        ({"keys": {"default": {"values": {".hidden": "PMAK-a"}}}}, "invalid propertyName '.hidden'"),
        ({"service": {"spec": {"ports": []}}}, "invalid propertyName 'ports'"),
    ],
)
def test_names_that_could_not_work(values: dict[str, Any], said: str) -> None:
    """Values that the cluster or the application would refuse are refused by the schema, with their place."""
    assert said in refusal(values)


STORE = {"redis": {"existingSecret": "r"}}


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (
            {"extraEnv": [{"name": "KEYTURN_STORE_URL", "value": "redis://other"}], **STORE},
            "extraEnv has KEYTURN_STORE_URL, which is already defined",
        ),
        ({"extraEnv": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]}, "extraEnv has A, which is already"),
        (
            {"extraVolumes": [{"name": "keyturn-config", "emptyDir": {}}]},
            "extraVolumes has keyturn-config, which is already defined",
        ),
        (
            {"extraVolumeMounts": [{"name": "mine", "mountPath": "/etc/keyturn"}]},
            "extraVolumeMounts has /etc/keyturn, which is already defined",
        ),
    ],
)
def test_extras_do_not_take_a_name_that_is_there(values: dict[str, Any], sentence: str) -> None:
    """The cluster would refuse the pod, or take the last of both; the chart says which name it is."""
    assert f"{sentence}" in refusal(values)


def test_a_sidecar_s_extras_do_not_either() -> None:
    """A sidecar has one variable more."""
    values = {"mode": "sidecar", "extraEnv": [{"name": "KEYTURN_SERVICE", "value": "a"}], **STORE}
    assert "extraEnv has KEYTURN_SERVICE, which is already defined: give it another name." in refusal(values)


@pytest.mark.parametrize("release", ["1st", "my.release", "123"])
def test_names_of_services(release: str) -> None:
    """Helm takes names of releases that Services may not have; the chart says so before the cluster does."""
    said = helm_template("{}", (), CHART, "1.33.0", release)
    assert said.returncode
    assert f"{release}-keyturn is no name for a Service" in said.stderr
    assert render({"fullnameOverride": "gateway"}, release=release).one("Service")["metadata"]["name"] == "gateway"
    assert "Service" not in render({"mode": "sidecar", **STORE}, release=release).kinds


@pytest.mark.parametrize("pool", ["_", "..", "-._"])
def test_pools_have_a_letter(pool: str) -> None:
    """A pool's name without a letter or digit leaves no valid name for an object."""
    assert f"The pool name config.pools.{pool} is empty or equal to" in refusal({"config": {"pools": {pool: {}}}})


def test_a_parent_may_switch_it_off() -> None:
    """`enabled` is for the `condition` of a chart that depends on this one; it changes nothing here."""
    assert render({"enabled": True}) == render()


def test_more_of_the_service() -> None:
    """`service.spec` reaches the Service beside what the chart says."""
    values = {"service": {"type": "LoadBalancer", "spec": {"externalTrafficPolicy": "Local"}}}
    spec = render(values).one("Service")["spec"]
    assert (spec["type"], spec["externalTrafficPolicy"], len(spec["ports"])) == ("LoadBalancer", "Local", 1)
