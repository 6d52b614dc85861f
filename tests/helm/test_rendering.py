from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from jsonschema import ValidationError

from tests.helm.charts import CHART, CI, EXAMPLE, NATIVE_SIDECARS, NEWEST, OLDEST, Object, helm, named, render
from tests.helm.kubernetes import check


@pytest.mark.parametrize("values", CI, ids=named)
def test_helm_finds_nothing_to_complain_about(values: Path) -> None:
    """`helm lint --strict` passes for every file of values in ci/."""
    linted = helm("lint", "--strict", str(CHART), "--values", str(values))
    assert linted.returncode == 0, linted.stdout + linted.stderr


def test_helm_finds_nothing_to_complain_about_in_the_example(example: Path) -> None:
    """`helm lint --strict` passes for the application with a sidecar."""
    linted = helm("lint", "--strict", str(example))
    assert linted.returncode == 0, linted.stdout + linted.stderr


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("values", CI, ids=named)
def test_objects_are_valid(values: Path, version: str) -> None:
    """Every object passes Kubernetes' own schema strictly, on the oldest and on the newest version."""
    rendered = render(None, values, version=version)
    assert rendered.objects
    for thing in rendered.everything:
        check(thing, version)


@pytest.mark.parametrize("version", [NATIVE_SIDECARS, NEWEST])
@pytest.mark.parametrize("values", [None, EXAMPLE / "ci" / "memory-values.yaml"], ids=named)
def test_objects_of_the_example_are_valid(example: Path, values: Path | None, version: str) -> None:
    """So do those of an application with a sidecar, from the first version that has native ones."""
    rendered = render(None, *([values] if values else []), chart=example, version=version)
    assert rendered.kinds == {"Deployment", "ConfigMap"}
    for thing in rendered.everything:
        check(thing, version)


def test_the_chart_without_values_renders() -> None:
    """Without any value there is a gateway of one pod, which waits for its Secret of keys."""
    assert render().kinds == {"ConfigMap", "Deployment", "NetworkPolicy", "Pod", "Service", "ServiceAccount"}


def test_everything_has_everything() -> None:
    """ci/everything-values.yaml turns every object on that a gateway can have without files and embedded Redis."""
    rendered = render(None, CHART / "ci" / "everything-values.yaml")
    assert rendered.kinds >= {
        *("ConfigMap", "Deployment", "HTTPRoute", "HorizontalPodAutoscaler", "Ingress", "NetworkPolicy", "Pod"),
        *("PodDisruptionBudget", "PodMonitor", "Secret", "Service", "ServiceAccount"),
    }


@pytest.mark.parametrize("values", CI, ids=named)
def test_objects_are_found_by_their_labels(values: Path) -> None:
    """Every object of the chart carries the release's labels and stands in the release's namespace."""
    for thing in render(None, values).everything:
        if thing["metadata"]["name"].endswith("-extra"):
            continue
        labels = thing["metadata"]["labels"]
        assert labels["app.kubernetes.io/instance"] == "shop", thing
        assert labels["app.kubernetes.io/managed-by"] == "Helm", thing
        assert thing["metadata"]["namespace"] == "default", thing


@pytest.mark.parametrize("values", CI, ids=named)
def test_names_are_unique(values: Path) -> None:
    """No two objects of a kind have one name."""
    names = [(thing["kind"], thing["metadata"]["name"]) for thing in render(None, values).everything]
    assert len(names) == len(set(names))


def test_long_names_of_releases_fit() -> None:
    """A release's name of 53 characters, the longest that there is, leaves room for every suffix."""
    rendered = render({"redis": {"embedded": True}}, release="a" * 53)
    assert max(len(thing["metadata"]["name"]) for thing in rendered.everything) <= 63


def test_values_stay_few() -> None:
    """values.yaml has under 300 lines."""
    assert len((CHART / "values.yaml").read_text(encoding="utf-8").splitlines()) < 300


def test_one_file_holds_one_kind() -> None:
    """A template file is named for the kind that it makes, and makes no other."""
    for path in (CHART / "templates").glob("*.yaml"):
        kinds = {line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("kind: ")}
        assert len(kinds) == (path.name != "extra.yaml"), path


def test_the_schemas_are_strict() -> None:
    """The check itself refuses a name that Kubernetes does not know, of its own kinds and of the others."""
    good = render({"metrics": {"podMonitor": {"enabled": True}}})
    for kind in ("Deployment", "PodMonitor"):
        bad: Object = {**good.one(kind), "spec": {**good.one(kind)["spec"], "replikas": 3}}
        with pytest.raises((kubernetes_validate.ValidationError, ValidationError)):
            check(bad, NEWEST)


def test_helm_shows_the_readme() -> None:
    """`helm show readme` prints it, and nothing in it leads to files that a packaged chart does not have."""
    shown = helm("show", "readme", str(CHART)).stdout
    assert shown.strip() == (CHART / "README.md").read_text(encoding="utf-8").strip()
    assert "](../" not in shown


def test_versions_agree() -> None:
    """The chart is for the versions that it is checked with, and carries the application's version."""
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    assert chart["kubeVersion"] == f">={OLDEST}-0"
    assert chart["version"] == chart["appVersion"]
    assert f"ARG VERSION={chart['appVersion']}\n" in (CHART.parent.parent / "Dockerfile").read_text(encoding="utf-8")
    example = yaml.safe_load((EXAMPLE / "Chart.yaml").read_text(encoding="utf-8"))
    assert example["dependencies"][0]["version"] == chart["version"]
