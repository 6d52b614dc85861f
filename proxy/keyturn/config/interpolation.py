"""`${NAME}` and `${NAME:-default}` in the strings of config.yaml, from the environment; `$${` stands for `${`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from keyturn.config.problems import Loc, path_of
from keyturn.core.errors import Problem

_REFERENCE = re.compile(r"\$\$\{|\$\{(?P<body>[^}]*+)(?P<end>\}?)")
_BODY = re.compile(r"(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?P<default>:-(?:(?!\$\{).)*)?", re.DOTALL)

_HINT = "write `${NAME}` or `${NAME:-default}`, and `$${` where `${` itself is meant"


@dataclass(slots=True)
class Interpolation:
    """One pass over a document: what is wrong with it, and which values the environment gave."""

    environ: Mapping[str, str] = field(repr=False)
    problems: list[Problem] = field(default_factory=list)
    supplied: set[Loc] = field(default_factory=set)
    """Where a variable's value stands; a default that is used counts as written in the file."""
    broken: set[Loc] = field(default_factory=set)
    """Where the value could not be made."""

    def apply(self, value: Any, loc: Loc = ()) -> Any:
        """The value with every string in it interpolated; keys of mappings stay as they are."""
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
