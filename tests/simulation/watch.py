"""A ledger that is looked at while it works: for how long tokens idle (law 3), and who gets how much (law 4).

The ledger notices what came back with the next exchange only; so before each of them it is reconstructed when each
token came that could serve those who wait. What is granted is the one that came first.
"""

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Self

from proxy.core.exchange import Grant, Lane, Throttled
from proxy.core.ledger import DEAL, Dealt, Ledger
from proxy.core.letters import Call, Need, Reply
from proxy.core.line import Line
from proxy.core.model import Micros
from proxy.core.rehearsal import Rehearsal
from proxy.dispatch.room import OWN
from tests.simulation.processes import Universe

Waiting = Callable[[], Mapping[Need, Micros]]
"""The needs with which requests wait where the store can be reached, and since when; true time."""


class Shares:
    """Who got how much, while both of two clients waited with one need."""

    def __init__(self) -> None:
        self.worst = 0.0
        """How far two were apart, at the most, as a share of one token each."""
        self.where = ""
        self._got: dict[str, float] = {}
        self._waits: dict[str, Need] = {}
        self._weights: dict[str, int] = {}
        self._apart: dict[str, dict[str, list[float]]] = {}
        """Of each pair that waits together, the least and the most that the first was ahead of the second."""
        self._changed: set[str] = set()

    def got(self, client: str, weight: int) -> None:
        """A client was served."""
        self._got[client] = self._got.get(client, 0.0) + 1 / weight
        self._changed.add(client)

    def anew(self, client: str) -> None:
        """Measure a client anew: what it was served with came back, or it does not wait for a token any more."""
        if client in self._waits:
            self._leave(client)

    def look(self, line: Line, *, settled: bool) -> None:
        """Measure. `settled`: no token is set aside for a replica that has yet to fetch it."""
        waits = {client: need for need, group in line.groups.items() for client in group.rows}
        for client, need in list(self._waits.items()):
            if waits.get(client) != need or len(line.share(client).needs) != 1:
                self._leave(client)
        if not settled:
            return
        for client in self._changed:
            for other, apart in self._apart.get(client, {}).items():
                self._measure(client, other, apart)
        self._changed.clear()
        for client, need in waits.items():
            if client not in self._waits and len(line.share(client).needs) == 1:
                self._join(client, need, line.share(client).weight)

    def _join(self, client: str, need: Need, weight: int) -> None:
        self._weights[client] = weight
        self._apart[client] = {}
        for other, others in self._waits.items():
            if others == need:
                self._apart[client][other] = self._apart[other][client] = [self._ahead(client, other)] * 2
        self._waits[client] = need

    def _leave(self, client: str) -> None:
        del self._waits[client]
        for other in self._apart.pop(client):
            del self._apart[other][client]

    def _ahead(self, client: str, other: str) -> float:
        first, second = min(client, other), max(client, other)
        return self._got.get(first, 0.0) - self._got.get(second, 0.0)

    def _measure(self, client: str, other: str, apart: list[float]) -> None:
        ahead = self._ahead(client, other)
        apart[0], apart[1] = min(apart[0], ahead), max(apart[1], ahead)
        unfair = (apart[1] - apart[0]) / (1 / self._weights[client] + 1 / self._weights[other])
        if unfair > self.worst:
            self.worst, self.where = unfair, f"{client} and {other}"


class Watch:
    """What there is to see at the ledger of a pool."""

    def __init__(self, universe: Universe, waiting: Waiting, granted: dict[str, Micros]) -> None:
        self.universe = universe
        self.shares = Shares()
        self.idle: Micros = 0
        """The longest that a token lay at hand while somebody waited whom it could serve."""
        self.where = ""
        self.doubled: list[str] = []
        """Leases that were granted twice."""
        self.disturbed: Micros = 0
        """When tokens that were foretold last went elsewhere: somebody else turned out to have spent some, or the proxy
        asked after a key of its own accord; true time."""
        self._last: Micros = universe.now
        """When the last exchange was; true time. What came back since was not at hand before, whatever clocks say."""
        self._waiting = waiting
        self._granted = granted
        self._at_hand: dict[Need, deque[Micros]] = {}
        """When the tokens came that could serve a need at once, by needs that wait; true time."""

    def __deepcopy__(self, _: Any) -> Self:
        return self

    def before(self, ledger: Ledger, now: Micros) -> None:
        """An exchange begins: see what has come back since the last one, and for how long it has idled."""
        waiting = {need: since for need, since in self._waiting().items() if need.terms in ledger.buckets.views}
        ahead = self.universe.now - now
        for need, since in waiting.items():
            if need not in self._at_hand:
                self._at_hand[need] = deque([since] * self._open(ledger, need))
        while (instant := self._next_return(ledger)) is not None and instant <= now:
            ledger.buckets.mature(instant)
            for need in waiting:
                self._note(ledger, need, max(instant + ahead, self._last))
        for need, since in waiting.items():
            if self._at_hand[need]:
                idle = self.universe.now - max(self._at_hand[need][0], since)
                if idle > self.idle:
                    self.idle = idle
                    self.where = f"{need.limits} of {need.pinned or 'any quota'} at {self.universe.now}"

    def _open(self, ledger: Ledger, need: Need) -> int:
        """How many requests with a need could be served at once."""
        if ledger.buckets.best(need) is None:
            return 0
        quotas = (need.pinned,) if need.pinned else ledger.buckets.views[need.terms].terms.quotas
        return sum([ledger.buckets.open_for(need.terms, quota, need.limits) for quota in quotas])

    def _note(self, ledger: Ledger, need: Need, instant: Micros) -> None:
        """The tokens at hand at an instant: what is new came then, what is gone is what came first."""
        at_hand = self._at_hand.setdefault(need, deque())
        tokens = self._open(ledger, need)
        while len(at_hand) > tokens:
            at_hand.popleft()
        at_hand.extend([instant] * (tokens - len(at_hand)))

    def _next_return(self, ledger: Ledger) -> Micros | None:
        buckets = ledger.buckets
        instants = []
        for calendar in buckets.calendars.values():
            if first := calendar.cooling.first():
                instants.append(first[0])
            if first := calendar.parked.first():
                instants.append(first[0])
            if first := calendar.probing.first():
                instants.append(first[0] + buckets.bound)
        return min(instants, default=None)

    def heard(self, call: Call, reply: Reply) -> None:
        """What was said and answered, if it changes what was foretold to those who left."""
        refused = any(isinstance(one, Throttled) for one in call.settlements)
        if refused or reply.foreign or any(grant.lane.client == OWN.name for grant in reply.grants):
            self.disturbed = self.universe.now

    def served_at_once(self, grant: Grant, weight: int) -> None:
        """Somebody was served without an exchange."""
        self.shares.got(grant.lane.client, weight)
        self._note_granted(grant)

    def _note_granted(self, grant: Grant) -> None:
        if grant.lease in self._granted:
            self.doubled.append(grant.lease)
        self._granted[grant.lease] = self.universe.now

    def after(self, ledger: Ledger, dealt: Dealt | None) -> None:
        """An exchange is over."""
        self._last = self.universe.now
        waiting = [need for need in self._waiting() if need.terms in ledger.buckets.views]
        for need in waiting:
            self._note(ledger, need, self.universe.now)
        self._at_hand = {need: self._at_hand[need] for need in waiting}
        if dealt is None:
            return
        for grant in dealt.grants:
            self._note_granted(grant)
        self.shares.look(ledger.line, settled=not dealt.lent and dealt.stopped is None)


class WatchedLedger(Ledger):
    """The ledger, and who looks at it."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.watch = watch
        self._dealt: Dealt | None = None

    def renewed(self) -> "WatchedLedger":
        """A state that knows nothing."""
        return WatchedLedger(self.watch)

    def exchange(self, time: Micros, run: str, call: Call, *, most: int = DEAL) -> Reply:
        self._dealt = None
        reply = super().exchange(time, run, call, most=most)
        self.watch.heard(call, reply)
        self.watch.after(self, self._dealt)
        return reply

    def at_once(self, time: Micros, replica: str, terms: str, lane: Lane, weight: int) -> Grant | None:
        grant = super().at_once(time, replica, terms, lane, weight)
        if grant:
            self.watch.served_at_once(grant, weight)
        return grant

    def _clock(self, time: Micros, call: Call) -> Micros:
        now = super()._clock(time, call)
        self.watch.before(self, now)
        return now

    def _deal(self, now: Micros, call: Call, lanes: Any, rehearsal: Rehearsal, most: int) -> Dealt:
        self._dealt = dealt = super()._deal(now, call, lanes, rehearsal, most)
        for place in dealt.served:
            self.watch.shares.got(place.client, self.line.share(place.client).weight)
        for played in rehearsal._groups.values():
            for client, rows in played._rows.items():
                if not rows:  # a token is granted or left for each of its requests
                    self.watch.shares.anew(client)
        return dealt

    def _return(self, now: Micros, lease: str) -> None:
        out = self.buckets._out.get(lease)
        super()._return(now, lease)
        if out:
            self.watch.shares.anew(out.client)
