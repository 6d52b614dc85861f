"""Measure how often schedulers call the server they share: per request, by load, and per returning token.

Schedulers and server are real; the upstream is a pause.
"""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from keyturn.core.exchange import DemandClass, ExchangeResult, FlowDemand, Settlement
from keyturn.core.model import SECOND, Client, Limit, Pool
from keyturn.scheduler import Scheduler, Waiter
from keyturn.stores.links import Link
from keyturn.stores.redis import RedisStore
from keyturn.stores.shared import SharedStore
from keyturn.tasks import finish, spawn

from bench.pools import Nobody, now, pool_of
from tests.stores.servers import Server, server

KEYS = 10
TRIPS = (0.05, 0.3)
"""The shortest and the longest service time, in seconds."""
RATES = ((1, 20.0), (10, 8.0), (1000, 5.0))
"""Requests per second, and for how many seconds."""
LIMIT, WINDOW = 80, 4
QUEUED, MEASURED = 3, 2
"""Windows for which requests are queued, and those that are measured."""
REPLICAS = (1, 8, 100)
FEWEST = 10
"""Least number of requests that are queued in each replica."""
IDLE, BUSY, GRANTING, HEARTBEATS, WAKES = 1.1, 0.1, 1.2, 0.5, 0.2
"""The aims: round trips a request at the lowest and at the highest rate, granting calls and wake-ups a token,
heartbeats a replica and second."""


class Counting(SharedStore):
    """The shared store, which counts each exchange by use."""

    def __init__(self, store: RedisStore) -> None:
        super().__init__(store, on_loss="wait", clock=now, observer=Nobody())
        self.made: Counter[str] = Counter()

    async def exchange(
        self, settlements: tuple[Settlement, ...], demands: tuple[FlowDemand, ...], *, partial: bool = False
    ) -> ExchangeResult:
        """See `core.exchange.PoolStore`."""
        answer = await super().exchange(settlements, demands, partial=partial)
        self.made["granted" if answer.grants else "settled" if settlements else "heartbeats"] += 1
        return answer


class Replica:
    """A replica's scheduler; `made` counts its exchanges by use."""

    def __init__(self, scheduler: Scheduler, made: Counter[str]) -> None:
        self.served = 0
        self.made = made
        self._scheduler = scheduler

    async def request(self, client: str) -> None:
        """Wait for a lease and use it."""
        waiter = Waiter(Client(client), DemandClass((0,)), now() + 600 * SECOND)
        with await self._scheduler.lease(waiter) as lease:
            self.served += 1
            lease.written()
            await asyncio.sleep(random.uniform(*TRIPS))
            lease.spent()


@asynccontextmanager
async def replica(url: str, pool: Pool, name: str) -> AsyncIterator[Replica]:
    """Run a replica's scheduler."""
    bound = 10 * SECOND
    async with AsyncExitStack() as stack:
        link = Link(url, shown=url, timeout=10 * SECOND)
        stack.push_async_callback(link.close)
        shared = RedisStore(link, pool, prefix="bench", replica=name, settle_bound=bound, clock=now, observer=Nobody())
        store = Counting(shared)
        stack.push_async_callback(store.close)
        scheduler = Scheduler(pool, store, settle_bound=bound, max_waiting=10**6, clock=now, observer=Nobody())
        stack.push_async_callback(scheduler.stop)
        store.listen(scheduler.wake)
        await scheduler.start()
        yield Replica(scheduler, store.made)


def calls(one: Server) -> Counter[str]:
    """Return how often the scripts were called (`script`), and how many messages were sent (`publish`)."""
    lines = (line.partition(":") for line in one.ask("INFO", "commandstats").splitlines())
    told = {name: dict(part.split("=") for part in rest.split(",")) for name, colon, rest in lines if colon}
    made = Counter[str]()
    for command, name in (("evalsha", "script"), ("eval", "script"), ("publish", "publish")):
        made[name] += int(told.get(f"cmdstat_{command}", {"calls": "0"})["calls"])
    return made


def met(figure: float, aim: float) -> str:
    """Return a figure beside its aim."""
    return f"{figure:.2f} ({'met' if figure <= aim else 'missed'}, aim {aim:g})"


async def per_request(kind: str, rate: int, seconds: float) -> None:
    """Measure requests that come at a steady rate and find a key available."""
    tasks: set[asyncio.Task[Any]] = set()
    with server(kind) as one:
        async with replica(one.url, pool_of(KEYS, Limit(10_000, 60 * SECOND, ())), "r") as only:
            await asyncio.gather(*(only.request("first on each key") for _ in range(KEYS)))
            before, began, sent = calls(one), now(), 0
            while now() - began < seconds * SECOND:
                for _ in range((now() - began) * rate // SECOND - sent):
                    sent += 1
                    spawn(only.request("c"), name="request", owner=tasks)
                await asyncio.sleep(min(0.01, 1 / rate))
            await asyncio.gather(*tasks)
            made = (calls(one) - before)["script"]
    aim = {RATES[0][0]: IDLE, RATES[-1][0]: BUSY}.get(rate)
    each = f"{made / sent:.2f}" if aim is None else met(made / sent, aim)
    print(f"{rate:8} requests/s: {each} round trips a request ({made} for {sent})", flush=True)


async def per_token(kind: str, replicas: int) -> None:
    """Measure replicas in which more requests wait than are served meanwhile."""
    tasks: set[asyncio.Task[Any]] = set()
    pool = pool_of(1, Limit(LIMIT, WINDOW * SECOND, ()))
    seconds = MEASURED * WINDOW
    async with AsyncExitStack() as stack:
        one = stack.enter_context(server(kind))
        running = [await stack.enter_async_context(replica(one.url, pool, f"r{n}")) for n in range(replicas)]
        stack.push_async_callback(finish, tasks)
        for number in range(max(LIMIT * (QUEUED + MEASURED + 1), FEWEST * replicas)):
            spawn(running[number % replicas].request(f"c{number % 3}"), name="request", owner=tasks)
        await asyncio.sleep(QUEUED * WINDOW - WINDOW)
        before, served, kinds = calls(one), sum(each.served for each in running), _made(running)
        await asyncio.sleep(seconds)
        made, used, kinds = calls(one) - before, sum(each.served for each in running) - served, _made(running) - kinds
    snapshots = made["script"] - kinds.total()
    print(
        f"{replicas:8} replicas, {used} tokens in {seconds} s:"
        f" {met(kinds['granted'] / used, GRANTING)} granting calls a token,"
        f" {met(made['publish'] / used, WAKES)} messages a token,"
        f" {met(kinds['heartbeats'] / seconds / replicas, HEARTBEATS)} heartbeats a second and replica;"
        f" {kinds['settled'] / used:.2f} calls a token only told of spent ones,"
        f" {snapshots / used:.2f} were for snapshots alone",
        flush=True,
    )


def _made(running: list[Replica]) -> Counter[str]:
    return sum((each.made for each in running), Counter())


async def run(kind: str) -> None:
    """Print all figures."""
    print("How often a replica calls the server, while keys are free")
    for rate, seconds in RATES:
        await per_request(kind, rate, seconds)
    print(
        f"How often replicas call it together, while requests wait in each and {LIMIT // WINDOW} tokens return a second"
    )
    for replicas in REPLICAS:
        await per_token(kind, replicas)
