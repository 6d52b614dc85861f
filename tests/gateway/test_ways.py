import asyncio

import pytest
from keyturn.core.model import SECOND

from tests.core.worlds import limit
from tests.gateway.settings import PLAIN_429, answer, setting
from tests.virtual import micros, task_of, virtual

NARROW_429 = answer(429, PLAIN_429, (b"RateLimit", b"limit=1, remaining=0, reset=7"), (b"RateLimit-Policy", b"1;w=7"))


@virtual
async def test_a_place_that_was_not_used_goes_to_the_next() -> None:
    """A caller that leaves while it waits for its turn, or a try that sent nothing, costs nobody anything."""
    async with setting(NARROW_429, quotas=1, limits=(limit(2, 20 * SECOND),)) as it:
        assert (await it.ask(it.request(path="/a", wait=SECOND))).status == 429
        await asyncio.sleep(8)
        await it.ask(it.request(path="/b"))
        leaving = task_of(it.ask(it.request(path="/a")))
        await asyncio.sleep(1)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        began = micros()
        assert (await it.ask(it.request(path="/a"))).status == 200
        assert micros() - began < 13 * SECOND


@virtual
async def test_who_insists_on_a_key_waits_for_that_quota() -> None:
    """The other one would serve, but it is not the one that was asked for."""
    async with setting(NARROW_429, limits=(limit(60),)) as it:
        began = micros()
        assert (await it.ask(it.request(path="/a", pinned="k0"))).status == 200
        assert 7 * SECOND <= micros() - began <= 8 * SECOND
        assert it.keys == ["s-k0", "s-k0"]


@virtual
async def test_a_quota_that_dies_under_who_waits_sends_them_elsewhere() -> None:
    """They were led to it by a narrower limit, and insist on nothing."""
    async with setting(NARROW_429, limits=(limit(2, 60 * SECOND),)) as it:
        assert (await it.ask(it.request(path="/a"))).status == 200
        assert it.keys == ["s-k0", "s-k1"]
        await it.ask(it.request(path="/b", pinned="k1"))
        waiting = task_of(it.ask(it.request(path="/a")))
        await asyncio.sleep(1)
        it.pause("k1")
        began = micros()
        assert (await waiting).status == 200
        assert it.keys[-1] == "s-k0"
        assert micros() - began < 10 * SECOND
