"""When to leave an upstream that is out of order alone, and when to try it again.

    closed ──`FAILURES` in a row, for `SUSTAINED`──▶ open ──its time has come──▶ trial ──an answer──▶ closed
                                                      ▲                            │
                                                      └──a failure, twice as long──┘

1.  While it is open nothing goes out; who comes is told when the next trial is.
2.  A trial is one request. Whoever comes while it is out waits a moment for its outcome, and is refused then; a trial
    of which nothing is heard for `PATIENCE` makes room for another.
3.  A failure counts where the upstream or the way to it is at fault. Any other answer, a refusal too, is proof of life:
    it ends the row, and closes what is open.
4.  The upstream's own words count: told when to come again, or in what time an outage is usually over, fewer failures
    open it; no trial is made before the one, and they are spread over the other. No word keeps it open for more than
    `LONGEST` at a time.

Instants are in microseconds of one clock that never goes back; chance is an argument.
"""

from typing import Literal

from proxy.core.model import SECOND, Micros

FAILURES = 8
FAILURES_TOLD = 3
"""In a row, when the upstream says itself that it is out of order."""

SUSTAINED: Micros = SECOND
"""How long a row lasts at least: requests that fail together, when a server restarts, are one failure."""

FIRST: Micros = SECOND
SLOWEST: Micros = 30 * SECOND
"""The time until the first trial, and between two of them at the most, when the upstream says nothing."""

LONGEST: Micros = 300 * SECOND
PATIENCE: Micros = 30 * SECOND

SPREAD = 0.2
"""By which part of itself an interval is lengthened by chance, so that replicas do not try all at once."""

Entry = Literal["through", "trial", "shut"]


class Breaker:
    """One for each pool."""

    def __init__(self) -> None:
        self._row = 0
        self._since: Micros = 0
        """When the first failure of the row came."""
        self._until: Micros | None = None
        """When the next trial may be made; `None` while it is closed."""
        self._failed_trials = 0
        self._trial: Micros | None = None
        """When the trial that is out began."""

    @property
    def closed(self) -> bool:
        """Whether everything goes through."""
        return self._until is None

    @property
    def trying(self) -> bool:
        """Whether a trial is out of which nothing has been heard."""
        return self._trial is not None

    def wait(self, now: Micros) -> Micros | None:
        """How long a request that comes now is refused; `None` when it may go on its way."""
        if self._until is None:
            return None
        if self._trial is not None and now < self._trial + PATIENCE:
            return max(self._until - now, SECOND)
        return self._until - now if now < self._until else None

    def enter(self, now: Micros) -> Entry:
        """A request is about to be sent: `trial` when it is the one on which all depends."""
        if self._until is None:
            return "through"
        if self.wait(now) is not None:
            return "shut"
        self._trial = now
        return "trial"

    def leave(self) -> None:
        """The trial ended without telling anything: its caller left, or it never went out."""
        self._trial = None

    def succeeded(self) -> bool:
        """The upstream answered; whether that is news."""
        news = self._until is not None
        self._row, self._until, self._failed_trials, self._trial = 0, None, 0, None
        return news

    def failed(
        self, now: Micros, chance: float, *, wait: Micros | None = None, over_within: Micros | None = None
    ) -> bool:
        """The upstream failed; whether that opens it. `wait`, `over_within`: what it said; `chance`: from 0 to 1."""
        if self._until is not None:
            self._failed_trials += self._trial is not None
            if self._trial is not None or wait is not None:
                self._until = max(self._until, now + self._interval(chance, wait, over_within))
            self._trial = None
            return False
        if not self._row:
            self._since = now
        self._row += 1
        told = wait is not None or over_within is not None
        if self._row < (FAILURES_TOLD if told else FAILURES) or now < self._since + SUSTAINED:
            return False
        self._until = now + self._interval(chance, wait, over_within)
        return True

    def _interval(self, chance: float, wait: Micros | None, over_within: Micros | None) -> Micros:
        """Until the next trial. Over the time that an outage usually takes, some ten trials are spread."""
        first, slowest = FIRST, SLOWEST
        if over_within is not None:
            first, slowest = max(FIRST, over_within // 20), max(SLOWEST, over_within // 5)
        interval = min(slowest, first << min(self._failed_trials, 20))
        return min(LONGEST, max(interval + int(interval * SPREAD * chance), wait or 0))
