"""Gives memory back to the system when a crowd has gone.

glibc keeps what was freed in its heaps: after a thousand slow callers several hundred MiB would look as if they were
in use, to whoever sets a limit on the process or looks at it.
"""

import asyncio
import ctypes
from collections.abc import Awaitable, Callable

CROWD = 100
"""Connections that are worth the trouble: it takes some milliseconds."""
EVERY = 10.0
"""Seconds."""


def trim() -> None:
    """Have the C library give back what it does not use; only glibc can."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)


async def trim_aside() -> None:
    """The same, beside what else goes on."""
    await asyncio.to_thread(trim)


async def trim_behind_crowds(
    most: Callable[[], int], now: Callable[[], int], trim: Callable[[], Awaitable[None]] = trim_aside
) -> None:
    """Look at the connections for ever; `most` tells how many were open at once since it was asked last."""
    peak = 0
    while True:
        await asyncio.sleep(EVERY)
        peak = max(peak, most())
        if peak >= CROWD and now() <= peak // 2:
            await trim()
            peak = now()
