"""What has been told already: a cause is told once, not once for each request that meets it."""

from collections.abc import Hashable

from keyturn.core.model import SECOND, Micros

QUIET: Micros = 600 * SECOND
"""A cause that has not been met for this long is news again."""

MOST = 1024
"""Causes that are kept; beyond, the one met longest ago is forgotten."""


class Causes:
    """The causes that were met of late."""

    def __init__(self) -> None:
        self._met: dict[Hashable, Micros] = {}

    def news(self, cause: Hashable, now: Micros) -> bool:
        """Take note that a cause is met; whether somebody has to be told."""
        last = self._met.pop(cause, None)
        self._met[cause] = now
        if len(self._met) > MOST:
            del self._met[next(iter(self._met))]
        return last is None or last + QUIET <= now
