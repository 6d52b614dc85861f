"""The charts as helm renders them. What was rendered once is kept for the whole run of a worker."""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.helm.tools import tool
from tests.process import ROOT

CHART = ROOT / "helm" / "keyturn"
CI = tuple(sorted((CHART / "ci").glob("*-values.yaml")))
EXAMPLE = ROOT / "helm" / "examples" / "orders"

VERSIONS = tuple(f"1.{minor}.0" for minor in range(25, 38))
"""The versions of Kubernetes that the chart is for."""
OLDEST, NEWEST = VERSIONS[0], VERSIONS[-1]
NATIVE_SIDECARS = "1.29.0"
"""The first with native sidecars switched on."""
RELEASE = "shop"

BEFORE = {"pre-install", "pre-upgrade"}
"""When hooks run that come before the objects of a release."""

Object = dict[str, Any]


def hook_events(thing: Object) -> set[str]:
    """When an object is made as a hook; empty for one that belongs to the release."""
    annotations = thing.get("metadata", {}).get("annotations") or {}
    return set(annotations.get("helm.sh/hook", "").split(",")) - {""}


class _Loader(yaml.CSafeLoader):
    """Reads YAML in which no name stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        made = super().construct_mapping(node, deep)
        if len(made) < len(node.value):
            raise ValueError(f"a name stands twice: {node.start_mark}")
        return made


@dataclass(frozen=True)
class Rendered:
    """The objects of a release."""

    objects: list[Object]
    hooks: list[Object] = field(default_factory=list)
    """Objects that Helm makes before the others and removes before it makes those."""

    @classmethod
    def read(cls, text: str) -> "Rendered":
        """Those of a text as helm prints it."""
        made = cls([])
        for thing in yaml.load_all(text, _Loader):  # a safe one
            if thing:
                (made.hooks if hook_events(thing) & BEFORE else made.objects).append(thing)
        return made

    @property
    def everything(self) -> list[Object]:
        """The objects and the hooks."""
        return [*self.objects, *self.hooks]

    def all(self, kind: str) -> list[Object]:
        """Those of a kind."""
        return [thing for thing in self.objects if thing["kind"] == kind]

    def one(self, kind: str, suffix: str = "") -> Object:
        """The one of a kind whose name ends so."""
        found = [thing for thing in self.all(kind) if thing["metadata"]["name"].endswith(suffix)]
        assert len(found) == 1, [(thing["kind"], thing["metadata"]["name"]) for thing in self.objects]
        return found[0]

    @property
    def kinds(self) -> set[str]:
        """The kinds that there are."""
        return {thing["kind"] for thing in self.objects}

    @property
    def gateway(self) -> Any:
        """The spec of the gateway's pods."""
        (found,) = [one for one in self.all("Deployment") if not one["metadata"]["name"].endswith("-redis")]
        return found["spec"]["template"]["spec"]

    @property
    def container(self) -> Any:
        """The gateway's container."""
        (found,) = self.gateway["containers"]
        return found

    @property
    def config(self) -> Any:
        """The application's config.yaml."""
        return yaml.safe_load(self.config_text)

    @property
    def config_text(self) -> str:
        """The same as text."""
        (found,) = [one["data"]["config.yaml"] for one in self.all("ConfigMap") if "config.yaml" in one["data"]]
        return str(found)


def named(path: Path | None) -> str:
    """A file of values as a test shows it."""
    return path.name.removesuffix("-values.yaml") if path else "none"


def render(
    values: Mapping[str, Any] | None = None,
    *files: Path,
    chart: Path = CHART,
    version: str = NEWEST,
    release: str = RELEASE,
) -> Rendered:
    """The objects for these values, on top of those of the files."""
    done = helm_template(json.dumps(values or {}), files, chart, version, release)
    assert done.returncode == 0, done.stderr
    return Rendered.read(done.stdout)


def refusal(values: Mapping[str, Any], *files: Path, chart: Path = CHART, version: str = NEWEST) -> str:
    """Helm's error for values that it does not render."""
    done = helm_template(json.dumps(values), files, chart, version, RELEASE)
    assert done.returncode, done.stdout
    return done.stderr


@cache
def _notes(values: str) -> str:
    done = helm("install", RELEASE, str(CHART), "--dry-run=client", "--values", "-", text=values)
    assert done.returncode == 0, done.stderr
    return done.stdout.partition("\nNOTES:\n")[2]


def notes(values: Mapping[str, Any]) -> str:
    """Helm's notes after an installation."""
    return _notes(json.dumps(values))


@cache
def helm_template(
    values: str, files: tuple[Path, ...], chart: Path, version: str, release: str
) -> "subprocess.CompletedProcess[str]":
    """Run `helm template`."""
    given = [word for file in (*map(str, files), "-") for word in ("--values", file)]
    return helm("template", release, str(chart), "--kube-version", version, *given, text=values)


def helm(*arguments: str, text: str = "") -> "subprocess.CompletedProcess[str]":
    """Run helm, which keeps its own files in a folder that goes again."""
    with tempfile.TemporaryDirectory() as home:
        folders = {f"HELM_{name}_HOME": f"{home}/{name}" for name in ("CACHE", "CONFIG", "DATA")}
        return subprocess.run(
            [tool("helm"), *arguments],
            input=text,
            env={"PATH": os.environ["PATH"], "HOME": home, "GOGC": "off", **folders},  # it ends before garbage matters
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


def copy_with_dependencies(folder: Path) -> Path:
    """The example chart, copied with the chart that it depends on, ready to be rendered."""
    shutil.copytree(ROOT / "helm", folder / "helm", ignore=shutil.ignore_patterns("__pycache__"))
    chart = folder / "helm" / "examples" / "orders"
    built = helm("dependency", "build", "--skip-refresh", str(chart))
    assert built.returncode == 0, built.stderr
    return chart
