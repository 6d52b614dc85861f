from itertools import combinations
from pathlib import Path
from typing import Any

import yaml

from tests.observability.documents import PROMETHEUS_OWN, dashboard, grouped, matched, metrics, panels, queries, series
from tests.observability.promtool import promtool


def test_every_query_is_promql(tmp_path: Path) -> None:
    """Prometheus parses each of them, variables filled in."""
    recorded = [{"record": f"query:{index}", "expr": query} for index, query in enumerate(queries())]
    rules = {"groups": [{"name": "dashboard", "rules": recorded}]}
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules), encoding="utf-8")
    ended = promtool("check", "rules", "rules.yaml", folder=tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_queries_ask_for_metrics_and_labels_that_exist() -> None:
    """By the table of docs/observability.md."""
    known = {name: metric for metric in metrics().values() for name in metric.series}
    for query in queries():
        assert series(query), query
        for name, labels in matched(query):
            assert name in known, query
            assert labels <= known[name].labels | PROMETHEUS_OWN, query
        reachable = {label for name in series(query) for label in known[name].labels}
        assert grouped(query) <= reachable | PROMETHEUS_OWN, query


def test_every_metric_is_on_the_dashboard() -> None:
    """Every metric is shown."""
    shown = {name for query in queries() for name in series(query)}
    assert [metric.name for metric in metrics().values() if not metric.series & shown] == []


def test_every_panel_says_what_it_shows() -> None:
    """A title of its own and a sentence that a stranger understands."""
    titles = [panel["title"] for panel in panels()]
    assert len(titles) == len(set(titles))
    assert [panel["title"] for panel in panels() if not panel["description"]] == []


def test_panels_do_not_overlap() -> None:
    """Twenty-four columns, and no two panels in one place."""
    places = [panel["gridPos"] for panel in dashboard()["panels"]]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    assert [pair for pair in combinations(places, 2) if overlapping(*pair)] == []


def test_the_data_source_is_chosen_by_the_reader() -> None:
    """The dashboard names no data source of anybody's."""
    variables = {variable["name"]: variable for variable in dashboard()["templating"]["list"]}
    assert list(variables) == ["datasource", "namespace", "job", "pool"]
    assert {target["datasource"]["uid"] for panel in panels() for target in panel["targets"]} == {"${datasource}"}


def overlapping(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two panels share a place."""
    return bool(
        one["x"] < other["x"] + other["w"]
        and other["x"] < one["x"] + one["w"]
        and one["y"] < other["y"] + other["h"]
        and other["y"] < one["y"] + one["h"]
    )
