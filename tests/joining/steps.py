"""How much work something is: the lines of a module that are run for it, whatever the machine does meanwhile."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType, ModuleType
from typing import Any


@dataclass
class Steps:
    """The lines that have been run so far."""

    number: int = 0


@contextmanager
def counting(module: ModuleType) -> Iterator[Steps]:
    """Count the lines of the module that are run within the block, in what is called there."""
    steps = Steps()

    def trace(frame: FrameType, event: str, _: object) -> Any:
        steps.number += event == "line"
        return trace if frame.f_globals is vars(module) else None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield steps
    finally:
        sys.settrace(before)
