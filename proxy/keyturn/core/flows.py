"""The fair queue: start-time fair queueing over the clients of a pool (law 4).

Each client has one start tag, the virtual time at which its next request starts; the lowest is served first. A request
served at start S moves its client's tag to S + 1/weight and the pool's virtual time to S. So clients that both wait get
tokens in the ratio of their weights, within one token each, however many requests each has queued, in however many
flows and on however many replicas.

1.  A client that comes back after idling starts at the pool's virtual time: no credit for idle time.
2.  A client that waited but could not be served (its limits were spent, not others') may make up for `LAG` requests.
    A class that lags behind further is moved on as a whole (`_lifts`), so that its clients keep their shares.
3.  The queues of one flow in several replicas take turns: the one served longest ago is first.
4.  So do the flows of one client: what was served since a flow's last turn puts it before its others, by less than a
    hundredth of a request.

A flow is the requests of one client and one demand class. Classes that wait and can be served are `ready`, by the tag
of their first client. Tags only grow while a client waits, but for refunds, which put it anew; so the scores in
`waiting` and `ready` are lower bounds, and are set right when they come up (`head`). A grant costs O(log clients),
nothing depends on how many requests wait.

`stores/lua/flows.lua` says the same in Lua.
"""

from collections.abc import Collection, Iterator

from keyturn.core.messages import RevisionClass
from keyturn.core.sortedset import SortedSet

UNIT = 1_000_000
"""Virtual time of one request at weight 1: an integer, so that Lua counts alike."""

ROLLOVER = 1 << 50
"""Virtual time at which it starts over as soon as nobody waits: as a float, it stays exact up to 2^53."""

LAG = 64
"""Requests that a client which could not be served may catch up on."""

MOVED = 8
"""The most flows of one client that a grant or a refund puts in order anew; the next one goes on with others."""

IDLERS = 100
"""Idle clients that are forgotten in one exchange at the most."""

Flow = tuple[str, str]
"""A demand class, by name, and a client."""


class FairQueue:
    """The demands of all replicas, in fair order."""

    def __init__(self) -> None:
        self.virtual_time = 0
        self.classes: dict[str, RevisionClass] = {}
        """The demand classes that wait, by name."""
        self.waiting: dict[str, SortedSet[str, int]] = {}
        """The clients that wait in each class, by start tag or less."""
        self.ready: SortedSet[str, int] = SortedSet()
        """The classes that wait and may be served, by the start tag of their first client or less."""
        self.pinned: dict[str, dict[str, None]] = {}
        """The classes that wait, by the quota that they insist on."""
        self.general: dict[str, None] = {}
        """The classes that wait and insist on none."""
        self.totals: dict[Flow, int] = {}
        """How many requests of each flow wait, over all replicas."""
        self._tags: dict[str, int] = {}
        self._weights: dict[str, int] = {}
        self._served: dict[str, int] = {}
        """How many requests of each client that waits were served."""
        self._turns: dict[Flow, int] = {}
        """How many of them were when a flow had its last turn."""
        self._lifts: dict[str, int] = {}
        """The virtual time by which classes that lagged too far were moved on."""
        self._bases: dict[Flow, int] = {}
        """How much of that a client's start tag holds already."""
        self._times: dict[str, int] = {}
        """The virtual time of each class that waits: the latest start that was served of it."""
        self._classes_of: dict[str, SortedSet[str, int]] = {}
        """The classes in which each client waits, those put in order longest ago first."""
        self._idle: SortedSet[str, int] = SortedSet()
        """Clients that do not wait, by start tag: forgotten when the virtual time has passed it."""
        self._queues: dict[Flow, SortedSet[str, int]] = {}
        """The replicas of each flow, the one served longest ago first."""
        self._counts: dict[tuple[str, str, str], int] = {}
        """How many requests of a flow wait in a replica."""
        self._flows_of: dict[str, dict[Flow, None]] = {}
        self._sequence = 0
        self.requests = 0
        """How many requests wait."""

    # Waiting requests

    def put(self, replica: str, demanded: RevisionClass, client: str, weight: int, waiting: int) -> None:
        """Note how many requests of a flow wait in a replica; none: it leaves."""
        name = demanded.name
        before = self._counts.get((name, client, replica), 0)
        if waiting or client in self._weights:
            self._weights[client] = weight
        if not waiting:
            if before:
                self._leave(replica, name, client, before)
            return
        self._counts[name, client, replica] = waiting
        self.totals[name, client] = self.totals.get((name, client), 0) + waiting - before
        self.requests += waiting - before
        if not before:
            self._join(replica, demanded, client)

    def _join(self, replica: str, demanded: RevisionClass, client: str) -> None:
        name = demanded.name
        self._sequence += 1
        self._queues.setdefault((name, client), SortedSet()).put(replica, self._sequence)
        self._flows_of.setdefault(replica, {})[name, client] = None
        own = self._classes_of.setdefault(client, SortedSet())
        if not own:
            self._idle.remove(client)
            self._tags[client] = max(self.virtual_time, self._tags.get(client, 0))
        if name in own:
            return
        own.put(name, self._sequence)
        self._turns[name, client] = self._served.setdefault(client, 0)
        self._bases[name, client] = self._lifts.get(name, 0)
        if name not in self.classes:
            self.classes[name] = demanded
            self._times[name] = self.virtual_time
            self.waiting[name] = SortedSet()
            if demanded.pinned is None:
                self.general[name] = None
            else:
                self.pinned.setdefault(demanded.pinned, {})[name] = None
        self._put(name, client)

    def _put(self, name: str, client: str) -> None:
        """Order a client among those that wait in a class."""
        place = self._place(name, client)
        self.waiting[name].put(client, place)
        if name in self.ready:
            self.ready.put(name, min(self._moved(name, client, place), self.ready.scores[name]))

    def _some(self, client: str) -> list[str]:
        """Some of a client's classes, those put in order longest ago; all, if they are few."""
        own = self._classes_of[client]
        names = [name for _, (_, name) in zip(range(MOVED), own, strict=False)]
        for name in names:
            self._sequence += 1
            own.put(name, self._sequence)
        return names

    def _place(self, name: str, client: str) -> int:
        """A flow's place in its class: its client's start tag, less a little for what others of it had since."""
        others = self._served[client] - self._turns[name, client]
        return self._tags[client] - self._bases[name, client] - min(others, self.cost(client) // 100)

    def _leave(self, replica: str, name: str, client: str, left: int) -> None:
        """The last requests of a flow in a replica are gone."""
        del self._counts[name, client, replica]
        flows = self._flows_of[replica]
        del flows[name, client]
        if not flows:
            del self._flows_of[replica]
        self.totals[name, client] -= left
        self.requests -= left
        queues = self._queues[name, client]
        queues.remove(replica)
        if queues:
            return
        del self._queues[name, client], self.totals[name, client]
        del self._turns[name, client], self._bases[name, client]
        waiting = self.waiting[name]
        waiting.remove(client)
        if not waiting:
            self._end_class(name)
        own = self._classes_of[client]
        own.remove(name)
        if not own:
            del self._classes_of[client], self._served[client]
            self._idle.put(client, self._tags[client])

    def _end_class(self, name: str) -> None:
        demanded = self.classes.pop(name)
        del self.waiting[name], self._times[name]
        self._lifts.pop(name, None)
        self.ready.remove(name)
        if demanded.pinned is None:
            del self.general[name]
            return
        pinned = self.pinned[demanded.pinned]
        del pinned[name]
        if not pinned:
            del self.pinned[demanded.pinned]

    def forget(self, replica: str, but: Collection[Flow] = ()) -> None:
        """Forget what a replica demanded, but for the flows named."""
        for name, client in list(self._flows_of.get(replica, ())):
            if (name, client) not in but:
                self._leave(replica, name, client, self._counts[name, client, replica])

    def forget_idle(self) -> None:
        """Forget clients that idle and have no debt, and start over before virtual time gets too large to be exact."""
        for _ in range(IDLERS):
            first = self._idle.first()
            if not first or first[0] > self.virtual_time:
                break
            del self._tags[first[1]], self._weights[self._idle.pop_first()[1]]
        if not self.classes and self.virtual_time > ROLLOVER:
            self.virtual_time = 0
            self._tags.clear()
            self._weights.clear()
            self._idle = SortedSet()

    # Whose turn it is

    def head(self, name: str) -> tuple[int, str]:
        """The first client of a class that waits, and its place in the fair order."""
        waiting = self.waiting[name]
        while True:
            first = waiting.first()
            assert first is not None, "a class that waits has clients"
            score, client = first
            place = self._place(name, client)
            if place == score:
                return self._moved(name, client, score), client
            waiting.put(client, place)

    def _start(self, name: str, client: str) -> int:
        """The virtual time at which the next request of a flow starts."""
        return self._moved(name, client, self._tags[client] - self._bases[name, client])

    def _moved(self, name: str, client: str, place: int) -> int:
        """A place in a class in virtual time: moved on with the class, if its client lags, too."""
        return min(place + self._lifts.get(name, 0), max(self._tags[client], self.virtual_time))

    def turn(self, name: str, client: str) -> int:
        """How many requests of a client were served when a flow of it had its last turn."""
        return self._turns[name, client]

    def replica(self, name: str, client: str) -> str:
        """The replica of a flow that is served next."""
        return self._queues[name, client].at(0)[1]

    def serve(self, name: str, client: str) -> str:
        """One request of a flow gets a lease; returns the replica in which it waits."""
        cost = self.cost(client)
        lag = LAG * cost
        behind = max(0, self.virtual_time - lag - self._times[name])
        alone = len(self.waiting[name]) == 1
        if behind and not alone:
            self._lifts[name] = self._lifts.get(name, 0) + behind
        start = self._start(name, client)
        if alone:  # its own start tag holds by how much the class is moved on
            start = min(start + behind, max(self._tags[client], self.virtual_time))
        self._times[name] += behind
        start = max(start, self._times[name] - lag)
        self._times[name] = max(self._times[name], start)
        self.virtual_time = max(self.virtual_time, start)
        self._tags[client] = start + cost
        self._served[client] += 1
        self._turns[name, client] = self._served[client]
        self._rebase(name, client)
        if self._lifts and len(self._classes_of[client]) > 1:
            for other in self._some(client):
                self._rebase(other, client)
        replica = self.replica(name, client)
        left = self._counts[name, client, replica] - 1
        if left:
            self._counts[name, client, replica] = left
            self.totals[name, client] -= 1
            self.requests -= 1
            self._sequence += 1
            self._queues[name, client].put(replica, self._sequence)
        else:
            self._leave(replica, name, client, 1)
        return replica

    def _rebase(self, name: str, client: str) -> None:
        """A client's start tag holds by how much a class was moved on, since it was served."""
        if self._bases[name, client] != self._lifts.get(name, 0):
            self._bases[name, client] = self._lifts[name]
            self._put(name, client)

    def pass_by(self, client: str, weight: int) -> None:
        """One request gets its lease as it comes, while nobody waits: it costs its client as much as any other."""
        self._weights[client] = weight
        self.virtual_time = max(self.virtual_time, self._tags.get(client, 0))
        self._tags[client] = self.virtual_time + self.cost(client)
        self._idle.put(client, self._tags[client])

    def refund(self, client: str) -> None:
        """A lease came back unsent: its client is charged nothing."""
        if client not in self._tags:
            return
        self._tags[client] -= self.cost(client)
        if client not in self._classes_of:
            self._idle.put(client, self._tags[client])
            return
        for name in self._some(client):
            self._put(name, client)

    # What there is to see

    def cost(self, client: str) -> int:
        """The virtual time of one request of a client."""
        return UNIT // self._weights[client]

    def waits(self, replica: str) -> bool:
        """Whether requests wait in a replica."""
        return replica in self._flows_of

    def flows(self, name: str, most: int) -> Iterator[tuple[str, int, int, int, int]]:
        """The first flows of a class: client, start tag above virtual time, cost, requests and queues that wait."""
        for _, (_, client) in zip(range(most), self.waiting[name], strict=False):
            tag, queues = self._start(name, client) - self.virtual_time, len(self._queues[name, client])
            yield client, tag, self.cost(client), self.totals[name, client], queues
