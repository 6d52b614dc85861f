"""Background tasks with an owner and an end, which are created here only, and long work done in steps."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterable
from itertools import islice
from typing import Any, TypeVar

Entry = TypeVar("Entry")

STEP_ENTRIES = 200
"""Entries that are worked out in one iteration of the event loop."""


def spawn(work: Coroutine[Any, Any, Any], *, name: str, owner: set[asyncio.Task[Any]]) -> asyncio.Task[Any]:
    """Run `work` beside its caller; `owner` holds the task until it ends and awaits or cancels it (`finish`)."""
    task = asyncio.get_running_loop().create_task(work, name=name)
    owner.add(task)
    task.add_done_callback(owner.discard)
    return task


async def finish(owner: set[asyncio.Task[Any]]) -> None:
    """Cancel what an owner still runs, and wait until it has ended; what it raised is not raised again.

    Tasks that are spawned meanwhile are ended, too. The current task is spared.
    """
    while tasks := owner - {asyncio.current_task()}:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        owner -= tasks


async def steps(entries: Iterable[Entry]) -> AsyncIterator[list[Entry]]:
    """Work out `STEP` entries of an iterator at a time, and let the event loop run between them."""
    rest = iter(entries)
    while step := list(islice(rest, STEP_ENTRIES)):
        yield step
        await asyncio.sleep(0)


async def in_steps(entries: Iterable[Entry]) -> list[Entry]:
    """Collect entries, in steps."""
    return [entry async for step in steps(entries) for entry in step]


async def encoded_in_steps(pieces: Iterable[str]) -> bytes:
    """Join and encode pieces of a text, in steps."""
    return b"".join(["".join(step).encode() async for step in steps(pieces)])
