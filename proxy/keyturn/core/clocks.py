"""The store's clock as one replica sees it: its drift and its steps, measured against the replica's own clock.

Laws kept here: 1 and 7. Tokens return by the store's clock. Where that runs fast, windows are too short; so replicas
measure by how much it ran ahead, and the store takes off what all of them agree on. A clock that was set forward cannot
be corrected in time: the response that shows it is not believed, and the store begins a new epoch (law 8).

No measurement overstates. Between two responses, the store's clock may have advanced by no more than the time from
sending the earlier request to receiving the later response. So a slow network hides some drift, and never feigns any.

Instants of the store mean nothing but for their distances; all others are of the replica's monotonic clock.
"""

from keyturn.core.model import MILLISECOND, SECOND, Micros

BASELINE: tuple[Micros, Micros] = (10 * SECOND, 60 * SECOND)
"""Bounds of how far back drift is measured, however short or long the windows are."""

MIN_CLOCK_STEP: Micros = 20 * MILLISECOND
"""A clock that ran ahead by more than this, and a tenth of the time between two responses, was set forward."""

MAX_SLEW = 10
"""One part in so many by which a clock may run fast without having been set forward."""


class StoreClock:
    """Knowledge of the store's clock in one epoch.

    Drift is measured from the two lowest offsets (store's clock less own clock) of the last two halves of the baseline.
    An offset is lowest where the network was fast, or where the store has just corrected its clock.
    """

    def __init__(self) -> None:
        self.window: Micros = 0
        """The longest window of the pool; drift is measured over about as much."""
        self._heard: tuple[Micros, Micros] | None = None
        """When the last request that was answered was sent, and the store's instant in its response."""
        self._lowest: Micros | None = None
        self._lowest_before: Micros | None = None
        self._since: Micros = 0
        """When the present half of the baseline began."""

    def restart(self) -> None:
        """Begin with no references: in a new epoch the clock may be another one, or was corrected."""
        self._heard = self._lowest = self._lowest_before = None

    def stepped(self, now: Micros, instant: Micros) -> Micros:
        """The step forward since the last response, or 0, as a response received `now` shows."""
        if self._heard is None:
            return 0
        sent, before = self._heard
        ahead = instant - before - (now - sent)
        return ahead if ahead > MIN_CLOCK_STEP + (now - sent) // MAX_SLEW else 0

    def ahead(self, now: Micros, instant: Micros) -> Micros:
        """The time by which the clock ran ahead over about a window, as a response received `now` shows; at least 0."""
        references = [offset for offset in (self._lowest, self._lowest_before) if offset is not None]
        return max(0, instant - _longest(now) - min(references)) if references else 0

    def believe(self, sent: Micros, now: Micros, instant: Micros) -> None:
        """Take a response, received `now`, for a reference; its request was sent at `sent`."""
        shortest, longest = BASELINE
        offset = instant - _longest(sent)
        if self._lowest is None or now - self._since >= max(shortest, min(self.window, longest) // 2):
            self._lowest, self._lowest_before, self._since = offset, self._lowest, now
        else:
            self._lowest = min(self._lowest, offset)
        self._heard = sent, instant

    def store_time(self, now: Micros) -> Micros:
        """The store's clock at an own instant, overstated by a round trip at most; it was heard at least once."""
        sent, instant = self._heard or (0, 0)
        return instant + now - sent


def _longest(own: Micros) -> Micros:
    """An instant by a clock that runs 0.05 % faster: windows are stretched by as much (`Pool.stretched`)."""
    return own + own // 2000
