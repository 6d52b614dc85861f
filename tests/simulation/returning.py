"""Law 6 from a caller's side: a caller that was told a time is served then.

That holds on an otherwise unchanged system: a caller that left has no place, so waiting requests take its tokens. So it
is checked when no new requests come and all is repaired. Nor can an estimate contain unknown facts: a try is not
checked if an answer showed meanwhile that others had spent tokens, or the proxy took one for a key health check.

1. A burst has more requests than the pool has tokens; all that are refused come back when they are told to.
2. Of a burst that waits, each request is served when estimated, once all replicas knew of all of it.
"""

from functools import partial
from random import Random
from typing import TYPE_CHECKING, NamedTuple

from keyturn.core.http import Request
from keyturn.core.model import MILLISECOND, SECOND, Client, Micros

from tests.simulation.replicas import Told

if TYPE_CHECKING:
    from tests.simulation.run import Run

IMPATIENT: Micros = 200 * MILLISECOND
"""Wait of these callers: enough for the messages of one exchange."""

PAUSE: Micros = SECOND
"""Between two bursts."""

CROWD = 20
"""Requests of a burst beyond the tokens of the pool."""

MOST_WAITING = 200
"""Requests of the burst that waits, beyond the tokens of the pool."""

SETTLED: Micros = 5 * SECOND
"""After a burst all replicas know of all of it, and what they estimate is no older than two seconds."""

PATIENT: Micros = 3600 * SECOND
"""Wait of the last burst."""


class Refused(NamedTuple):
    """A refused request that is to come back."""

    client: Client
    home: int
    outcome: str
    after: int
    """Seconds."""
    at: Micros
    """True time at which it was refused."""
    first: bool
    """Whether it is the first of its burst."""


class Returning:
    """Bursts of more requests than the pool has tokens, whose refused ones come back, then one that waits."""

    def __init__(self, run: "Run", random: Random, *, bursts: int) -> None:
        self.judged = 0
        """How many came back and are checked."""
        self.served = 0
        """How many of them were served."""
        self.late: list[Micros] = []
        """How much later than told they were served."""
        self.over = False
        """Whether no time is left."""
        self._run = run
        self._random = random
        self._left = bursts
        self._sent = 0
        self._open = 0
        """Requests of a burst of which nothing is known yet, and those that are to come back."""

    @property
    def tokens(self) -> int:
        """Return the tokens of the pool."""
        return self._run.pool.limits[0].requests * len(self._run.pool.quotas)

    def begin(self) -> None:
        """Start the bursts."""
        if self.over:
            return
        if self._left == 0:
            self._wait()
            return
        self._left -= 1
        run = self._run
        client = run.clients[self._random.choice(sorted(run.clients))]
        home = self._random.randint(0, 7)
        alone = not any(replica.room.waiting for replica in run.replicas)
        self._open = self.tokens + min(self.tokens, CROWD)
        first = True

        def told(outcome: str, retry_after: int) -> None:
            nonlocal first
            if outcome == "200" or not retry_after:
                self._ended()
                return
            refusal = Refused(client, home, outcome, retry_after, run.universe.now, first)
            first = False
            run.universe.after(retry_after * SECOND, lambda: self._come_back(refusal, judged=alone))

        for _ in range(self._open):
            self._call(client, home, told, IMPATIENT)

    def _ended(self) -> None:
        self._open -= 1
        if self._open == 0:
            self._run.universe.after(PAUSE, self.begin)

    def _come_back(self, refused: Refused, *, judged: bool) -> None:
        run = self._run
        came = run.universe.now
        if self.over:
            return

        def told(outcome: str, retry_after: int) -> None:
            if judged and not self.over and run.watch.disturbed < refused.at and run.trip != "heavy":
                self.judged += 1
                self.served += outcome == "200"
                if outcome == "200":
                    self.late.append(run.universe.now - came)
                elif refused.first:
                    run.findings.breaches.append(
                        f"law 6: who was to come back after {refused.after} s ({refused.outcome}) was refused then "
                        f"({outcome}, to come back after {retry_after} s) at {run.universe.now}"
                    )
            self._ended()

        self._call(refused.client, refused.home, told, IMPATIENT)

    def _wait(self) -> None:
        """Send a burst of a few clients on all replicas, without disconnects."""
        run = self._run
        names = self._random.sample(sorted(run.clients), min(3, len(run.clients)))
        for number in range(self.tokens + min(self.tokens, MOST_WAITING)):
            self._call(run.clients[names[number % len(names)]], number // len(names), _heard, PATIENT)
        run.universe.after(SETTLED, self._estimate)

    def _estimate(self) -> None:
        for replica in self._run.replicas:
            replica.room.estimate_all()

    def _call(self, client: Client, home: int, told: Told, wait: Micros) -> None:
        self._sent += 1
        request = Request(f"last-{self._sent}", client, "GET", b"/me", "/me", (), None, 7, wait)
        self._run.pick(home).call(request, partial(told))  # one of its own for each, so that replicas know them apart


def _heard(outcome: str, retry_after: int) -> None:
    """Return whether no request waits any more."""
