"""Random histories of a fleet: what replicas write when letters are lost, processes die, clocks step, stores restart.

A history drives any number of stores in lockstep through `Answers`; each must give the same replies.
"""

from dataclasses import dataclass, field, replace
from random import Random
from typing import Protocol

from proxy.core.correspondence import Correspondence
from proxy.core.exchange import Demand, Grant, Kind, Lane, Seen, Settlement, Spent, Throttled, Unsent
from proxy.core.letters import Call, Reply, terms_of
from proxy.core.model import MILLISECOND, SECOND, Micros, Pool
from tests.core.worlds import limit, pool

BOUND: Micros = 3 * SECOND


class Answers(Protocol):
    """A store in the hands of a history."""

    def exchange(self, now: Micros, run: str, call: Call) -> Reply:
        """Answer a letter."""

    def flush(self) -> None:
        """Lose everything."""

    def save(self) -> None:
        """Write everything down."""

    def rewind(self) -> None:
        """Be again as when everything was last written down, if it was: a failover that loses writes."""


@dataclass
class Writer:
    """A replica: its letters, its leases, and what waits in it."""

    letters: Correspondence
    out: list[tuple[Grant, Micros]] = field(default_factory=list)
    ended: tuple[Settlement, ...] = ()
    waiting: dict[Lane, int] = field(default_factory=dict)


class History:
    """One history, made step by step from a seed."""

    def __init__(self, seed: int, stores: list[Answers]) -> None:
        self.random = Random(seed)
        self.stores = stores
        self.now: Micros = 1_700_000_000 * SECOND + seed
        self.mono: Micros = 1_000 * SECOND
        self.run = "a" * 40
        self.pools = self._pools()
        self.terms = [terms_of(one, BOUND) for one in self.pools]
        self.writers: dict[str, Writer] = {}
        self.weights = [1, 2, 3, 1, 2]
        self.born = 0
        self.steps = 0
        self.grants = 0
        for _ in range(self.random.randint(1, 4)):
            self._join()

    def _pools(self) -> list[Pool]:
        size = self.random.choice([1, 2, 5, 20])
        limits = [
            limit(size, 10 * SECOND),
            limit(max(1, size // 2), 3 * SECOND, "GET /a"),
            limit(size * 2, 25 * SECOND),
        ]
        count = self.random.randint(1, 3)
        quotas = self.random.randint(1, 5)
        return [
            pool(quotas, *limits[:count]),
            pool(quotas + self.random.randint(-quotas + 1, 2), *limits[:count]),
            pool(quotas, limit(size + 1, 10 * SECOND), *limits[1:count]),
            pool(quotas, limit(size, 12 * SECOND), *limits[1:count]),
            self._shared(pool(quotas, *limits[:count])),
            self._shared(pool(quotas, limit(size + 1, 8 * SECOND), *limits[1:count])),
        ]

    def _shared(self, of: Pool) -> Pool:
        """The same keys, some of which share a quota."""
        keys = tuple(replace(key, quota=self.random.choice([key.quota, "shared", "k0"])) for key in of.keys)
        return replace(of, keys=keys)

    def _join(self) -> None:
        self.born += 1
        name = f"r{self.born}"
        self.writers[name] = Writer(Correspondence(name, self.terms[0]))

    def step(self) -> None:
        """One thing happens."""
        self.steps += 1
        self._pass(self.random.choice([0, 0, 1, 20, 200, 1000, 3000]) * MILLISECOND)
        if self.random.random() < 0.03:
            self._incident()
        name = self.random.choice(sorted(self.writers))
        writer = self.writers[name]
        if self.random.random() < 0.02:
            self._reload()
        self._live(writer)
        self._write(writer)

    def _pass(self, most: Micros) -> None:
        duration = self.random.randint(0, most)
        self.now += duration
        self.mono += duration

    def _incident(self) -> None:
        what = self.random.choice(
            [self._step_clock, self._restart, self._lose, self._die, self._reload, self._reload, self._long_pause]
        )
        what()

    def _step_clock(self) -> None:
        self.now += self.random.choice([-30, 30]) * SECOND

    def _restart(self) -> None:
        self.run = f"{self.random.getrandbits(160):040x}"

    def _lose(self) -> None:
        what = self.random.randrange(3)
        for store in self.stores:
            (store.flush, store.save, store.rewind)[what]()

    def _die(self) -> None:
        del self.writers[self.random.choice(sorted(self.writers))]
        self._join()

    def _reload(self) -> None:
        self.writers[self.random.choice(sorted(self.writers))].letters.terms = self.random.choice(self.terms)
        self.random.shuffle(self.weights)

    def _long_pause(self) -> None:
        self._pass(100 * SECOND)

    def _live(self, writer: Writer) -> None:
        limits = len(writer.letters.terms.limits)
        for _ in range(self.random.choice([0, 0, 1, 2, 8])):
            kind = Kind(self.random.choice([(0,), tuple(range(limits)), ()]), self._pin())
            lane = Lane(f"c{self.random.randrange(5)}", kind)
            writer.waiting[lane] = writer.waiting.get(lane, 0) + self.random.choice([1, 2, 5, 70])
        if writer.waiting and self.random.random() < 0.3:
            del writer.waiting[self.random.choice(sorted(writer.waiting, key=str))]
        kept = []
        for grant, since in writer.out:
            if self.random.random() < 0.6:
                writer.ended += (self._ending(grant, since, limits),)
            else:
                kept.append((grant, since))
        writer.out = kept

    def _pin(self) -> str | None:
        return self.random.choice([None] * 12 + ["k0", "k1", "shared", "nobody"])

    def _ending(self, grant: Grant, since: Micros, limits: int) -> Settlement:
        age = self.random.randint(0, self.mono - since) if self.random.random() < 0.9 else -BOUND
        what = self.random.random()
        if what < 0.15:
            return Unsent(grant.lease)
        own = tuple(index for index in grant.lane.kind.limits if index < limits)
        if what < 0.25:
            return Throttled(grant.lease, age, self.random.randint(0, 20) * SECOND, own)
        seen = tuple(
            Seen(index, self.random.randint(0, 5), self.random.randint(0, 9) * SECOND)
            for index in own
            if self.random.random() < 0.2
        )
        return Spent(grant.lease, age, seen)

    def _write(self, writer: Writer) -> None:
        letters = writer.letters
        for _ in range(6):
            sent = self.mono
            call = letters.call(sent, writer.ended, self._demands(writer))
            if self.random.random() < 0.03:
                return  # the letter is lost
            reply = self._ask(call)
            self._pass(20 * MILLISECOND)
            if self.random.random() < 0.05:
                return  # the answer is lost
            if not reply.asks and self.random.random() < 0.02:
                assert self._ask(call).asks == ("nothing",), "a letter that comes twice does nothing"
            exchange = letters.hear(sent, self.mono, call, reply)
            if exchange is None:
                continue
            writer.ended = ()
            self.grants += len(exchange.grants)
            for grant in exchange.grants:
                writer.out.append((grant, sent))
                writer.waiting[grant.lane] -= 1
            writer.waiting = {lane: number for lane, number in writer.waiting.items() if number}
            return
        raise AssertionError("a replica and its store do not come to terms")

    def _demands(self, writer: Writer) -> tuple[Demand, ...]:
        limits = len(writer.letters.terms.limits)
        return tuple(
            Demand(lane, self.weights[int(lane.client[1:])], number)
            for lane, number in writer.waiting.items()
            if all(index < limits for index in lane.kind.limits)
        )

    def _ask(self, call: Call) -> Reply:
        replies = [store.exchange(self.now, self.run, call) for store in self.stores]
        for other in replies[1:]:
            assert other == replies[0], f"step {self.steps}"
        return replies[0]
