"""The turns that one exchange tells: those that `core.forecast` dealt one by one, and samples of those beyond.

Beyond the horizon each client's requests start at their tag and so many costs later, and the lower start is served
first. So what stands before a request is counted, not dealt: of each client that waits under a limit, the starts before
its own, at most as many as that client has left (`Crowd`). With these before it, a request's turn is read off the
calendar by rank (`Calendar.nth_return`): at some positions of a lane, most where turns lie far apart, since tokens that
were spent together return together.

With one limit and no more than `RIVALS` clients in no more than `CROWDED` rows that is what dealing on would come to.
Of further clients it is taken that each has a start as soon as any of them, so turns are never told too early. Of a
lane with several limits the latest turn is told, as if any token of a limit could serve whatever falls under it.
"""

from bisect import bisect_left
from collections.abc import Callable
from functools import partial
from itertools import accumulate, islice
from typing import NamedTuple

from proxy.core.buckets import Buckets
from proxy.core.exchange import Turns
from proxy.core.forecast import Forecast
from proxy.core.letters import Need, Place
from proxy.core.line import UNIT, Line
from proxy.core.model import MILLISECOND, Micros

SAMPLES = 256
"""Positions beyond the horizon that are told in one exchange, at the most, but for `FEWEST` of each lane."""

FEWEST, FINEST = 16, 64
"""Of one lane, at the most: in many lanes, in few."""

CLOSE: Micros = 200 * MILLISECOND
"""Between two samples that lie no further apart nothing more needs to be told."""

RIVALS, CROWDED = 64, 256
"""Clients under a limit that are looked at one by one, and the rows that they have together, at the most."""

ALIKE = 32
"""Rows with one need, at the most, of a client whose rows are looked at one by one."""

NAMES = 4 * RIVALS
"""Parts of virtual time in which equal starts are told apart."""

STEP = 1000
"""Virtual time in which starts of many clients are counted together: with their weights it stays exact in Lua."""


class Rival(NamedTuple):
    """What a client has left under a limit."""

    ends: int
    """Where its last request starts."""
    tag: int
    cost: int
    left: int
    client: str


class Window(NamedTuple):
    """Clients of one cost that first start within one cost of each other: each starts once in each that follows."""

    origin: int
    cost: int
    ways: list[int]
    """How far behind the origin each starts."""


class Mass:
    """Clients under a limit that are not looked at one by one."""

    def __init__(self) -> None:
        self.clients = 0
        self.weight = 0
        self.left = 0
        self.least: int | None = None
        """No request of theirs starts before."""

    def add(self, clients: int, weight: int, least: int) -> None:
        """So many clients more."""
        if clients:
            self.clients += clients
            self.weight += weight
            self.least = least if self.least is None else min(self.least, least)

    def before(self, start: int) -> int:
        """Requests that start before, at the most."""
        if self.least is None or start < self.least:
            return 0
        steps = (start - self.least) // STEP + 1
        return min(self.left, self.clients + self.weight * steps // (UNIT // STEP - 1))


class Crowd:
    """Who waits under one limit, beyond what was dealt.

    Of equal starts the one of the lower name is first: so virtual time is counted from the first tag in parts of
    `NAMES`, and the place of its name among the others' is added to each start.
    """

    def __init__(self, rivals: list[Rival], mass: Mass) -> None:
        rivals.sort()
        self._mass = mass
        self._base = min([rival.tag for rival in rivals], default=0)
        self._names = sorted([rival.client for rival in rivals])
        self._ends = [rival.ends for rival in rivals]
        self._gone = list(accumulate([rival.left for rival in rivals], initial=0))
        """What so many of them, who end first, have left together."""
        self._order = sorted(
            [(rival.cost * NAMES, self._moment(rival.tag, rival.client), index) for index, rival in enumerate(rivals)]
        )
        self._windows: dict[int, list[Window]] = {}
        """Of the others, when so many have ended."""

    def before(self, start: int, client: str) -> int:
        """Requests of all that are served before that start of a client's."""
        ended = bisect_left(self._ends, start)
        windows = self._windows.get(ended)
        if windows is None:
            windows = self._windows[ended] = self._gather(ended)
        count, moment = self._gone[ended], self._moment(start, client)
        for origin, cost, ways in windows:
            if moment > origin:
                rounds, rest = divmod(moment - origin, cost)
                count += rounds * len(ways) + bisect_left(ways, rest)
        return count + self._mass.before(start)

    def _moment(self, start: int, client: str) -> int:
        """A start of a client's, in parts of virtual time that tell it from those of others."""
        place = bisect_left(self._names, client)
        return (start - self._base) * NAMES + 2 * place + (self._names[place : place + 1] == [client])

    def _gather(self, ended: int) -> list[Window]:
        windows: list[Window] = []
        for cost, moment, index in self._order:
            if index >= ended:
                if not windows or windows[-1].cost != cost or moment >= windows[-1].origin + cost:
                    windows.append(Window(moment, cost, []))
                windows[-1].ways.append(moment - windows[-1].origin)
        return windows


class Lead:
    """How many requests of its client are served before those of a lane: the lanes of one client take turns."""

    def __init__(self, others: list[tuple[int, bool]], unknown: int) -> None:
        """`others`: what each other lane has left, and whether its turn is before the lane's.

        `unknown`: other lanes, each of which is taken to be as long, and before it.
        """
        self._unknown = unknown
        self._others = sorted(others, reverse=True)
        self._left = list(accumulate([left for left, _ in reversed(self._others)], initial=0))[::-1]

    def before(self, beyond: int) -> int:
        """The number before a request that so many of its own lane precede."""
        count = beyond + (beyond + 1) * self._unknown
        for index, (left, first) in enumerate(self._others):
            if left <= beyond:
                return count + self._left[index]
            count += beyond + first
        return count


class Outlook:
    """The turns of one exchange."""

    def __init__(self, forecast: Forecast, line: Line, buckets: Buckets, now: Micros, lanes: int) -> None:
        """`lanes`: how many are to be told."""
        self._samples = max(FEWEST, min(FINEST, SAMPLES // max(1, lanes)))
        self._forecast = forecast
        self._rehearsal = forecast.rehearsal
        self._line = line
        self._buckets = buckets
        self._now = now
        self._crowds: dict[str, Crowd] = {}

    def turns(self, replica: str, place: Place) -> Turns:
        """The turns of one lane of one replica, as delays from now."""
        client, need = place
        now = self._now
        soon = tuple([instant - now for instant in self._forecast.turns.get((replica, place), [])])
        waiting = self._line.waiting(replica, place)
        if not self._forecast.dealt or waiting <= len(soon) or not need.limits:
            return Turns(soon)
        tag, cost = self._rehearsal.tag(need, client), self._line.share(client).cost
        lead = self._lead(replica, place)
        limits = [self._known(need, limit) for limit in need.limits]

        def turn(position: int) -> Micros:
            start, latest = tag + lead.before(position - len(soon)) * cost, 0
            for crowd, dealt, nth_return in limits:
                latest = max(latest, nth_return(dealt + crowd.before(start, client), now) - now)
            return latest

        latest = soon[-1] if soon else 0
        later = []
        for position, delay in _samples(turn, len(soon), waiting - 1, self._samples):
            latest = max(latest, delay)
            later.append((position, latest))
        return Turns(soon, tuple(later))

    def _lead(self, replica: str, place: Place) -> Lead:
        client, found, unknown, own = place.client, [], 0, 0  # stamps are above 0
        for need in self._line.share(client).needs:
            rows = self._rehearsal.rows(need, client, ALIKE)
            if rows is None:
                unknown += len(self._line.groups[need].rows[client])
            for name, row in rows or ():
                if name == replica and need == place.need:
                    own = row.stamp
                else:
                    found.append(row)
        others = [(row.waiting, not own or row.stamp < own) for row in found]
        return Lead(others, unknown if own else unknown - 1)

    def _known(self, need: Need, limit: str) -> tuple[Crowd, int, Callable[[int, Micros], Micros]]:
        """Of a limit, who waits under it, how many tokens were dealt, and when the nth of them returns."""
        crowd = self._crowds.get(limit)
        if crowd is None:
            crowd = self._crowds[limit] = self._look(limit)
        buckets = self._buckets
        hand, window = buckets.at_hand(need.terms, limit), buckets.views[need.terms].limits[limit].window
        nth_return = partial(buckets.calendars[limit].nth_return, hand=hand, window=window, trip=buckets.trip)
        return crowd, self._forecast.taken.get(limit, 0), nth_return

    def _look(self, limit: str) -> Crowd:
        """Look at the first clients of each need one by one, and at the others together."""
        rows_left, clients_left = CROWDED, RIVALS
        found: dict[str, tuple[int, int]] = {}
        mass = Mass()
        for need in sorted(need for need in self._line.groups if limit in need.limits):
            group = self._line.groups[need]
            mass.left += group.waiting
            clients, weight, least = len(group.clients), group.weight, 0
            for score, client in islice(group.clients, max(1, clients_left)):
                least = score + group.lift
                rows = self._rehearsal.rows(need, client, rows_left) if clients_left else None
                if rows is None:
                    break
                rows_left -= len(rows)
                clients_left -= 1
                clients -= 1
                weight -= self._line.share(client).weight
                _add(found, client, self._rehearsal.tag(need, client), sum([row.waiting for _, row in rows]))
            mass.add(clients, weight, least)
        mass.left -= self._forecast.taken.get(limit, 0) + sum([left for _, left in found.values()])
        return Crowd([self._rival(client, tag, left) for client, (tag, left) in found.items() if left], mass)

    def _rival(self, client: str, tag: int, left: int) -> Rival:
        cost = self._line.share(client).cost
        return Rival(tag + (left - 1) * cost, tag, cost, left, client)


def _add(found: dict[str, tuple[int, int]], client: str, tag: int, left: int) -> None:
    """Count what a client has left with one need; with several it starts where the first does."""
    known, more = found.get(client, (tag, 0))
    found[client] = min(known, tag), left + more


def _samples(turn: Callable[[int], Micros], first: int, last: int, most: int) -> list[tuple[int, Micros]]:
    """Positions of the range and their turns: both ends, and again and again the middle of what lies furthest apart."""
    found = [(position, turn(position)) for position in sorted({first, last})]
    while len(found) < most:
        furthest, after = CLOSE, -1
        for index in range(len(found) - 1):
            (low, early), (high, late) = found[index], found[index + 1]
            if late - early > furthest and high - low > 1:
                furthest, after = late - early, index
        if after < 0:
            break
        middle = (found[after][0] + found[after + 1][0]) // 2
        found.insert(after + 1, (middle, turn(middle)))
    return found
