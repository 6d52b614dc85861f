"""Run a target: its examples by Hypothesis, counted and timed."""

from collections.abc import Callable
from time import monotonic
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.database import DirectoryBasedExampleDatabase
from hypothesis.strategies import SearchStrategy

Promise = tuple[SearchStrategy[Any], Callable[[Any], None]]
"""The input to try, and the check of each."""

FOLDER = ".hypothesis/fuzz"
"""Where failing examples are kept."""
_PHASES = (Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink)


class Target:
    """One target, and how often it has been tried."""

    def __init__(self, name: str, promise: Promise, folder: str | None = None) -> None:
        self.name = name
        self._folder = FOLDER if folder is None else folder
        self._strategy, self._check = promise
        self.examples = 0
        self.seconds = 0.0

    def run(self, number: int) -> None:
        """Try so many examples.

        Raises:
            Exception: from an example that broke the promise, shrunk; its bytes are among the exception's notes.
        """

        def promise(example: Any) -> None:
            self.examples += 1
            self._check(example)

        promise.__name__ = promise.__qualname__ = self.name
        tried = settings(
            max_examples=number,
            deadline=None,
            database=DirectoryBasedExampleDatabase(self._folder) if self._folder else None,
            phases=_PHASES,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        )(given(self._strategy)(promise))
        began = monotonic()
        try:
            tried()
        finally:
            self.seconds += monotonic() - began
