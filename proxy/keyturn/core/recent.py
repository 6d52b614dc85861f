"""How often things happened: since the process began, and in the last minute."""

from collections import deque
from collections.abc import Mapping

from keyturn.core.model import SECOND, Micros
from keyturn.core.values import value_object

MINUTE = 60
"""Slices of a second that are kept."""


@value_object
class Count:
    """How often something happened: since the process began, and in the last minute."""

    total: int = 0
    minute: int = 0


NEVER = Count()


class Recent:
    """Counts by name, as bounded as the names are. The last minute is told to the second.

    Instants are in microseconds of one clock that never goes back.
    """

    def __init__(self) -> None:
        self._totals: dict[str, int] = {}
        self._slices: deque[tuple[int, dict[str, int]]] = deque()

    def add(self, name: str, now: Micros) -> None:
        """It happened once."""
        self._totals[name] = self._totals.get(name, 0) + 1
        second = now // SECOND
        if not self._slices or self._slices[-1][0] != second:
            self._purge(second)
            self._slices.append((second, {}))
        counts = self._slices[-1][1]
        counts[name] = counts.get(name, 0) + 1

    def counts(self, now: Micros) -> Mapping[str, Count]:
        """Everything that ever happened, by name."""
        self._purge(now // SECOND)
        minute: dict[str, int] = {}
        for _, counts in self._slices:
            for name, number in counts.items():
                minute[name] = minute.get(name, 0) + number
        return {name: Count(total, minute.get(name, 0)) for name, total in self._totals.items()}

    def _purge(self, second: int) -> None:
        while self._slices and self._slices[0][0] <= second - MINUTE:
            self._slices.popleft()
