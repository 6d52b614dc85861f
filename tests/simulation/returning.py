"""Law 6 from a caller's side: whoever is refused with `Retry-After: n` and comes back after n seconds is served.

That holds on a system that is otherwise unchanged: a caller that left has no place, so whoever waits meanwhile takes
what would have been its own. So it is tried when nobody new comes and all is mended, and judged where nobody waited.
Nor can anybody be told what nobody knows yet. A try is not judged where, between the telling and its end, an answer
showed that somebody else has spent tokens, or the proxy itself took one to ask after a key.
"""

from functools import partial
from random import Random
from typing import TYPE_CHECKING, NamedTuple

from proxy.core.http import Request
from proxy.core.model import MILLISECOND, SECOND, Client, Micros
from tests.simulation.replicas import Told

if TYPE_CHECKING:
    from tests.simulation.run import Run

IMPATIENT: Micros = 200 * MILLISECOND
"""How long these callers wait: enough for the letters of one exchange."""

PAUSE: Micros = SECOND
"""Between two bursts."""


class Refused(NamedTuple):
    """Who is to come back."""

    client: Client
    home: int
    outcome: str
    after: int
    """Seconds."""
    at: Micros
    """When it was told so; true time."""


class Returning:
    """Bursts of more requests than the pool has tokens; of each burst the first that is refused comes back."""

    def __init__(self, run: "Run", random: Random, *, bursts: int) -> None:
        self.judged = 0
        """How many came back although nobody else had waited."""
        self.over = False
        """Whether no time is left."""
        self._run = run
        self._random = random
        self._left = bursts
        self._sent = 0

    def begin(self) -> None:
        """Now."""
        if self._left == 0 or self.over:
            return
        self._left -= 1
        run = self._run
        refused = False
        client = run.clients[self._random.choice(sorted(run.clients))]
        home = self._random.randint(0, 7)
        alone = not any(replica.room.waiting for replica in run.replicas)

        def told(outcome: str, retry_after: int) -> None:
            nonlocal refused
            if outcome != "200" and retry_after and not refused:
                refused = True
                refusal = Refused(client, home, outcome, retry_after, run.universe.now)
                run.universe.after(retry_after * SECOND, lambda: self._come_back(refusal, judged=alone))

        for _ in range(run.pool.limits[0].requests * len(run.pool.quotas) + 1):
            self._call(client, home, told)

    def _come_back(self, refused: Refused, *, judged: bool) -> None:
        run = self._run
        if self.over:
            return

        def told(outcome: str, retry_after: int) -> None:
            if judged and not self.over and run.watch.disturbed < refused.at:
                self.judged += 1
                if outcome != "200" and run.trip != "heavy":
                    run.findings.breaches.append(
                        f"law 6: who was to come back after {refused.after} s ({refused.outcome}) was refused then "
                        f"({outcome}, to come back after {retry_after} s) at {run.universe.now}"
                    )
            run.universe.after(PAUSE, self.begin)

        self._call(refused.client, refused.home, told)

    def _call(self, client: Client, home: int, told: Told) -> None:
        self._sent += 1
        request = Request(f"last-{self._sent}", client, "GET", b"/me", "/me", (), None, 7, IMPATIENT)
        self._run.pick(home).call(request, partial(told))  # one of its own for each, so that replicas know them apart
