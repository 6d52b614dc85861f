"""What exchanges and snapshots cost the server, by how many clients wait, in how many replicas, for how many limits.

The server is real, and so is the way to it; time is virtual, as the script permits, so that each exchange brings the
tokens that it should, however busy the machine is. The replicas call when they were told to, or are woken.
"""

import statistics
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from keyturn.core.exchange import LEASE_LIFETIME, DemandClass, Flow, FlowDemand, LeaseGrant, Spent
from keyturn.core.messages import revision_of
from keyturn.core.model import MILLISECOND, SECOND, Limit, Micros, Pool
from keyturn.core.session import Session
from keyturn.stores.links import Link, Script
from keyturn.stores.scripts import (
    EXCHANGE,
    SNAPSHOT,
    decode_exchange,
    decode_snapshot,
    encode_exchange,
    encode_snapshot,
)

from bench.cpu import cpu_exactly
from bench.pools import pool_of
from tests.stores.servers import Server, server

CLIENTS, REPLICAS, LIMITS = (1, 64, 300, 1000), (1, 8, 100), (1, 3)
TOKENS = 1024
KEYS = (16, 1024, 10_240)
ONE, MANY = 1, 64
"""Tokens that return at the same instant."""
PINNED = 300
"""Number of keys to which one client has pinned requests."""
STEP: Micros = 10 * MILLISECOND
"""Microseconds between two tokens."""
COUNTED = {ONE: 100, MANY: 6}
"""Exchanges in one round."""
SNAPSHOTS = 20
BOUND = 10 * SECOND
AIMS = {"one": 250, "many": 45, "snapshot": 1000}
"""Microseconds of CPU, at the most."""
FORMER = {
    (KEYS[0], 64, 1, 1): 5_260,
    (KEYS[2], 64, 1, 1): 5_733,
    (KEYS[1], 1, 1, 1): 768,
    (KEYS[1], 300, 1, 1): 27_781,
    (KEYS[1], 1000, 1, 1): 92_117,
    (KEYS[1], 64, 1, 3): 8_565,
}
"""Cost of an exchange with one token before the scheduler was rebuilt, by keys, clients, replicas and limits."""
LOOP = Script.of("local sum = 0 for number = 1, 20000 do sum = sum + number % 7 end return sum")
"""A script of constant work, which tells how fast the machine is meanwhile."""


@dataclass
class Replica:
    """One replica: its session with the store."""

    session: Session
    due: Micros
    spent: list[tuple[LeaseGrant, Micros]] = field(default_factory=list)
    """Requests to settle, with the instant at which each was counted."""


@dataclass(frozen=True)
class Done:
    """An exchange: microseconds of the server's CPU, leases that were dealt, and those of them that the caller got."""

    cpu: float
    dealt: int
    granted: int


class Fleet:
    """Replicas in whose queues requests wait for the tokens of one server."""

    def __init__(self, one: Server, link: Link, pool: Pool, replicas: int, demands: tuple[FlowDemand, ...]) -> None:
        self.now: Micros = 10**6 * SECOND
        self.woken = 0
        self.announced: list[Done] = []
        """The first exchange of each replica."""
        self._pid = one.pid
        self._link = link
        self._key = f"bench:{{{pool.name}}}"
        self._revision = revision_of(pool, LEASE_LIFETIME + BOUND)
        self._demands = demands
        self._counted = self.now
        self._together = self._dealt = 0
        self._replicas = {
            f"r{number}": Replica(Session(f"r{number}", self._revision), self.now) for number in range(replicas)
        }

    async def join(self) -> None:
        """Let every replica announce its demands and listen."""
        for name, replica in self._replicas.items():
            self._link.listen(f"{self._key}:wake:{name}", lambda _: None)
            self.announced.append(await self._exchange(replica, ONE))

    async def run(self, together: int, exchanges: int) -> list[Done]:
        """Call when told until so many exchanges have dealt, each of them the tokens that return `together`."""
        done: list[Done] = []
        while exchanges > 0:
            replica = min(self._replicas.values(), key=lambda one: one.due)
            self.now = max(self.now, replica.due)
            done.append(await self._exchange(replica, together))
            exchanges -= done[-1].dealt > 0
        return done

    async def fill(self, together: int) -> None:
        """Use every token, those that return together at one instant, until all are cooling down."""
        left = max(TOKENS, len(self._revision.quotas))
        while left > 0:
            left -= sum(done.dealt for done in await self.run(together, 1))

    async def snapshots(self, number: int) -> list[float]:
        """Measure snapshots of the first replica."""
        session, costs = self._replicas["r0"].session, []
        said = encode_snapshot(self._revision.name, session.pins(), now=self.now)
        for _ in range(number):
            before = cpu_exactly(self._pid)
            assert await self._link.run(SNAPSHOT, self._key, said, read=decode_snapshot)
            costs.append(1e6 * (cpu_exactly(self._pid) - before))
        return costs

    async def _exchange(self, replica: Replica, together: int) -> Done:
        session, now = replica.session, self.now
        spent = tuple([Spent(grant.lease, now - counted) for grant, counted in replica.spent])
        replica.spent = []
        session.tell(self._demands, partial=False)
        while True:
            request, dealt = session.request(now, spent), session.dealt
            said = encode_exchange(request, None, now=now)
            before = cpu_exactly(self._pid)
            response, _ = await self._link.run(EXCHANGE, self._key, said, read=decode_exchange)
            cpu = 1e6 * (cpu_exactly(self._pid) - before)
            if session.hear(now, now, request, response):
                break
        grants = response.grants
        replica.spent = [(grant, self._count(together)) for grant in grants]
        replica.due = now + (2 * SECOND if response.again is None else response.again)
        for name, delay in response.wake:
            self.woken += 1
            woken = self._replicas[name]
            woken.due = min(woken.due, now + delay)
        dealt, self._dealt = response.dealt - self._dealt, response.dealt
        return Done(cpu, dealt, len(grants))

    def _count(self, together: int) -> Micros:
        """Return when the next request is counted, so that tokens return evenly, or so many together."""
        if self._together == 0:
            self._together = together
            self._counted = max(self.now, self._counted + together * STEP)
        self._together -= 1
        return self._counted


@dataclass
class Cell:
    """One line of the table: medians, in microseconds of the server's CPU."""

    one: float
    """An exchange that brings one token."""
    exchange: float
    """One that deals many."""
    many: float
    """The same for each lease of it, others' reservations among them."""
    collected: float
    """One that collects what was reserved; 0 when there is none."""
    snapshot: float

    def __str__(self) -> str:
        missed = [name for name, aim in AIMS.items() if getattr(self, name) > aim]
        figures = f"{self.one:8.0f}{self.exchange:8.0f}{self.many:8.1f}{self.collected:9.0f}{self.snapshot:9.0f}"
        return f"{figures}   {'missed: ' + ', '.join(missed) if missed else 'met'}"


def pool(keys: int, limits: int) -> Pool:
    """A pool that has `TOKENS` tokens under each of its limits, or one on each key."""
    each = max(1, TOKENS // keys)
    window = max(TOKENS, keys) * STEP
    return pool_of(keys, *[Limit(each, window - number * MILLISECOND, ()) for number in range(limits)])


def demands_of(clients: int, limits: int) -> tuple[FlowDemand, ...]:
    """Return the demands of each replica, which never end: a flow for each client, enough for one exchange of many."""
    kind, waiting = DemandClass(tuple(range(limits))), max(2, -(-256 // clients))
    return tuple([FlowDemand(Flow(f"c{number}", kind), 1, waiting) for number in range(clients)])


async def fleet(
    stack: AsyncExitStack, one: Server, pool: Pool, replicas: int, demands: tuple[FlowDemand, ...]
) -> Fleet:
    """Start a fleet on an empty server; the stack ends its connections."""
    one.ask("FLUSHALL")
    link = Link(one.url, shown=one.url, timeout=60 * SECOND)
    stack.push_async_callback(link.close)
    joined = Fleet(one, link, pool, replicas, demands)
    await joined.join()
    return joined


async def cell(one: Server, keys: int, clients: int, replicas: int, limits: int, rounds: int) -> Cell:
    """Measure one cell."""
    results: dict[int, list[Done]] = {}
    for together in (ONE, MANY):
        async with AsyncExitStack() as stack:
            waiting = await fleet(stack, one, pool(keys, limits), replicas, demands_of(clients, limits))
            await waiting.fill(together)
            results[together] = await waiting.run(together, rounds * COUNTED[together])
            snapshots = await waiting.snapshots(rounds * SNAPSHOTS)
    many = [done for done in results[MANY] if done.dealt == MANY]
    return Cell(
        _median([done.cpu for done in results[ONE] if done.dealt == done.granted == 1]),
        _median([done.cpu for done in many]),
        _median([done.cpu / done.dealt for done in many]),
        _median([done.cpu for done in results[MANY] if done.granted and not done.dealt]),
        _median(snapshots),
    )


def _median(figures: list[float]) -> float:
    return statistics.median(figures) if figures else 0.0


async def pinned(one: Server, rounds: int) -> None:
    """Measure one client with two requests pinned to each of many keys."""
    keys = pool_of(PINNED, Limit(1, PINNED * STEP, ()))
    demands = tuple([FlowDemand(Flow("c", DemandClass((0,), quota)), 1, 2) for quota in keys.quotas])
    async with AsyncExitStack() as stack:
        waiting = await fleet(stack, one, keys, 1, demands)
        [announced] = waiting.announced
        await waiting.run(ONE, 2 * PINNED)
        done = await waiting.run(ONE, rounds * COUNTED[ONE])
        snapshots = await waiting.snapshots(rounds * SNAPSHOTS)
    cost = _median([each.cpu for each in done if each.dealt == 1])
    print(
        f"2 requests pinned to each of {PINNED} keys: {announced.cpu / 1000:.1f} ms when they are announced and"
        f" {announced.dealt} granted; {cost:.0f} us for an exchange with one token"
        f" (worst {max(each.cpu for each in done):.0f}): {'met' if cost <= AIMS['one'] else 'missed'};"
        f" a snapshot {_median(snapshots):.0f}"
    )


async def gauge(one: Server) -> None:
    """Print how fast the machine is now."""
    link, costs = Link(one.url, shown=one.url, timeout=60 * SECOND), []
    for _ in range(200):
        before = cpu_exactly(one.pid)
        await link.run(LOOP, "bench")
        costs.append(1e6 * (cpu_exactly(one.pid) - before))
    await link.close()
    print(f"20,000 turns of a loop in a script meanwhile: {_median(costs):.0f} us")


async def run(kind: str, rounds: int) -> None:
    """Print all figures."""
    print(
        "Microseconds of the server's CPU for an exchange with one token (and what it cost formerly), one that deals"
        "\n64, each grant of these, one that collects what was reserved meanwhile, and a snapshot; aims: "
        f"{AIMS['one']} with one token, {AIMS['many']} each, {AIMS['snapshot']} a snapshot"
    )
    print(
        f"{'keys':>7}{'clients':>9}{'replicas':>9}{'limits':>7}{'formerly':>10}{'one':>8}{'64':>8}{'each':>8}{'collect':>9}"
        f"{'snapshot':>9}"
    )
    cells = [(KEYS[1], clients, replicas, limits) for limits in LIMITS for replicas in REPLICAS for clients in CLIENTS]
    with server(kind) as one:
        for keys, clients, replicas, limits in [(KEYS[0], 64, 1, 1), (KEYS[2], 64, 1, 1), *cells]:
            told = await cell(one, keys, clients, replicas, limits, rounds)
            former = FORMER.get((keys, clients, replicas, limits), "")
            print(f"{keys:7}{clients:9}{replicas:9}{limits:7}{former:>10}{told}", flush=True)
        await pinned(one, rounds)
        await gauge(one)
