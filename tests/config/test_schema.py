import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from keyturn.config import schema

FILE = Path(__file__).parent.parent.parent / "docs" / "config.schema.json"


def settings(of: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every setting of every section, by section and name."""
    for section, body in {"": of, **of["$defs"]}.items():
        for name, field in body.get("properties", {}).items():
            yield f"{section}.{name}", field


def options(field: dict[str, Any]) -> list[dict[str, Any]]:
    """All forms that a setting can have."""
    forms = field.get("anyOf", [field])
    return [found for form in forms for found in (options(form) if form is not field else [form])]


SETTINGS = dict(settings(schema()))


def test_the_file_for_editors_is_current() -> None:
    """It is what `keyturn schema` prints."""
    assert json.loads(FILE.read_text(encoding="utf-8")) == schema()


def test_it_says_what_it_is() -> None:
    """For editors that look for the dialect and a title."""
    assert schema()["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema()["title"] == "Keyturn configuration"
    assert schema()["additionalProperties"] is False


def test_every_setting_is_described() -> None:
    """Editors show it beside the cursor."""
    assert [name for name, field in SETTINGS.items() if not field.get("description")] == []
    assert all(body["description"] for body in schema()["$defs"].values())


@pytest.mark.parametrize("name", SETTINGS)
def test_the_environment_can_give_every_value(name: str) -> None:
    """Where more than some text is asked for, `${NAME}` is another form."""
    text = "${WEIGHT:-1}"
    for form in options(SETTINGS[name]):
        if form.get("$ref") == "#/$defs/FromEnvironment":
            pattern = schema()["$defs"]["FromEnvironment"]["pattern"]
            assert re.search(pattern, text)
            return
        if "$ref" in form or form.get("type") in ("array", "object", "null"):
            return
    assert all(form == {"type": "string", **form} and "pattern" not in form for form in options(SETTINGS[name]))


def test_durations_secrets_and_bounds_are_told() -> None:
    """As far as a schema can."""
    (duration,) = (form for form in options(SETTINGS["QueueSettings.max_wait"]) if "pattern" in form)
    assert re.search(duration["pattern"], "10s")
    assert not re.search(duration["pattern"], "10")
    assert SETTINGS["QueueSettings.max_wait"]["default"] == "30s"
    assert {"type": "string", "minLength": 1} in options(SETTINGS["KeySettings.secret"])
    weight = next(form for form in options(SETTINGS["ClientSettings.weight"]) if form.get("type") == "integer")
    assert (weight["minimum"], weight["maximum"]) == (1, 1000)
    assert schema()["$defs"]["KeySettings"]["required"] == ["name"]


def test_every_reference_leads_somewhere() -> None:
    """The schema is whole."""
    text = json.dumps(schema())
    assert set(re.findall(r'"#/\$defs/(\w+)"', text)) <= set(schema()["$defs"])
