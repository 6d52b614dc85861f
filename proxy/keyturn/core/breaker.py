"""When to stop sending to an upstream that is out of order, and when to try it again.

    closed ──enough failures in a row, for `SUSTAINED`──▶ open ──its time has come──▶ trial ──an answer──▶ closed
                                                           ▲                            │
                                                           └──a failure, twice as long──┘

A breaker stands for a scope: one route of a client, a client, or the pool (`core.breakers`).

1.  A row is `FAILURES` long. What a failure belongs to (a client, a route) weighs at most half of it: one client, or
    one route, cannot stop what works for the others.
2.  While a breaker is open, requests of its scope are refused and told when the next trial is. A trial is one request;
    others that come while it is in flight wait a moment for its outcome. A trial of which nothing is heard for
    `PATIENCE` makes room for another.
3.  Trials take turns: after a failed one, the same client (in a client's breaker: the same route) is `GRACE` later than
    the others. One that has not failed yet waits neither for the time nor for the outcome of another's trial; `EARLY`
    such trials are made in an outage, one by each, and their failures do not prolong it.
4.  Any answer that is no failure, a refusal too, is proof of life: it ends the row, and closes what is open.
5.  The upstream's own words count: told when to come again, or in what time an outage is usually over, fewer failures
    open it; no trial is made before the one, and they are spread over the other. No word keeps a breaker open for more
    than `LONGEST` at a time.

Instants are in microseconds of one clock that never goes back; chance is an argument.
"""

from collections.abc import Collection, Hashable
from typing import Literal, NamedTuple

from keyturn.core.model import SECOND, Micros
from keyturn.core.signals import Route
from keyturn.core.values import value_object

FAILURES = 8
FAILURES_TOLD = 3
"""In a row, when the upstream says itself that it is out of order."""

ENOUGH = FAILURES * FAILURES_TOLD
"""The weight of a whole row: a failure weighs `FAILURES_TOLD`, one of the second kind `FAILURES`."""

HALF = ENOUGH // 2
"""The most that one client or one route weighs in a wider row."""

SUSTAINED: Micros = SECOND
"""How long a row lasts at least: requests that fail together, when a server restarts, are one failure."""

FIRST: Micros = SECOND
SLOWEST: Micros = 30 * SECOND
"""The time until the first trial, and between two of them at the most, when the upstream says nothing."""

LONGEST: Micros = 300 * SECOND
PATIENCE: Micros = 30 * SECOND

GRACE: Micros = 2 * SECOND
"""Callers are told whole seconds: so long do those who have not had a trial yet have precedence."""

EARLY = 8
"""Trials in one outage by those that had not failed before."""

SPREAD = 0.2
"""By which part of itself an interval is lengthened by chance, so that replicas do not try all at once."""

MAX_PARTS = 64
"""Clients (or routes) whose failures a breaker remembers, and whose trials."""


ScopeKind = Literal["pool", "client", "route"]


class Scope(NamedTuple):
    """What a breaker stands for: the pool, a client of it, or one route of a client."""

    client: str = ""
    route: Route | None = None

    @property
    def kind(self) -> ScopeKind:
        """Which of them."""
        return "pool" if not self.client else "client" if self.route is None else "route"


@value_object
class Failure:
    """A request that failed: why, in words; whose matter that may be; and what the upstream said of its outage."""

    cause: str
    blame: Literal["way", "route", "request"] = "route"
    wait: Micros | None = None
    over_within: Micros | None = None

    @property
    def weight(self) -> int:
        """What it adds to a row."""
        return FAILURES_TOLD if self.wait is None and self.over_within is None else FAILURES


class BreakerView(NamedTuple):
    """An open breaker: since when, why, and when it is tried again (instants of the one clock)."""

    scope: Scope
    since: Micros
    cause: str
    until: Micros


class Trial(NamedTuple):
    """A request on whose outcome a breaker waits."""

    breaker: "Breaker"
    since: Micros
    early: bool
    """Whether it was made before the time."""


class Breaker:
    """One scope's. A *part* is a client, and in a client's breaker a route: that which takes turns in trials."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self._weight = 0
        """Of the row."""
        self._shares: dict[Hashable, int] = {}
        """The part of it that each client and each route accounts for."""
        self._of_the_way = 0
        """The part of it that no request can have caused."""
        self._began: Micros = 0
        """When the first failure of the row came."""
        self._since: Micros = 0
        self._cause = ""
        self._until: Micros | None = None
        """When the next trial may be made; `None` while it is closed."""
        self._failed_trials = 0
        self._early_trials = 0
        self._trial: Trial | None = None
        """The last one, while it is in flight."""
        self._failing: set[Hashable] = set()
        self._tried: set[Hashable] = set()
        """Those that have had their turn in this round of trials."""

    @property
    def closed(self) -> bool:
        """Whether everything goes through."""
        return self._until is None

    @property
    def idle(self) -> bool:
        """Whether it is closed and nothing has failed since the last answer."""
        return self._until is None and not self._failing

    @property
    def trying(self) -> bool:
        """Whether a trial is in flight of which nothing has been heard."""
        return self._trial is not None

    def view(self) -> BreakerView | None:
        """How it stands, if it is open."""
        return None if self._until is None else BreakerView(self.scope, self._since, self._cause, self._until)

    def wait(self, now: Micros, part: Hashable = None) -> Micros | None:
        """How long a request that comes now is refused; `None` when it may go on its way."""
        if self._until is None or self._is_fresh(part):
            return None
        due = self._until + GRACE * (part in self._tried and len(self._failing) > 1)
        if self._trial is not None and now < self._trial.since + PATIENCE:
            return max(due - now, SECOND)
        return due - now if now < due else None

    def _is_fresh(self, part: Hashable) -> bool:
        """Whether this part may be tried at once, since the failures of others say little about it."""
        return part not in self._failing and self._early_trials < EARLY and self._of_the_way < HALF

    def enter(self, now: Micros, part: Hashable = None) -> Trial | None:
        """A request that need not wait is about to be sent; the trial that it is, if it is one."""
        if self._until is None:
            return None
        fresh = self._is_fresh(part)
        early = fresh and (now < self._until or self._trial is not None)
        if fresh:
            self._failing.add(part)
            self._early_trials += 1
        if part in self._tried or len(self._tried) >= MAX_PARTS:
            self._tried.clear()
        self._tried.add(part)
        self._trial = Trial(self, now, early)
        return self._trial

    def leave(self, trial: Trial) -> None:
        """A trial ended without telling anything: its caller left, or it was not sent."""
        if self._trial is trial:
            self._trial = None

    def succeeded(self) -> bool:
        """The upstream answered; whether that is news."""
        news = self._until is not None
        self._weight = self._of_the_way = self._failed_trials = self._early_trials = 0
        self._until = self._trial = None
        for memory in (self._shares, self._failing, self._tried):
            memory.clear()
        return news

    def hasten(self, now: Micros) -> None:
        """What it is a part of works again: the next trial may be made at once."""
        if self._until is not None:
            self._until, self._failed_trials = min(self._until, now), 0

    def failed(
        self, now: Micros, chance: float, failure: Failure, *whose: Hashable, trials: Collection[Trial | None]
    ) -> bool:
        """A request failed; whether that opens it.

        Args:
            now: when.
            chance: from 0 to 1.
            failure: how.
            whose: its part and what else must not weigh too much; nothing if it is not a matter of the request.
            trials: what it is the trial of.
        """
        if len(self._failing) < MAX_PARTS:
            self._failing.add(whose[0] if whose else None)
        if self._until is not None:
            self._fail_again(now, chance, failure, self._trial if self._trial in trials else None)
            return False
        if not self._weight:
            self._began = now
        if self._weight < ENOUGH:
            self._add(failure.weight, whose)
        if self._weight < ENOUGH or now < self._began + SUSTAINED:
            return False
        self._since, self._cause = now, failure.cause
        self._until = now + self._interval(chance, failure)
        return True

    def _add(self, weight: int, whose: tuple[Hashable, ...]) -> None:
        counts = min([weight, *[HALF - self._shares.get(each, 0) for each in whose]])
        self._weight += counts
        self._of_the_way += 0 if whose else counts
        for each in whose:
            self._shares[each] = self._shares.get(each, 0) + counts

    def _fail_again(self, now: Micros, chance: float, failure: Failure, trial: Trial | None) -> None:
        assert self._until is not None
        counts = trial is not None and not trial.early
        self._failed_trials += counts
        if counts or failure.wait is not None:
            self._until = max(self._until, now + self._interval(chance, failure))
        if trial is not None:
            self._trial, self._cause = None, failure.cause
            if failure.blame != "way":
                self._of_the_way = 0

    def _interval(self, chance: float, failure: Failure) -> Micros:
        """Until the next trial. Over the time that an outage usually takes, some ten trials are spread."""
        first, slowest = FIRST, SLOWEST
        if failure.over_within is not None:
            first, slowest = max(FIRST, failure.over_within // 20), max(SLOWEST, failure.over_within // 5)
        interval = min(slowest, first << min(self._failed_trials, 20))
        return min(LONGEST, max(interval + int(interval * SPREAD * chance), failure.wait or 0))
