"""The retry budget: which requests may be sent once more, how many, and after what pause."""

from collections import deque

from keyturn.core.model import MILLISECOND, SECOND, Micros

BUDGET_WINDOW: Micros = 10 * SECOND
MIN_RETRIES = 3
"""Retries permitted in a window however few requests came, unless the ratio is 0."""

IDEMPOTENT_METHODS = frozenset(("GET", "HEAD", "OPTIONS", "PUT", "DELETE"))
"""RFC 9110, section 9.2.2; without TRACE, which is not forwarded."""

RETRY_PAUSE: tuple[Micros, Micros] = (50 * MILLISECOND, 200 * MILLISECOND)
"""Range of the pause before the first retry; it is drawn at random, so that many clients do not retry at once."""

MAX_RETRY_PAUSE: Micros = 2 * SECOND

_ROUNDING = 1e-9


def retry_pause(tries: int, chance: float) -> Micros:
    """Return the pause before the next try: twice as long after each. `chance`, from 0 to 1, draws from the range."""
    least, most = RETRY_PAUSE
    return min(MAX_RETRY_PAUSE, (least + int((most - least) * chance)) << min(tries - 1, 20))


class RetryBudget:
    """At most `ratio` retries per request of a client over ten seconds, and at least `MIN_RETRIES`; with 0, none.

    Each client has its own, so that one whose requests fail takes no retry from another. Counted in ten slots of a
    second; the cost of a call depends neither on the traffic nor on the number of clients. Instants are in microseconds
    of one clock that never goes back.
    """

    def __init__(self, ratio: float) -> None:
        self.ratio = ratio
        self._clients: dict[str, _ClientCounts] = {}
        """Counts of each client, in the order of its last request, the oldest first."""

    def request(self, client: str, now: Micros) -> None:
        """Count a request."""
        recent = self._clients.get(client)
        if recent is not None and recent.slots and recent.slots[-1][0] == now // SECOND:  # it has its place already
            recent.slots[-1][1] += 1
            recent.requests += 1
            return
        recent = self._clients.pop(client, None) or _ClientCounts()
        self._clients[client] = recent
        recent.slot(now)[1] += 1
        recent.requests += 1
        oldest = next(iter(self._clients))
        if self._clients[oldest].over(now):
            del self._clients[oldest]

    def retry(self, client: str, now: Micros) -> bool:
        """Return whether one more try may be made now; if so it is counted."""
        recent = self._clients.setdefault(client, _ClientCounts())
        slot = recent.slot(now)
        if recent.retries >= self._allowed(recent.requests):
            return False
        slot[2] += 1
        recent.retries += 1
        return True

    def _allowed(self, requests: int) -> int:
        """Retries permitted in the window, by the requests that came in it."""
        return max(MIN_RETRIES, int(self.ratio * requests + _ROUNDING)) if self.ratio else 0


class _ClientCounts:
    """The requests and retries of one client in the last ten seconds."""

    __slots__ = ("requests", "retries", "slots")

    def __init__(self) -> None:
        self.slots: deque[list[int]] = deque()
        self.requests = 0
        self.retries = 0

    def over(self, now: Micros) -> bool:
        """Whether all counts have left the window."""
        return not self.slots or self.slots[-1][0] <= now // SECOND - BUDGET_WINDOW // SECOND

    def slot(self, now: Micros) -> list[int]:
        """Return the counts of this second (its number, requests, retries); those that left the window are removed."""
        second = now // SECOND
        if self.slots and self.slots[-1][0] == second:
            return self.slots[-1]
        while self.slots and self.slots[0][0] <= second - BUDGET_WINDOW // SECOND:
            _, requests, retries = self.slots.popleft()
            self.requests -= requests
            self.retries -= retries
        self.slots.append([second, 0, 0])
        return self.slots[-1]
