"""Every file of values on every version of Kubernetes: too much for each run of the suite, so `make chart` does it."""

import subprocess
import tarfile
from pathlib import Path

import pytest
import yaml

from tests.helm.charts import CHART, CI, EXAMPLE, NATIVE_SIDECARS, OLDEST, VERSIONS, Rendered, helm, named, render
from tests.helm.kubernetes import check
from tests.helm.tools import find, tool
from tests.process import ROOT

WITH_SIDECARS = VERSIONS[VERSIONS.index(NATIVE_SIDECARS) :]
EXAMPLES = (None, *sorted((EXAMPLE / "ci").glob("*-values.yaml")))


def test_the_tools_are_here() -> None:
    """Without helm and kubectl nothing would be checked: tests that need them are skipped."""
    assert find("helm")
    assert find("kubectl")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("values", CI, ids=named)
def test_the_chart(values: Path, version: str) -> None:
    """Helm has nothing to complain about, and every object passes Kubernetes' own schema strictly."""
    linted = helm("lint", "--strict", str(CHART), "--values", str(values), "--kube-version", version)
    assert linted.returncode == 0, linted.stdout + linted.stderr
    rendered = render(None, values, version=version)
    assert rendered.objects
    for thing in rendered.everything:
        check(thing, version)


@pytest.mark.parametrize("version", WITH_SIDECARS)
@pytest.mark.parametrize("values", EXAMPLES, ids=named)
def test_the_example(example: Path, values: Path | None, version: str) -> None:
    """So it is with an application and its sidecar."""
    files = [values] if values else []
    linted = helm("lint", "--strict", str(example), *(f"--values={file}" for file in files), "--kube-version", version)
    assert linted.returncode == 0, linted.stdout + linted.stderr
    for thing in render(None, *files, chart=example, version=version).everything:
        check(thing, version)


@pytest.mark.parametrize("version", WITH_SIDECARS)
def test_the_component(version: str) -> None:
    """So it is with what Kustomize makes."""
    command = [tool("kubectl"), "kustomize", str(ROOT / "deploy" / "kustomize" / "example")]
    made = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    for thing in Rendered(list(yaml.safe_load_all(made.stdout))).objects:
        check(thing, version)


def test_a_packaged_chart_is_the_chart(tmp_path: Path) -> None:
    """`helm package` takes along what the chart needs, and leaves the tests' values behind."""
    packaged = helm("package", str(CHART), "--destination", str(tmp_path))
    assert packaged.returncode == 0, packaged.stderr
    (archive,) = tmp_path.iterdir()
    values = CHART / "ci" / "everything-values.yaml"
    assert render(None, values, chart=archive) == render(None, values)
    with tarfile.open(archive) as files:
        assert not [name for name in files.getnames() if "/ci/" in name]


def test_older_clusters_are_refused() -> None:
    """The chart says from which version on it is for."""
    major, minor, _ = OLDEST.split(".")
    ended = helm("template", "shop", str(CHART), "--kube-version", f"{major}.{int(minor) - 1}.0")
    assert "incompatible" in ended.stderr
