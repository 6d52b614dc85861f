"""What one exchange costs the server, by how many keys the pool has and how many lanes wait.

Two servers are asked, one with few keys and one with many, in turns or at once, and each ratio is the median of the
ratios of neighbouring rounds: a machine that becomes slower meanwhile moves both.
"""

import asyncio
import statistics
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass

from bench.pools import Nobody, now, pool_of
from proxy.core.exchange import Demand, Exchange, Kind, Lane, Settlement, Spent
from proxy.core.model import SECOND, Limit, Micros, Pool
from proxy.stores.links import Link
from proxy.stores.redis import RedisStore
from tests.stores.servers import Server, server

FEW, MANY = 10, 10_000
"""Keys."""
LANES = (1, 64)
RATE = 1000
"""Tokens that return in a second while requests wait."""
ROUND = 1.0
"""Seconds."""
PACE = 0.01
"""Seconds between two calls while requests wait: alike for both, so that each call brings as many grants."""
UNCOUNTED = 3
"""Rounds until tokens return one after the other."""


@dataclass(frozen=True, slots=True)
class Round:
    """What the exchanges of one round came to."""

    exchanges: int
    grants: int
    seconds: float
    cpu: float
    """Seconds of the server's process."""

    @property
    def figures(self) -> tuple[float, float, float, float]:
        """Exchanges per second, grants per exchange, microseconds of CPU per exchange and per grant."""
        grants = max(1, self.grants)
        return (
            self.exchanges / self.seconds,
            self.grants / self.exchanges,
            1e6 * self.cpu / self.exchanges,
            1e6 * self.cpu / grants,
        )


class Pupil:
    """One replica that does nothing but exchange, and its server."""

    def __init__(self, one: Server, store: RedisStore, apart: Micros) -> None:
        self._server = one
        self._store = store
        self._apart = apart
        self._counted = now()
        self._spent: tuple[Settlement, ...] = ()

    async def use(self, tokens: int) -> None:
        """Use so many, on each key alike, so that none is probed any more."""
        while tokens > 0:
            answer = await self.exchange((Demand(Lane("c0", Kind((0,))), 1, 256),))
            tokens -= len(answer.grants)
            self._spend(answer)
        await self.exchange(())

    async def exchange(self, demands: tuple[Demand, ...]) -> Exchange:
        """Tell what was spent, and ask."""
        spent, self._spent = self._spent, ()
        return await self._store.exchange(spent, demands)

    def _spend(self, answer: Exchange) -> None:
        """Settle what was granted, each counted `apart` from the one before, so that tokens return one by one."""
        spent = []
        for grant in answer.grants:
            self._counted = max(self._counted + self._apart, now())
            spent.append(Spent(grant.lease, now() - self._counted))
        self._spent = tuple(spent)

    async def round(self, demands: tuple[Demand, ...], *, wait: bool) -> Round:
        """Exchange for a while; `wait`: at the `PACE`, else again and again."""
        exchanges = grants = 0
        cpu, began = self._cpu(), time.perf_counter()
        while time.perf_counter() < began + ROUND:
            answer = await self.exchange(demands)
            self._spend(answer)
            exchanges += 1
            grants += len(answer.grants)
            if wait:
                await asyncio.sleep(PACE)
        return Round(exchanges, grants, time.perf_counter() - began, self._cpu() - cpu)

    def _cpu(self) -> float:
        lines = (line.split(":") for line in self._server.ask("INFO", "cpu").splitlines() if ":" in line)
        told = dict(lines)
        return float(told["used_cpu_user"]) + float(told["used_cpu_sys"])


async def pupil(stack: AsyncExitStack, kind: str, pool: Pool, apart: Micros = 0) -> Pupil:
    """A replica with a server of its own; the stack ends both."""
    one = stack.enter_context(server(kind))
    link = Link(one.url, shown=one.url, timeout=60 * SECOND)
    stack.push_async_callback(link.close)
    store = RedisStore(link, pool, prefix="bench", replica="r", settle_bound=10 * SECOND, clock=now, observer=Nobody())
    return Pupil(one, store, apart)


def demands_of(lanes: int, waiting: int) -> tuple[Demand, ...]:
    """So many requests of as many clients as there are lanes."""
    return tuple(Demand(Lane(f"c{number}", Kind((0,))), 1, waiting // lanes) for number in range(lanes))


async def at_hand(kind: str, rounds: int) -> None:
    """64 requests come, and are granted at once."""
    limit = Limit(10_000, 10 * SECOND, ())
    async with AsyncExitStack() as stack:
        pupils = {keys: await pupil(stack, kind, pool_of(keys, limit)) for keys in (FEW, MANY)}
        for keys, one in pupils.items():
            await one.use(keys)
        for lanes in LANES:
            report("at hand", lanes, await compare(pupils, demands_of(lanes, 64), rounds, wait=False))


async def waiting(kind: str, rounds: int) -> None:
    """1024 requests wait, and tokens return one after the other."""
    async with AsyncExitStack() as stack:
        pupils: dict[int, Pupil] = {}
        for keys, requests in ((FEW, 100), (MANY, 1)):
            window = keys * requests * SECOND // RATE
            pupils[keys] = await pupil(stack, kind, pool_of(keys, Limit(requests, window, ())), SECOND // RATE)
            await pupils[keys].use(keys * requests)
        await asyncio.sleep(MANY / RATE)  # until they return
        for lanes in LANES:
            report("waiting", lanes, await compare(pupils, demands_of(lanes, 1024), rounds, wait=True))


async def compare(
    pupils: dict[int, Pupil], demands: tuple[Demand, ...], rounds: int, *, wait: bool
) -> dict[int, list[Round]]:
    """The rounds of each: in turns, or at once where tokens would pile up meanwhile. The first ones do not count."""
    results: dict[int, list[Round]] = {keys: [] for keys in pupils}
    for number in range(-UNCOUNTED, rounds):
        works = [one.round(demands, wait=wait) for one in pupils.values()]
        done = await asyncio.gather(*works) if wait else [await work for work in works]
        if number >= 0:
            for keys, result in zip(pupils, done, strict=True):
                results[keys].append(result)
    return results


def report(what: str, lanes: int, results: dict[int, list[Round]]) -> None:
    """Print the medians, and the ratio of the CPU per grant as the median of the ratios of neighbouring rounds."""
    for keys, rounds in results.items():
        figures = (statistics.median(column) for column in zip(*(one.figures for one in rounds), strict=True))
        rate, grants, exchange, grant = figures
        print(f"{what:8}{keys:8}{lanes:7}{rate:14.0f}{grants:12.1f}{exchange:14.0f}{grant:11.0f}")
    ratios = [many.figures[3] / few.figures[3] for few, many in zip(*results.values(), strict=True)]
    print(f"{'':8}ratio of the CPU per grant: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


async def run(kind: str, rounds: int) -> None:
    """Print it all."""
    print("What an exchange costs the server: 64 requests are granted at once, or 1024 wait for 1000 tokens a second")
    print(f"{'':8}{'keys':>8}{'lanes':>7}{'exchanges/s':>14}{'grants each':>12}{'CPU us each':>14}{'per grant':>11}")
    await at_hand(kind, rounds)
    await waiting(kind, rounds)
