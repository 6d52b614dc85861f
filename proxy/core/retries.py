"""Which requests may be sent once more, how many, and after what pause: so that retries never become a storm."""

from collections import deque

from proxy.core.model import MILLISECOND, SECOND, Micros

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
    """At most `ratio` retries per request over the last ten seconds, and never fewer than `FLOOR`; with 0, none.

    Counted in ten slots of a second; the cost of a call does not depend on the traffic. Instants are in microseconds
    of one clock that never goes back.
    """

    def __init__(self, ratio: float) -> None:
        self.ratio = ratio
        self._slots: deque[list[int]] = deque()
        self._requests = 0
        self._retries = 0

    def request(self, now: Micros) -> None:
        """A request came."""
        self._slot(now)[1] += 1
        self._requests += 1

    def retry(self, now: Micros) -> bool:
        """Whether one more try may be made now; if so it is counted."""
        slot = self._slot(now)
        if self._retries >= self._allowed():
            return False
        slot[2] += 1
        self._retries += 1
        return True

    def _allowed(self) -> int:
        """Whole retries in the window, by the requests that came in it."""
        return max(FLOOR, int(self.ratio * self._requests + _ROUNDING)) if self.ratio else 0

    def _slot(self, now: Micros) -> list[int]:
        """The counts of this second: its number, requests, retries. What has left the window is taken off the sums."""
        second = now // SECOND
        if self._slots and self._slots[-1][0] == second:
            return self._slots[-1]
        while self._slots and self._slots[0][0] <= second - WINDOW // SECOND:
            _, requests, retries = self._slots.popleft()
            self._requests -= requests
            self._retries -= retries
        self._slots.append([second, 0, 0])
        return self._slots[-1]
