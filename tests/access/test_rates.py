import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from keyturn.access.rates import Rates
from keyturn.core.errors import TooMany
from keyturn.core.model import SECOND, Client, Micros

from tests.virtual import VirtualLoop, run, virtual


class Rate:
    """A client with a rate, on a virtual clock."""

    def __init__(self, requests: int, window: Micros) -> None:
        self.client = Client("ci", rate=(requests, window))
        self.rates = Rates()

    async def accept(self, client: Client | None = None) -> int | None:
        """Try once; returns `Retry-After` when it is refused."""
        try:
            async with asyncio.timeout(0):
                await self.rates.accept(client or self.client)
        except TooMany as refusal:
            return refusal.retry_after
        return None

    async def accepted(self, tries: int) -> int:
        """How many of so many tries get in at once."""
        return [await self.accept() for _ in range(tries)].count(None)

    def replace(self, *clients: Client) -> None:
        """A reload."""
        self.rates.keep(clients)


@virtual
async def test_a_rate_is_a_bucket_that_leaks() -> None:
    """The whole of it at once, then one for each part of the window; after a long rest no more than the whole."""
    rate = Rate(60, 60 * SECOND)
    assert await rate.accepted(100) == 60
    await asyncio.sleep(1)
    assert await rate.accepted(100) == 1
    await asyncio.sleep(59)
    assert await rate.accepted(100) == 59
    await asyncio.sleep(1000)
    assert await rate.accepted(100) == 60


@virtual
async def test_a_refusal_says_what_the_rate_is() -> None:
    """And when to come back."""
    rate = Rate(1, 90 * SECOND)
    assert await rate.accept() is None
    await asyncio.sleep(0.5)
    with pytest.raises(TooMany, match=r"Client `ci` is over its rate of 1/90s\. Try again in 90 s\.") as caught:
        await rate.rates.accept(rate.client)
    assert (caught.value.reason, caught.value.retry_after) == ("client_rate", 90)


@virtual
async def test_without_a_rate_everything_is_accepted() -> None:
    """Nothing is counted."""
    rate = Rate(1, SECOND)
    assert [await rate.accept(Client("free")) for _ in range(100)] == [None] * 100


@given(
    st.integers(1, 200),
    st.integers(1, 3_600_000),
    st.floats(0, 1e7, allow_nan=False),
    st.lists(st.floats(0, 5, allow_nan=False), max_size=5),
)
def test_who_comes_back_when_told_gets_in(requests: int, millis: int, start: float, pauses: list[float]) -> None:
    """At that very moment; a second earlier would have been too early."""

    async def come_back() -> None:
        rate = Rate(requests, millis * 1000)
        for pause in pauses:
            await rate.accepted(requests // 2 + 1)
            loop.now += pause
        await rate.accepted(2 * requests + 2)
        now, told = loop.now, await rate.accept()
        assert told is not None
        if told > 1:
            loop.now = now + told - 1.001
            assert await rate.accept() is not None
        loop.now = now + told
        assert await rate.accept() is None

    loop = VirtualLoop(start)
    run(come_back(), loop)


@virtual
async def test_what_was_used_stays_used_over_a_reload() -> None:
    """As long as the rate is the same; another rate begins anew, and so does a client that was gone."""
    rate = Rate(2, 60 * SECOND)
    assert await rate.accepted(5) == 2
    rate.replace(Client("ci", weight=7, rate=(2, 60 * SECOND)), Client("web"))
    assert await rate.accept() is not None
    rate.client = Client("ci", rate=(3, 60 * SECOND))
    rate.replace(rate.client)
    assert await rate.accepted(5) == 3
    rate.replace()
    rate.replace(rate.client)
    assert await rate.accepted(5) == 3


@virtual
async def test_clients_have_rates_of_their_own() -> None:
    """One over its own takes nothing from another."""
    rate = Rate(1, 60 * SECOND)
    other = Client("other", rate=(1, 60 * SECOND))
    assert [await rate.accept(client) for client in (None, None, other, other)] == [None, 60, None, 60]


async def test_accepting_never_waits() -> None:
    """Not even for one step of the loop: a coroutine that is driven by hand ends at once."""
    client = Client("ci", rate=(5, 3600 * SECOND))
    here = Rates()
    for _ in range(5):
        with pytest.raises(StopIteration):
            here.accept(client).send(None)
    with pytest.raises(TooMany):
        here.accept(client).send(None)
