"""The callers of the simulation and their habits."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from keyturn.core.http import Request
from keyturn.core.model import SECOND, Client, Micros

from tests.simulation.processes import Universe
from tests.simulation.replicas import Findings, Replica, Told

Pick = Callable[[int], Replica]
"""A replica that is there, by the number of the one that is wanted."""


@dataclass(frozen=True)
class Habit:
    """Requests in bursts with pauses between; how long they wait, and how often their callers disconnect."""

    burst: int
    pause: tuple[float, float]
    wait: Micros
    urgency: int = 3
    hangs_up: float = 0.0


STEADY = Habit(1, (0.0, 0.0), 3600 * SECOND)
"""Always one more."""

HABITS = (
    Habit(1, (2, 3), 30 * SECOND),
    Habit(10, (20, 40), 120 * SECOND, urgency=5),
    Habit(40, (60, 100), 300 * SECOND, urgency=7),
    Habit(2, (5, 15), 5 * SECOND, urgency=0, hangs_up=0.2),
    Habit(3, (10, 30), 30 * SECOND, hangs_up=0.05),
    Habit(1, (0.0, 0.0), 60 * SECOND),
)

METHODS, WEIGHTS = ("GET", "PUT", "POST"), (8, 1, 1)

TARGETS = ("/me", "/me", "/collections", "/workspaces")


class Caller:
    """One caller of a client: sends a burst, and the next one when all of it have ended."""

    def __init__(
        self,
        universe: Universe,
        random: Random,
        findings: Findings,
        name: str,
        client: Client,
        habit: Habit,
        *,
        home: int,
        pick: Pick,
        targets: tuple[str, ...],
        pinned: str | None = None,
    ) -> None:
        self.stopped = False
        self._universe = universe
        self._random = random
        self._findings = findings
        self._name = name
        self._client = client
        self._habit = habit
        self._home = home
        self._pick = pick
        self._targets = targets
        self._pinned = pinned
        self._open = 0
        self._sent = 0

    def burst(self) -> None:
        """Send one burst."""
        if self.stopped:
            return
        self._open = self._habit.burst
        for _ in range(self._habit.burst):
            self._call()

    def _call(self) -> None:
        random, habit = self._random, self._habit
        self._sent += 1
        self._findings.asked += 1
        name = f"{self._name}-{self._sent}"
        method = "GET" if habit is STEADY else random.choices(METHODS, WEIGHTS)[0]
        path = random.choice(self._targets)
        target = (method, path.encode(), path)
        request = Request(name, self._client, *target, (), None, habit.urgency, habit.wait, self._pinned)
        patience = random.uniform(0, 20) if random.random() < habit.hangs_up else None
        self._pick(self._home).call(request, self._teller(), patience=patience)

    def _teller(self) -> Told:
        """Return the callback of one request, a different one each time so that replicas can tell requests apart."""

        def told(outcome: str, retry_after: int) -> None:
            self._told(outcome, retry_after)

        return told

    def _told(self, outcome: str, retry_after: int) -> None:
        self._findings.outcomes[outcome] += 1
        self._open -= 1
        if self._open == 0:
            pause = max(self._random.uniform(*self._habit.pause), retry_after * self._random.uniform(1, 1.5))
            self._universe.after(int(pause * SECOND), self.burst)
