"""Check periodically that the store fits its purpose, since a failover may have put another server in its place."""

import asyncio
from collections.abc import Callable
from contextlib import suppress

from keyturn.core.errors import StoreLost
from keyturn.stores.links import Link

CHECK_INTERVAL = 30.0
"""Seconds between two checks."""


async def watch(link: Link, key: str, tell: Callable[[str], None], *, every: float = CHECK_INTERVAL) -> None:
    """Report each problem of the server that has `key` once; a server that does not respond is no such problem."""
    known: tuple[str, ...] = ()
    while True:
        with suppress(StoreLost):
            found = await link.check(key)
            for warning in found:
                if warning not in known:
                    tell(warning)
            known = found
        await asyncio.sleep(every)
