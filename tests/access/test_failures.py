import asyncio
import logging
from typing import Any

import pytest
from keyturn.access import failures
from keyturn.access.failures import (
    ADDRESSES,
    AT_ONCE,
    PATIENCE,
    WAITING,
    WAITING_IN_ALL,
    Failures,
    address_of,
    origin_of,
)
from keyturn.access.refusals import NotKnown
from keyturn.core.events import AttemptFailed, Event

from tests.virtual import task_of, virtual

ATTEMPT = NotKnown("token")


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
        self.failures = Failures(self)

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
    """Of IPv6 it is the network of a site, since its owner has all of that."""
    assert address_of(Peer(name)) == address
    assert origin_of(address) == origin
    assert address_of(None) == ""


@virtual
async def test_the_first_are_answered_at_once_and_the_others_late() -> None:
    """As many as leak out of the bucket, and none later than `PATIENCE`."""
    door = Door()
    assert await door.delays(AT_ONCE) == [0] * AT_ONCE
    assert await door.delay() == pytest.approx(1)
    assert await door.delays(4) == pytest.approx([1, 2, 3, 4])
    assert max(await door.delays(20)) == pytest.approx(PATIENCE)
    assert await door.delay(ELSEWHERE) == 0


@virtual
async def test_only_so_many_wait() -> None:
    """The next is answered at once, and its connection ends."""
    door = Door()
    found = await door.delays(AT_ONCE + WAITING + 7)
    assert found.count(0) == AT_ONCE
    assert found.count(-1) == 7
    assert [event.answered for event in door.events if isinstance(event, AttemptFailed)].count("late") == WAITING
    assert await door.delay() >= 0


@virtual
async def test_only_so_many_wait_in_all() -> None:
    """From however many addresses they come."""
    door = Door()
    peers = [f"192.0.2.{number}" for number in range(WAITING_IN_ALL // WAITING + 1)]
    for peer in peers:
        await door.delays(AT_ONCE, peer)
    found = await asyncio.gather(*(task_of(door.delays(WAITING, peer)) for peer in peers))
    assert sum(delays.count(-1) for delays in found) == WAITING
    assert await door.delay(peers[0]) >= 0


@virtual
async def test_who_leaves_makes_room() -> None:
    """A caller that goes away waits no longer."""
    door = Door()
    await door.delays(AT_ONCE)
    waiting = [task_of(door.delay()) for _ in range(WAITING)]
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
    await door.delays(AT_ONCE + 10)
    await asyncio.sleep(60)
    assert await door.delays(AT_ONCE) == [0] * AT_ONCE


@virtual
async def test_only_so_many_addresses_are_remembered() -> None:
    """The one not seen for longest is forgotten first."""
    door = Door()
    await door.delays(AT_ONCE)
    await door.delays(AT_ONCE, ELSEWHERE)
    for number in range(ADDRESSES - 2):
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
        await door.delays(AT_ONCE + WAITING + 1)
        assert door.events[0] == AttemptFailed("192.0.2.1", "token", "at_once")
        assert door.events[-1] == AttemptFailed("192.0.2.1", "token", "cut")

    with caplog.at_level(logging.INFO):
        fail()
    levels = [record.levelno for record in caplog.records]
    assert (levels.count(logging.INFO), levels.count(logging.WARNING)) == (AT_ONCE, 1)
    assert "failed attempt from 192.0.2.1: no entry for a token that is not known" in caplog.text
    assert "many failed attempts from 192.0.2.1: further ones are answered late" in caplog.text
    assert failures.WINDOW == 60
