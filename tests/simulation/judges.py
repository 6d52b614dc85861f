"""Law 1 as the upstream's books show it, and how much of what it permits was used."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from proxy.core.model import Micros


def most_in(counted: Sequence[Micros], window: Micros) -> int:
    """The most requests that were counted in any half-open interval of that length."""
    instants = sorted(counted)
    return max((bisect_left(instants, start + window) - i for i, start in enumerate(instants)), default=0)


def worst_in(trips: Sequence[tuple[Micros, Micros]], window: Micros) -> int:
    """The most that could have been counted in one, by an upstream that counts each when it does most harm.

    An interval from s on can hold each request whose trip ends at s or later and begins before s + window.
    """
    begins, ends = sorted(begin for begin, _ in trips), sorted(end for _, end in trips)
    return max((bisect_left(begins, start + window) - bisect_left(ends, start) for start in ends), default=0)


def used(counted: Sequence[Micros], size: int, window: Micros, start: Micros, end: Micros) -> float | None:
    """The share of the permitted requests that were made between `start` and `end`, in whole rounds of all tokens.

    From a request to the one that is a number of rounds of `size` later, rounds * size were permitted in each window;
    the mean over all requests of the first round. Whole windows of the clock would not see the rest of the last one.
    """
    instants = sorted(counted)
    instants = instants[bisect_left(instants, start) : bisect_right(instants, end)]
    rounds = len(instants) // size - 1
    if rounds < 1:
        return None
    took = sum(instants[first + rounds * size] - instants[first] for first in range(size)) / size
    return rounds * window / took
