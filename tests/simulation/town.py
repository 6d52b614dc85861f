"""A deterministic simulation: clients of many habits, the real gateway and waiting room, an upstream with real windows.

Everything runs on virtual time; a seed reproduces a run. The upstream counts each request at some moment of its trip
and keeps its own books, so that law 1 is judged by what it saw.
"""

import asyncio
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from proxy.core.errors import Broken, Refusal, TooMany, Unreachable
from proxy.core.events import Journal
from proxy.core.http import Answer, Body, Fields, Request
from proxy.core.model import SECOND, Client, Micros, Pool, Secret
from proxy.gateway import Gateway, Retries
from tests.core.worlds import BOUND
from tests.rooms import Room, room
from tests.virtual import micros

Trip = Callable[[Random], float]

TRIPS: dict[str, Trip] = {
    "constant": lambda _: 0.2,
    "jittered": lambda random: random.uniform(0.05, 0.3),
    "heavy": lambda random: min(12.0, random.lognormvariate(-0.8, 1.0)),
}


@dataclass
class Town:
    """What happened in a run."""

    pool: Pool
    random: Random
    trip: Trip
    faults: float = 0.0
    counted: dict[str, list[Micros]] = field(default_factory=lambda: defaultdict(list))
    """When the upstream counted requests, by key."""
    throttled: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    late: list[Micros] = field(default_factory=list)
    """By how much refusals and answers came after their deadline."""
    idled: float = 0.0
    """The longest that a token lay at hand while somebody waited, in seconds."""

    def worst(self, key: str, window: Micros) -> int:
        """The most requests in any half-open interval of that length."""
        instants = sorted(self.counted[key])
        return max((bisect_left(instants, start + window) - i for i, start in enumerate(instants)), default=0)

    def used(self, seconds: float) -> float:
        """The share of the permitted requests that were made."""
        limit = self.pool.limits[0]
        permitted = limit.requests * seconds * SECOND / limit.window * len(self.pool.keys)
        return sum(map(len, self.counted.values())) / permitted


class _Body:
    """An answer without a body."""

    async def read(self) -> bytes:
        return b""

    async def discard(self) -> None:
        pass

    def abort(self) -> None:
        pass


class TownUpstream:
    """The upstream: counts within each trip and `settle_bound`; refuses what is over by a rolling window."""

    def __init__(self, town: Town) -> None:
        self._town = town

    async def connect(self) -> "TownUpstream":
        if self._town.random.random() < self._town.faults:
            raise Unreachable("no connection")
        return self

    def put_back(self) -> None:
        pass

    async def send(
        self, request: Request, key: Secret, extra: Fields, *, body: Body | None, on_written: Callable[[], None]
    ) -> Answer:
        trip = self._town.trip(self._town.random)
        there = self._town.random.random() * min(trip, BOUND / SECOND)
        on_written()
        await asyncio.sleep(there)
        status = self._count(key.reveal())
        await asyncio.sleep(trip - there)
        if self._town.random.random() < self._town.faults:
            raise Broken("reset")
        return Answer(status, b"", ((b"Retry-After", b"60"),) if status == 429 else (), _Body())

    def _count(self, key: str) -> int:
        now, limit = micros(), self._town.pool.limits[0]
        instants = self._town.counted[key]
        if len(instants) - bisect_left(instants, now - limit.window + 1) >= limit.requests:
            self._town.throttled += 1
            return 429
        instants.append(now)
        return 200


@dataclass(frozen=True)
class Habit:
    """How a client calls: so many at once, then a pause; how long it waits, and how often it hangs up."""

    burst: int
    pause: tuple[float, float]
    wait: Micros
    urgency: int = 3
    hangs_up: float = 0.0


HABITS = (
    Habit(1, (2, 3), 30 * SECOND),
    Habit(10, (50, 70), 120 * SECOND, urgency=5),
    Habit(40, (200, 400), 300 * SECOND, urgency=7),
    Habit(2, (5, 15), 5 * SECOND, urgency=0, hangs_up=0.2),
    Habit(3, (20, 60), 30 * SECOND, hangs_up=0.05),
)


async def live(town: Town, clients: int, seconds: float) -> None:
    """So many clients of mixed habits, for so long."""
    async with room(town.pool) as it:
        gateway = Gateway(
            {"default": it.dispatch},
            TownUpstream(town),
            retries=Retries(),
            observer=it.recorder,
            clock=micros,
            wall=micros,
        )
        end = asyncio.get_running_loop().time() + seconds
        async with asyncio.TaskGroup() as tasks:
            watch = tasks.create_task(_watch(town, it))
            callers = [
                tasks.create_task(_client(town, gateway, Client(f"c{number}", weight=1 + number % 3), number, end))
                for number in range(clients)
            ]
            await asyncio.wait(callers)
            watch.cancel()
        await it.settled()
        it.recorder.events.clear()
        it.check_empty()


async def _client(town: Town, gateway: Gateway, client: Client, number: int, end: float) -> None:
    habit = HABITS[number % len(HABITS)]
    loop = asyncio.get_running_loop()
    await asyncio.sleep(town.random.uniform(0, 10))
    while loop.time() < end:
        await asyncio.gather(*(_request(town, gateway, client, habit) for _ in range(habit.burst)))
        await asyncio.sleep(town.random.uniform(*habit.pause))


async def _request(town: Town, gateway: Gateway, client: Client, habit: Habit) -> None:
    request = Request("id", client, "GET", b"/me", "/me", (), None, habit.urgency, habit.wait)
    began = micros()
    journal = Journal()
    patience = town.random.uniform(0, 20) if town.random.random() < habit.hangs_up else None
    try:
        async with asyncio.timeout(patience), gateway.handle(request, journal) as answer:
            town.outcomes[str(answer.status)] += 1
    except TooMany:
        town.outcomes["refused"] += 1
        town.late.append(micros() - began - habit.wait)
    except Refusal as refusal:
        town.outcomes[refusal.name] += 1
    except TimeoutError:
        town.outcomes["gone"] += 1
    if not journal.tries:
        town.late.append(journal.queued - habit.wait)


async def _watch(town: Town, it: Room) -> None:
    """How long a token lies at hand while somebody waits (law 3)."""
    since: float | None = None
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(0.02)
        buckets, terms = it.store.ledger.buckets, it.store.terms
        returned = it.store.calendar.cooling.first()
        at_hand = buckets.at_hand(terms.name, terms.limits[0].id) > 0 or (
            returned is not None and returned[0] <= micros()
        )
        if not (at_hand and it.dispatch.waiting):
            since = None
        elif since is None:
            since = loop.time()
        else:
            town.idled = max(town.idled, loop.time() - since)
