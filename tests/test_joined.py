"""Identical GETs that wait, through the real process (`queue.join`)."""

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.app.test_composition import ONE_AT_A_TIME, PATIENT, held, sending
from tests.process import KEYS, Gate, house, limit, request

CALLERS = 5
LARGE = 40_000_000


@pytest.mark.parametrize(("join", "waiting", "arrived"), [(True, 1, 1), (False, CALLERS, CALLERS)])
async def test_identical_requests_that_wait_cost_one_token_if_that_is_configured(
    tmp_path: Path, join: bool, waiting: int, arrived: int
) -> None:
    """Each caller gets the whole answer under its own id; what is not identical has a token of its own."""
    queue = {"max_wait": "60s", "join": join}
    async with house(tmp_path, limits=ONE_AT_A_TIME, keys=KEYS[:1], upstream=PATIENT, queue=queue) as home:
        gate = Gate(home.api)
        async with AsyncExitStack() as stack:
            first = await stack.enter_async_context(sending(home.keyturn.data, request("/echo/first")))
            await held(gate)
            asked = [request("/echo/same", f"Postman-Token: {number}") for number in range(CALLERS)]
            callers = [
                await stack.enter_async_context(sending(home.keyturn.data, data))
                for data in [*asked, request("/echo/other")]
            ]
            await home.keyturn.waiting(waiting + 1)
            gate.open()
            assert (await first.reply()).status == 200
            replies = [await caller.reply() for caller in callers]
        assert [reply.status for reply in replies] == [200] * (CALLERS + 1)
        assert len({reply.one("X-Request-Id") for reply in replies}) == CALLERS + 1
        assert replies[0].body
        assert len({reply.body for reply in replies[:CALLERS]}) == arrived, "each carries the token of who asked"
        targets = Counter(arrival.target for arrival in home.api.arrivals)
        assert targets == {"/echo/first": 1, "/echo/same": arrived, "/echo/other": 1}
        assert await home.keyturn.metric("keyturn_joined_total", client="ci") == CALLERS - arrived


async def test_a_reader_by_drops_does_not_set_the_pace_of_a_joined_answer(tmp_path: Path) -> None:
    """The others have all 40 MB before it has taken anything; then it is cut off, and that is counted and logged."""
    limits = (limit(10_000, "60s"), limit(1, "50ms", "* /chunked/**"))
    queue = {"max_wait": "60s", "join": True}
    async with house(tmp_path, limits=limits, keys=KEYS[:1], upstream=PATIENT, queue=queue) as home:
        gate = Gate(home.api)
        async with AsyncExitStack() as stack:
            first = await stack.enter_async_context(sending(home.keyturn.data, request("/chunked/1")))
            await held(gate)
            callers = [
                await stack.enter_async_context(sending(home.keyturn.data, request(f"/chunked/{LARGE}", *fields)))
                for fields in [["X-Request-Id: by-drops"], *[[]] * (CALLERS - 1)]
            ]
            last = await stack.enter_async_context(sending(home.keyturn.data, request("/chunked/2")))
            await home.keyturn.waiting(2)
            gate.open()
            assert [len((await caller.reply()).body) for caller in (first, last)] == [1, 2]
            by_drops, *others = callers
            assert (await by_drops.head()).status == 200
            replies = await asyncio.gather(*(caller.reply() for caller in others))
            assert [len(reply.body) for reply in replies] == [LARGE] * len(others)
            assert len(home.arrivals("/chunked")) == 3
            assert len(await by_drops.ended()) < LARGE
        assert await home.keyturn.metric("keyturn_connections_ended_total", reason="fell_behind") == 1
        (line,) = [line for line in home.keyturn.process.lines if "by-drops" in line]
        assert "too slow for the others" in line
