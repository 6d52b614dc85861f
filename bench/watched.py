"""`keyturn` with a watchdog in its event loop: `python -m bench.watched FILE serve -c config.yaml`.

The watchdog wakes every millisecond. Each quarter of a second it writes a line to the file: the instant of the
monotonic clock, the longest CPU time of the event loop's thread between two wake-ups, and the longest delay of a
wake-up, both in milliseconds. Other processes on the machine affect the second figure only.
"""

import asyncio
import os
import sys
import time
from collections.abc import Callable
from typing import TextIO

from keyturn import app, cli
from keyturn.app import App, serve_until_told

ROUND, PERIOD = 0.001, 0.25
"""Seconds between two rounds, and between two lines."""


class Watchdog:
    """A callback that wakes again and again in an event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, file: TextIO) -> None:
        self._loop = loop
        self._file = file
        self._told = self._due = time.monotonic()
        self._used = time.thread_time()
        self._cpu = self._late = 0.0
        self.come_round()

    def come_round(self) -> None:
        """Note how long the loop did something else, and wake again."""
        now, used = time.monotonic(), time.thread_time()
        self._cpu = max(self._cpu, used - self._used)
        self._late = max(self._late, now - self._due)
        if now >= self._told + PERIOD:
            self._file.write(f"{now:.3f} {1000 * self._cpu:.1f} {1000 * self._late:.1f}\n")
            self._file.flush()
            self._told, self._cpu, self._late = now, 0.0, 0.0
        self._used, self._due = used, now + ROUND
        self._loop.call_later(ROUND, self.come_round)


def main() -> None:
    """Run the command line with a watchdog in its server's loop."""
    file = os.fdopen(os.open(sys.argv.pop(1), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "a", encoding="ascii")

    async def serve(app: App, announce: Callable[[str], None]) -> int:
        Watchdog(asyncio.get_running_loop(), file)
        return await serve_until_told(app, announce)

    app.serve_until_told = serve
    with file:
        cli.main()


if __name__ == "__main__":
    main()
