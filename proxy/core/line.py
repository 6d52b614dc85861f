"""Who waits, and whose turn it is: start-time fair queueing over the clients of a pool (law 4).

Each client has one *tag*, the virtual time at which its next request starts; the lowest tag is served first. A request
served at start S moves its client's tag to S + 1/weight and the pool's virtual time to S. So clients that both wait get
tokens in the ratio of their weights, within one token each, however many requests each has queued, in however many
lanes and on however many replicas.

1.  A client that comes back after idling starts at the pool's virtual time: no credit for the idle time.
2.  A client that waited but could not be served (its limits were spent, not the others') keeps its place, up to
    `LAG` requests: what it missed is made up for, but never by starving the others for long.
3.  Among the lanes of one client, replicas take turns.

Costs: O(log clients) for each request served; nothing depends on how many requests wait.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from heapq import heappop, heappush, heapreplace

from proxy.core.exchange import Demand, Kind, Lane
from proxy.core.model import Micros
from proxy.core.sortedset import SortedSet

UNIT = 1_000_000
"""Virtual time of one request at weight 1: an integer, so that Lua counts alike."""

LAG = 64
"""Requests that a client which could not be served may catch up on."""


@dataclass(slots=True)
class Share:
    """A client's place in virtual time."""

    tag: int = 0
    weight: int = 1
    kinds: dict[Kind, None] = field(default_factory=dict)
    """The kinds in which it waits."""

    @property
    def cost(self) -> int:
        """What one request moves its tag by."""
        return UNIT // self.weight


@dataclass(slots=True)
class Group:
    """Everybody who waits with requests of one kind."""

    clients: SortedSet[str, int] = field(default_factory=SortedSet)
    """By tag."""
    rows: dict[str, dict[str, int]] = field(default_factory=dict)
    """How many wait: by client, then by replica, the one served longest ago first."""
    waiting: int = 0
    weight: int = 0


class Line:
    """The remembered demands of all replicas, in fair order."""

    def __init__(self) -> None:
        self.groups: dict[Kind, Group] = {}
        self.now = 0
        """The pool's virtual time."""
        self._shares: dict[str, Share] = {}
        self._lanes: dict[str, set[Lane]] = {}
        self._due: dict[str, Micros] = {}
        self._expiry: SortedSet[str, Micros] = SortedSet()

    # Who waits

    def remember(self, replica: str, demands: Iterable[Demand]) -> None:
        """Put a replica's demands in place of those that it reported before."""
        wanted = {demand.lane: demand for demand in demands if demand.waiting > 0}
        for lane in sorted_lanes(self._lanes.get(replica, set()) - wanted.keys()):
            self._drop(replica, lane)
        for lane, demand in wanted.items():
            self._set(replica, lane, demand)

    def expect(self, replica: str, due: Micros, expires: Micros) -> None:
        """Note when a replica was told to come back, and until when its demands are remembered."""
        self._due[replica] = due
        self._expiry.put(replica, expires)

    def expire(self, now: Micros) -> None:
        """Forget the demands of replicas that did not come back in time."""
        while (first := self._expiry.first()) and first[0] < now:
            self.forget(first[1])

    def forget(self, replica: str) -> None:
        """Forget all that a replica reported."""
        self.remember(replica, ())
        self._expiry.remove(replica)
        self._due.pop(replica, None)

    def due(self, replica: str) -> Micros | None:
        """When a replica was told to come back."""
        return self._due.get(replica)

    def lanes(self, replica: str) -> Iterable[Lane]:
        """Where a replica waits."""
        return sorted_lanes(self._lanes.get(replica, set()))

    def waiting(self, replica: str, lane: Lane) -> int:
        """How many of a replica's requests wait in a lane."""
        group = self.groups.get(lane.kind)
        return group.rows.get(lane.client, {}).get(replica, 0) if group else 0

    def share(self, client: str) -> Share:
        """A client's place in virtual time."""
        return self._shares[client]

    def _set(self, replica: str, lane: Lane, demand: Demand) -> None:
        share = self._shares.get(lane.client)
        if share is None:
            share = self._shares[lane.client] = Share()
        group = self.groups.get(lane.kind)
        if group is None:
            group = self.groups[lane.kind] = Group()
        if not share.kinds:
            share.tag = max(share.tag, self.now)
        rows = group.rows.get(lane.client)
        if rows is None:
            rows = group.rows[lane.client] = {}
            share.kinds[lane.kind] = None
            group.clients.put(lane.client, share.tag)
            group.weight += demand.weight
        elif share.weight != demand.weight:
            group.weight += demand.weight - share.weight
        share.weight = demand.weight
        group.waiting += demand.waiting - rows.get(replica, 0)
        rows[replica] = demand.waiting
        self._lanes.setdefault(replica, set()).add(lane)

    def _drop(self, replica: str, lane: Lane) -> None:
        group = self.groups[lane.kind]
        rows = group.rows[lane.client]
        group.waiting -= rows.pop(replica)
        lanes = self._lanes[replica]
        lanes.discard(lane)
        if not lanes:
            del self._lanes[replica]
        if not rows:
            self._leave(lane, group)

    def _leave(self, lane: Lane, group: Group) -> None:
        share = self._shares[lane.client]
        del group.rows[lane.client], share.kinds[lane.kind]
        group.clients.remove(lane.client)
        group.weight -= share.weight
        if not group.rows:
            del self.groups[lane.kind]

    # Whose turn it is

    def serve(self, replica: str, lane: Lane) -> None:
        """One request of the lane got its lease."""
        share = self._shares[lane.client]
        share.tag, self.now = advance(share.tag, self.now, share.cost)
        group = self.groups[lane.kind]
        rows = group.rows[lane.client]
        left = rows[replica] - 1
        if left:
            del rows[replica]
            rows[replica] = left
            group.waiting -= 1
        else:
            self._drop(replica, lane)
        for kind in share.kinds:
            self.groups[kind].clients.put(lane.client, share.tag)

    def refund(self, client: str) -> None:
        """A lease came back unsent: its client is charged nothing."""
        share = self._shares.get(client)
        if share is not None:
            share.tag -= share.cost
            for kind in share.kinds:
                self.groups[kind].clients.put(client, share.tag)


def advance(tag: int, now: int, cost: int) -> tuple[int, int]:
    """The tag of a client after one more request, and the pool's virtual time."""
    start = max(tag, now - LAG * cost)
    return start + cost, max(now, start)


def sorted_lanes(lanes: Iterable[Lane]) -> list[Lane]:
    """Lanes in an order that depends on nothing but themselves."""
    return sorted(lanes, key=lambda lane: (lane.client, lane.kind.limits, lane.kind.pinned or ""))


class Rehearsal:
    """The same queueing played forward without changing the line: for turns, and for tokens that others will fetch.

    Only what is touched is copied, so a step costs O(log clients) however many wait.
    """

    def __init__(self, line: Line) -> None:
        self._line = line
        self._now = line.now
        self._tags: dict[str, int] = {}
        self._groups: dict[Kind, _Played] = {}

    def kinds(self) -> list[Kind]:
        """The kinds that somebody waits with."""
        return list(self._line.groups)

    def first(self, kind: Kind) -> tuple[int, str] | None:
        """The tag and name of the client whose turn it is among those of a kind."""
        played = self._groups.get(kind)
        if played is None:
            played = self._groups[kind] = _Played(self._line.groups[kind])
        return played.first(self._tags)

    def serve(self, kind: Kind, client: str) -> str:
        """Play one request of that client served; returns the replica whose it is."""
        share = self._line.share(client)
        tag, self._now = advance(self._tags.get(client, share.tag), self._now, share.cost)
        self._tags[client] = tag
        return self._groups[kind].take(client)


class _Played:
    """One group during a rehearsal: the line's own order, overlaid with the clients that were served."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self._order: Iterator[tuple[int, str]] = iter(group.clients)
        self._head = next(self._order, None)
        self._served: list[tuple[int, str]] = []
        self._rows: dict[str, list[tuple[str, int]]] = {}

    def first(self, tags: dict[str, int]) -> tuple[int, str] | None:
        """The lowest tag that still waits. Tags only grow, so an outdated entry is found when it comes up."""
        while self._head and self._head[1] in tags:
            self._push(self._head[1], tags)
            self._head = next(self._order, None)
        while self._served and (self._served[0][0] != tags[self._served[0][1]] or not self._waits(self._served[0][1])):
            client = self._served[0][1]
            if self._waits(client):
                heapreplace(self._served, (tags[client], client))
            else:
                heappop(self._served)
        if self._head and (not self._served or self._head <= self._served[0]):
            return self._head
        return self._served[0] if self._served else None

    def take(self, client: str) -> str:
        rows = self._rows.get(client)
        if rows is None:
            rows = self._rows[client] = list(self._group.rows[client].items())
        replica, waiting = rows.pop(0)
        if waiting > 1:
            rows.append((replica, waiting - 1))
        return replica

    def _waits(self, client: str) -> bool:
        return client not in self._rows or bool(self._rows[client])

    def _push(self, client: str, tags: dict[str, int]) -> None:
        if self._waits(client):
            heappush(self._served, (tags[client], client))
