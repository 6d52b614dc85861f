"""Documents for operators, read for comparison: metrics, rules, the dashboard, the runbooks."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent.parent
FILES = ROOT / "helm" / "keyturn" / "files"
ALERTS = FILES / "alerts.yaml"
DASHBOARD = FILES / "dashboard.json"
RUNBOOKS = ROOT / "docs" / "runbooks.md"
OBSERVABILITY = ROOT / "docs" / "observability.md"

PROMETHEUS_OWN = {"namespace", "job", "instance", "le"}
"""Labels that the scrape and the format of histograms add."""


@dataclass(frozen=True)
class Metric:
    """A row of the table of metrics."""

    name: str
    type: str
    labels: frozenset[str]
    meaning: str

    @property
    def series(self) -> set[str]:
        """The names of its time series."""
        parts = ("_bucket", "_sum", "_count") if self.type == "histogram" else ("",)
        return {self.name + part for part in parts}


def metrics() -> dict[str, Metric]:
    """The table of docs/observability.md, by full names."""
    rows = re.findall(
        r"^\| `(\w+)` \| (\w+) \| ([^|]+) \| (.+) \|$", OBSERVABILITY.read_text(encoding="utf-8"), re.MULTILINE
    )
    found = [
        Metric(f"keyturn_{name}", kind, frozenset(re.findall(r"\w+", labels)), meaning)
        for name, kind, labels, meaning in rows
    ]
    return {metric.name: metric for metric in found}


def rules() -> list[dict[str, Any]]:
    """The alerting rules."""
    return [rule for group in yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"] for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    """The Grafana dashboard."""
    content: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return content


def panels() -> list[dict[str, Any]]:
    """Its panels that show something."""
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def queries(window: str = "5m") -> Iterator[str]:
    """Its queries, with Grafana's variables filled in as for a reader who chose everything; rates over `window`."""
    for panel in panels():
        for target in panel["targets"]:
            yield re.sub(r"\$(namespace|job|pool)\b", ".*", target["expr"]).replace("$__rate_interval", window)


def series(expression: str) -> set[str]:
    """The names of our time series in a query."""
    return set(re.findall(r"\bkeyturn_\w+", expression))


def matched(expression: str) -> Iterator[tuple[str, set[str]]]:
    """Each series of a query, with the labels that it is chosen by."""
    for name, _, matchers in re.findall(r"\b(keyturn_\w+)(\{([^}]*)\})?", expression):
        yield name, set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers))


def grouped(expression: str) -> set[str]:
    """The labels by which a query groups and joins."""
    lists = re.findall(r"\b(?:by|on|group_left)\s*\(([^)]*)\)", expression)
    return {label for found in lists for label in re.findall(r"\w+", found)}
