"""config.yaml as a tree of mappings, lists and scalars: safe YAML, every key once, bounded in size.

Of plain scalars only `true`, `false`, `null`, `~` and decimal numbers are more than text: `off` is a word, `1:30` and
`007` no numbers, `2026-01-01` no date. Values never appear in a problem, since any of them may be a secret.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from keyturn.config.contents import decoded
from keyturn.config.mistakes import describe
from keyturn.config.problems import Loc, path_of
from keyturn.core.errors import ConfigError, Problem

MAX_BYTES = 1 << 20
MAX_NODES = 100_000
"""Values in the document once every alias is replaced by what it stands for."""

_MERGE = "<<"
_TAG = "tag:yaml.org,2002:"


class _Loader(yaml.SafeLoader):
    """Composes nodes with few types of scalars."""

    def compose_scalar_node(self, anchor: Any) -> yaml.ScalarNode:
        """A scalar that can be written again: an escape may name half a character, a surrogate."""
        node = super().compose_scalar_node(anchor)
        node.value.encode()
        return node

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012  # PyYAML's own attribute


for _name, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)", list("-+0123456789")),
    ("float", r"[-+]?[0-9]+\.[0-9]*|\.[0-9]+", list("-+.0123456789")),
):
    _Loader.add_implicit_resolver(f"{_TAG}{_name}", re.compile(rf"^(?:{_pattern})$"), _first)

_SCALARS: dict[str, Callable[[str], Any]] = {
    f"{_TAG}null": lambda _: None,
    f"{_TAG}bool": lambda text: text.lower() == "true",
    f"{_TAG}int": int,
    f"{_TAG}float": float,
    f"{_TAG}str": str,
}


def parse(data: bytes) -> tuple[dict[str, Any], list[Problem]]:
    """Read a document; an empty one has no settings. Repeated keys are problems beside the tree.

    Raises:
        ConfigError: it is not YAML, not a mapping, or too large to be a configuration.
    """
    if len(data) > MAX_BYTES:
        raise _refused(f"the file is larger than {MAX_BYTES >> 20} MiB: it is not taken for a configuration")
    try:
        text = decoded(data)
    except ValueError as error:
        raise _refused(f"the file is {error}") from None
    try:
        node = _compose(text)
        builder = _Builder()
        tree = builder.build(node, ()) if node else {}
    except RecursionError:
        raise _refused("the file is nested too deeply to be a configuration") from None
    except yaml.YAMLError as error:
        raise _refused(describe(error, text)) from None
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        raise _refused(
            "write settings as `name: value` lines, a blank behind the colon, such as `listen: 127.0.0.1:8080`"
        )
    return tree, builder.problems if node else []


def _compose(text: str) -> yaml.Node | None:
    loader = _Loader(text)
    try:
        node: yaml.Node | None = loader.get_single_node()
    except (ValueError, OverflowError):
        raise _refused("an escape such as `\\uD800` names no character: write it in another way") from None
    else:
        return node
    finally:
        loader.dispose()


@dataclass(slots=True)
class _Builder:
    """Makes plain values of nodes; every alias becomes a copy, so that the number of values made is the bound."""

    problems: list[Problem] = field(default_factory=list)
    made: int = 0
    open: set[int] = field(default_factory=set)
    """Nodes that are being built: an alias to one of them would never end."""

    def build(self, node: yaml.Node, loc: Loc) -> Any:
        """The value of a node."""
        self.made += 1
        if self.made > MAX_NODES:
            raise _refused(f"the file has more than {MAX_NODES} values once its aliases are followed")
        if id(node) in self.open:
            raise _refused(f"{_line(node)}: an alias refers to what it is part of")
        self.open.add(id(node))
        try:
            return self._made(node, loc)
        finally:
            self.open.discard(id(node))

    def _made(self, node: yaml.Node, loc: Loc) -> Any:
        if isinstance(node, yaml.MappingNode) and node.tag == f"{_TAG}map":
            return self._mapping(node, loc)
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{_TAG}seq":
            return [self.build(item, (*loc, index)) for index, item in enumerate(node.value)]
        make = _SCALARS.get(node.tag) if isinstance(node, yaml.ScalarNode) else None
        try:
            if make:
                return make(node.value)
        except ValueError:
            pass
        self._report(loc, f"{_line(node)}: write a plain value, without a `!tag`; in quotes if it begins with `!`")
        return None

    def _mapping(self, node: yaml.MappingNode, loc: Loc) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        own: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self._report(loc, f"{_line(key_node)}: the name of a setting is a word, not a list or a mapping")
                continue
            key, line = key_node.value, key_node.start_mark.line + 1
            if key == _MERGE and key_node.style is None:
                for more in self._merges(value_node, loc):
                    merged = more | merged
                continue
            if key in lines:
                self._report((*loc, key), f"stands twice, in lines {lines[key]} and {line}: keep one")
            lines[key] = line
            own[key] = self.build(value_node, (*loc, key))
        return merged | own

    def _merges(self, node: yaml.Node, loc: Loc) -> Iterator[dict[str, Any]]:
        for item in node.value if isinstance(node, yaml.SequenceNode) else [node]:
            value = self.build(item, loc)
            if isinstance(value, dict):
                yield value
            else:
                self._report(loc, f"{_line(node)}: `<<` takes a mapping or a list of mappings")

    def _report(self, loc: Loc, message: str) -> None:
        self.problems.append(Problem(path_of(loc), message))


def _refused(message: str) -> ConfigError:
    return ConfigError((Problem("", message),))


def _line(node: yaml.Node) -> str:
    return f"line {node.start_mark.line + 1}"
