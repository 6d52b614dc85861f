"""The store on real servers of both kinds: the conformance suite, and what a network adds."""

import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
from keyturn.core.errors import StoreLost
from keyturn.core.events import EpochBegan
from keyturn.core.exchange import HEARTBEAT, ExchangeResult, FlowDemand, Settlement, Spent, Unsent
from keyturn.core.messages import ExchangeRequest, ExchangeResponse, Snapshot
from keyturn.core.model import SECOND, Micros, Pool
from keyturn.stores.base import IDLE, Pins
from keyturn.stores.links import Link
from keyturn.stores.redis import RedisStore
from keyturn.stores.scripts import (
    EXCHANGE,
    SNAPSHOT,
    decode_exchange,
    decode_snapshot,
    encode_exchange,
    encode_snapshot,
)

from tests.core.worlds import BOUND, limit, pool
from tests.process import until
from tests.schedulers import Recorder
from tests.stores.conformance import StoreConformance, wants
from tests.stores.servers import KINDS, Server, cluster, server
from tests.virtual import micros

FAST = pool(1, limit(2, 10 * SECOND))
PATIENCE: Micros = 30 * SECOND
"""A timeout that no test that passes waits for."""


@pytest.fixture(scope="module", params=KINDS)
def running(request: pytest.FixtureRequest) -> Iterator[Server]:
    """Run a server of each kind."""
    with server(request.param) as one:
        yield one


@pytest.fixture
def one(running: Server) -> Server:
    """That server, emptied."""
    running.ask("FLUSHALL")
    return running


class ClockedStore(RedisStore):
    """A store whose messages tell the server the test's time."""

    now: Callable[[], Micros]

    async def send(self, request: ExchangeRequest, pins: Pins | None) -> tuple[ExchangeResponse, Snapshot | None]:
        message = encode_exchange(request, pins, now=self.now(), run="a" * 40)
        return decode_exchange(await self.link.run(EXCHANGE, self.key, message))

    async def fetch(self, revision: str, pins: Pins) -> Snapshot | None:
        message = encode_snapshot(revision, pins, now=self.now())
        return decode_snapshot(await self.link.run(SNAPSHOT, self.key, message))


class ClockedRedis:
    """A server that several replicas share, on a clock that the test moves."""

    def __init__(self, one: Server, pool_: Pool, url: str = "") -> None:
        self.now: Micros = 1_700_000_000 * SECOND
        self.link = Link(url or one.url, shown=url or one.url, timeout=PATIENCE)
        self._pool = pool_
        self._stores: dict[str, ClockedStore] = {}

    def store(self, replica: str) -> ClockedStore:
        if replica not in self._stores:
            store = ClockedStore(
                self.link,
                self._pool,
                prefix="t",
                replica=replica,
                settle_bound=BOUND,
                clock=self.clock,
                observer=Recorder(),
            )
            store.now = self.clock
            self._stores[replica] = store
        return self._stores[replica]

    def clock(self) -> Micros:
        return self.now

    async def exchange(
        self, replica: str, settlements: tuple[Settlement, ...], demands: tuple[FlowDemand, ...]
    ) -> ExchangeResult:
        return await self.store(replica).exchange(settlements, demands)

    def adopt(self, replica: str, pool_: Pool) -> None:
        self.store(replica).adopt(pool_)

    def pass_(self, duration: Micros) -> None:
        self.now += duration

    async def close(self) -> None:
        await self.link.close()


@pytest.fixture(scope="module", params=KINDS)
def nodes(request: pytest.FixtureRequest) -> Iterator[list[Server]]:
    """Run a cluster of each kind."""
    with cluster(request.param) as three:
        yield three


class TestRedisStore(StoreConformance):
    """The store on Redis and on Valkey passes the suite of stores."""

    @pytest.fixture(autouse=True)
    def _one(self, one: Server) -> None:
        self._server = one

    async def open(self, pool_: Pool) -> ClockedRedis:
        return await opened(self._server, pool_, self._server.url)


class TestRedisStoreInACluster(StoreConformance):
    """The store in a cluster of either passes the suite of stores."""

    @pytest.fixture(autouse=True)
    def _nodes(self, nodes: list[Server]) -> None:
        for node in nodes:
            node.ask("FLUSHALL")
        slot = nodes[0].ask("CLUSTER", "KEYSLOT", "t:3:{default}")
        self._seed, self._server = nodes[-1], nodes[slot * len(nodes) // 16384]

    async def open(self, pool_: Pool) -> ClockedRedis:
        return await opened(self._server, pool_, f"redis+cluster://{self._seed.address}")


async def opened(one: Server, pool_: Pool, url: str) -> ClockedRedis:
    """Return a store with known buckets on this server."""
    store = ClockedRedis(one, pool_, url)
    await store.exchange("start", (), ())
    know(one, store.store("start"))
    store.pass_(1_000 * SECOND)
    return store


KNOW = """
local records = KEYS[1] .. ':records'
local doubts = cmsgpack.unpack(redis.call('HGET', records, 'state')).doubts
for _, name in ipairs(cjson.decode(ARGV[2])) do
  local quota = { uses = 0, used = 0, buckets = {} }
  for _, limit in ipairs(cjson.decode(ARGV[1])) do quota.buckets[limit] = { taken = 0, known = doubts } end
  redis.call('HSET', records, 'quota ' .. name, cmsgpack.pack(quota))
end
"""


def know(one: Server, store: RedisStore) -> None:
    """Make every bucket of a replica's revision known."""
    revision = store.revision
    limits = json.dumps([limit_.id for limit_ in revision.limits])
    one.ask("EVAL", KNOW, 1, store.key, limits, json.dumps(revision.quotas))


@asynccontextmanager
async def replicas(one: Server, *names: str, pool_: Pool = FAST) -> AsyncIterator[list[RedisStore]]:
    """Return replicas with links of their own, on the server's own time."""
    links = [Link(one.url, shown=one.url, timeout=PATIENCE) for _ in names]
    try:
        yield [
            RedisStore(link, pool_, prefix="t", replica=name, settle_bound=BOUND, clock=micros, observer=Recorder())
            for link, name in zip(links, names, strict=True)
        ]
    finally:
        for link in links:
            await link.close()


def events(store: RedisStore) -> list[object]:
    """Return the events of a replica."""
    assert isinstance(store._observer, Recorder)
    return list(store._observer.events)


def round_trips(one: Server) -> int:
    """Return how many scripts a server has run since the last call."""
    lines = one.ask("INFO", "commandstats").splitlines()
    one.ask("CONFIG", "RESETSTAT")
    calls = [line.partition("calls=")[2].partition(",")[0] for line in lines if line.startswith("cmdstat_eval")]
    return sum(int(number) for number in calls)


async def test_an_exchange_is_one_round_trip(one: Server) -> None:
    """An exchange with a snapshot is one round trip, except the first."""
    async with replicas(one, "r") as (store,):
        await store.exchange((), ())
        await store.exchange((), (wants(1),))  # the server knows both scripts by now
        round_trips(one)
        for waiting in range(2, 5):
            answer = await store.exchange((), (wants(waiting),))
            assert answer.estimates
            assert round_trips(one) == 1
        await store.exchange((), (wants(4),))
        assert round_trips(one) == 1
        store.adopt(pool(1, limit(3, 10 * SECOND)))
        await store.exchange((), (wants(4),))
        assert round_trips(one) == 2


async def test_a_replica_with_leases_calls_more_often(one: Server) -> None:
    """A replica calls at least every two seconds while it holds leases, every five otherwise."""
    async with replicas(one, "r") as (store,):
        assert (await store.exchange((), ())).again == IDLE
        (grant,) = (await store.exchange((), (wants(1),))).grants
        assert (await store.exchange((), ())).again == HEARTBEAT
        assert (await store.exchange((Spent(grant.lease, 0),), ())).again == HEARTBEAT
        assert (await store.exchange((Unsent("nobody's"),), ())).again == HEARTBEAT


ALTER = """
local state = cmsgpack.unpack(redis.call('HGET', KEYS[1], 'state'))
state[ARGV[1]] = cjson.decode(ARGV[2])
redis.call('HSET', KEYS[1], 'state', cmsgpack.pack(state))
"""


TAKEN = """
local limits = {}
for limit in pairs(cmsgpack.unpack(redis.call('HGET', KEYS[1], 'state')).taken) do limits[#limits + 1] = limit end
return limits
"""


def alter(one: Server, name: str, value: str) -> None:
    """Write a value, given as JSON, into what the server holds of the pool's state."""
    one.ask("EVAL", ALTER, 1, "t:3:{default}:records", name, value)


def waited_out(one: Server) -> None:
    """Let the epoch have begun so long ago that the recovery grace is over."""
    alter(one, "grace", "0")


async def test_a_server_that_forgets_is_told_again(one: Server) -> None:
    """After FLUSHALL replicas report what they hold, and the pool opens by a probe."""
    async with replicas(one, "r") as (store,):
        (probe,) = (await store.exchange((), (wants(1),))).grants
        (grant,) = (await store.exchange((Spent(probe.lease, 0),), (wants(1),))).grants
        one.ask("FLUSHALL")
        answer = await store.exchange((), (wants(1),))
        assert not answer.grants
        assert answer.available[0].available == 0
        assert [type(event) for event in events(store)] == [EpochBegan]
        waited_out(one)
        answer = await store.exchange((Unsent(grant.lease),), (wants(2),))
        assert [one.probe for one in answer.grants] == [True]


async def test_a_restarted_server_begins_an_epoch(one: Server) -> None:
    """A restarted server's data are kept but not trusted: its run id has changed."""
    async with replicas(one, "r") as (store,):
        (probe,) = (await store.exchange((), (wants(1),))).grants
        await store.exchange((Spent(probe.lease, 0),), ())
        alter(one, "run", '"' + "b" * 40 + '"')
        assert not events(store)
        assert not (await store.exchange((), (wants(5),))).grants
        waited_out(one)
        answer = await store.exchange((), (wants(5),))
        assert [grant.probe for grant in answer.grants] == [True]
        assert [type(event) for event in events(store)] == [EpochBegan]


async def test_lost_writes_are_noticed(one: Server) -> None:
    """A server behind what a replica has seen begins an epoch (a failover)."""
    async with replicas(one, "r") as (store,):
        (probe,) = (await store.exchange((), (wants(1),))).grants
        await store.exchange((Spent(probe.lease, 0),), ())
        alter(one, "version", "1")
        await store.exchange((), ())
        assert [type(event) for event in events(store)] == [EpochBegan]


async def test_a_clock_that_jumps_ahead_is_not_believed(one: Server) -> None:
    """No grant is used that rests on a server's clock that was set forward."""
    store = ClockedRedis(one, FAST)
    try:
        (probe,) = (await store.exchange("r", (), (wants(1),))).grants
        await store.exchange("r", (Spent(probe.lease, 0),), ())
        (grant,) = (await store.exchange("r", (), (wants(1),))).grants
        await store.exchange("r", (Spent(grant.lease, 0),), ())
        for step in (30 * SECOND, -60 * SECOND):
            store.store("r").now = partial(int.__add__, store.now, step)
            assert not (await store.exchange("r", (), (wants(1),))).grants
    finally:
        await store.close()


async def test_a_token_that_comes_early_wakes_its_replica(one: Server) -> None:
    """Unsent tokens are reserved for the next flow, whose replica is woken over the server."""
    async with replicas(one, "near", "far", pool_=pool(1, limit(1, 10 * SECOND))) as (near, far):
        woken: list[Micros] = []
        far.listen(woken.append)
        await until(lambda: woken, "it listens")
        (grant,) = (await near.exchange((), (wants(1, "a"),))).grants
        await far.exchange((), (wants(1, "b"),))
        await near.exchange((Unsent(grant.lease),), ())
        await until(lambda: len(woken) == 2, "it is woken")
        assert woken == [0, 0]
        assert (await far.exchange((), (wants(1, "b"),))).grants


async def test_a_message_tells_when_the_token_returns(one: Server) -> None:
    """The message holds the delay until the token returns, in microseconds."""
    async with replicas(one, "near", "far", pool_=pool(1, limit(1, SECOND))) as (near, far):
        woken: list[Micros] = []
        far.listen(woken.append)
        await until(lambda: woken, "it listens")
        (grant,) = (await near.exchange((), (wants(1, "a"),))).grants
        told = await far.exchange((), (wants(1, "b"),))
        assert told.again == HEARTBEAT
        await near.exchange((Spent(grant.lease, 0),), ())
        await until(lambda: len(woken) == 2, "it is told")
        assert woken[1] == near.revision.limits[0].window


async def test_a_message_that_is_no_number_wakes_at_once(one: Server) -> None:
    """A malformed message wakes at once, which costs one needless call."""
    async with replicas(one, "r") as (store,):
        woken: list[Micros] = []
        store.listen(woken.append)
        await until(lambda: woken, "it listens")
        for message in ("soon", "-5", "7"):
            one.ask("PUBLISH", "t:3:{default}:wake:r", message)
        await until(lambda: len(woken) == 4, "they come")
        assert woken == [0, 0, 0, 7]


async def test_an_answer_that_is_lost_costs_nothing(one: Server) -> None:
    """Grants of a lost response are taken back with the next request, and granted again."""
    async with replicas(one, "r", pool_=pool(1, limit(1, 600 * SECOND))) as (store,):
        await store.exchange((), ())
        store.session.tell((wants(1),), partial=False)
        lost, _ = await store.send(store.session.request(micros(), ()), None)
        assert lost.grants
        assert (await store.exchange((), (wants(1),))).grants


class Cut(RedisStore):
    """A store whose next responses are lost with their connection."""

    cuts = 0

    async def send(self, request: ExchangeRequest, pins: Pins | None) -> tuple[ExchangeResponse, Snapshot | None]:
        told = await super().send(request, pins)
        if self.cuts:
            self.cuts -= 1
            raise StoreLost("It closed the connection.", broke=True)
        return told


async def test_a_connection_that_breaks_is_no_loss(one: Server) -> None:
    """One broken connection is repeated; a second one in the same exchange is a loss."""
    link = Link(one.url, shown=one.url, timeout=PATIENCE)
    only = pool(1, limit(1, 600 * SECOND))
    store = Cut(link, only, prefix="t", replica="r", settle_bound=BOUND, clock=micros, observer=Recorder())
    await store.exchange((), ())
    store.cuts = 1
    (grant,) = (await store.exchange((), (wants(1),))).grants
    store.cuts = 1
    await store.exchange((Unsent(grant.lease),), ())
    assert (await store.exchange((), (wants(1),))).grants
    store.cuts = 2
    with pytest.raises(StoreLost):
        await store.exchange((), ())
    await link.close()


async def test_a_replica_that_spent_much_is_soon_heard(one: Server) -> None:
    """A report costs the server a command for each quota, not for each token."""
    many = pool(10, limit(100, 60 * SECOND))
    async with replicas(one, "r", pool_=many) as (store,):
        grants = (await store.exchange((), (wants(1000),))).grants
        while len(grants) < 1000:
            answer = await store.exchange(tuple(Spent(grant.lease, 0) for grant in grants[-10:]), (wants(1000),))
            grants += answer.grants
        await store.exchange(tuple(Spent(grant.lease, 0) for grant in grants), ())
        one.ask("FLUSHALL")
        one.ask("CONFIG", "RESETSTAT")
        await store.exchange((), ())
        assert [len(bucket.cooling) for bucket in await store.buckets()] == [100] * 10
        lines = one.ask("INFO", "commandstats").splitlines()
        assert sum(int(line.partition("calls=")[2].partition(",")[0]) for line in lines if "calls=" in line) < 500


async def test_pools_do_not_meet(one: Server) -> None:
    """Pools and prefixes have keys of their own."""
    link = Link(one.url, shown=one.url, timeout=PATIENCE)
    stores = [
        RedisStore(link, FAST, prefix=prefix, replica="r", settle_bound=BOUND, clock=micros, observer=Recorder())
        for prefix in ("one", "other")
    ]
    for store in stores:
        assert (await store.exchange((), (wants(1),))).grants
    await link.close()
    keys = one.ask("KEYS", "*")
    assert {key.partition("}")[0] for key in keys} == {"one:3:{default", "other:3:{default"}


async def test_nothing_is_left_of_a_limit_that_is_gone(one: Server) -> None:
    """A limit that no revision names is removed with its last token."""
    store = ClockedRedis(one, FAST)
    try:
        (grant,) = (await store.exchange("r", (), (wants(1),))).grants
        before = store.store("r").revision
        store.adopt("r", pool(1, limit(2, 20 * SECOND)))
        for _ in range(2):
            await store.exchange("r", (), ())
            store.pass_(before.bound + before.limits[0].window + 1)
        await store.exchange("r", (Unsent(grant.lease),), (wants(1),))
        after = store.store("r").revision
        fields = one.ask("HKEYS", "t:3:{default}:records")
        assert [field for field in fields if field.startswith("revision ")] == [f"revision {after.name}"]
        assert one.ask("EVAL", TAKEN, 1, "t:3:{default}:records") == [after.limits[0].id]
        of_it = [key for key in one.ask("KEYS", "*") if before.name in key or before.limits[0].id in key]
        assert of_it == []
    finally:
        await store.close()
