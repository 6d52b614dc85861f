"""Recent events: counts by name over the last minute, and causes that have been reported already.

Instants are in microseconds of one clock that never goes back.
"""

from collections import deque
from collections.abc import Hashable, Mapping

from keyturn.core.model import SECOND, Micros
from keyturn.core.values import value_object

MINUTE = 60
"""Slices of a second that are kept."""

CAUSE_QUIET: Micros = 600 * SECOND
"""A cause that has not been met for this long is new again."""

MAX_CAUSES = 1024
"""Causes that are kept; beyond, the one met longest ago is forgotten."""


@value_object
class Count:
    """How often something happened: since the process began, and in the last minute."""

    total: int = 0
    minute: int = 0


ZERO_COUNT = Count()


class RecentCounts:
    """Counts by name, as bounded as the names are; the last minute is exact to the second."""

    def __init__(self) -> None:
        self._totals: dict[str, int] = {}
        self._slices: deque[tuple[int, dict[str, int]]] = deque()

    def add(self, name: str, now: Micros) -> None:
        """Count one occurrence."""
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


class RecentCauses:
    """The causes that were met of late: each is reported once, not once for each request that meets it."""

    def __init__(self) -> None:
        self._met: dict[Hashable, Micros] = {}

    def is_new(self, cause: Hashable, now: Micros) -> bool:
        """Note that a cause is met; returns whether to report it."""
        last = self._met.pop(cause, None)
        self._met[cause] = now
        if len(self._met) > MAX_CAUSES:
            del self._met[next(iter(self._met))]
        return last is None or last + CAUSE_QUIET <= now
