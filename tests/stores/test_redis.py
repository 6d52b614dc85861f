"""The store on real servers of both kinds: what all stores do, and what only one at the end of a network can."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial

import pytest

from proxy.core.errors import StoreLost
from proxy.core.events import EraBegan
from proxy.core.exchange import PULSE, Demand, Exchange, Settlement, Spent, Unsent
from proxy.core.ledger import KEEP
from proxy.core.letters import Call, Reply
from proxy.core.model import SECOND, Micros, Pool
from proxy.stores.codec import decode, encode
from proxy.stores.links import Link
from proxy.stores.redis import EXCHANGE, IDLE, RedisStore
from tests.core.worlds import BOUND, limit, pool
from tests.process import until
from tests.rooms import Recorder
from tests.stores.conformance import StoreConformance, wants
from tests.stores.servers import KINDS, Server, server
from tests.virtual import micros

FAST = pool(1, limit(2, 10 * SECOND))
PATIENCE: Micros = 30 * SECOND
"""A timeout that no test that passes waits for."""


@pytest.fixture(scope="module", params=KINDS)
def running(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server of each kind."""
    with server(request.param) as one:
        yield one


@pytest.fixture
def one(running: Server) -> Server:
    """That server, empty."""
    running.ask("FLUSHALL")
    return running


class ClockedStore(RedisStore):
    """A replica whose letters tell the server the time of the test."""

    now: Callable[[], Micros]

    async def send(self, call: Call) -> Reply:
        letter = encode(call, now=self.now(), run="a" * 40)
        return decode(await self.link.run(EXCHANGE, self.key, letter), call)


class ClockedRedis:
    """A server that several replicas share, on a clock that the test moves."""

    def __init__(self, one: Server, pool_: Pool) -> None:
        self.now: Micros = 1_700_000_000 * SECOND
        self.link = Link(one.url, shown=one.url, timeout=PATIENCE)
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
        self, replica: str, settlements: tuple[Settlement, ...], demands: tuple[Demand, ...]
    ) -> Exchange:
        return await self.store(replica).exchange(settlements, demands)

    def adopt(self, replica: str, pool_: Pool) -> None:
        self.store(replica).adopt(pool_)

    def pass_(self, duration: Micros) -> None:
        self.now += duration

    async def close(self) -> None:
        await self.link.close()


class TestRedisStore(StoreConformance):
    """The store on Redis and on Valkey passes the suite of stores."""

    @pytest.fixture(autouse=True)
    def _one(self, one: Server) -> None:
        self._server = one

    async def open(self, pool_: Pool) -> ClockedRedis:
        store = ClockedRedis(self._server, pool_)
        await store.exchange("start", (), ())
        terms = store.store("start").letters.terms
        for one in terms.limits:
            self._server.ask("SADD", f"t:{{default}}:warm:{one.id}", *terms.quotas)
        store.pass_(1_000 * SECOND)
        return store


@asynccontextmanager
async def replicas(one: Server, *names: str, pool_: Pool = FAST) -> AsyncIterator[list[RedisStore]]:
    """Replicas of their own clock, each with a link of its own, on the server's own time."""
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
    """What a replica has told."""
    assert isinstance(store._observer, Recorder)
    return list(store._observer.events)


def letters_of(store: RedisStore) -> int:
    """How many letters a replica has written."""
    return store.letters._serial


async def test_an_exchange_is_one_round_trip(one: Server) -> None:
    """But for the first one, which is asked for the terms."""
    async with replicas(one, "r") as (store,):
        await store.exchange((), (wants(1),))
        assert letters_of(store) == 2
        for _ in range(3):
            await store.exchange((), (wants(1),))
        assert letters_of(store) == 5


async def test_who_has_something_out_speaks_more_often(one: Server) -> None:
    """A heartbeat at least every two seconds while leases or their windows are out, every five otherwise."""
    async with replicas(one, "r") as (store,):
        assert (await store.exchange((), ())).again == IDLE
        (grant,) = (await store.exchange((), (wants(1),))).grants
        assert (await store.exchange((), ())).again == PULSE
        assert (await store.exchange((Spent(grant.lease, 0),), ())).again == PULSE
        assert (await store.exchange((Unsent("nobody's"),), ())).again == PULSE


def waited_out(one: Server) -> None:
    """As if the era had begun so long ago that all had the time to tell what they hold."""
    one.ask("HSET", "t:{default}:state", "hold", "0")


async def test_a_server_that_forgets_is_told_again(one: Server) -> None:
    """FLUSHALL takes nothing from what was spent: who holds it reports it, and the pool is opened by a probe."""
    async with replicas(one, "r") as (store,):
        (probe,) = (await store.exchange((), (wants(1),))).grants
        (grant,) = (await store.exchange((Spent(probe.lease, 0),), (wants(1),))).grants
        one.ask("FLUSHALL")
        answer = await store.exchange((), (wants(1),))
        assert not answer.grants
        assert answer.budgets[0].at_hand == 0
        assert [type(event) for event in events(store)] == [EraBegan]
        waited_out(one)
        answer = await store.exchange((Unsent(grant.lease),), (wants(2),))
        assert [one.probe for one in answer.grants] == [True]


async def test_a_restarted_server_begins_an_era(one: Server) -> None:
    """What it had saved is kept, and not trusted: its run id has changed."""
    async with replicas(one, "r") as (store,):
        (probe,) = (await store.exchange((), (wants(1),))).grants
        await store.exchange((Spent(probe.lease, 0),), ())
        one.ask("HSET", "t:{default}:state", "run", "b" * 40)
        assert not events(store)
        assert not (await store.exchange((), (wants(5),))).grants
        waited_out(one)
        answer = await store.exchange((), (wants(5),))
        assert [grant.probe for grant in answer.grants] == [True]
        assert [type(event) for event in events(store)] == [EraBegan]


async def test_lost_writes_are_noticed(one: Server) -> None:
    """A server that is behind what a replica has seen knows less than was spent (a failover)."""
    async with replicas(one, "r") as (store,):
        (probe,) = (await store.exchange((), (wants(1),))).grants
        before = one.ask("HGET", "t:{default}:state", "tick")
        await store.exchange((Spent(probe.lease, 0),), ())
        one.ask("HSET", "t:{default}:state", "tick", before)
        await store.exchange((), ())
        assert [type(event) for event in events(store)] == [EraBegan]


async def test_a_clock_that_jumps_ahead_is_not_believed(one: Server) -> None:
    """Tokens do not return because the server's clock was set: no grant is used that rests on it."""
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


async def test_a_turn_that_comes_early_wakes_its_replica(one: Server) -> None:
    """Tokens that come back unsent are left for who is next, and that one is called over the server."""
    async with replicas(one, "near", "far", pool_=pool(1, limit(1, 10 * SECOND))) as (near, far):
        woken: list[int] = []
        far.listen(lambda: woken.append(1))
        await until(lambda: len(woken) == 1, "it listens")
        (grant,) = (await near.exchange((), (wants(1, "a"),))).grants
        await far.exchange((), (wants(1, "b"),))
        await near.exchange((Unsent(grant.lease),), ())
        await until(lambda: len(woken) == 2, "it is called")
        assert (await far.exchange((), (wants(1, "b"),))).grants


async def test_all_hear_what_is_left_when_it_shrinks(one: Server) -> None:
    """Over the server, without asking: what a replica goes by when the store is lost is never much too old."""
    async with replicas(one, "near", "far", pool_=pool(1, limit(20, 600 * SECOND))) as (near, far):
        (name,) = [limit_.id for limit_ in near.terms.limits]
        woken: list[int] = []
        far.listen(lambda: woken.append(1))
        await until(lambda: woken, "it listens")
        (probe,) = (await near.exchange((), (wants(1),))).grants
        await near.exchange((Spent(probe.lease, 0),), ())
        await far.exchange((), ())
        assert far.letters.hands == {name: 19}
        await near.exchange((), (wants(15),))
        assert (near.letters.rank, far.letters.rank) == (1, 0)
        await until(lambda: far.letters.hands == {name: 4}, "it is told")
        assert woken == [1]


async def test_an_answer_that_is_lost_costs_nothing(one: Server) -> None:
    """Its grants are taken back with the next letter, and granted again."""
    async with replicas(one, "r", pool_=pool(1, limit(1, 600 * SECOND))) as (store,):
        call = store.letters.call(micros(), (), (wants(1),))
        asked = await store.send(call)
        assert asked.asks == ("terms",)
        store.letters.hear(micros(), micros(), call, asked)
        lost = await store.send(store.letters.call(micros(), (), (wants(1),)))
        assert lost.grants
        assert (await store.exchange((), (wants(1),))).grants


class Cut(RedisStore):
    """A store whose answers are lost with their connection, the next so many times."""

    cuts = 0

    async def send(self, call: Call) -> Reply:
        reply = await super().send(call)
        if self.cuts:
            self.cuts -= 1
            raise StoreLost("It closed the connection.", broke=True)
        return reply


async def test_a_connection_that_breaks_is_no_loss(one: Server) -> None:
    """Another letter takes back what the first was granted; a second time in the same exchange it is one."""
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
    """What it tells again costs the server a command for each quota, not for each token, which could take too long."""
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
        assert one.ask("HGETALL", f"t:{{default}}:taken:{store.terms.limits[0].id}")[1::2] == ["100"] * 10
        lines = one.ask("INFO", "commandstats").splitlines()
        assert sum(int(line.partition("calls=")[2].partition(",")[0]) for line in lines if "calls=" in line) < 500


class Insatiable(RedisStore):
    """A store that asks for the same thing whatever it is told."""

    async def send(self, call: Call) -> Reply:
        return Reply("e", 1, 1, ("terms",))


async def test_a_server_that_never_comes_to_terms_is_lost() -> None:
    """It is not asked for ever: a loss, with its cause."""
    link = Link("redis://h", shown="redis://h", timeout=PATIENCE)
    store = Insatiable(link, FAST, prefix="t", replica="r", settle_bound=BOUND, clock=micros, observer=Recorder())
    with pytest.raises(StoreLost) as caught:
        await store.exchange((), ())
    assert "two servers behind one name" in caught.value.cause
    await link.close()


async def test_pools_do_not_meet(one: Server) -> None:
    """Each has its own name in its keys, and so has each prefix."""
    link = Link(one.url, shown=one.url, timeout=PATIENCE)
    stores = [
        RedisStore(link, FAST, prefix=prefix, replica="r", settle_bound=BOUND, clock=micros, observer=Recorder())
        for prefix in ("one", "other")
    ]
    for store in stores:
        assert (await store.exchange((), (wants(1),))).grants
    await link.close()
    keys = one.ask("KEYS", "*")
    assert {key.partition("}")[0] for key in keys} == {"one:{default", "other:{default"}


async def test_nothing_is_left_of_a_limit_that_is_gone(one: Server) -> None:
    """Once nobody's terms name it and its last token is back, however that came back."""
    store = ClockedRedis(one, FAST)
    try:
        (grant,) = (await store.exchange("r", (), (wants(1),))).grants
        store.adopt("r", pool(1, limit(2, 20 * SECOND)))
        for _ in range(2):
            await store.exchange("r", (), ())
            store.pass_(KEEP + 1)
        await store.exchange("r", (Unsent(grant.lease),), ())
        assert one.ask("ZRANGE", "t:{default}:limits", 0, -1) == [store.store("r").letters.terms.limits[0].id]
    finally:
        await store.close()
