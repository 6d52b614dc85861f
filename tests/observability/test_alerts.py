import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.observability.documents import (
    ALERTS,
    PROMETHEUS_OWN,
    RUNBOOKS,
    grouped,
    matched,
    metrics,
    rules,
    series,
)
from tests.observability.promtool import promtool

STORIES = Path(__file__).with_name("alerts_test.yaml")


def stories() -> list[dict[str, Any]]:
    """The unit tests of the rules."""
    found: list[dict[str, Any]] = yaml.safe_load(STORIES.read_text(encoding="utf-8"))["tests"]
    return found


def sections() -> dict[str, str]:
    """The runbooks' sections by their headings."""
    parts = re.split(r"^## (.+)$", RUNBOOKS.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def names() -> list[str]:
    """The alerts by name."""
    return [rule["alert"] for rule in rules()]


def test_the_rules_are_rules(tmp_path: Path) -> None:
    """Prometheus' own check, templates of the annotations included."""
    ended = promtool("check", "rules", ALERTS, folder=tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.timeout(600)
def test_every_alert_fires_and_stays_quiet_as_it_must(tmp_path: Path) -> None:
    """The stories of alerts_test.yaml, told to Prometheus' own evaluation."""
    content = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))
    for rule in (rule for group in content["groups"] for rule in group["rules"]):
        del rule["annotations"]  # promtool compares them word by word
    (tmp_path / ALERTS.name).write_text(yaml.safe_dump(content), encoding="utf-8")
    shutil.copy(STORIES, tmp_path)
    ended = promtool("test", "rules", STORIES.name, folder=tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.parametrize("fires", [True, False], ids=["fires", "stays quiet"])
def test_every_alert_has_a_story_of_each_kind(fires: bool) -> None:
    """One in which it must fire, one in which it must not."""
    told = {
        check["alertname"]
        for story in stories()
        for check in story["alert_rule_test"]
        if bool(check.get("exp_alerts")) == fires
    }
    assert told == set(names())


def test_every_alert_has_its_runbook_and_no_runbook_is_left_over() -> None:
    """By the same name, with what it means, what to look at and what to do."""
    assert sorted(sections()) == sorted(names())
    for name, text in sections().items():
        for part in ("**Meaning.**", "**Look at**", "**Do.**"):
            assert part in text, (name, part)


@pytest.mark.parametrize("rule", rules(), ids=names())
def test_an_alert_says_how_urgent_it_is_and_what_it_means(rule: dict[str, Any]) -> None:
    """A severity, a summary of one sentence, a description; the address of a runbook is the operator's to say."""
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert set(rule["annotations"]) == {"summary", "description"}
    assert rule["annotations"]["summary"].endswith(".")


@pytest.mark.parametrize("rule", rules(), ids=names())
def test_an_alert_asks_for_metrics_and_labels_that_exist(rule: dict[str, Any]) -> None:
    """By the table of docs/observability.md."""
    known = {name: metric for metric in metrics().values() for name in metric.series}
    assert series(rule["expr"])
    assert series(rule["expr"]) <= set(known)
    for name, labels in matched(rule["expr"]):
        assert labels <= known[name].labels | PROMETHEUS_OWN, name
    reachable = {label for name in series(rule["expr"]) for label in known[name].labels}
    assert grouped(rule["expr"]) <= reachable | PROMETHEUS_OWN


@pytest.mark.parametrize("rule", rules(), ids=names())
def test_an_alert_s_words_use_labels_that_it_has(rule: dict[str, Any]) -> None:
    """A label that the expression does not group by would be empty in the message."""
    used = set(re.findall(r"\$labels\.(\w+)", " ".join(rule["annotations"].values())))
    assert used <= grouped(rule["expr"])


def test_runbooks_name_metrics_that_exist() -> None:
    """A name that is mistyped sends the reader astray at night."""
    known = {name for metric in metrics().values() for name in (metric.name, *metric.series)}
    assert series(RUNBOOKS.read_text(encoding="utf-8")) <= known
