import json
from typing import Any

import pytest
import yaml
from keyturn.config import schema

from helm import generate


def test_the_schema_is_the_application_s() -> None:
    """`config` in values.schema.json is what `keyturn schema` prints: run `python -m helm.generate` after a change."""
    written = generate.SCHEMA.read_text(encoding="utf-8")
    assert generate.schema_text(written) == written


def test_the_table_is_that_of_the_values() -> None:
    """The README's table says what the comments of values.yaml say: run `python -m helm.generate` after a change."""
    written = generate.README.read_text(encoding="utf-8")
    assert generate.readme_text(written, generate.VALUES.read_text(encoding="utf-8")) == written


def test_no_setting_of_the_application_is_missing() -> None:
    """Every setting of config.yaml may stand under `config`, every definition that it refers to is there."""
    made = json.loads(generate.SCHEMA.read_text(encoding="utf-8"))
    assert made["properties"]["config"] == {"$ref": "#/$defs/config"}
    assert made["$defs"]["config"]["properties"] == schema()["properties"]
    assert schema()["$defs"].items() <= made["$defs"].items()


def closed(part: Any, path: str) -> list[str]:
    """The paths of objects with names of their own that let others pass."""
    found = []
    if isinstance(part, dict):
        if isinstance(part.get("properties"), dict) and part.get("additionalProperties") is not False:
            found.append(path)
        for name, value in part.items():
            found += closed(value, f"{path}.{name}")
    if isinstance(part, list):
        for value in part:
            found += closed(value, path)
    return found


def test_the_schema_is_closed() -> None:
    """An object with names of its own lets no other name pass, at any depth."""
    assert closed(json.loads(generate.SCHEMA.read_text(encoding="utf-8")), "") == []


def test_values_and_schema_have_the_same_names() -> None:
    """The schema and values.yaml have the same keys."""
    values = yaml.safe_load(generate.VALUES.read_text(encoding="utf-8"))
    made = json.loads(generate.SCHEMA.read_text(encoding="utf-8"))
    assert set(made["properties"]) - {"global", "enabled"} == set(values)
    for name, part in made["properties"].items():
        if "properties" in part and name not in ("probes", "strategy"):
            assert set(part["properties"]) == set(values[name]), name


def test_every_value_is_explained() -> None:
    """Each value has a comment, or belongs to one that has."""
    text = generate.VALUES.read_text(encoding="utf-8")
    explained = {value.path for value in generate.values(text)}
    for name, part in yaml.safe_load(text).items():
        if name not in explained:
            assert isinstance(part, dict), name
            assert {f"{name}.{inner}" for inner in part if isinstance(part[inner], dict)} <= {
                *explained,
                *(path.rpartition(".")[0] for path in explained),
            }, name
            assert {f"{name}.{inner}" for inner, value in part.items() if not isinstance(value, dict)} <= explained


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("# One.\na: 1\n", [("a", "1", "One.")]),
        ("# One\n# more.\na: x\nb: 2\n", [("a", '"x"', "One more.")]),
        ("# Of none.\n\na:\n  # In.\n  b: [1]\n", [("a.b", "[1]", "In.")]),
        ("a:\n  b:\n    # Deep.\n    c: {}\nd: 1\n", [("a.b.c", "{}", "Deep.")]),
    ],
)
def test_a_comment_belongs_to_the_line_below_it(text: str, rows: list[tuple[str, str, str]]) -> None:
    """An empty line ends a comment that is about nothing in particular."""
    assert [(value.path, value.default, value.meaning) for value in generate.values(text)] == rows


def test_main_writes_both(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -m helm.generate` writes the files that it names."""
    for name in ("SCHEMA", "README", "VALUES"):
        copy = tmp_path / getattr(generate, name).name
        copy.write_text(getattr(generate, name).read_text(encoding="utf-8"), encoding="utf-8")
        monkeypatch.setattr(generate, name, copy)
    generate.VALUES.write_text("# One.\na: 1\n", encoding="utf-8")
    generate.main()
    assert "| `a` | `1` | One. |" in generate.README.read_text(encoding="utf-8")
    assert "replicas" not in generate.README.read_text(encoding="utf-8").partition(generate.BEGIN)[2]
