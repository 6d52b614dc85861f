"""Run an app until a signal ends it: signals, drain, exit code."""

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from keyturn.app.composition import App
from keyturn.app.resources import set_resource_limits, tune_garbage_collector
from keyturn.tasks import finish, spawn

_STDIN = 0


async def serve_until_told(app: App, announce: Callable[[str], None]) -> int:
    """Run until SIGTERM or SIGINT, drain, and return the exit code; a second signal ends at once with 1.

    SIGUSR1 toggles the log level between `debug` and the configured one. SIGHUP reloads the configuration, unless the
    terminal of the process was closed.
    """
    set_resource_limits()
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
        tune_garbage_collector()
        try:
            announce(f"ready data={','.join(app.data_addresses)} admin={','.join(app.admin_addresses)}")
            await _first(told.wait(), app.failure())
            return await _drain_unless(app, again)
        finally:
            await app.stop()


def _end(told: asyncio.Event, again: asyncio.Event) -> None:
    (again if told.is_set() else told).set()


async def until_told(begin: Callable[[], None]) -> None:
    """Call `begin`, then wait for SIGTERM or SIGINT; a signal during `begin` counts."""
    told = asyncio.Event()
    with _signals({signal.SIGTERM: told.set, signal.SIGINT: told.set}):
        begin()
        await told.wait()


async def _drain_unless(app: App, again: asyncio.Event) -> int:
    """Drain; return 0 if all requests completed, and 1 if some were cut or a second signal came."""
    await _first(app.drain(), again.wait())
    return 1 if again.is_set() or app.cut else 0


async def _first(*alternatives: Coroutine[Any, Any, object]) -> None:
    """Run coroutines concurrently until the first ends, then cancel the others; raise what the first raised."""
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
