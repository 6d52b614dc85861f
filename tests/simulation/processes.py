"""Processes on virtual time: each is an event loop of its own, with its own clock, and can be frozen or killed.

There is one *true time*, in microseconds, and one order of events. What a process does between two awaits is one event,
so it can be killed or frozen at each of its awaits. Its clock has an offset and a rate, and its timers go by it.
"""

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import Context
from heapq import heappop, heappush
from itertools import count
from typing import Any, TypeVar

from keyturn.core.model import SECOND, Micros

T = TypeVar("T")

MILLION = 1_000_000


class Universe:
    """True time, and all events to come."""

    def __init__(self, start: Micros = 0) -> None:
        self.now = start
        self.broken: list[str] = []
        """Errors in living processes: none is expected."""
        self._order = count()
        self._events: list[tuple[Micros, int, Process | None, Any]] = []

    def at(self, instant: Micros, do: Callable[[], object]) -> None:
        """Schedule an event outside all processes."""
        heappush(self._events, (max(instant, self.now), next(self._order), None, do))

    def after(self, delay: Micros, do: Callable[[], object]) -> None:
        """Schedule an event after a while."""
        self.at(self.now + delay, do)

    def schedule(self, instant: Micros, process: "Process", handle: asyncio.Handle) -> None:
        """Schedule a process's next step."""
        heappush(self._events, (max(instant, self.now), next(self._order), process, handle))

    def run(self, until: Micros) -> None:
        """Let everything happen up to that instant."""
        events = self._events
        while events and events[0][0] <= until:
            self.now, _, process, what = heappop(events)
            if process is None:
                what()
            else:
                process.step(what)
        self.now = until


class Process(asyncio.AbstractEventLoop):
    """One process. Its clock shows `offset` now, and gains `drift` microseconds in a second of true time."""

    def __init__(self, universe: Universe, name: str, *, offset: Micros = 1000 * SECOND, drift: int = 0) -> None:
        self.universe = universe
        self.name = name
        self.dead = False
        self.frozen = False
        self.thawed: Micros = universe.now
        """True time at which it last began to run."""
        self.fuse: int | None = None
        """Steps until it is killed."""
        self.on_death: list[Callable[[], object]] = []
        self._offset = offset
        self._drift = drift
        self._born = universe.now
        self._held: list[asyncio.Handle] = []
        self._tasks: dict[asyncio.Task[Any], None] = {}

    # Its clock

    def micros(self) -> Micros:
        """Return its monotonic clock in microseconds."""
        elapsed = self.universe.now - self._born
        return self._offset + elapsed + elapsed * self._drift // MILLION

    def time(self) -> float:
        """Return its monotonic clock in seconds."""
        return self.micros() / SECOND

    def _true(self, local: float) -> Micros:
        """Return the true time of an instant of its clock."""
        elapsed = round(local * SECOND) - self._offset
        return self._born + -(-elapsed * MILLION // (MILLION + self._drift)) + (1 if self._drift else 0)

    # Its life

    def step(self, handle: asyncio.Handle) -> None:
        """Run to the next await."""
        if self.dead or handle.cancelled():
            return
        if self.frozen:
            self._held.append(handle)
            return
        if self.fuse is not None:
            if self.fuse == 0:
                self.kill()
                return
            self.fuse -= 1
        asyncio._set_running_loop(self)
        try:
            handle._run()
        finally:
            asyncio._set_running_loop(None)

    def freeze(self) -> None:
        """Stop the process, as SIGSTOP."""
        self.frozen = True

    def thaw(self) -> None:
        """Continue the process, as SIGCONT: everything that is due happens now."""
        if self.frozen:
            self.frozen = False
            self.thawed = self.universe.now
            held, self._held = self._held, []
            for handle in held:
                self.universe.schedule(self.universe.now, self, handle)

    def kill(self) -> None:
        """Kill the process, as SIGKILL: nothing is cleaned up."""
        if not self.dead:
            self.dead = True
            for tell in self.on_death:
                tell()

    def bury(self) -> None:
        """Discard what was running, so that no clean-up of a dead process runs in another."""
        self.dead = True
        asyncio._set_running_loop(self)
        try:
            for task in list(self._tasks):
                coroutine = task.get_coro()
                if not task.done() and isinstance(coroutine, Coroutine):
                    coroutine.close()
        finally:
            asyncio._set_running_loop(None)
        self._tasks.clear()

    def start(self, work: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        """Start work from outside."""
        self.call_soon(lambda: self.create_task(work()))

    # The interface of an event loop

    def call_soon(  # type: ignore[override]  # the types of arguments are of no use here
        self, callback: Any, *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self.universe.schedule(self.universe.now, self, handle)
        return handle

    def call_later(  # type: ignore[override]  # as above
        self, delay: float, callback: Any, *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]  # as above
        self, when: float, callback: Any, *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        passed = self.universe.now + 1  # every timer takes some time, however short
        self.universe.schedule(max(self._true(when), passed), self, handle)
        return handle

    def create_future(self) -> "asyncio.Future[Any]":
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, *, name: str | None = None, context: Context | None = None) -> "asyncio.Task[T]":
        task: asyncio.Task[T] = asyncio.Task(coro, loop=self, name=name, context=context)
        self._tasks[task] = None
        task.add_done_callback(lambda done: self._tasks.pop(done, None))
        return task

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if not self.dead:
            self.universe.broken.append(f"{self.name}: {context.get('message')}: {context.get('exception')!r}")

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Do nothing: a cancelled timer is skipped when it is due."""
