"""A look at the raw document that never fails, whatever stands there instead of what should."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keyturn.config.problems import Loc, path_of
from keyturn.config.units import Listener, parse_duration, parse_listener
from keyturn.core.errors import Problem
from keyturn.core.model import Micros


@dataclass(frozen=True, slots=True)
class Node:
    """A value of the document and where it stands; a value that is not there is `None`."""

    value: Any
    loc: Loc = ()

    def __getitem__(self, key: str) -> "Node":
        return Node(self.value.get(key) if isinstance(self.value, dict) else None, (*self.loc, key))

    def items(self) -> Iterator["Node"]:
        """The entries of a list."""
        for index, item in enumerate(self.value if isinstance(self.value, list) else ()):
            yield Node(item, (*self.loc, index))

    def entries(self) -> Iterator[tuple[str, "Node"]]:
        """The entries of a mapping."""
        for key in self.value if isinstance(self.value, dict) else ():
            yield key, self[key]

    @property
    def given(self) -> bool:
        """Whether anything stands there."""
        return self.value is not None

    @property
    def text(self) -> str | None:
        """The text, unless something else or nothing stands there."""
        return self.value.strip() or None if isinstance(self.value, str) else None

    @property
    def true(self) -> bool:
        """Whether it says `true`."""
        return self.value is True or str(self.value).lower() in ("true", "yes", "on", "1")

    def path(self, base: Path) -> Path | None:
        """The file that it names, seen from a folder."""
        return base / self.text if self.text and "\0" not in self.text else None

    def duration(self, default: str) -> Micros | None:
        """The duration in microseconds, `None` when it is none."""
        try:
            return parse_duration(self.value if self.given else default)
        except ValueError:
            return None

    def listeners(self, default: str) -> list[tuple["Node", Listener]]:
        """The listeners of a setting that is one or a list, without those that are none."""
        found = []
        for node in self.items() if isinstance(self.value, list) else [self]:
            try:
                found.append((node, parse_listener(node.value if node.given else default)))
            except ValueError:
                continue
        return found

    def problem(self, message: str) -> Problem:
        """Something that is wrong here."""
        return Problem(path_of(self.loc), message)
