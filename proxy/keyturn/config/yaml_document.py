"""Read config.yaml as a tree of mappings, lists and scalars, with the environment's values in place of `${NAME}`.

The YAML is safe, without repeated keys, and bounded in size. All plain scalars except `true`, `false`, `null`, `~` and
decimal numbers are text, including `off`, `1:30`, `007` and `2026-01-01`. Problems state their position and what to
write instead, without PyYAML's terms, and show no value, since it may be a secret.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import yaml
from yaml.reader import ReaderError

from keyturn.config.files import decoded
from keyturn.config.problems import Loc, path_of
from keyturn.core.errors import ConfigError, Problem

_REFERENCE = re.compile(r"\$\$\{|\$\{(?P<body>[^}]*+)(?P<end>\}?)")
_BODY = re.compile(r"(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?P<default>:-(?:(?!\$\{).)*)?", re.DOTALL)

_HINT = "write `${NAME}` or `${NAME:-default}`, and `$${` where `${` itself is meant"


@dataclass(slots=True)
class Interpolation:
    """One pass over a document that collects problems, and the places of values from the environment."""

    environ: Mapping[str, str] = field(repr=False)
    problems: list[Problem] = field(default_factory=list)
    supplied: set[Loc] = field(default_factory=set)
    """Places of values from the environment; a default counts as written in the file."""
    broken: set[Loc] = field(default_factory=set)
    """Places whose value could not be resolved."""

    def apply(self, value: Any, loc: Loc = ()) -> Any:
        """Interpolate every string of a value; keys of mappings stay as they are."""
        if isinstance(value, str):
            return _REFERENCE.sub(lambda found: self._resolve(found, loc), value) if "${" in value else value
        if isinstance(value, list):
            return [self.apply(item, (*loc, index)) for index, item in enumerate(value)]
        if isinstance(value, dict):
            return {key: self.apply(item, (*loc, key)) for key, item in value.items()}
        return value

    def _resolve(self, found: re.Match[str], loc: Loc) -> str:
        if found[0] == "$${":
            return "${"
        body = _BODY.fullmatch(found["body"]) if found["end"] else None
        if body is None:
            return self._fail(loc, _HINT)
        name, default = body["name"], body["default"]
        value = self.environ.get(name)
        if value and not _is_text(value):
            return self._fail(loc, f"the environment variable {name} holds bytes that are no UTF-8")
        if value or (value is not None and default is None):
            self.supplied.add(loc)
            return value
        if default is not None:
            return default.removeprefix(":-")
        return self._fail(loc, f"the environment variable {name} is not set: set it, or write `${{{name}:-default}}`")

    def _fail(self, loc: Loc, message: str) -> str:
        self.problems.append(Problem(path_of(loc), message))
        self.broken.add(loc)
        return ""


def _is_text(value: str) -> bool:
    """Whether all of it are characters: a byte of the environment that is none comes as a surrogate (PEP 383)."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


_TAB = "a tab: YAML indents with spaces only, write spaces in its place"
_ODD = "a character that YAML does not allow: delete it, or write it as an escape in double quotes"
_ANYTHING = "see the quotes, brackets and indentation of this line and the one above"
_QUOTES = "a value that begins with one of @ ` % & * ! | > [ ] { } needs quotes around it"
_INDENTATION = (
    "this does not continue the lines above: start names of one level in the same column, and put a value that holds "
    "quotes or brackets into one pair of quotes"
)
_COLON = (
    "a colon that is not allowed here: put a value that holds `: ` in quotes, and begin each name on a line of its own"
)
_NO_BLANK = "a space is missing after the colon: write `name: value`"
_NO_COLON = "a line without a colon: write `name: value`, or put it in quotes if it belongs to the value above"

_GLUED = re.compile(r"[ ]*(?:- +)*[A-Za-z_][A-Za-z0-9_]*:(?=[^\s/])")
_NAMED = re.compile(r"[^#]*:(?:\s|$)")
_INDENT_WITH_TAB = re.compile(r" *\t")


class _Explanation(NamedTuple):
    """Our words for a mistake, and PyYAML's words by which it is recognised."""

    theirs: str
    ours: str
    from_start: bool = False
    """Whether to report the place where the construct begins, instead of where parsing failed."""


_EXPLANATIONS = (
    _Explanation(
        "found unexpected end of stream", "a quote that is not closed: write the closing one", from_start=True
    ),
    _Explanation(
        "found unexpected document separator", "a quote that is not closed: write the closing one", from_start=True
    ),
    _Explanation(
        "or ']'", "a `[` whose list is not closed: write the `]`, and a comma between its entries", from_start=True
    ),
    _Explanation("or '}'", "a `{` that is not closed: write the `}`, and a comma between its entries", from_start=True),
    _Explanation("escape", "a backslash: write it twice in double quotes, or use single quotes"),
    _Explanation("undefined alias", "an alias without an anchor: put a value that begins with `*` in quotes"),
    _Explanation("duplicate anchor", "an anchor that occurs twice: put a value that begins with `&` in quotes"),
    _Explanation("single document", "a second document: a file holds one, delete the line `---` or `...`"),
    _Explanation("sequence entries are not allowed", "a `- ` where no list can begin: put it on a line of its own"),
    _Explanation("mapping values are not allowed", _COLON),
    _Explanation("could not find expected ':'", _NO_COLON, from_start=True),
    _Explanation("mapping keys are not allowed", f"a `? ` begins a name here: {_QUOTES}"),
    _Explanation("cannot start any token", _QUOTES),
    _Explanation(
        "scanning a block scalar", "text after `|` or `>`: start it on the next line, indented; or use quotes"
    ),
    _Explanation("while scanning", _QUOTES),
    _Explanation("tag", _QUOTES),
    _Explanation(
        "expected the node content",
        "a value is missing here, or there is a bracket or a comma too many: check this line",
    ),
    _Explanation("<block end>", _INDENTATION),
    _Explanation("<document start>", _INDENTATION),
)
"""The first that matches counts."""


def describe(error: yaml.YAMLError, text: str) -> str:
    """Explain where and why a text is not YAML, and what to do, without quoting it."""
    if isinstance(error, ReaderError):
        before = text[: error.position]
        return _located(before.count("\n"), len(before) - before.rfind("\n") - 1, _ODD)
    if not isinstance(error, yaml.MarkedYAMLError):
        return f"this is not YAML: {_ODD}"
    said = f"{error.context or ''} {error.problem or ''}"
    words = next((words for words in _EXPLANATIONS if words.theirs in said), _Explanation("", _ANYTHING))
    mark = error.problem_mark or error.context_mark
    if mark is None:
        return f"this is not YAML: {words.ours}"
    lines = text.splitlines()
    if (tab := _tab(lines, mark.line, mark.column)) is not None:
        return _located(*tab, _TAB)
    if words.ours in (_COLON, _NO_COLON) and (better := _above(lines, mark.line)) is not None:
        return better
    start = error.context_mark if words.from_start and error.context_mark else mark
    return _located(start.line, start.column, words.ours)


def _tab(lines: Sequence[str], line: int, column: int) -> tuple[int, int] | None:
    """Find the tab at fault: at the place itself, or in the indentation of its line or of the one above."""
    if line < len(lines) and lines[line][column : column + 1] == "\t":
        return line, column
    for number in (line, line - 1):
        if 0 <= number < len(lines) and (found := _INDENT_WITH_TAB.match(lines[number])):
            return number, found.end() - 1
    return None


def _above(lines: Sequence[str], line: int) -> str | None:
    """Find the mistake that made a colon unexpected, in its line or in the last one above."""
    above = next((n for n in range(min(line, len(lines)) - 1, -1, -1) if lines[n].strip()), None)
    for number in (above, line):
        if number is not None and number < len(lines) and (found := _GLUED.match(lines[number])):
            return _located(number, found.end(), _NO_BLANK)
    if above is not None and not lines[above].lstrip().startswith("#") and not _NAMED.match(lines[above]):
        return _located(above, len(lines[above]) - len(lines[above].lstrip()), _NO_COLON)
    return None


def _located(line: int, column: int, why: str) -> str:
    return f"line {line + 1}, column {column + 1}: this is not YAML: {why}"


MAX_BYTES = 1 << 20
MAX_NODES = 100_000
"""Values in the document once every alias is replaced by its anchor's value."""

_MERGE = "<<"
_TAG = "tag:yaml.org,2002:"


class _Loader(yaml.SafeLoader):
    """Compose nodes with few types of scalars."""

    def compose_scalar_node(self, anchor: Any) -> yaml.ScalarNode:
        """Reject a scalar that cannot be encoded: an escape may name half a character, a surrogate."""
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
        raise _refused(f"the file is larger than {MAX_BYTES >> 20} MiB, which is no configuration: check its name")
    try:
        text = decoded(data)
    except ValueError as error:
        raise _refused(f"the file is {error}") from None
    try:
        node = _compose(text)
        builder = _Builder()
        tree = builder.build(node, ()) if node else {}
    except RecursionError:
        raise _refused("the file is nested too deeply: check its brackets and indentation") from None
    except yaml.YAMLError as error:
        raise _refused(describe(error, text)) from None
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        raise _refused(
            "write settings as `name: value` lines, a space after the colon, such as `listen: 127.0.0.1:8080`"
        )
    return tree, builder.problems if node else []


def _compose(text: str) -> yaml.Node | None:
    loader = _Loader(text)
    try:
        node: yaml.Node | None = loader.get_single_node()
    except (ValueError, OverflowError):
        raise _refused("an escape such as `\\uD800` names no character: write the character itself") from None
    else:
        return node
    finally:
        loader.dispose()


@dataclass(slots=True)
class _Builder:
    """Build plain values from nodes; every alias becomes a copy, so that the number of values is bounded."""

    problems: list[Problem] = field(default_factory=list)
    made: int = 0
    open: set[int] = field(default_factory=set)
    """Nodes that are being built; an alias to one of them would be endless."""

    def build(self, node: yaml.Node, loc: Loc) -> Any:
        """The value of a node."""
        self.made += 1
        if self.made > MAX_NODES:
            raise _refused(f"the file has more than {MAX_NODES} values once its aliases are followed")
        if id(node) in self.open:
            raise _refused(f"{_line(node)}: an alias refers to a value that contains it: write the value out")
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
                self._report((*loc, key), f"occurs twice, in lines {lines[key]} and {line}: keep one")
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
