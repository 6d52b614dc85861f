"""Operating system resources of the process: limits, garbage collection, and memory that is returned to the system."""

import asyncio
import ctypes
import gc
import resource
from collections.abc import Awaitable, Callable
from contextlib import suppress

MAX_OPEN_FILES = 2**20
"""More than any configuration needs; some systems accept no larger number."""

GC_THRESHOLDS = (20_000, 20, 50)
"""Rare collections: hardly any cycles are made, and a full one takes 50 ms while many requests wait."""

TRIM_THRESHOLD = 100
"""Connections at once after which memory is returned; trimming takes some milliseconds."""

TRIM_INTERVAL = 10.0
"""Seconds between two checks."""


def set_resource_limits() -> None:
    """Disable core dumps, which would hold the keys, and raise the limit of open files to the hard limit."""
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_OPEN_FILES)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


def tune_garbage_collector() -> None:
    """Exclude what was built at start from all later collections, and make these rare."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


def trim_memory() -> None:
    """Have the C library return unused memory to the system; only glibc can.

    glibc keeps freed memory in its heaps: after a thousand slow callers, several hundred MiB would count as used.
    """
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)


async def trim_in_thread() -> None:
    """Trim without blocking the event loop."""
    await asyncio.to_thread(trim_memory)


async def trim_memory_periodically(
    peak_since_last: Callable[[], int], now: Callable[[], int], trim: Callable[[], Awaitable[None]] = trim_in_thread
) -> None:
    """Trim after many connections were closed, until cancelled.

    Args:
        peak_since_last: the most connections that were open at once since it was called last.
        now: the connections that are open.
        trim: returns the memory.
    """
    peak = 0
    while True:
        await asyncio.sleep(TRIM_INTERVAL)
        peak = max(peak, peak_since_last())
        if peak >= TRIM_THRESHOLD and now() <= peak // 2:
            await trim()
            peak = now()
