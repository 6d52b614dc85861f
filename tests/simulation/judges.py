"""Check law 1 against the upstream's records, how much was used, and whether refusals were needed."""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from keyturn.core.exchange import DemandClass
from keyturn.core.model import SECOND, Micros


def most_in(counted: Sequence[Micros], window: Micros) -> int:
    """Return the most requests that were counted in any half-open interval of that length."""
    instants = sorted(counted)
    return max((bisect_left(instants, start + window) - i for i, start in enumerate(instants)), default=0)


def worst_in(trips: Sequence[tuple[Micros, Micros]], window: Micros) -> int:
    """Return the most that could have been counted in one interval, by the worst upstream.

    An interval from s on can hold each request whose trip ends at s or later and begins before s + window.
    """
    begins, ends = sorted(begin for begin, _ in trips), sorted(end for _, end in trips)
    return max((bisect_left(begins, start + window) - bisect_left(ends, start) for start in ends), default=0)


def used(counted: Sequence[Micros], size: int, window: Micros, start: Micros, end: Micros) -> float | None:
    """Return the used share of permitted requests between `start` and `end`, in whole rounds of all tokens.

    From a request to the one that is a number of rounds of `size` later, rounds * size were permitted in each window;
    the mean over all requests of the first round. Whole windows of the clock would miss the rest of the last one.
    """
    instants = sorted(counted)
    instants = instants[bisect_left(instants, start) : bisect_right(instants, end)]
    rounds = len(instants) // size - 1
    if rounds < 1:
        return None
    took = sum(instants[first + rounds * size] - instants[first] for first in range(size)) / size
    return rounds * window / took


FORESEEN = 30 * SECOND
"""How far ahead estimates are checked, since other waiting requests may be withdrawn at any time."""


class Turn(NamedTuple):
    """One request in the scheduler: how it ended, in true time."""

    who: tuple[object, ...]
    """Identity of a queue: replica, client, urgency, key and limits."""
    came: Micros
    ended: Micros
    """Instant at which it was served or refused."""
    deadline: Micros


def wronged(refused: Iterable[Turn], served: Iterable[Turn], slack: Micros) -> list[Turn]:
    """Return refused requests although a later one of the same queue was served well before its deadline."""
    alike = defaultdict(list)
    for turn in served:
        alike[turn.who].append(turn)
    found = []
    for turn in refused:
        if turn.deadline - turn.came > FORESEEN:
            continue
        later = [other.ended for other in alike[turn.who] if other.came > turn.ended]
        if later and min(later) + slack <= turn.deadline:
            found.append(turn)
    return found


class Estimate(NamedTuple):
    """The estimated and the real time of service of one request, in true time."""

    who: DemandClass
    client: str
    weight: int
    at: Micros
    wait: Micros
    served: Micros
    judged: bool
    """Whether no unforeseeable event happened in between."""

    @property
    def error(self) -> Micros:
        """Return how much later than estimated it was served."""
        return self.served - self.at - self.wait


def beyond_neighbours(estimates: Iterable[Estimate], replicas: int) -> list[Micros]:
    """Measure the error of each estimate beyond what the rotation of replicas explains.

    A replica does not know where the rotation stands: its request is served up to `replicas` - 1 requests of its client
    earlier or later, and where tokens return in bursts that may be a window.
    """
    alike = defaultdict(list)
    for estimate in estimates:
        alike[estimate.who].append(estimate)
    found = []
    for group in alike.values():
        group.sort(key=lambda estimate: estimate.served)
        weights = sum({estimate.client: estimate.weight for estimate in group}.values())
        for index, one in enumerate(group):
            places = 2 + (replicas - 1) * weights // one.weight
            first, last = group[max(0, index - places)], group[min(len(group) - 1, index + places)]
            told = one.at + one.wait
            found.append(max(0, first.served - told) - max(0, told - last.served))
    return found


def mean_and_most(errors: Iterable[Micros]) -> tuple[Micros, Micros] | None:
    """Return the mean and the 95th percentile of errors; `None` of none."""
    sizes = sorted(abs(error) for error in errors)
    return (sum(sizes) // len(sizes), sizes[(len(sizes) - 1) * 95 // 100]) if sizes else None
