import asyncio
import logging
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from keyturn.access import rate_limits
from keyturn.access.rate_limits import (
    ATTEMPTS_AT_ONCE,
    MAX_ADDRESSES,
    MAX_DELAY,
    MAX_WAITING,
    MAX_WAITING_IN_TOTAL,
    AuthenticationFailed,
    ClientRates,
    FailedAttempts,
    SigningKeyUnknown,
    Why,
    address_of,
    network_of,
)
from keyturn.core.errors import TooMany
from keyturn.core.events import CallerRejected, Event
from keyturn.core.model import SECOND, Client, Micros

from tests.virtual import VirtualLoop, run, task_of, virtual


async def refresh() -> None:
    """Nothing."""


@pytest.mark.parametrize("why", get_args(Why))
def test_each_has_words_for_the_log(why: Why) -> None:
    """Its own, or better ones."""
    assert AuthenticationFailed(why).why == why
    assert str(AuthenticationFailed(why)) == AuthenticationFailed(why).detail != ""
    assert AuthenticationFailed(why, "a stranger").detail == "a stranger"


def test_a_token_may_become_known() -> None:
    """The failure says how to read the keys anew."""
    assert SigningKeyUnknown(refresh).refresh is refresh
    assert SigningKeyUnknown(refresh).why == "jwt"


ATTEMPT = AuthenticationFailed("token")


class Peer:
    """A connection from somewhere."""

    def __init__(self, name: Any) -> None:
        self.name = name

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        assert name == "peername"
        return self.name


HOME, ELSEWHERE = "192.0.2.1", "192.0.2.2"


class Door:
    """Failures, and what is told of them."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.failures = FailedAttempts(self)

    def observe(self, event: Event) -> None:
        self.events.append(event)

    async def delay(self, caller: str = HOME) -> float:
        """Virtual seconds until a failed attempt may be answered; -1 when its connection is to end."""
        began = asyncio.get_running_loop().time()
        if not await self.failures.slow(ATTEMPT, caller):
            return -1
        return asyncio.get_running_loop().time() - began

    async def delays(self, number: int, caller: str = HOME) -> list[float]:
        """Of so many at the same time."""
        return await asyncio.gather(*(task_of(self.delay(caller)) for _ in range(number)))


@pytest.mark.parametrize(
    ("name", "address", "origin"),
    [
        (("192.0.2.1", 80), "192.0.2.1", "192.0.2.1"),
        (("::ffff:192.0.2.1", 80, 0, 0), "192.0.2.1", "192.0.2.1"),
        (("2001:db8:1:2:3:4:5:6", 80, 0, 0), "2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        (("fe80::1%eth0", 80, 0, 2), "fe80::1", "fe80::/64"),
        ("", "unix", "unix"),
        (b"\0name", "unix", "unix"),
        (None, "", ""),
    ],
)
def test_an_origin_has_one_address(name: Any, address: str, origin: str) -> None:
    """IPv6 addresses count by the network of a site, since one owner has all of it."""
    assert address_of(Peer(name)) == address
    assert network_of(address) == origin
    assert address_of(None) == ""


@virtual
async def test_the_first_are_answered_at_once_and_the_others_late() -> None:
    """As many as leak out of the bucket, and none later than `PATIENCE`."""
    door = Door()
    assert await door.delays(ATTEMPTS_AT_ONCE) == [0] * ATTEMPTS_AT_ONCE
    assert await door.delay() == pytest.approx(1)
    assert await door.delays(4) == pytest.approx([1, 2, 3, 4])
    assert max(await door.delays(20)) == pytest.approx(MAX_DELAY)
    assert await door.delay(ELSEWHERE) == 0


@virtual
async def test_only_so_many_wait() -> None:
    """The next is answered at once, and its connection ends."""
    door = Door()
    found = await door.delays(ATTEMPTS_AT_ONCE + MAX_WAITING + 7)
    assert found.count(0) == ATTEMPTS_AT_ONCE
    assert found.count(-1) == 7
    assert [event.answered for event in door.events if isinstance(event, CallerRejected)].count("late") == MAX_WAITING
    assert await door.delay() >= 0


@virtual
async def test_only_so_many_wait_in_all() -> None:
    """From however many addresses they come."""
    door = Door()
    peers = [f"192.0.2.{number}" for number in range(MAX_WAITING_IN_TOTAL // MAX_WAITING + 1)]
    for peer in peers:
        await door.delays(ATTEMPTS_AT_ONCE, peer)
    found = await asyncio.gather(*(task_of(door.delays(MAX_WAITING, peer)) for peer in peers))
    assert sum(delays.count(-1) for delays in found) == MAX_WAITING
    assert await door.delay(peers[0]) >= 0


@virtual
async def test_who_leaves_makes_room() -> None:
    """A caller that goes away waits no longer."""
    door = Door()
    await door.delays(ATTEMPTS_AT_ONCE)
    waiting = [task_of(door.delay()) for _ in range(MAX_WAITING)]
    await asyncio.sleep(0)
    assert await door.delay() == -1
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert await door.delay() > 0


@virtual
async def test_after_a_while_all_is_forgotten() -> None:
    """An address that was quiet for a minute is as good as new."""
    door = Door()
    await door.delays(ATTEMPTS_AT_ONCE + 10)
    await asyncio.sleep(60)
    assert await door.delays(ATTEMPTS_AT_ONCE) == [0] * ATTEMPTS_AT_ONCE


@virtual
async def test_only_so_many_addresses_are_remembered() -> None:
    """The one not seen for longest is forgotten first."""
    door = Door()
    await door.delays(ATTEMPTS_AT_ONCE)
    await door.delays(ATTEMPTS_AT_ONCE, ELSEWHERE)
    for number in range(MAX_ADDRESSES - 2):
        await door.delay(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
    assert await door.delay(HOME) > 0
    await door.delay("203.0.113.1")
    assert await door.delay(HOME) > 0
    assert await door.delay(ELSEWHERE) == 0


def test_what_failed_is_told_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Address and kind, once each; that an address is slowed is one warning, and what follows is for the curious."""

    @virtual
    async def fail() -> None:
        door = Door()
        await door.delays(ATTEMPTS_AT_ONCE + MAX_WAITING + 1)
        assert door.events[0] == CallerRejected("192.0.2.1", "token", "at_once")
        assert door.events[-1] == CallerRejected("192.0.2.1", "token", "cut")

    with caplog.at_level(logging.INFO):
        fail()
    levels = [record.levelno for record in caplog.records]
    assert (levels.count(logging.INFO), levels.count(logging.WARNING)) == (ATTEMPTS_AT_ONCE, 1)
    assert "failed attempt from 192.0.2.1: no entry for a token that is not known" in caplog.text
    assert "many failed attempts from 192.0.2.1: further ones are answered late" in caplog.text
    assert rate_limits.ATTEMPTS_WINDOW == 60


class Rate:
    """A client with a rate, on a virtual clock."""

    def __init__(self, requests: int, window: Micros) -> None:
        self.client = Client("ci", rate=(requests, window))
        self.rates = ClientRates()

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
    here = ClientRates()
    for _ in range(5):
        with pytest.raises(StopIteration):
            here.accept(client).send(None)
    with pytest.raises(TooMany):
        here.accept(client).send(None)
