import asyncio
from collections.abc import Iterator

import pytest

from proxy.stores.addresses import Node, parse_address
from proxy.stores.lines import Lines
from tests.stores.servers import KINDS, Server, server


@pytest.fixture(params=KINDS, scope="module")
def one(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server of each kind."""
    with server(request.param) as running:
        yield running


async def test_a_connection_rests_until_the_next_call(one: Server) -> None:
    """Two calls at a time have one each; a dead one is never taken; all end together."""
    lines = Lines(parse_address(one.url))
    node = Node("127.0.0.1", one.port)
    first, second = await lines.take(node), await lines.take(node)
    assert first is not second
    lines.keep(node, first)
    assert await lines.take(node) is first
    lines.keep(node, first)
    lines.keep(node, second)
    second.abort()
    assert await lines.take(node) is first
    lines.keep(node, first)
    lines.drop(node)
    third = await lines.take(node)
    assert third is not first
    await lines.close()
    async with asyncio.timeout(30):
        await asyncio.gather(first.ended, second.ended, third.ended)
