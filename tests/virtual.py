"""An event loop on virtual time: timers fire at once, in order, and nothing ever waits on the wall clock."""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, TypeVar

T = TypeVar("T")


class _Selector(selectors.DefaultSelector):
    """Moves the loop's clock by what it was asked to wait."""

    loop: "VirtualLoop"

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            raise RuntimeError("nothing is scheduled any more, but the test still waits")
        self.loop.now += max(0.0, timeout)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop whose `time()` starts at `start` seconds and moves only when everything waits."""

    def __init__(self, start: float = 1000.0) -> None:
        selector = _Selector()
        selector.loop = self
        self.now = start
        super().__init__(selector)

    def time(self) -> float:
        """The virtual time in seconds."""
        return self.now

    def micros(self) -> int:
        """The time in microseconds."""
        return round(self.now * 1_000_000)


def run(main: Coroutine[Any, Any, T], loop: VirtualLoop | None = None) -> T:
    """Run to the end on virtual time."""
    with asyncio.Runner(loop_factory=lambda: loop or VirtualLoop()) as runner:
        return runner.run(main)


def micros() -> int:
    """The running loop's time in microseconds."""
    return round(asyncio.get_running_loop().time() * 1_000_000)


def task_of(work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
    """A task whose owner is the test: it awaits or cancels it."""
    return asyncio.get_running_loop().create_task(work)


def virtual(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test on virtual time."""

    @wraps(test)
    def sync(**given: Any) -> None:
        run(test(**given))

    return sync
