import asyncio
from typing import cast

from aiohttp.base_protocol import BaseProtocol
from aiohttp.streams import StreamReader
from keyturn.aiohttp_internals import buffered


async def test_what_waits_in_a_body_is_weighed() -> None:
    """Its bytes, and what each piece costs beside them."""
    body = StreamReader(cast("BaseProtocol", None), 2**16, loop=asyncio.get_running_loop())
    assert buffered(body) == 0
    for _ in range(3):
        body.feed_data(b"x" * 100)
    assert buffered(body) == 3 * 228
