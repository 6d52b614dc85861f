"""Writes what the chart has twice: the schema of `config`, and the README's table of values.

`python -m helm.generate` does both; a test runs it again and compares.
"""
# ruff: noqa: INP001  # the folder of a chart, no package

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from keyturn.config import schema

CHART = Path(__file__).parent / "keyturn"
VALUES = CHART / "values.yaml"
SCHEMA = CHART / "values.schema.json"
README = CHART / "README.md"

OWN = ("name", "label", "stringMap", "labels", "resources", "quantities")
"""Definitions that values.schema.json has by hand; all others come from the application."""
BEGIN, END = "<!-- table of values: python -m helm.generate -->", "<!-- end of the table -->"

_LINE = re.compile(r"( *)([A-Za-z]+):(?: |$)")


# The schema


def with_config(document: dict[str, Any]) -> dict[str, Any]:
    """The schema of the values, its `config` as the application describes it now."""
    application = schema()
    definitions = application.pop("$defs")
    application.pop("$schema")
    own = {name: document["$defs"][name] for name in OWN}
    return {**document, "$defs": {**own, "config": application, **definitions}}


def schema_text(text: str) -> str:
    """The file values.schema.json, from what it is."""
    return json.dumps(with_config(json.loads(text)), indent=2) + "\n"


# The table


@dataclass(frozen=True, slots=True)
class Value:
    """A row of the table."""

    path: str
    default: str
    meaning: str


def values(text: str) -> Iterator[Value]:
    """The values that a comment explains, in their order; a comment belongs to the line below it."""
    defaults = yaml.safe_load(text)
    comment: list[str] = []
    path: list[str] = []
    for line in text.splitlines():
        stripped = line.strip()
        found = _LINE.match(line)
        if stripped.startswith("# "):
            comment.append(stripped[2:])
            continue
        if found:
            path = [*path[: len(found[1]) // 2], found[2]]
            if comment:
                default = json.dumps(_look_up(defaults, path), ensure_ascii=False)
                yield Value(".".join(path), default, " ".join(comment))
        comment = []


def _look_up(defaults: Any, path: list[str]) -> Any:
    for name in path:
        defaults = defaults[name]
    return defaults


def table(text: str) -> str:
    """The table of values.yaml in Markdown; a section with rows of its own shows no default."""
    found = list(values(text))
    sections = {value.path.rpartition(".")[0] for value in found}
    sections |= {section.rpartition(".")[0] for section in sections}
    rows = []
    for value in found:
        default = "" if value.path in sections else f"`{value.default}`"
        rows.append(f"| `{value.path}` | {default} | {value.meaning.replace('|', '&#124;')} |")
    return "\n".join(["| value | default | meaning |", "|---|---|---|", *rows])


def readme_text(text: str, values_text: str) -> str:
    """The file README.md, from what it is."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table(values_text)}\n{END}{after}"


def main() -> None:
    """Write both files."""
    SCHEMA.write_text(schema_text(SCHEMA.read_text(encoding="utf-8")), encoding="utf-8")
    README.write_text(
        readme_text(README.read_text(encoding="utf-8"), VALUES.read_text(encoding="utf-8")), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
