"""Four real processes, one real server, and an upstream whose own log says whether the laws held."""

import asyncio
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from tests.fleet.fleet import FOUND, LOST, NEW, Fleet, fleet
from tests.process import until
from tests.stores.servers import KINDS, Server, server

CALLERS = 6
"""Connections of one client at each replica."""


async def test_replicas_that_share_die_and_stand_still(tmp_path: Path) -> None:
    """Clients share by weight, and a killed or stopped replica costs its own callers only."""
    with server(KINDS[-1]) as store:
        await _share_die_and_stand_still(tmp_path, store)


async def _share_die_and_stand_still(folder: Path, store: Server) -> None:
    async with fleet(folder, store) as one:
        first, second, third, fourth = one.replicas
        one.call(first, "ci", 36)
        one.call(second, "reader", 18)
        for replica in one.replicas:
            one.call(replica, "pinner", 5)
        await _share_by_weight(one)
        random = Random(2)
        one.api.latency = lambda: random.uniform(0, 0.3)  # so that leases are out whenever something happens
        await one.serves(40)
        await fourth.kill()
        await one.serves(60)
        async with third.standing_still():
            await one.serves(120)  # which takes longer than a lease of it lives
        answered = len(one.answers(200, third)) + 5
        await until(lambda: len(one.answers(200, third)) > answered, "it answers again")
        await one.quiet()
        one.judge()
        assert [replica.said for replica in one.alive] == [[], [], []]


async def _share_by_weight(one: Fleet) -> None:
    """Check that weight 3 gets three times as much as weight 1, and that calling all replicas gains nothing."""
    await one.serves(40)
    before = Counter(asked.client for asked in one.answers(200))
    await one.serves(160)
    after = Counter(asked.client for asked in one.answers(200))
    after.subtract(before)
    assert 2 < after["ci"] / after["reader"] < 4.5, after
    assert 0.5 < after["pinner"] / after["reader"] < 2, after


@pytest.mark.parametrize(("on_loss", "kind"), [("share", KINDS[-1]), ("wait", KINDS[0]), ("refuse", KINDS[-1])])
async def test_a_server_that_forgets_and_dies(tmp_path: Path, on_loss: str, kind: str) -> None:
    """No token is spent twice whatever the server loses; each replica reports each event once."""
    with server(kind, "appendonly yes") as store:
        await _forget_and_die(tmp_path, store, on_loss)


async def _forget_and_die(folder: Path, store: Server, on_loss: str) -> None:
    async with fleet(folder, store, on_loss=on_loss) as one:
        for replica in one.replicas:
            one.call(replica, "pinner", CALLERS)
        await one.serves(50)
        one.store.ask("SCRIPT", "FLUSH")
        await one.serves(50)
        assert [replica.said for replica in one.replicas] == [[], [], [], []]
        one.store.ask("FLUSHALL")
        await one.said(NEW, 1)
        await one.serves(50)
        await _outage(one, on_loss)
        await _outage(one, on_loss, cold=True)
        if on_loss == "share":
            await _standstill(one)
        await one.quiet()
        one.judge()
        stood_still = [LOST, FOUND] if on_loss == "share" else []
        said = [NEW, LOST, NEW, FOUND, LOST, NEW, FOUND, *stood_still]
        assert [replica.said for replica in one.replicas] == [said] * 4


async def _outage(one: Fleet, on_loss: str, *, cold: bool = False) -> None:
    """Kill the server and start it again, with its data or (`cold`) without."""
    async with one.loss():
        one.store.kill()
        await one.lost()
        ready = {await replica.ready() for replica in one.replicas}
        assert ready == {503 if on_loss == "refuse" else 200}
        match on_loss:
            case "share":
                await one.serves(10)
            case "wait":
                await asyncio.gather(*(replica.keyturn.waiting(CALLERS) for replica in one.replicas))
            case _:
                refused = len(one.answers(503)) + 20
                await until(lambda: len(one.answers(503)) >= refused, "callers are refused")
        if cold:
            one.store.forget()
        await asyncio.to_thread(one.store.start)
    assert {await replica.ready() for replica in one.replicas} == {200}


async def _standstill(one: Fleet) -> None:
    """Stop the server for longer than tokens take to return."""
    async with one.loss():
        with one.store.paused():
            await one.lost()
            await one.serves(30)
