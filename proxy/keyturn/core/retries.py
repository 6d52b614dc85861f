"""Which requests may be sent once more, how many, and after what pause: so that retries never become a storm."""

from collections import deque

from keyturn.core.model import MILLISECOND, SECOND, Micros

WINDOW: Micros = 10 * SECOND
FLOOR = 3
"""Retries that are allowed in a window however few requests there were, unless the ratio is 0."""

IDEMPOTENT = frozenset(("GET", "HEAD", "OPTIONS", "PUT", "DELETE"))
"""RFC 9110, section 9.2.2; without TRACE, which is not forwarded."""

PAUSE: tuple[Micros, Micros] = (50 * MILLISECOND, 200 * MILLISECOND)
"""Between the first try and the second: drawn between, so that a crowd does not return as one."""

LONGEST_PAUSE: Micros = 2 * SECOND

_ROUNDING = 1e-9


def pause(tries: int, chance: float) -> Micros:
    """Before the next of several tries: twice as long after each. `chance`: from 0 to 1."""
    least, most = PAUSE
    return min(LONGEST_PAUSE, (least + int((most - least) * chance)) << min(tries - 1, 20))


class RetryBudget:
    """At most `ratio` retries per request of a client over the last ten seconds, and at least `FLOOR`; with 0, none.

    Each client has its own, so that one whose requests fail takes no retry from another. Counted in ten slots of a
    second; the cost of a call depends neither on the traffic nor on the number of clients. Instants are in microseconds
    of one clock that never goes back.
    """

    def __init__(self, ratio: float) -> None:
        self.ratio = ratio
        self._clients: dict[str, _Recent] = {}
        """By the second of their last requests, the oldest first."""

    def request(self, client: str, now: Micros) -> None:
        """A request came."""
        recent = self._clients.get(client)
        if recent is not None and recent.slots and recent.slots[-1][0] == now // SECOND:  # it has its place already
            recent.slots[-1][1] += 1
            recent.requests += 1
            return
        recent = self._clients.pop(client, None) or _Recent()
        self._clients[client] = recent
        recent.slot(now)[1] += 1
        recent.requests += 1
        oldest = next(iter(self._clients))
        if self._clients[oldest].over(now):
            del self._clients[oldest]

    def retry(self, client: str, now: Micros) -> bool:
        """Whether one more try may be made now; if so it is counted."""
        recent = self._clients.setdefault(client, _Recent())
        slot = recent.slot(now)
        if recent.retries >= self._allowed(recent.requests):
            return False
        slot[2] += 1
        recent.retries += 1
        return True

    def _allowed(self, requests: int) -> int:
        """Whole retries in the window, by the requests that came in it."""
        return max(FLOOR, int(self.ratio * requests + _ROUNDING)) if self.ratio else 0


class _Recent:
    """The requests and retries of one client in the last ten seconds."""

    __slots__ = ("requests", "retries", "slots")

    def __init__(self) -> None:
        self.slots: deque[list[int]] = deque()
        self.requests = 0
        self.retries = 0

    def over(self, now: Micros) -> bool:
        """Whether nothing of it is in the window any more."""
        return not self.slots or self.slots[-1][0] <= now // SECOND - WINDOW // SECOND

    def slot(self, now: Micros) -> list[int]:
        """The counts of this second: its number, requests, retries. What has left the window is taken off the sums."""
        second = now // SECOND
        if self.slots and self.slots[-1][0] == second:
            return self.slots[-1]
        while self.slots and self.slots[0][0] <= second - WINDOW // SECOND:
            _, requests, retries = self.slots.popleft()
            self.requests -= requests
            self.retries -= retries
        self.slots.append([second, 0, 0])
        return self.slots[-1]
