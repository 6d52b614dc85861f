"""What the gateway knows of one pool, and what a try can come to."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from keyturn.core.breaker import Scope
from keyturn.core.breakers import Breakers
from keyturn.core.events import Observer
from keyturn.core.http import Answer
from keyturn.core.lessons import Lessons
from keyturn.core.model import Micros
from keyturn.core.narrows import Narrows
from keyturn.core.retries import RetryBudget
from keyturn.core.throttles import Throttles
from keyturn.core.values import value_object
from keyturn.scheduler import Scheduler


@dataclass(frozen=True, slots=True)
class Retries:
    """How often a request may be tried, first try counted, and the retries per request over the last ten seconds."""

    attempts: int = 3
    budget: float = 0.2


@dataclass(slots=True)
class Means:
    """What every room works with: clocks (monotonic and epoch), chance from 0 to 1, retries, an observer."""

    clock: Callable[[], Micros]
    wall: Callable[[], Micros]
    chance: Callable[[], float]
    retries: Retries
    budget: RetryBudget
    observer: Observer


@dataclass(slots=True)
class Desk:
    """One pool: its waiting room, and what its answers have told."""

    scheduler: Scheduler
    breakers: Breakers = field(default_factory=Breakers)
    outcomes: dict[Scope, asyncio.Event] = field(default_factory=dict)
    """Of each trial that is in flight: set when it has ended, whatever it told."""
    narrows: Narrows = field(default_factory=Narrows)
    lessons: Lessons = field(default_factory=Lessons)
    throttles: Throttles = field(default_factory=Throttles)
    reopening: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the trial of a pool that 429s have closed has ended, whatever it told; then another takes its place."""

    @property
    def name(self) -> str:
        """The pool's."""
        return self.scheduler.pool.name


@value_object
class Relay:
    """The answer is the caller's; `retry_after` in whole seconds replaces the upstream's waits."""

    answer: Answer
    retry_after: int | None = None
    turn: bool = False
    """Whether a try would succeed as soon as its turn comes, on this quota or on another: then that is to be told."""


@value_object
class Again:
    """The request goes out once more, under another lease, after a pause."""

    why: Literal["throttled", "unreachable", "broken", "timed_out", "outage", "dead_key", "late"]
    pause: Micros = 0
    held: Answer | None = None
    """What its caller gets should no turn come in time."""


Outcome = Relay | Again
