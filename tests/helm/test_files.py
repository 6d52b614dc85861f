import json
import shutil
from pathlib import Path

import pytest
import yaml

from tests.helm.charts import CHART, NEWEST, Rendered, refusal, render
from tests.helm.kubernetes import check
from tests.observability.documents import ALERTS, rules
from tests.observability.promtool import promtool

ALERT = """\
groups:
  - name: keyturn
    rules:
      - alert: KeyturnThrottled
        expr: increase(keyturn_upstream_throttled_total[5m]) > 0
        labels: {severity: warning}
        annotations:
          summary: '{{ $labels.pool }} was refused'
"""
ON = {"metrics": {"rules": {"enabled": True, "labels": {"release": "p"}}, "dashboards": {"enabled": True}}}
OFF = {"metrics": {"rules": {"enabled": False}, "dashboards": {"enabled": False}}}


@pytest.fixture(scope="session")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chart without files."""
    copy = tmp_path_factory.mktemp("bare") / "keyturn"
    shutil.copytree(CHART, copy, ignore=shutil.ignore_patterns("files"))
    return copy


@pytest.fixture(scope="session")
def filled(bare: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chart with an alert and a dashboard."""
    copy = tmp_path_factory.mktemp("filled") / "keyturn"
    shutil.copytree(bare, copy)
    (copy / "files").mkdir()
    (copy / "files" / "alerts.yaml").write_text(ALERT, encoding="utf-8")
    (copy / "files" / "keyturn.json").write_text(json.dumps({"title": "{{ client }}"}), encoding="utf-8")
    return copy


def test_alerts_are_the_file_s(filled: Path) -> None:
    """The PrometheusRule holds files/alerts.yaml as it is, its templates untouched."""
    rule = render(ON, chart=filled).one("PrometheusRule")
    check(rule, NEWEST)
    assert rule["metadata"]["labels"]["release"] == "p"
    assert rule["spec"]["groups"][0]["rules"][0]["annotations"]["summary"] == "{{ $labels.pool }} was refused"


def test_the_chart_s_alerts_are_those_that_are_tested() -> None:
    """By default the PrometheusRule says word for word what tests/observability tests."""
    written = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))
    for values in (ON, {"metrics": {"rules": {"enabled": True, "fewUsableKeys": None}}}):
        assert render(values).one("PrometheusRule")["spec"] == written


def test_alerts_link_to_the_runbooks_that_the_values_name() -> None:
    """Each to its own section, at an absolute address; without one there is no link, and else nothing differs."""
    address = "https://git.example.com/keyturn/docs/runbooks.md"
    rule = {"enabled": True, "runbookUrl": address, "fewUsableKeys": 2}
    (group,) = render({"metrics": {"rules": rule}}).one("PrometheusRule")["spec"]["groups"]
    links = {rule["alert"]: rule["annotations"].pop("runbook_url") for rule in group["rules"]}
    assert links == {rule["alert"]: f"{address}#{rule['alert'].lower()}" for rule in rules()}
    assert group["rules"] == rules()
    assert "runbook" not in yaml.safe_dump(render(ON).one("PrometheusRule"))
    for relative in ("docs/runbooks.md", "/runbooks", "https://a.example/#part"):
        assert "runbookUrl" in refusal({"metrics": {"rules": {"runbookUrl": relative}}})


def test_how_few_keys_are_few_is_a_value(tmp_path: Path) -> None:
    """In both comparisons of that rule, and in no other; Prometheus takes it."""
    values = {"metrics": {"rules": {"enabled": True, "fewUsableKeys": 12}}}
    told = render(values).one("PrometheusRule")["spec"]
    expected = rules()
    (rule,) = [rule for rule in expected if rule["alert"] == "KeyturnFewUsableKeys"]
    rule["expr"] = rule["expr"].replace(") < 2 ", ") < 12 ").replace(" >= 2 ", " >= 12 ")
    assert rule["expr"].count("12") == 2
    assert told == {"groups": [{"name": "keyturn", "rules": expected}]}
    (tmp_path / "alerts.yaml").write_text(yaml.safe_dump(told), encoding="utf-8")
    ended = promtool("check", "rules", "alerts.yaml", folder=tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_dashboards_are_the_files(filled: Path) -> None:
    """The ConfigMap holds every JSON file as it is, and the label that Grafana looks for."""
    dashboards = render(ON, chart=filled).one("ConfigMap", "-dashboards")
    check(dashboards, NEWEST)
    assert dashboards["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert {name: json.loads(text) for name, text in dashboards["data"].items()} == {
        "keyturn.json": {"title": "{{ client }}"}
    }


def kinds(rendered: Rendered) -> tuple[bool, bool]:
    """Whether there are alerts, and dashboards."""
    names = [thing["metadata"]["name"] for thing in rendered.objects]
    return "PrometheusRule" in rendered.kinds, any(name.endswith("-dashboards") for name in names)


def test_neither_unless_asked_for(filled: Path) -> None:
    """Both switches are off by default."""
    assert kinds(render(chart=filled)) == kinds(render(OFF, chart=filled)) == (False, False)


def test_nothing_is_made_of_files_that_are_not_there(bare: Path) -> None:
    """A chart without the files renders without the objects."""
    assert kinds(render(ON, chart=bare)) == (False, False)


def test_the_chart_s_own_files_are_valid() -> None:
    """The contents of files/ make objects that clusters accept."""
    for thing in render(ON).objects:
        check(thing, NEWEST)
