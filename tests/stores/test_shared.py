import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import wraps
from itertools import pairwise
from typing import Any

import pytest
from keyturn.core.errors import StoreLost
from keyturn.core.events import EpochBegan, StoreCannotWake, StoreChanged
from keyturn.core.exchange import ExchangeResult, FlowDemand, LeaseGrant, Settlement, Spent
from keyturn.core.messages import ExchangeRequest, ExchangeResponse, Snapshot
from keyturn.core.model import SECOND, Micros, Pool
from keyturn.core.snapshots import snapshot
from keyturn.core.state import SharedState
from keyturn.stores.base import Pins
from keyturn.stores.links import Link
from keyturn.stores.redis import RedisStore, Wake
from keyturn.stores.shared import LOSS_RETRY_AFTER, LOSS_TOLERANCE, MUTE, RECONNECT_DELAY, OnLoss, SharedStore

from tests.core.worlds import BOUND, flow, know, limit, pool
from tests.schedulers import Recorder
from tests.virtual import micros, run

POOL = pool(2, limit(10, 60 * SECOND))
TIMEOUT = 0.5
"""Seconds that an unanswered request takes."""


class Server:
    """The shared state, while it answers."""

    def __init__(self) -> None:
        self.state = SharedState()
        self.up = True
        self.silent = True
        """Whether requests to it are lost while it is down; else it refuses them at once."""
        self.run = "first"
        self.heard: list[tuple[Micros, ExchangeRequest]] = []
        self.tried: list[Micros] = []
        self.deaf_to = ""
        """A replica whose requests are lost although it is up."""

    async def reach(self, replica: str) -> None:
        """Set whether the server can be reached."""
        if not self.up or replica == self.deaf_to:
            await asyncio.sleep(TIMEOUT if self.silent else 0)
            raise StoreLost("Come back.", cause="silence" if self.silent else "refusal")

    async def answer(self, request: ExchangeRequest) -> ExchangeResponse:
        self.tried.append(micros())
        await self.reach(request.replica)
        self.heard.append((micros(), request))
        return self.state.exchange(micros(), self.run, request)


class Direct(RedisStore):
    """A transport that brings a replica's messages to the server directly."""

    server: Server

    async def send(self, request: ExchangeRequest, pins: Pins | None) -> tuple[ExchangeResponse, Snapshot | None]:
        response = await self.server.answer(request)
        return response, None if pins is None or response.asks else self._snapshot(request.revision, pins)

    async def fetch(self, revision: str, pins: Pins) -> Snapshot | None:
        await self.server.reach(self.session.replica)
        return self._snapshot(revision, pins)

    def _snapshot(self, revision: str, pins: Pins) -> Snapshot | None:
        state = self.server.state
        return snapshot(state, micros(), revision, pins) if revision in state.revisions.views else None

    def listen(self, wake: Wake, deaf: Callable[[StoreLost], None] = lambda _: None) -> None:
        self.wake, self.deaf = wake, deaf


class Replica(SharedStore):
    """A replica, its waiting requests, and what it has sent."""

    def __init__(self, server: Server, on_loss: OnLoss, name: str = "r", pool_: Pool = POOL) -> None:
        self.told = Recorder()
        link = Link("redis://h", shown="redis://h", timeout=SECOND)
        self.direct = Direct(
            link, pool_, prefix="t", replica=name, settle_bound=BOUND, clock=micros, observer=self.told
        )
        self.direct.server = server
        self.sent: list[tuple[Micros, LeaseGrant]] = []
        self.ended: tuple[Settlement, ...] = ()
        super().__init__(self.direct, on_loss=on_loss, clock=micros, observer=self.told)

    async def send_all(self, waiting: int = 50) -> ExchangeResult:
        """Send all that may be sent now; answers come at once."""
        while True:
            answer = await self.exchange(self.ended, (FlowDemand(flow(), 1, waiting),))
            self.ended = tuple(Spent(grant.lease, 0) for grant in answer.grants)
            self.sent += [(micros(), grant) for grant in answer.grants]
            if not answer.grants:
                return answer

    async def send_for(self, seconds: float) -> None:
        """Send whenever possible, for so long; without a store that means waiting for it."""
        end = micros() + int(seconds * SECOND)
        while micros() < end:
            with suppress(StoreLost):
                await self.send_all()
            await asyncio.sleep(0.1)

    def changes(self) -> list[StoreChanged]:
        """Return the reported losses and returns."""
        return [event for event in self.told.events if isinstance(event, StoreChanged)]


def play(scenario: Callable[[Server], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Run a scenario on virtual time, with a server of known buckets."""

    @wraps(scenario)
    def sync() -> None:
        server = Server()
        run(scenario(server))

    del sync.__wrapped__  # or pytest would ask for a fixture of that name
    return sync


async def joined(server: Server, on_loss: OnLoss, *names: str) -> list[Replica]:
    """Return replicas that know of each other, with known buckets."""
    replicas = [Replica(server, on_loss, name) for name in names or ("r",)]
    for _ in range(2):
        for replica in replicas:
            await replica.exchange((), ())
    know(server.state)
    return replicas


@play
async def test_a_store_that_answers_is_asked(server: Server) -> None:
    """While the store answers there are no events and no added waits."""
    (replica,) = await joined(server, "share")
    answer = await replica.send_all()
    assert len(replica.sent) == 20
    assert answer.estimates
    assert (replica.lost, replica.degraded, replica.changes()) == (None, 0, [])
    assert replica.estimate(flow(), 1, 1)


@play
async def test_a_loss_is_noticed_within_the_timeout_and_told_once(server: Server) -> None:
    """A loss is noticed within the timeout and reported once; later exchanges fail at once."""
    (replica,) = await joined(server, "wait")
    server.up = False
    start = micros()
    for _ in range(20):
        with pytest.raises(StoreLost) as caught:
            await replica.exchange((), (FlowDemand(flow(), 1, 1),))
        assert caught.value.retry_after is None
    assert micros() - start == TIMEOUT * SECOND
    await asyncio.sleep(30)
    assert [(change.up, change.cause, change.on_loss) for change in replica.changes()] == [(False, "silence", "wait")]
    assert replica.degraded == pytest.approx(30, abs=0.1)
    await replica.close()


@play
async def test_the_newest_cause_is_known(server: Server) -> None:
    """A new cause of the same loss is kept, without another event."""
    (replica,) = await joined(server, "wait")
    server.up = False
    with pytest.raises(StoreLost):
        await replica.exchange((), ())
    server.silent = False
    await asyncio.sleep(5)
    assert replica.lost
    assert replica.lost.cause == "refusal"
    assert len(replica.changes()) == 1
    await replica.close()


@play
async def test_under_refuse_callers_are_told_when_to_come_back(server: Server) -> None:
    """Under `refuse` callers get a `Retry-After` beyond the next attempt to reach the store."""
    (replica,) = await joined(server, "refuse")
    server.up = False
    with pytest.raises(StoreLost) as caught:
        await replica.exchange((), ())
    assert caught.value.retry_after == LOSS_RETRY_AFTER
    server.up = True
    await asyncio.sleep(LOSS_RETRY_AFTER)
    assert replica.lost is None
    assert (await replica.exchange((), (FlowDemand(flow(), 1, 1),))).grants


@play
async def test_under_share_its_part_goes_out_evenly(server: Server) -> None:
    """Each of two replicas sends less than half, evenly paced."""
    one, _ = await joined(server, "share", "one", "other")
    server.up = False
    await one.send_for(240)
    late = [instant for instant, _ in one.sent if instant > micros() - 120 * SECOND]
    assert 14 <= len(late) <= 20
    gaps = [after - before for before, after in pairwise(late)]
    assert min(gaps) > SECOND
    await one.close()


@play
async def test_what_was_spent_meanwhile_is_reported_first(server: Server) -> None:
    """The first request after a loss asks for nothing and reports all outstanding leases."""
    (replica,) = await joined(server, "share")
    await replica.send_all(waiting=3)
    server.up = False
    await replica.send_for(20)
    heard = len(server.heard)
    server.up = True
    await asyncio.sleep(RECONNECT_DELAY[1] + TIMEOUT)
    _, first = server.heard[heard]
    assert not first.demands
    assert first.held is not None
    assert {row.lease for row in first.held} == {grant.lease for _, grant in replica.sent}
    _, second = server.heard[heard + 1]
    assert second.held is not None, "what went out while the request was on its way is told with the next"
    assert not second.demands
    await replica.send_for(RECONNECT_DELAY[1] + 2)
    assert any(request.demands for _, request in server.heard[heard + 2 :])


@pytest.mark.parametrize("forgets", [False, True])
def test_a_window_holds_no_more_for_a_loss(forgets: bool) -> None:
    """Requests before, during and after a loss count together (law 1)."""

    async def scenario(server: Server) -> None:
        (replica,) = await joined(server, "share")
        for _ in range(3):
            await replica.send_for(7)
            server.up = False
            await replica.send_for(25)
            server.up = True
            if forgets:
                server.state, server.run = SharedState(), f"run {micros()}"
            await replica.send_for(20)
        assert len(replica.sent) > 40
        for quota in POOL.quotas:
            instants = [instant for instant, grant in replica.sent if grant.quota == quota]
            for at in instants:
                assert sum(at <= instant < at + 60 * SECOND for instant in instants) <= 10
        assert [change.up for change in replica.changes()] == [False, True] * 3
        assert sum(isinstance(event, EpochBegan) for event in replica.told.events) == (3 if forgets else 0)

    run(scenario(Server()))


@play
async def test_nobody_is_granted_what_others_have_not_reported(server: Server) -> None:
    """A server that only stalled grants nothing before all replicas could report."""
    replicas = await joined(server, "share", "a", "b", "c")
    for replica in replicas:
        await replica.send_all(waiting=6)
    server.up = False
    await asyncio.gather(*(replica.send_for(200) for replica in replicas))
    server.up = True
    await asyncio.gather(*(replica.send_for(60) for replica in replicas))
    for quota in POOL.quotas:
        instants = [at for replica in replicas for at, grant in replica.sent if grant.quota == quota]
        assert len(instants) > 20
        for at in instants:
            assert sum(at <= instant < at + 60 * SECOND for instant in instants) <= 10
    assert not any(replica.lost for replica in replicas)


@play
async def test_a_store_that_comes_and_goes_makes_no_replica_believe_that_it_is_alone(server: Server) -> None:
    """A replica that finds an emptied store first remembers the others."""
    first, *_ = await joined(server, "share", "a", "b", "c")
    server.up = False
    await first.send_for(200)
    server.up = True
    await asyncio.sleep(5)
    assert (first.lost, first.replicas) == (None, 1)
    server.up = False
    await first.send_for(BOUND / SECOND + 60)
    before = len(first.sent)
    await first.send_for(60)
    assert len(first.sent) - before <= 2 * 10 / 3


@play
async def test_the_return_is_reported_once_and_wakes_waiters(server: Server) -> None:
    """The end of a loss is reported once with its duration, and waiters are woken."""
    (replica,) = await joined(server, "wait")
    woken: list[Micros] = []
    replica.listen(woken.append)
    server.up, server.silent = False, False
    with pytest.raises(StoreLost):
        await replica.exchange((), ())
    await asyncio.sleep(10)
    assert not woken
    server.up = True
    await asyncio.sleep(RECONNECT_DELAY[1])
    assert woken == [0]
    lost, back = replica.changes()
    assert (lost.up, back.up) == (False, True)
    assert back.seconds == pytest.approx(10.3, abs=0.4)
    assert replica.degraded == pytest.approx(back.seconds)
    before = replica.degraded
    await asyncio.sleep(5)
    assert replica.degraded == before


@play
async def test_replicas_do_not_return_all_at_once(server: Server) -> None:
    """Replicas reconnect with jitter."""
    replicas = await joined(server, "wait", *[f"r{number}" for number in range(40)])
    server.up, server.silent = False, False
    for replica in replicas:
        with pytest.raises(StoreLost):
            await replica.exchange((), ())
    await asyncio.sleep(10)
    server.tried.clear()
    server.up = True
    await asyncio.sleep(2)
    assert not any(replica.lost for replica in replicas)
    first = sorted(server.tried[: len(replicas)])
    slices = [(instant - first[0]) // (50_000) for instant in first]
    assert max(slices.count(one) for one in set(slices)) < len(replicas) / 2
    assert first[-1] - first[0] > RECONNECT_DELAY[1] * SECOND / 2


@play
async def test_a_loss_of_a_moment_is_waited_out(server: Server) -> None:
    """A short loss is waited out, since others may not notice it (law 1)."""
    (replica,) = await joined(server, "share")
    for moment in (0.2, LOSS_TOLERANCE / SECOND - 0.1):
        before = len(replica.sent)
        server.up, server.silent = False, False
        await replica.send_for(moment)
        assert len(replica.sent) == before
        server.up = True
        await replica.send_for(3)
        assert replica.lost is None
    assert len(replica.sent) == 2 * 10


@play
async def test_a_store_that_comes_and_goes_is_not_believed_before_all_are_heard(server: Server) -> None:
    """A replica waits for the reports of all it knew of before it asks (law 1)."""
    first, last = await joined(server, "share", "a", "b")
    server.up, server.silent = False, False
    await asyncio.gather(first.send_for(60), last.send_for(60))
    server.up, server.deaf_to = True, "b"
    await asyncio.sleep(3)
    assert not first.changes()[-1].up
    server.deaf_to = ""
    await asyncio.sleep(0.9)
    assert first.changes()[-1].up
    for replica in (first, last):
        await replica.close()


@play
async def test_what_others_spent_just_before_a_loss_is_known(server: Server) -> None:
    """Tokens that others spent just before a loss are not used again (law 1)."""
    replicas = await joined(server, "share", "a", "b", "c")
    for replica in replicas:
        await replica.exchange((), ())
    busy = replicas[1]
    answer = await busy.exchange((), (FlowDemand(flow(), 1, 18),))
    assert len(answer.grants) == 18
    busy.sent = [(micros(), grant) for grant in answer.grants]
    busy.ended = tuple(Spent(grant.lease, 0) for grant in answer.grants)
    server.up = False
    await asyncio.gather(*(replica.send_for(300) for replica in replicas))
    for quota in POOL.quotas:
        sent = sorted(at for replica in replicas for at, grant in replica.sent if grant.quota == quota)
        assert all(after - before >= 60 * SECOND for before, after in zip(sent, sent[10:], strict=False))
        assert len(sent) > 20
    for replica in replicas:
        await replica.close()


@play
async def test_a_reload_during_a_loss_counts_for_the_share(server: Server) -> None:
    """New limits hold from the next exchange on, with what was spent."""
    (replica,) = await joined(server, "share")
    server.up = False
    await replica.send_for(90)
    replica.adopt(pool(2, limit(2, 60 * SECOND)))
    start = micros()
    await replica.send_for(180)
    after = [instant for instant, _ in replica.sent if instant >= start + 60 * SECOND]
    assert 0 < len(after) <= 2 * 2 * 2
    await replica.close()


@play
async def test_in_the_first_window_of_a_loss_only_its_own_tokens_return(server: Server) -> None:
    """In the first window only own tokens return, also after a reload."""
    replica, other = await joined(server, "share", "a", "b")
    answer = await replica.exchange((), (FlowDemand(flow(), 1, 3),))
    replica.sent = [(micros(), grant) for grant in answer.grants]
    replica.ended = tuple(Spent(grant.lease, 0) for grant in answer.grants)
    await other.exchange((), (FlowDemand(flow(), 1, 14),))
    server.up = False
    await replica.send_for(25)
    replica.adopt(pool(2, limit(10, 61 * SECOND)))
    await replica.send_for(30)
    replica.adopt(POOL)
    await replica.send_for(4)
    assert len(replica.sent) == 3
    await replica.send_for(10)
    assert 3 < len(replica.sent) <= 6
    await replica.close()


@play
async def test_a_look_at_a_lost_store_shows_its_part_or_nothing(server: Server) -> None:
    """A page does not wait for a lost store: it shows the share or nothing."""
    sharing, waiting = Replica(server, "share", "s"), Replica(server, "wait", "w")
    for replica in (sharing, waiting):
        await replica.exchange((), ())
    server.up = False
    for replica in (sharing, waiting):
        with pytest.raises(StoreLost):
            await replica.exchange((), ())
    await asyncio.sleep(LOSS_TOLERANCE / SECOND)
    await sharing.exchange((), ())
    assert len(await sharing.buckets()) == len(POOL.quotas)
    assert await waiting.buckets() == ()
    for replica in (sharing, waiting):
        await replica.close()


@play
async def test_a_store_that_cannot_call_is_told_of_once(server: Server) -> None:
    """A subscription that keeps failing while the store answers is reported once."""
    (replica,) = await joined(server, "wait")
    replica.listen(lambda _: None)
    refused = StoreLost("Come back.", cause="its ACL does not allow SUBSCRIBE")

    def told() -> list[object]:
        return [event for event in replica.told.events if isinstance(event, StoreCannotWake)]

    for _ in range(MUTE - 1):
        replica.direct.deaf(refused)
    replica.direct.wake(0)
    for _ in range(MUTE - 1):
        replica.direct.deaf(refused)
    assert told() == []
    for _ in range(MUTE):
        replica.direct.deaf(refused)
    assert told() == [StoreCannotWake("default", "its ACL does not allow SUBSCRIBE")]
    server.up = False
    replica.direct.wake(0)
    with pytest.raises(StoreLost):
        await replica.exchange((), ())
    for _ in range(2 * MUTE):
        replica.direct.deaf(refused)
    assert len(told()) == 1
    await replica.close()


@play
async def test_closing_ends_reconnecting(server: Server) -> None:
    """Closing ends all attempts to reconnect."""
    (replica,) = await joined(server, "wait")
    server.up, server.silent = False, False
    with pytest.raises(StoreLost):
        await replica.exchange((), ())
    await replica.close()
    server.tried.clear()
    await asyncio.sleep(10)
    assert server.tried == []
