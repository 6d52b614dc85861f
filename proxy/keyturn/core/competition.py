"""The order in which requests of many clients are served under one limit: how many come before a given one.

In start-time fair queueing request `p` of a client starts at `tag + p * cost` in virtual time, and the lowest start is
served first; of equal starts the one of the lower client name. Counting is exact, and takes a few bisections for each
cost that many clients have, whatever the number of these clients and of their requests.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from itertools import accumulate
from operator import or_
from typing import NamedTuple

from keyturn.core.flows import UNIT
from keyturn.core.messages import WaitingFlow

MIN_SERIES_CLIENTS = 32
"""Clients of one cost, from which on a series is faster than counting each of them."""


class _Series:
    """Starts of clients with one cost: any number of them is counted with three bisections.

    An endless run has `ceil((moment - start) / cost)` starts before a moment; one that ends is the difference of two.
    The quotients are added up in advance, and bit masks tell of which runs the remainder counts for one more.
    """

    __slots__ = ("_begins", "_cost", "_ends", "_remainders")

    def __init__(self, cost: int, runs: list[tuple[int, int]]) -> None:
        self._cost = cost
        self._remainders = sorted([start % cost for start, _ in runs])
        self._begins = self._sums(sorted([start for start, _ in runs]))
        self._ends = self._sums(sorted([start + count * cost for start, count in runs]))

    def _sums(self, points: list[int]) -> tuple[list[int], list[int], list[int]]:
        bits = [1 << bisect_left(self._remainders, point % self._cost) for point in points]
        quotients = [point // self._cost for point in points]
        return points, list(accumulate(quotients, initial=0)), list(accumulate(bits, or_, initial=0))

    def before(self, moment: int) -> int:
        """How many start before a moment."""
        quotient, remainder = divmod(moment, self._cost)
        below = (1 << bisect_left(self._remainders, remainder)) - 1
        total = 0
        for sign, (points, quotients, masks) in ((1, self._begins), (-1, self._ends)):
            if index := bisect_left(points, moment):
                total += sign * (index * quotient - quotients[index] + (masks[index] & below).bit_count())
        return total


class Competition:
    """All requests that compete for one limit's tokens, in the order of their starts.

    Virtual time is multiplied so that a client's place among the names can be added to it: no two starts are equal.
    """

    def __init__(self, flows: Iterable[WaitingFlow]) -> None:
        self.clients: dict[str, list[WaitingFlow]] = {}
        for flow in flows:
            self.clients.setdefault(flow.client, []).append(flow)
        self._names = sorted(self.clients)
        self._places = {name: place for place, name in enumerate(self._names)}
        self._scale = len(self._names) + 1
        costs: dict[int, list[tuple[int, int]]] = {}
        for name, (head, *rest) in self.clients.items():
            run = self._moment(head.tag, name), head.waiting + sum([flow.waiting for flow in rest])
            costs.setdefault(head.cost * self._scale, []).append(run)
        self._series = [_Series(cost, runs) for cost, runs in costs.items() if len(runs) >= MIN_SERIES_CLIENTS]
        few = [
            (start, cost, count)
            for cost, runs in costs.items()
            if len(runs) < MIN_SERIES_CLIENTS
            for start, count in runs
        ]
        self._begins = sorted([(start - cost + 1, cost) for start, cost, _ in few], key=sum)
        self._begun = [sum(begin) for begin in self._begins]
        self._ends = sorted([(start + (count - 1) * cost + 1, cost) for start, cost, count in few], key=sum)
        self._ended = [sum(end) for end in self._ends]

    def _moment(self, start: int, client: str) -> int:
        place = self._places.get(client)
        return start * self._scale + (bisect_left(self._names, client) if place is None else place)

    def before(self, start: int, client: str) -> int:
        """How many requests are served before one of a client that starts then."""
        moment = self._moment(start, client)
        begun = self._begins[: bisect_right(self._begun, moment)]
        ended = self._ends[: bisect_right(self._ended, moment)]
        total = sum([(moment - begin) // cost for begin, cost in begun])
        total -= sum([(moment - end) // cost for end, cost in ended])
        for series in self._series:
            total += series.before(moment)
        return total


class Others(NamedTuple):
    """Requests of flows that a snapshot does not list, taken to start from `tag` on at the pace of their weights."""

    waiting: int
    weight: int
    tag: int

    def before(self, start: int) -> int:
        """How many of them start before."""
        return max(0, min(self.waiting, -((self.tag - start) * self.weight // UNIT)))
