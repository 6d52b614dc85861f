"""Errors in YAML told in plain words: where they are, and what to write instead.

PyYAML tells it in the words of its grammar, and quotes what stands there, which may be a secret: neither is shown.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import yaml
from yaml.reader import ReaderError

_TAB = "a tab: YAML indents with spaces only, write spaces in its place"
_ODD = "a character that YAML does not allow: delete it, or write it as an escape in double quotes"
_ANYTHING = "see the quotes, brackets and indentation of this line and the one above"
_QUOTES = "a value that begins with one of @ ` % & * ! | > [ ] { } needs quotes around it"
_INDENTATION = (
    "this does not go on what stands above: begin names of one level in the same column, and put a value that holds "
    "quotes or brackets into one pair of quotes"
)
_COLON = "a colon where none may stand: put a value that holds `: ` in quotes, and begin each name on a line of its own"
_NO_BLANK = "a blank is missing behind the colon: write `name: value`"
_NO_COLON = "a line without a colon: write `name: value`, or put it in quotes if it belongs to the value above"

_GLUED = re.compile(r"[ ]*(?:- +)*[A-Za-z_][A-Za-z0-9_]*:(?=[^\s/])")
_NAMED = re.compile(r"[^#]*:(?:\s|$)")
_INDENT_WITH_TAB = re.compile(r" *\t")


class _Words(NamedTuple):
    """How to tell a mistake that PyYAML tells with these words, in its problem or in what it was doing."""

    theirs: str
    ours: str
    from_start: bool = False
    """Whether the place to name is where the thing begins instead of where reading it failed."""


_WORDS = (
    _Words("found unexpected end of stream", "a quote that is not closed: write the closing one", from_start=True),
    _Words("found unexpected document separator", "a quote that is not closed: write the closing one", from_start=True),
    _Words("or ']'", "a `[` whose list is not closed: write the `]`, and a comma between its entries", from_start=True),
    _Words("or '}'", "a `{` that is not closed: write the `}`, and a comma between its entries", from_start=True),
    _Words("escape", "a backslash: write it twice in double quotes, or use single quotes"),
    _Words("undefined alias", "an alias without its anchor: put a value that begins with `*` in quotes"),
    _Words("duplicate anchor", "an anchor that stands twice: put a value that begins with `&` in quotes"),
    _Words("single document", "a second document: a file holds one, take out the line `---` or `...`"),
    _Words("sequence entries are not allowed", "a `- ` where no list can begin: put it on a line of its own"),
    _Words("mapping values are not allowed", _COLON),
    _Words("could not find expected ':'", _NO_COLON, from_start=True),
    _Words("mapping keys are not allowed", f"a `? ` begins a name here: {_QUOTES}"),
    _Words("cannot start any token", _QUOTES),
    _Words("scanning a block scalar", "text behind `|` or `>`: begin it on the next line, indented; or use quotes"),
    _Words("while scanning", _QUOTES),
    _Words("tag", _QUOTES),
    _Words("expected the node content", "a value is missing here, or a bracket or a comma too much: see this line"),
    _Words("<block end>", _INDENTATION),
    _Words("<document start>", _INDENTATION),
)
"""The first that fits counts."""


def describe(error: yaml.YAMLError, text: str) -> str:
    """Say where a text is no YAML, why, and what to do, without what stands there."""
    if isinstance(error, ReaderError):
        before = text[: error.position]
        return _told(before.count("\n"), len(before) - before.rfind("\n") - 1, _ODD)
    if not isinstance(error, yaml.MarkedYAMLError):
        return f"this is not YAML: {_ODD}"
    said = f"{error.context or ''} {error.problem or ''}"
    words = next((words for words in _WORDS if words.theirs in said), _Words("", _ANYTHING))
    mark = error.problem_mark or error.context_mark
    if mark is None:
        return f"this is not YAML: {words.ours}"
    lines = text.splitlines()
    if (tab := _tab(lines, mark.line, mark.column)) is not None:
        return _told(*tab, _TAB)
    if words.ours in (_COLON, _NO_COLON) and (better := _above(lines, mark.line)) is not None:
        return better
    start = error.context_mark if words.from_start and error.context_mark else mark
    return _told(start.line, start.column, words.ours)


def _tab(lines: Sequence[str], line: int, column: int) -> tuple[int, int] | None:
    """The tab that is at fault: at the place itself, or indenting its line or the one above."""
    if line < len(lines) and lines[line][column : column + 1] == "\t":
        return line, column
    for number in (line, line - 1):
        if 0 <= number < len(lines) and (found := _INDENT_WITH_TAB.match(lines[number])):
            return number, found.end() - 1
    return None


def _above(lines: Sequence[str], line: int) -> str | None:
    """A mistake in the line of an odd colon, or in the last one above it, that made the colon odd."""
    above = next((n for n in range(min(line, len(lines)) - 1, -1, -1) if lines[n].strip()), None)
    for number in (above, line):
        if number is not None and number < len(lines) and (found := _GLUED.match(lines[number])):
            return _told(number, found.end(), _NO_BLANK)
    if above is not None and not lines[above].lstrip().startswith("#") and not _NAMED.match(lines[above]):
        return _told(above, len(lines[above]) - len(lines[above].lstrip()), _NO_COLON)
    return None


def _told(line: int, column: int, why: str) -> str:
    return f"line {line + 1}, column {column + 1}: this is not YAML: {why}"
