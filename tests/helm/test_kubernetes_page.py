import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from keyturn.config import Config
from keyturn.web.overload import BYTES_FLOOR

from tests.config.samples import with_digests
from tests.helm.charts import CHART, EXAMPLE, NEWEST, OLDEST, helm, render
from tests.helm.kubernetes import check
from tests.helm.tools import tool
from tests.process import ROOT

PAGE = with_digests((ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8"))
README = (CHART / "README.md").read_text(encoding="utf-8")
SNIPPETS = dict(re.findall(r"```yaml\n# ([^\n]+)\n(.*?)```", PAGE, re.DOTALL))
VALUES = [name for name in SNIPPETS if name.startswith("values: ") and name != "values: sidecar"]
COMMANDS = [
    line for block in re.findall(r"```sh\n(.*?)```", PAGE + README, re.DOTALL) for line in block.splitlines() if line
]


def value(path: str) -> Any:
    """A default of the chart."""
    found = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    for name in path.split("."):
        found = found[name]
    return found


def test_every_snippet_is_tested() -> None:
    """Each YAML block begins with what it is, which says how it is tested."""
    assert len(SNIPPETS) == PAGE.count("```yaml")
    others = {"values: sidecar", "template: native", "template: plain", "kustomization", "prometheus-adapter"}
    assert set(SNIPPETS) == {*VALUES, *others}


@pytest.mark.parametrize("name", VALUES)
def test_values_render(name: str) -> None:
    """The page's values make objects that a cluster takes."""
    for thing in render(yaml.safe_load(SNIPPETS[name])).everything:
        check(thing, NEWEST)


def test_values_of_a_sidecar_render(example: Path) -> None:
    """They are those of an application's chart, which has the chart as its dependency."""
    rendered = render(yaml.safe_load(SNIPPETS["values: sidecar"]), chart=example)
    assert rendered.kinds == {"ConfigMap", "Deployment"}


def test_the_two_lines_are_the_example_s() -> None:
    """The lines of the page stand in the example's deployment."""
    lines = (EXAMPLE / "templates" / "deployment.yaml").read_text(encoding="utf-8").splitlines()
    assert set(SNIPPETS["template: native"].splitlines()) <= set(lines)


def test_the_plain_form_is_a_template() -> None:
    """The line for older clusters includes a template that there is, under the key that it is for."""
    first, second = SNIPPETS["template: plain"].splitlines()
    assert first.strip() == "containers:"
    (name,) = re.findall(r'include "([^"]+)"', second)
    assert f'define "{name}"' in (CHART / "templates" / "_sidecar.tpl").read_text(encoding="utf-8")


def test_the_adapter_serves_what_the_autoscaler_asks_for() -> None:
    """The rule of the Prometheus Adapter is for the metric that the values name, and for pods."""
    (rule,) = yaml.safe_load(SNIPPETS["prometheus-adapter"])["rules"]["custom"]
    assert rule["seriesQuery"].startswith(f"{value('autoscaling.metric')}{{")
    assert rule["resources"]["overrides"]["pod"] == {"resource": "pod"}


def test_the_kustomization_is_the_example_s() -> None:
    """The page shows the file of deploy/kustomize/example."""
    path = ROOT / "deploy" / "kustomize" / "example" / "kustomization.yaml"
    assert yaml.safe_load(SNIPPETS["kustomization"]) == yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("command", [line for line in COMMANDS if line.startswith("kubectl create")])
def test_secrets_are_made_as_written(command: str, tmp_path: Path) -> None:
    """`kubectl create secret` takes the command, and a file with a line end makes an entry of it."""
    words = shlex.split(command.partition(" | ")[0])[1:]
    for word in words:
        if word.startswith("--from-file="):
            (tmp_path / word.rpartition("=")[2]).write_text("PMAK-example\n", encoding="utf-8")
    dry = ["--dry-run=client", "--output=yaml"]
    words = [word for word in words if word not in dry] + dry
    made = subprocess.run(
        [tool("kubectl"), *words],
        cwd=tmp_path,
        env={"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    check({**yaml.safe_load(made.stdout), "metadata": {"name": "any"}}, NEWEST)


@pytest.mark.parametrize("command", [line for line in COMMANDS if line.startswith("helm install")])
def test_helm_installs_as_written(command: str, tmp_path: Path) -> None:
    """`helm install` takes the command's chart and values."""
    _, _, release, chart, *words = shlex.split(command)
    (tmp_path / "values.yaml").write_text(SNIPPETS["values: gateway"], encoding="utf-8")
    words = [str(tmp_path / "values.yaml") if word.endswith("values.yaml") else word for word in words]
    rendered = helm("template", release, str(ROOT / chart), *words)
    assert rendered.returncode == 0, rendered.stderr
    assert "name: keyturn\n" in rendered.stdout


def test_every_command_is_of_a_known_program() -> None:
    """Every command and example of the page is rendered, parsed or run by a test."""
    known = (
        "kubectl create secret",
        "kubectl logs job/keyturn-check",
        "helm install",
        "helm test keyturn",
        "POSTMAN_API_KEYS=",
        "make image ",
    )
    assert [line for line in COMMANDS if not line.startswith(known)] == []


def test_links_lead_somewhere() -> None:
    """Every file and folder that the page links to is there."""
    for target in re.findall(r"\]\(([^)#]+)\)", PAGE):
        assert (ROOT / "docs" / target).exists(), target


def test_versions_are_those_that_are_checked() -> None:
    """The page and the chart's README name the oldest and the newest version that tests render for."""
    oldest, newest = OLDEST.removesuffix(".0"), NEWEST.removesuffix(".0")
    assert f"Kubernetes {oldest} to {newest}" in PAGE
    assert f"Kubernetes {oldest} to {newest}" in README


def test_values_that_the_page_names_are_there() -> None:
    """Every value that prose names by its path exists."""
    sections = ("metrics", "sidecar", "redis", "networkPolicy")
    for path in re.findall(rf"`((?:{'|'.join(sections)})\.[A-Za-z.]+)(?::[^`]*)?`", PAGE):
        value(path)


def test_numbers_are_the_chart_s() -> None:
    """Defaults that the page tells are those of the values."""
    assert f"`config.lame_duck` ({render().config['lame_duck']})" in PAGE
    assert value("resources.limits.memory") == "512Mi"
    assert "512 MiB" in PAGE


def test_the_memory_limit_follows_from_the_defaults() -> None:
    """The sum that the page shows is that of the configuration's defaults, and below the limit."""
    config = Config.model_validate({})
    connections = config.inbound.max_connections * (3 * BYTES_FLOOR) >> 20
    answers = config.upstream.max_connections * 400 >> 10
    total = 80 + (config.inbound.max_buffered >> 20) + 64 + 64 + answers + connections
    assert f"The defaults add up to {total} MiB, so the limit is 512 MiB" in PAGE
    assert total < 512
    assert value("sidecar.resources.limits.memory") == value("resources.limits.memory")


def test_the_memory_request_of_a_sidecar_is_above_what_it_uses_idle() -> None:
    """The page tells what was measured, and the request that follows from it."""
    (idle,) = re.findall(r"it uses ([0-9]+) MiB before its first request", PAGE)
    (told,) = re.findall(r"Its memory request is ([0-9]+) MiB", PAGE)
    assert value("sidecar.resources.requests.memory") == f"{told}Mi"
    assert int(told) > int(idle)
