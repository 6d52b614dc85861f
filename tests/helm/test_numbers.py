"""Numbers of the values, which Helm reads as floats, and values that are taken away, for which it prints nothing."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helm.charts import CHART, CI, NEWEST, RELEASE, helm_template, named, refusal, render
from tests.helm.kubernetes import check

SCHEMA = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
DEFAULTS = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
SHARED = [path for path in CI if not path.name.startswith("default")]
TEN_DIGITS = 1_000_660_000
QUANTITIES = {"limits": {"memory": TEN_DIGITS}, "requests": {"memory": TEN_DIGITS}}


# Numbers


def largest(part: Any, *, needed: bool = False) -> Any:
    """The largest numbers of at most ten digits that a schema allows, by name; `None` where none may stand."""
    if "$ref" in part:
        return largest(SCHEMA["$defs"][part["$ref"].rpartition("/")[2]], needed=True)
    choices = [largest(choice, needed=needed) for choice in part.get("anyOf", [])]
    kinds = part.get("type", [])
    if "array" in kinds:
        choices = [largest(part["items"], needed=needed)]
        return choices if isinstance(choices[0], int) else None
    if "object" in kinds:
        inner = {name: largest(value, needed=needed) for name, value in part.get("properties", {}).items()}
        inner = {name: value for name, value in inner.items() if value is not None}
        missing = needed and not set(part.get("required", [])) <= set(inner)
        return None if missing or not inner else inner
    if "integer" in kinds or "number" in kinds:
        return min(part.get("maximum", TEN_DIGITS), TEN_DIGITS)
    return next((choice for choice in choices if choice is not None), None)


NUMBERS = largest(SCHEMA)


def test_many_numbers_are_tried() -> None:
    """Many numbers of the chart's values and of the application's are among the samples."""
    assert NUMBERS["userId"] == NUMBERS["revisionHistoryLimit"] == TEN_DIGITS
    assert NUMBERS["podDisruptionBudget"]["maxUnavailable"] == TEN_DIGITS
    assert NUMBERS["autoscaling"] == {"minReplicas": TEN_DIGITS, "maxReplicas": TEN_DIGITS}
    assert (NUMBERS["service"], NUMBERS["networkPolicy"]) == ({"port": 65535}, {"redisPorts": [65535]})
    assert NUMBERS["config"]["upstream"]["max_body"] == TEN_DIGITS


@pytest.mark.parametrize("values", SHARED, ids=named)
@pytest.mark.parametrize("autoscaling", [{}, {"enabled": False}], ids=["", "fixed"])
def test_no_number_has_an_exponent(values: Path, autoscaling: dict[str, Any]) -> None:
    """However large it is, in whichever object."""
    off = {"metrics": {**NUMBERS["metrics"], "dashboards": {"enabled": False}}}
    scaling = {"autoscaling": {**NUMBERS["autoscaling"], **autoscaling}}
    given = {**NUMBERS, **off, **scaling, "resources": QUANTITIES, "sidecar": {"resources": QUANTITIES}}
    if values.name.startswith("trial"):
        given["redis"] = {"embedded": True, "resources": QUANTITIES}
    done = helm_template(json.dumps(given), (values,), CHART, NEWEST, RELEASE)
    assert done.returncode == 0, done.stderr
    assert str(TEN_DIGITS) in done.stdout
    assert re.findall(r".*\b[0-9.]+e\+[0-9]+.*", done.stdout) == []


# Values that are taken away


NEEDED = {"redis.url", "redis.existingSecret", "tls.existingSecret", "ingress.host", "httpRoute.parentRefs"}
"""Values that the files of ci/ cannot do without, as a sentence says."""


def paths(values: Any, schema: Any, above: str = "") -> Iterator[tuple[str, bool]]:
    """Each value by its path, and whether it must not be taken away; the settings of the application are its own."""
    for name, value in values.items():
        path = f"{above}{name}"
        part = schema.get("properties", {}).get(name, {})
        yield path, name in schema.get("required", [])
        if isinstance(value, dict) and path != "config":
            yield from paths(value, part, f"{path}.")


def without(*names: str) -> dict[str, Any]:
    """Values that take these away."""
    made: dict[str, Any] = {}
    for path in names:
        *sections, name = path.split(".")
        place = made
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = None
    return made


REQUIRED = [path for path, required in paths(DEFAULTS, SCHEMA) if required]
OPTIONAL = [path for path, required in paths(DEFAULTS, SCHEMA) if not required and path not in NEEDED]


def nothings(part: Any, path: str = "") -> Iterator[str]:
    """The paths at which an object has nothing."""
    if part is None:
        yield path
    items = part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ()
    for name, value in items:
        yield from nothings(value, f"{path}.{name}")


@pytest.mark.parametrize("values", CI, ids=named)
def test_what_is_taken_away_leaves_no_empty_field(values: Path) -> None:
    """Whether each optional value is null alone or all are at once, every object is whole and valid."""
    leaves = [path for path in OPTIONAL if not any(other.startswith(f"{path}.") for other in OPTIONAL)]
    sections = [path for path in OPTIONAL if not any(path.startswith(f"{other}.") for other in OPTIONAL)]
    for names in (leaves, sections):
        rendered = render(without(*names), values)
        for thing in rendered.everything:
            assert list(nothings(thing)) == [], thing["kind"]
            check(thing, NEWEST)


@pytest.mark.parametrize("path", ["mode", "image", "image.pullPolicy", "replicas", "service.port", "metrics.rules"])
def test_what_cannot_be_taken_away_is_named(path: str) -> None:
    """The schema refuses null for a value without which there is no object."""
    assert path in REQUIRED
    assert f"'{path.rpartition('.')[2]}'" in refusal(without(path))


@pytest.mark.parametrize("values", CI, ids=named)
def test_the_cluster_may_choose_the_user(values: Path) -> None:
    """With `userId: null` no user or group is named anywhere, and files are readable for the one that is chosen."""
    text = helm_template(json.dumps({"userId": None}), (values,), CHART, NEWEST, RELEASE).stdout
    assert "apiVersion" in text
    assert not re.search("runAsUser|runAsGroup|fsGroup", text)
    assert not re.search("defaultMode: 288", text)


# Lists


@pytest.mark.parametrize(
    "values",
    [{"redis": {"url": "redis://r:6379"}}, {"redis": {"embedded": True}}, {"redis": {"url": "redis://a:1,b:1"}}],
)
def test_no_port_stands_twice_in_a_rule(values: dict[str, Any]) -> None:
    """A port of the values is the same as that of a URL, though one is a float and the other a text."""
    for rule in render(values).one("NetworkPolicy", "-keyturn")["spec"]["egress"]:
        assert len(rule["ports"]) == len({(port["port"], port["protocol"]) for port in rule["ports"]})


def test_no_port_is_no_rule() -> None:
    """A rule without ports would let out to every one."""
    (_, upstream) = render({"redis": {"existingSecret": "s"}, "networkPolicy": {"redisPorts": []}}).one(
        "NetworkPolicy"
    )["spec"]["egress"]
    assert upstream["ports"] == [{"port": 443, "protocol": "TCP"}]
    (_, _, redis) = render({"redis": {"embedded": True}, "networkPolicy": {"redisPorts": []}}).one(
        "NetworkPolicy", "-keyturn"
    )["spec"]["egress"]
    assert redis["ports"] == [{"port": 6379, "protocol": "TCP"}]
