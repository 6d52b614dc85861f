"""Random incidents in the life of a world."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from random import Random
from typing import TYPE_CHECKING

from keyturn.core.model import MILLISECOND, SECOND, Micros, Pool

from tests.core.worlds import BOUND
from tests.simulation.replicas import Replica
from tests.simulation.upstream import Trouble

if TYPE_CHECKING:
    from tests.simulation.run import Run


MOST = 8
"""Replicas."""


class Incidents:
    """The incidents of a row, one after another at random times."""

    def __init__(self, run: "Run", random: Random, *, until: Micros) -> None:
        self._run = run
        self._random = random
        self._until = until
        self._mended: list[Callable[[], object]] = []

    def begin(self) -> None:
        """Start the incidents."""
        if self._run.row.incidents:
            self._later()
        if self._run.row.foreign:
            for quota in self._run.pool.quotas:
                self._foreign(quota)

    def _later(self) -> None:
        pause = int(self._random.uniform(*self._run.row.every) * SECOND)
        if self._run.universe.now + pause < self._until:
            self._run.universe.after(pause, self._one)

    def _one(self) -> None:
        getattr(self, f"_{self._random.choice(self._run.row.incidents)}")()
        self._later()

    def end(self) -> None:
        """Repair everything."""
        server = self._run.server
        server.up = True
        server.network.loss = 0.0
        self._run.api.fails = 0.0
        self._run.api.trouble = "none"
        self._run.api.dead.clear()
        self._run.api.go_on()
        server.slew_clock(0)
        for replica in self._run.replicas:
            replica.process.thaw()
            replica.process.fuse = None

    def _millis(self, least: int, most: int) -> Micros:
        return self._random.randint(least, most) * MILLISECOND

    # Each: the upstream

    def _key_dies(self) -> None:
        """Let the upstream reject a key, and accept it again after a while."""
        api, secret = self._run.api, self._random.choice(sorted(self._run.api.owners))
        api.dead.add(secret)
        self._run.universe.after(self._millis(1_000, 60_000), lambda: api.dead.discard(secret))

    def _busy(self) -> None:
        self._trouble("busy")

    def _busy_told(self) -> None:
        self._trouble("busy, says until when")

    def _out_of_reach(self) -> None:
        self._trouble("out of reach")

    def _trouble(self, what: Trouble) -> None:
        """Let the upstream fail for a moment or for minutes."""
        api, universe = self._run.api, self._run.universe
        lasts = self._millis(100, self._random.choice((5_000, 30_000, 300_000)))
        api.trouble, api.over = what, universe.now + lasts

        def over() -> None:
            if universe.now >= api.over:
                api.trouble = "none"

        universe.after(lasts, over)

    def _stand_still(self) -> None:
        """Stop the upstream for longer than the tokens of all requests in flight take to return."""
        api = self._run.api
        if api.still:
            return
        longest = max(one.window for one in self._run.pool.limits)
        api.still = True
        self._run.universe.after(BOUND + longest + self._millis(2_000, 30_000), api.go_on)

    # Replicas and the store

    def _kill(self) -> None:
        run = self._run
        victim = self._random.choice(run.replicas)
        if victim.process.fuse is not None:
            return

        def gone() -> None:
            if victim in run.replicas:
                run.replicas.remove(victim)
                run.gone.append(victim)
            if run.replicas:
                run.universe.after(self._millis(0, 5000), run.join)
            else:
                run.join()

        victim.process.on_death.append(gone)
        victim.process.fuse = self._random.randint(0, 300)  # steps

    def _freeze(self) -> None:
        victim = self._random.choice(self._run.replicas).process
        victim.freeze()
        self._run.universe.after(self._millis(100, 20_000), victim.thaw)

    def _lose(self) -> None:
        server = self._run.server
        server.up = False

        def back() -> None:
            server.up = True

        self._run.universe.after(self._millis(100, 40_000), back)

    def _fail_over(self) -> None:
        server = self._run.server
        copy = server.copy()
        self._run.universe.after(self._millis(0, 3000), lambda: server.fail_over(copy))

    def _flush(self) -> None:
        self._run.server.flush()

    def _restart(self) -> None:
        self._run.server.restart(keeps=True)

    def _restart_empty(self) -> None:
        self._run.server.restart(keeps=False)

    def _step_clock(self) -> None:
        self._run.server.step_clock(self._random.choice((-1, 1)) * self._millis(100, 30_000))

    def _slew_clock(self) -> None:
        """Let the store's clock run fast for minutes."""
        server = self._run.server
        server.slew_clock(self._run.row.slew)
        self._run.universe.after(self._millis(60_000, 300_000), lambda: server.slew_clock(0))

    def _join(self) -> None:
        """Start one more replica."""
        if len(self._run.replicas) < MOST:
            self._run.join()

    def _leave(self) -> None:
        """Drain one replica."""
        run = self._run
        if len(run.replicas) > 1:
            victim = self._random.choice(run.replicas)
            run.replicas.remove(victim)
            run.gone.append(victim)
            victim.process.thaw()
            victim.process.start(victim.retire)

    def _reload(self) -> None:
        """Change keys and the limit; each replica adopts the change at its own time."""
        run, random = self._run, self._random
        own = [key for key in run.pool.keys if random.random() < 0.7] or [run.pool.keys[0]]
        first, *others = run.pool.limits
        size = random.randint(-(-first.requests // 2), first.requests)
        self._adopt(replace(run.pool_now, keys=tuple(own), limits=(replace(first, requests=size), *others)))

    def _move(self) -> None:
        """Let keys share a quota, or no longer, by the configuration; the upstream counts each apart."""
        run, random = self._run, self._random
        names = random.choice(([key.name for key in run.pool.keys], ["shared", *(key.name for key in run.pool.keys)]))
        keys = [replace(key, quota=random.choice((key.name, random.choice(names)))) for key in run.pool.keys]
        self._adopt(replace(run.pool_now, keys=tuple(keys)))

    def _adopt(self, pool: Pool) -> None:
        run = self._run
        run.pool_now = pool
        for replica in run.replicas:
            run.universe.after(self._millis(0, 3000), partial(self._tell, replica))

    def _tell(self, replica: Replica) -> None:
        replica.adopt(self._run.pool_now, self._run.clients)

    def _foreign(self, quota: str) -> None:
        run = self._run
        pause = int(self._random.expovariate(run.row.foreign / 60) * SECOND)
        if run.universe.now + pause < self._until:
            run.universe.after(pause, lambda: self._spend(quota))

    def _spend(self, quota: str) -> None:
        self._run.api.spend_elsewhere(quota)
        self._foreign(quota)
