"""Serving until told to stop: signals, the drain, the exit code."""

import asyncio
import gc
import os
import signal
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from keyturn.app import rlimits
from keyturn.app.composition import App
from keyturn.tasks import finish, spawn

_STDIN = 0

_COLLECTIONS = (20_000, 20, 50)
"""How rarely the garbage collector runs: next to no cycles are made, and a full collection stands for 50 ms when many
requests wait."""


async def serve_until_told(app: App, announce: Callable[[str], None]) -> int:
    """Run until SIGTERM or SIGINT, drain, and return the exit code; a second signal ends at once with 1.

    SIGUSR1 has everything logged, and the next one what is configured. SIGHUP reloads the configuration, unless it
    tells that the terminal has gone at which the process was started.
    """
    rlimits.settle()
    told, again = asyncio.Event(), asyncio.Event()
    at_terminal = os.isatty(_STDIN)

    def hang_up() -> None:
        if at_terminal and not os.isatty(_STDIN):
            told.set()
        else:
            app.reload()

    end = partial(_end, told, again)
    others = {signal.SIGUSR1: app.log_level.toggle, signal.SIGHUP: hang_up}
    with _signals({signal.SIGTERM: end, signal.SIGINT: end, **others}):
        await app.start()
        _settle_memory()
        try:
            announce(f"ready data={','.join(app.data_addresses)} admin={','.join(app.admin_addresses)}")
            await _first(told.wait(), app.failure())
            return await _drain_unless(app, again)
        finally:
            await app.stop()


def _end(told: asyncio.Event, again: asyncio.Event) -> None:
    (again if told.is_set() else told).set()


def _settle_memory() -> None:
    """Leave what was made at start out of every later garbage collection, since it stays; and make these rare."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECTIONS)


async def until_told(begin: Callable[[], None]) -> None:
    """Call `begin`, then wait for SIGTERM or SIGINT; one that comes early is not missed."""
    told = asyncio.Event()
    with _signals({signal.SIGTERM: told.set, signal.SIGINT: told.set}):
        begin()
        await told.wait()


async def _drain_unless(app: App, again: asyncio.Event) -> int:
    """Drain; 0 when everything came to its end, 1 when it was cut short, or requests are."""
    await _first(app.drain(), again.wait())
    return 1 if again.is_set() or app.cut else 0


async def _first(*alternatives: Coroutine[Any, Any, object]) -> None:
    """Run them beside each other until the first has ended, and end the others; raises what that one raised."""
    tasks: set[asyncio.Task[Any]] = set()
    try:
        running = [spawn(work, name="until told", owner=tasks) for work in alternatives]
        ended, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        for task in ended:
            task.result()
    finally:
        await finish(tasks)


@contextmanager
def _signals(handlers: Mapping[signal.Signals, Callable[[], object]]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    for number, handle in handlers.items():
        loop.add_signal_handler(number, handle)
    try:
        yield
    finally:
        for number in handlers:
            with suppress(ValueError):
                loop.remove_signal_handler(number)
