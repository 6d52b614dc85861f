"""What befalls a world while it lives."""

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING

from proxy.core.model import MILLISECOND, SECOND, Micros

if TYPE_CHECKING:
    from tests.simulation.run import Run


class Incidents:
    """The incidents of a row, one after another at random times."""

    def __init__(self, run: "Run", random: Random, *, until: Micros) -> None:
        self._run = run
        self._random = random
        self._until = until
        self._mended: list[Callable[[], object]] = []

    def begin(self) -> None:
        """From now on."""
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
        """Mend everything."""
        server = self._run.server
        server.up = True
        server.network.loss = 0.0
        self._run.api.fails = 0.0
        for replica in self._run.replicas:
            replica.process.thaw()
            replica.process.fuse = None

    def _millis(self, least: int, most: int) -> Micros:
        return self._random.randint(least, most) * MILLISECOND

    # Each

    def _kill(self) -> None:
        run = self._run
        victim = self._random.choice(run.replicas)
        if victim.process.fuse is not None:
            return

        def gone() -> None:
            run.replicas.remove(victim)
            run.dead.append(victim)
            if run.replicas:
                run.universe.after(self._millis(0, 5000), run.join)
            else:
                run.join()

        victim.process.on_death.append(gone)
        victim.process.fuse = self._random.randint(0, 300)

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

    def _foreign(self, quota: str) -> None:
        run = self._run
        pause = int(self._random.expovariate(run.row.foreign / 60) * SECOND)
        if run.universe.now + pause < self._until:
            run.universe.after(pause, lambda: self._spend(quota))

    def _spend(self, quota: str) -> None:
        self._run.api.spend_elsewhere(quota)
        self._foreign(quota)
