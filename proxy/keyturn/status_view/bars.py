"""A limit's tokens as a bar, as wide as its column is."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console, ConsoleOptions
from rich.measure import Measurement
from rich.text import Text

WIDTH = 30
"""Characters of a bar where there is room."""

LEAST = 8
"""And where there is none."""


class Bar:
    """Something that rich can print: `#` available, `*` in use, `.` cooling down; readable without colours."""

    def __init__(self, limit: Mapping[str, Any]) -> None:
        self._limit = limit

    def drawn(self, room: int) -> Text:
        """It, in so many characters at most."""
        size = self._limit["size"]
        width = min(WIDTH, size, room)
        available = _cells(self._limit["available"], size, width)
        use = min(width - available, _cells(self._limit["in_use"], size, width))
        return Text.assemble(
            ("#" * available, "green"), ("*" * use, "yellow"), ("." * (width - available - use), "dim")
        )

    def __rich_console__(self, _: Console, options: ConsoleOptions) -> Iterator[Text]:
        yield self.drawn(options.max_width)

    def __rich_measure__(self, _: Console, options: ConsoleOptions) -> Measurement:
        most = min(WIDTH, self._limit["size"])
        return Measurement(min(LEAST, most), most).with_maximum(options.max_width)


def _cells(tokens: int, size: int, width: int) -> int:
    """What is there shows, however little; and only all of it fills the bar."""
    if not tokens or not size:
        return 0
    return width if tokens >= size else min(max(1, tokens * width // size), max(1, width - 1))
