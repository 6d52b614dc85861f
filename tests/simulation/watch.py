"""The state of a pool, observed: how long tokens idle (law 3), and which client gets how much (law 4).

The state notices returned tokens with the next exchange only. So the instant at which each token became available to a
waiting request is reconstructed before each exchange. Grants use the oldest first. A reserved token idles until its
replica collects it.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self

from keyturn.core.dealing import Dealer
from keyturn.core.exchange import LeaseGrant, Throttled
from keyturn.core.flows import FairQueue
from keyturn.core.messages import ExchangeRequest, ExchangeResponse, RevisionClass, Snapshot
from keyturn.core.model import Micros
from keyturn.core.revisions import RevisionView
from keyturn.core.snapshots import snapshot
from keyturn.core.sortedset import SortedSet
from keyturn.core.state import DEALT, Member, SharedState
from keyturn.scheduler import INTERNAL

from tests.simulation.processes import Universe

Waiting = Callable[[], Mapping[RevisionClass, Micros]]
"""The demand classes that wait where the store can be reached, and since when; true time."""


class Shares:
    """The tokens of each pair of clients while both waited in one demand class."""

    def __init__(self) -> None:
        self.worst = 0.0
        """Greatest distance of two clients, in tokens of each."""
        self.where = ""
        self._got: dict[str, float] = {}
        self._waits: dict[str, str] = {}
        self._weights: dict[str, int] = {}
        self._apart: dict[str, dict[str, list[float]]] = {}
        """Least and greatest lead of the first over the second of each pair that waits together."""
        self._changed: set[str] = set()

    def __deepcopy__(self, _: Any) -> Self:
        return self

    def got(self, client: str, weight: int) -> None:
        """Count a token of a client."""
        self._got[client] = self._got.get(client, 0.0) + 1 / weight
        self._changed.add(client)

    def anew(self, client: str) -> None:
        """Measure a client anew, after a refund."""
        if client in self._waits:
            self._leave(client)

    def look(self, queue: FairQueue) -> None:
        """Measure."""
        waits = {client: name for name, group in queue.waiting.items() for client in group.scores}
        for client, name in list(self._waits.items()):
            if waits.get(client) != name or len(queue._classes_of[client]) != 1:
                self._leave(client)
        for client in self._changed:
            for other, apart in self._apart.get(client, {}).items():
                self._measure(client, other, apart)
        self._changed.clear()
        for client, name in waits.items():
            if client not in self._waits and len(queue._classes_of[client]) == 1:
                self._join(client, name, queue._weights[client])

    def _join(self, client: str, name: str, weight: int) -> None:
        self._weights[client] = weight
        self._apart[client] = {}
        for other, others in self._waits.items():
            if others == name:
                self._apart[other][client] = self._apart[client][other] = [self._ahead(client, other)] * 2
        self._waits[client] = name

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
    """Measurements of the state of a pool."""

    def __init__(self, universe: Universe, waiting: Waiting, granted: dict[str, Micros]) -> None:
        self.universe = universe
        self.shares = Shares()
        self.idle: Micros = 0
        """The longest that a token was available while a request waited that it could serve."""
        self.where = ""
        self.doubled: list[str] = []
        """Leases that were granted twice."""
        self.disturbed: Micros = 0
        """When tokens that were estimated last went elsewhere: somebody else turned out to have spent some, the proxy
        asked after a key of its own accord, or a bucket turned out to be unknown; true time."""
        self.tokens = self.exchanges = self.granting = self.wakes = 0
        """Leases granted, exchanges, those that granted or reserved any, and replicas woken."""
        self._last: Micros = universe.now
        """True time of the last exchange. Tokens that returned since were not available before, whatever clocks say."""
        self._waiting = waiting
        self._granted = granted
        self._available: dict[RevisionClass, deque[Micros]] = {}
        """True times at which tokens became available to each waiting demand class."""
        self._reserved: dict[str, tuple[Micros, RevisionClass]] = {}
        """Uncollected reservations: true time and class."""

    def __deepcopy__(self, _: Any) -> Self:
        return self

    def before(self, state: SharedState, now: Micros) -> None:
        """Before an exchange, find what has returned since the last one, and how long it idled."""
        waiting = self._known(state)
        ahead = self.universe.now - now
        for demanded, since in waiting.items():
            if demanded not in self._available:
                self._available[demanded] = deque([since] * _available(state, demanded))
        while (instant := _next_return(state)) is not None and instant <= now:
            state.tokens.replenish(instant)
            for demanded in waiting:
                self._note(state, demanded, max(instant + ahead, self._last))
        for demanded, since in waiting.items():
            if self._available[demanded]:
                self._idled(max(self._available[demanded][0], since), demanded, "")

    def _known(self, state: SharedState) -> dict[RevisionClass, Micros]:
        """Return the waiting classes of revisions that the state knows."""
        views = state.revisions.views
        return {demanded: since for demanded, since in self._waiting().items() if demanded.revision in views}

    def _idled(self, since: Micros, demanded: RevisionClass, how: str) -> None:
        idle = self.universe.now - since
        if idle > self.idle:
            self.idle = idle
            self.where = f"{demanded.limits} of {demanded.pinned or 'any quota'} at {self.universe.now}{how}"

    def _note(self, state: SharedState, demanded: RevisionClass, instant: Micros) -> None:
        """Note the available tokens at an instant: new ones came now, the oldest ones went."""
        available = self._available.setdefault(demanded, deque())
        tokens = _available(state, demanded)
        while len(available) > tokens:
            available.popleft()
        available.extend([instant] * (tokens - len(available)))

    def heard(self, request: ExchangeRequest, response: ExchangeResponse) -> None:
        """Note changed estimates of requests that were granted."""
        refused = any(isinstance(one, Throttled) for one in request.settlements)
        odd = any(grant.flow.client == INTERNAL.name or grant.probe for grant in response.grants)
        if refused or response.foreign or odd:
            self.disturbed = self.universe.now
        self.exchanges += 1
        self.wakes += len(response.wake)

    def granted(self, grant: LeaseGrant) -> None:
        """Note a lease that was granted or reserved."""
        if grant.lease in self._granted:
            self.doubled.append(grant.lease)
        self._granted[grant.lease] = self.universe.now
        self.tokens += 1

    def reserved(self, demanded: RevisionClass, grant: LeaseGrant) -> None:
        """Note a reservation."""
        self._reserved[grant.lease] = (self.universe.now, demanded)

    def released(self, grants: Iterable[LeaseGrant], *, collected: bool) -> None:
        """Note that leases were collected or are reserved no longer; their second of law 10 begins here."""
        waiting: Mapping[RevisionClass, Micros] | None = None
        for grant in grants:
            since, demanded = self._reserved.pop(grant.lease, (None, None))
            if since is None or demanded is None:
                continue
            waiting = self._waiting() if waiting is None else waiting
            if demanded in waiting:
                self._idled(max(since, waiting[demanded]), demanded, ", reserved")
            if collected:
                self._granted[grant.lease] = self.universe.now

    def began(self) -> None:
        """Note a new epoch: nothing is reserved."""
        self._reserved.clear()

    def after(self, state: SharedState, *, dealt: bool) -> None:
        """Note the end of an exchange."""
        self._last = self.universe.now
        waiting = self._known(state)
        for demanded in waiting:
            self._note(state, demanded, self.universe.now)
        self._available = {demanded: self._available[demanded] for demanded in waiting}
        if dealt:
            self.shares.look(state.queue)


def _available(state: SharedState, demanded: RevisionClass) -> int:
    """Return how many requests of a class could be served at once."""
    view = state.revisions.views[demanded.revision]
    if state.tokens.best(view, demanded.limits, demanded.pinned) is None:
        return 0
    quotas = (demanded.pinned,) if demanded.pinned else view.revision.quotas
    return sum([state.tokens.available(view, demanded.limits, quota) for quota in quotas])


def _next_return(state: SharedState) -> Micros | None:
    own = state.tokens
    sets: list[SortedSet[Any, Micros]] = [*own.returns.values(), own.shut.closed, own.shut.probing, own.shut.resting]
    return min([first[0] for one in sets if (first := one.first())], default=None)


class WatchedQueue(FairQueue):
    """The fair queue, observed."""

    def __init__(self, shares: Shares) -> None:
        super().__init__()
        self.shares = shares

    def serve(self, name: str, client: str) -> str:
        self.shares.got(client, self._weights[client])
        return super().serve(name, client)

    def pass_by(self, client: str, weight: int) -> None:
        self.shares.got(client, weight)
        super().pass_by(client, weight)

    def refund(self, client: str) -> None:
        self.shares.anew(client)
        super().refund(client)


class WatchedState(SharedState):
    """The state, observed."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.watch = watch
        self.queue = WatchedQueue(watch.shares)
        self._dealer = Dealer(self.tokens, self.queue, self.revisions)

    def renewed(self) -> "WatchedState":
        """Return an empty state."""
        return WatchedState(self.watch)

    def exchange(self, time: Micros, run: str, request: ExchangeRequest, *, most: int = DEALT) -> ExchangeResponse:
        dealt = self.dealt
        response = super().exchange(time, run, request, most=most)
        self.watch.granting += self.dealt > dealt
        self.watch.heard(request, response)
        self.watch.after(self, dealt=not response.asks)
        return response

    def snapshot(self, time: Micros, revision: str, pins: Iterable[tuple[int, str]]) -> Snapshot | None:
        """Return a snapshot; `None` for an unknown revision."""
        return snapshot(self, time, revision, pins) if revision in self.revisions.views else None

    def _clock(self, time: Micros, request: ExchangeRequest) -> Micros:
        now = super()._clock(time, request)
        self.watch.before(self, now)
        return now

    def _begin(self, now: Micros, run: str) -> None:
        self.watch.began()
        super()._begin(now, run)

    def _grant(
        self, now: Micros, replica: str, view: RevisionView, demanded: RevisionClass, client: str, quota: str
    ) -> LeaseGrant:
        grant = super()._grant(now, replica, view, demanded, client, quota)
        self.watch.granted(grant)
        self._granted_of = demanded
        return grant

    def _reserve(self, now: Micros, replica: str, grant: LeaseGrant, woken: dict[str, Micros]) -> None:
        self.watch.reserved(self._granted_of, grant)
        super()._reserve(now, replica, grant, woken)

    def _collect(self, replica: str, member: Member) -> list[LeaseGrant]:
        collected = super()._collect(replica, member)
        self.watch.released(collected, collected=True)
        return collected

    def _forget_demands(self, replica: str) -> None:
        self.watch.released(self._members[replica].reserved, collected=False)
        super()._forget_demands(replica)
