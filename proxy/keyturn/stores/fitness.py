"""Whether a store that answers is fit for its purpose: looked at again and again, for it may be another by now."""

import asyncio
from collections.abc import Callable
from contextlib import suppress

from keyturn.core.errors import StoreLost
from keyturn.stores.links import Link

EVERY = 30.0
"""Seconds between two looks."""


async def watch(link: Link, key: str, tell: Callable[[str], None], *, every: float = EVERY) -> None:
    """Tell once of each thing that is wrong with the server that has `key`; that it does not answer is not told."""
    known: tuple[str, ...] = ()
    while True:
        with suppress(StoreLost):
            found = await link.check(key)
            for warning in found:
                if warning not in known:
                    tell(warning)
            known = found
        await asyncio.sleep(every)
