"""Count the work of reading a text, instead of timing it: lines of Python, and steps of the regular expressions.

A line of Python may do much, too, but in this house only a regular expression does what is not linear in its text.
"""

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, lru_cache
from types import FrameType
from typing import Any

from keyturn.core.errors import Refusal

from fuzz.attacks import SEARCHING
from fuzz.backtracking import Program, TooManySteps, program

BUDGET = 50_000_000
"""Most steps of one call of a pattern: more than any linear one takes for 64 kB."""
_PACKAGES = frozenset({"http_sf", "keyturn", "opentelemetry", "prometheus_client"})
"""Packages whose patterns are counted: ours, and libraries that read untrusted input."""


class Counter:
    """The number of steps that ran within `counting`."""

    def __init__(self) -> None:
        self.steps = 0
        self.too_many = False
        """Whether a pattern took more than its budget; what it was asked by may hide that."""

    def trace(self, _: FrameType, event: str, __: object) -> Any:
        """Count a line; see `sys.settrace`."""
        self.steps += event == "line"
        return self.trace


class _Counted:
    """Stands in for a compiled pattern, and counts its steps."""

    def __init__(self, pattern: "re.Pattern[Any]", counter: Counter) -> None:
        self._pattern = pattern
        self._counter = counter

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._pattern, name)
        if name not in SEARCHING | {"match", "fullmatch"}:
            return real

        def asked(*given: Any, **more: Any) -> Any:
            with _unseen():
                text = given[1] if name in ("sub", "subn") else given[0]
                begin = given[1] if len(given) > 1 and isinstance(given[1], int) else 0
                self._count(text, begin, name)
            return real(*given, **more)

        return asked

    def _count(self, text: bytes | str, begin: int, method: str) -> None:
        try:
            self._counter.steps += _steps(_program(self._pattern), text, begin, method)
        except TooManySteps:
            self._counter.too_many = True
            raise


@cache
def _program(pattern: "re.Pattern[Any]") -> Program:
    return program(pattern)


@lru_cache(maxsize=4)
def _codes(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def _steps(made: Program, text: bytes | str, begin: int, method: str) -> int:
    made.steps, made.budget = 0, BUDGET
    letters = text if isinstance(text, bytes) else _codes(text)
    if method not in SEARCHING:
        made.run(letters, begin, whole=method == "fullmatch")
        return made.steps
    while begin <= len(letters):
        end = made.run(letters, begin)
        if end is not None and method == "search":
            break
        begin = end if end is not None and end > begin else begin + 1
    return made.steps


@contextmanager
def _unseen() -> Iterator[None]:
    """Run a block without counting it."""
    tracing = sys.gettrace()
    sys.settrace(None)
    try:
        yield
    finally:
        sys.settrace(tracing)


@contextmanager
def counting() -> Iterator[Counter]:
    """Count the steps of the block, on this thread."""
    counter = Counter()
    replaced = [(module, name, value) for module in _modules() for name, value in _patterns(module)]
    for module, name, value in replaced:
        setattr(module, name, _Counted(value, counter))
    tracing = sys.gettrace()
    sys.settrace(counter.trace)
    try:
        yield counter
    finally:
        sys.settrace(tracing)
        for module, name, value in replaced:
            setattr(module, name, value)


def _modules() -> list[Any]:
    return [module for name, module in list(sys.modules.items()) if name.partition(".")[0] in _PACKAGES]


def _patterns(module: Any) -> list[tuple[str, "re.Pattern[Any]"]]:
    return [(name, value) for name, value in list(vars(module).items()) if isinstance(value, re.Pattern)]


def steps_of(read: Callable[[bytes], object], text: bytes) -> int:
    """Return the steps that reading a text takes; a reader may refuse it by an exception.

    Raises:
        TooManySteps: a pattern took more than its budget.
    """
    with counting() as counter, suppress(ValueError, Refusal):
        read(text)
    if counter.too_many:
        raise TooManySteps
    return counter.steps
