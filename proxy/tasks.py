"""Background tasks with an owner and an end: the one place that creates them."""

import asyncio
from collections.abc import Coroutine
from typing import Any


def spawn(work: Coroutine[Any, Any, Any], *, name: str, owner: set[asyncio.Task[Any]]) -> asyncio.Task[Any]:
    """Run `work` beside its caller; `owner` holds the task until it ends and awaits or cancels it (`finish`)."""
    task = asyncio.get_running_loop().create_task(work, name=name)
    owner.add(task)
    task.add_done_callback(owner.discard)
    return task


async def finish(owner: set[asyncio.Task[Any]]) -> None:
    """Cancel what an owner still runs, and wait until it has ended; what it raised is not raised again.

    What a task spawns on its way out is ended too. A task may finish its own owner: it is spared.
    """
    while tasks := owner - {asyncio.current_task()}:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        owner -= tasks
