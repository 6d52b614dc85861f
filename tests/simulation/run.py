"""One run: a row of the table and a seed make a world, which lives for some virtual minutes and is then checked."""

import random as global_random
from collections.abc import Iterator
from random import Random
from time import process_time
from typing import TypedDict, get_args

from keyturn.core.events import Observer
from keyturn.core.flows import LAG
from keyturn.core.messages import RevisionClass
from keyturn.core.model import MILLISECOND, SECOND, Client, Key, Limit, Micros, Pool, Secret
from keyturn.stores.memory import Memory, MemoryStore

from tests.core.worlds import BOUND, limit
from tests.simulation.incidents import Incidents
from tests.simulation.judges import beyond_neighbours, most_in, used, worst_in, wronged
from tests.simulation.load import HABITS, STEADY, TARGETS, Caller, Habit
from tests.simulation.processes import Process, Universe
from tests.simulation.replicas import AT_ONCE, Findings, Replica
from tests.simulation.results import Result
from tests.simulation.returning import Returning
from tests.simulation.scenarios import KINDS, ODD, SHAPES, Row
from tests.simulation.server import Account, Network, Post, Server
from tests.simulation.upstream import TRIPS, Api, Manner
from tests.simulation.watch import Watch, WatchedState

REQUESTS = 1_500

LASTS = 1200 * SECOND
"""Longest duration of a run."""

BRIEFEST = 120
"""Seconds that a run lasts at the least, so that something befalls it."""

MENDED = 10 * SECOND
"""After the last incident nothing is left of it: a new era has begun, and its buckets are known."""

BURSTS = 3
"""Bursts whose refused callers come back when told."""

SLACK = 5 * SECOND
"""Time that a refused request must have had left for its refusal to be needless."""

LONGEST = 50 * SECOND
"""Beyond the longest trip."""

USUAL = ("constant", "jittered")
"""Trips of 50 to 300 ms."""

LEAST_USED = 0.994
"""Least used share of permitted requests under endless load with usual service times, as the mean of many runs."""

CLOCK = 0.001
"""Allowance of one run, since its server's clock loses up to 0.05 %, and few rounds are counted."""

MANY_KEYS = 40
"""Number of keys to which one client pins requests."""

GIVEN_UP = 0.05
"""The part of those refused who could have been served, since others that waited before them hung up."""

MANY = 20
"""So many requests of one run say something about all."""

KEPT = 0.95
"""Least share of refused requests that are served when they come back as told."""

OFF = 0.1
"""By which part of the waits estimates may be off, beyond what neighbours in the order of service explain."""

OFF_AT_LEAST: Micros = SECOND // 2
"""Allowance for the mean error of estimates: with short waits one place off may be a window later."""

MEAN_TRIP = {"constant": 0.2, "jittered": 0.18, "heavy": 0.8}


class Manners(TypedDict):
    """The upstream's style of answers; see `Api`."""

    speaks: bool
    manner: Manner
    skew: Micros | None


class Run:
    """A world and its life; `requests` is about how many the upstream permits in it."""

    def __init__(self, row: Row, seed: int, requests: int = REQUESTS) -> None:
        self.row = row
        self.seed = seed
        self._requests = requests
        self.random = Random(f"{row.name}/{seed}")
        global_random.seed(seed)
        self.universe = Universe(1_700_000_000 * SECOND + self.random.randint(0, 10**9))
        self.findings = Findings()
        self.pool = self._pool()
        """The pool as the upstream counts: its limits, and a quota for each key."""
        self.pool_now = self.pool
        """The pool as it is configured."""
        self.clients: dict[str, Client] = {}
        self.trip = row.trip or self.random.choice(SHAPES)
        kind = row.kind if row.kind is not None else self.random.choice(KINDS)
        self.api = Api(
            self.universe,
            self._generator(),
            kind=kind,
            limits=self.pool.limits,
            owners={key.secret.reveal(): key.quota for key in self.pool.keys},
            trip=TRIPS[self.trip],
            **self._manners(),
        )
        self.api.fails = row.fails
        network = Network(self._generator(), loss=row.loss)
        network.most = row.slow or network.most
        self.watch = Watch(self.universe, self.waiting, self.api.granted)
        self.state = WatchedState(self.watch)
        self.server = Server(self.universe, network, self.state, drift=self._drift())
        self.memory = Memory(self.server.time) if row.memory else None
        if self.memory:
            self.memory.state = self.state
        self.foretells_less = False
        """Whether estimates cannot be as good: others have spent, or requests under several limits wait, which leave to
        others what their narrowest limit does not let them use."""
        self.replicas: list[Replica] = []
        self.gone: list[Replica] = []
        """Those that were killed or retired."""
        self._born = 0
        first = self.pool.limits[0]
        self.rate = first.requests * len(self.pool.quotas) / first.window
        self.lasts = max(min(int(requests / self.rate), LASTS), 4 * first.window, BRIEFEST * SECOND)
        self.count = 1 if row.memory else self.random.randint(3 if row.odd_clock else 1, 8)
        for _ in range(self.count):
            self.join()
        self.callers = list(self._callers())
        self.world = (
            f"{kind} windows, {self.trip} trips, {self.count} replicas, {len(self.pool.quotas)} quotas, "
            f"{', '.join(one.name for one in self.pool.limits)}, {len(self.callers)} callers"
        )

    # The world

    def _generator(self) -> Random:
        return Random(self.random.getrandbits(64))

    def _manners(self) -> Manners:
        """Return the upstream's style, by a clock that is minutes off if its answers show it."""
        random = self.random
        speaks, dated = random.random() < 0.8, random.random() < 0.5
        if not dated:
            return {"speaks": speaks, "manner": "seconds", "skew": None}
        manner = random.choice(get_args(Manner))
        return {"speaks": speaks, "manner": manner, "skew": random.randint(-300, 300) * SECOND}

    def _drift(self) -> int:
        return self.random.randint(-500, 500)

    def _pool(self) -> Pool:
        random = self.random
        limits = self._limits()
        rate = limits[0].requests * SECOND / limits[0].window
        most = (
            20
            if self.row.saturated and self._requests == REQUESTS
            else max(1, int(2 * self._requests / rate / BRIEFEST))
        )
        quotas = min(MANY_KEYS if self.row.pins else random.choice([1, 1, 2, 3, 5, 8, 20]), most)
        names = [f"k{number}" for number in range(quotas)]
        keys = tuple(Key(name, Secret(f"s-{name}"), name) for name in names)
        return Pool("default", keys, limits, guard=100 * MILLISECOND)

    def _limits(self) -> tuple[Limit, ...]:
        if self.row.saturated:
            return (limit(60),)
        size = self.row.size or self.random.choice([5, 20, 60])
        limits: tuple[Limit, ...] = (limit(size, self.random.choice([5, 10, 20]) * SECOND),)
        if self.random.random() < 0.5:
            limits += (limit(max(1, size // 4), 5 * SECOND, "GET /collections", "GET /workspaces"),)
        if self.random.random() < 0.3:
            limits += (limit(size * 3, 60 * SECOND, "PUT /**"),)
        return limits

    def join(self) -> Replica:
        """Start one more replica."""
        self._born += 1
        offset = 1000 * SECOND + self.random.randint(-5000, 5000) * MILLISECOND
        drift = -ODD if self.row.odd_clock and self._born == 1 else self._drift()
        process = Process(self.universe, f"r{self._born}", offset=offset, drift=drift)  # type: ignore[abstract]  # of an event loop it has what is used
        replica = Replica(process, self.shop, self.api, self.pool_now, self.findings)
        self.replicas.append(replica)
        return replica

    def shop(self, process: Process, observer: Observer) -> MemoryStore | Account:
        """Return the store of a replica."""
        if self.memory:
            return MemoryStore(self.memory, self.pool_now, replica=process.name, settle_bound=BOUND)
        post = Post(self.server, process, self.pool_now, observer)
        return Account(post, on_loss=self.row.on_loss, observer=observer)

    def pick(self, number: int) -> Replica:
        """Return the replica that a caller reaches."""
        return self.replicas[number % len(self.replicas)]

    def waiting(self) -> dict[RevisionClass, Micros]:
        """See `Watch`."""
        oldest: dict[RevisionClass, Micros] = {}
        for replica in self.replicas:
            if replica.able:
                for demanded, since in replica.waiting():
                    oldest[demanded] = min(oldest.get(demanded, since), since)
        return oldest

    def _callers(self) -> "list[Caller]":
        random = self.random
        clients = random.randint(1, min(50, self._requests // 20))
        if self.row.saturated:
            clients = min(clients, max(2, int(self.rate * 20 * SECOND)))
        limits = len(self.pool.limits)
        callers = []
        for number in range(clients):
            client = Client(f"c{number}", weight=random.choice([1, 1, 1, 2, 3, 10]))
            self.clients[client.name] = client
            targets = ("/me",) if limits == 1 else TARGETS
            spread = random.randint(1, min(self.count, 3))
            callers += self._callers_of(client, number, clients, spread, targets)
        if self.row.pins:
            client = self.clients["pins"] = Client("pins", pin=True)
            callers += [
                self._caller(client, STEADY, home=place, name=f"pins.{key.name}.{place}", targets=TARGETS, key=key)
                for key in self.pool.keys
                for place in range(2)
            ]
        return callers

    def _callers_of(
        self, client: Client, number: int, clients: int, spread: int, targets: tuple[str, ...]
    ) -> "list[Caller]":
        if self.row.saturated:
            busy = self.rate * SECOND * MEAN_TRIP[self.trip] / clients
            return [
                self._caller(client, STEADY, home=number + place, name=f"{client.name}.{place}.{one}", targets=targets)
                for place in range(spread)
                for one in range(4 + int(3 * busy / spread))
            ]
        habit = HABITS[number % len(HABITS)]
        return [
            self._caller(client, habit, home=number + place, name=f"{client.name}.{place}", targets=targets)
            for place in range(spread)
        ]

    def _caller(
        self, client: Client, habit: Habit, *, home: int, name: str, targets: tuple[str, ...], key: Key | None = None
    ) -> Caller:
        return Caller(
            self.universe,
            self._generator(),
            self.findings,
            name,
            client,
            habit,
            home=home,
            pick=self.pick,
            targets=targets,
            pinned=key.name if key else None,
        )

    # Its life

    def play(self) -> Result:
        """Play the run and check it."""
        began, cpu = self.universe.now, process_time()
        end = began + self.lasts
        for caller in self.callers:
            self.universe.after(self.random.randint(0, 2000) * MILLISECOND, caller.burst)
        incidents = Incidents(self, self._generator(), until=end)
        incidents.begin()
        self.universe.run(end)
        incidents.end()
        returning = self._return()
        self._close()
        self._judge_end()
        result = self._result(began, end, returning)
        for replica in [*self.replicas, *self.gone]:
            replica.process.bury()
        result.cpu = process_time() - cpu
        return result

    def _return(self) -> Returning:
        """Stop all callers, and check what is told to others."""
        for caller in self.callers:
            caller.stopped = True
        bursts = BURSTS if self._requests == REQUESTS else 1
        returning = Returning(self, self._generator(), bursts=bursts)
        self.universe.after(MENDED, returning.begin)
        longest = max(one.window for one in self.pool.limits)
        self.universe.run(self.universe.now + MENDED + 3 * (bursts + 1) * longest + LONGEST)
        returning.over = True
        return returning

    def _close(self) -> None:
        """Refuse waiting requests, finish those in flight, and let every token return."""
        for replica in self.replicas:
            replica.process.call_soon(replica.room.close)
        longest = max(one.window for one in self.pool.limits)
        self.universe.run(self.universe.now + LONGEST + BOUND + 2 * longest + 20 * SECOND)

    def _judge_end(self) -> None:
        breaches = self.findings.breaches
        breaches += self.universe.broken
        breaches += self.api.books.breaches
        breaches += [f"law 2: the lease {lease} was granted twice" for lease in self.watch.doubled]
        for replica in [*self.replicas, *self.gone]:
            if replica.process.dead:
                continue
            left = {lease: times for lease, times in replica.room.handed.items() if times != 1}
            if left or replica.room.waiting or replica.room.in_flight:
                breaches.append(f"law 2: {replica.name} has not settled each lease once: {left}")
        breaches += self._judge_tokens()

    def _judge_tokens(self) -> Iterator[str]:
        """Check that every token has returned (law 2)."""
        state = self.server.state
        if not isinstance(state, WatchedState):
            return
        now = state.time(self.server.time())
        while state.tokens.replenish(now):
            pass
        if state.tokens.taken or state.tokens.leases:
            yield f"law 2: tokens did not return: {state.tokens.taken} {state.tokens.leases}"

    def _result(self, began: Micros, end: Micros, returning: Returning) -> Result:
        books, findings, watch = self.api.books, self.findings, self.watch
        result = Result(self.row.name, self.seed, self.world, findings.breaches)
        result.lost = findings.asked - findings.outcomes.total()
        result.doubled = sum(1 for times in books.applied.values() if times > 1)
        result.wronged = len(wronged(findings.refused, findings.served, SLACK))
        if self.row.saturated:
            result.used = self._used(began, end)
        result.requests = books.arrived.total()
        result.throttled = len(books.throttled)
        result.idle, result.unfair = watch.idle, watch.shares.worst
        result.seconds = (end - began) / SECOND
        result.outcomes = findings.outcomes
        result.returned, result.kept, result.late = returning.judged, returning.served, returning.late
        result.errors = [estimate.error for estimate in findings.estimates]
        judged = [one for one in findings.estimates if one.judged and watch.disturbed < one.at]
        result.off = beyond_neighbours(judged, len(self.replicas))
        result.waits = [estimate.served - estimate.at for estimate in judged]
        self.foretells_less = self.row.foreign > 0 or any(len(one.who.limits) > 1 for one in judged)
        result.breaches += self._judge(result)
        return result

    def _used(self, began: Micros, end: Micros) -> float | None:
        first, counted = self.pool.limits[0], self.api.books.counted
        after = began + first.window + LONGEST // 5
        shares = [used(counted[quota, 0], first.requests, first.window, after, end) for quota in self.pool.quotas]
        known = [share for share in shares if share is not None]
        return sum(known) / len(known) if known else None

    def _judge_windows(self) -> Iterator[str]:
        row, books = self.row, self.api.books
        for (quota, index), counted in sorted(books.counted.items()):
            one = self.pool.limits[index]
            most = most_in(counted, one.window)
            worst = worst_in(books.trips[quota, index], one.window)
            if max(most, worst) > one.requests:
                yield f"law 1: {most} of {one.name} on {quota} in a window, {worst} at the worst"
        if books.throttled and not row.foreign:
            yield f"law 1: {len(books.throttled)} requests were throttled"

    @property
    def _most_apart(self) -> int:
        """Return how far two clients may be apart, in tokens of each, with catching up."""
        return 1 if self.row.fair and len(self.pool.limits) == 1 else LAG + 1

    def _judge_estimates(self, result: Result) -> Iterator[str]:
        if result.returned >= MANY and result.kept < KEPT * result.returned:
            yield f"law 6: of {result.returned} who came when they were told to, {result.kept} were served"
        off, waits = sum(map(abs, result.off)), sum(result.waits)
        borne = max(OFF * waits, OFF_AT_LEAST * len(result.off))
        if len(result.off) >= MANY and self.trip in USUAL and not self.foretells_less and off > borne:
            yield f"law 6: estimates were off by {100 * off / waits:.1f} % of the waits"

    def _judge(self, result: Result) -> Iterator[str]:
        row, watch, findings = self.row, self.watch, self.findings
        yield from self._judge_windows()
        if result.used is not None and self.trip in USUAL and result.used < LEAST_USED - CLOCK:
            yield f"law 3: {100 * result.used:.2f} % of what is permitted was used"
        if watch.idle > row.idle:
            yield f"law 3: a token idled for {watch.idle / SECOND:.3f} s: {watch.where}"
        if watch.shares.worst > self._most_apart + 1e-9:
            yield f"law 4: {watch.shares.where} were {watch.shares.worst:.2f} of a token each apart"
        if row.quiet and findings.longest_hopeless > AT_ONCE:
            yield f"law 6: not refused at once: {findings.longest_hopeless / SECOND:.3f} s"
        if result.wronged > GIVEN_UP * len(findings.refused) and row.fair:
            yield f"law 6: {result.wronged} requests were refused although they could have been served"
        yield from self._judge_estimates(result)
        if result.lost:
            yield f"{result.lost} callers never heard of their request again"
        if result.doubled:
            yield f"law 10: {result.doubled} requests that must not be repeated were"
