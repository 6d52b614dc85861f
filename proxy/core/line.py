"""Who waits, and whose turn it is: start-time fair queueing over the clients of a pool (law 4).

Each client has one *tag*, the virtual time at which its next request starts; the lowest tag is served first. A request
served at start S moves its client's tag to S + 1/weight and the pool's virtual time to S. So clients that both wait get
tokens in the ratio of their weights, within one token each, however many requests each has queued, in however many
lanes and on however many replicas.

1.  A client that comes back after idling starts at the pool's virtual time: no credit for the idle time. It idles, too,
    while a token is left for each of its requests, before their replicas have fetched them.
2.  A client that waited but could not be served (its limits were spent, not the others') keeps its place, up to
    `LAG` requests: what it missed is made up for, but never by starving the others for long. What is beyond is
    forgiven to all who wait with the same need alike (`Group.lift`), so that among them nothing changes.
3.  The lanes of one client take turns, whatever they need and in whichever replicas they are: of those that a token
    could serve, the one served longest ago is first.

Costs: O(log clients) for each request served and each need of its client; nothing depends on how many requests wait.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from proxy.core.letters import Need, Place
from proxy.core.model import Micros
from proxy.core.sortedset import SortedSet

UNIT = 1_000_000
"""Virtual time of one request at weight 1: an integer, so that Lua counts alike."""

ROLLOVER = 1 << 50
"""Virtual time at which it starts over as soon as nobody waits: as a float, it stays exact up to 2^53."""

LAG = 64
"""Requests that a client which could not be served may catch up on."""


@dataclass(slots=True)
class Share:
    """A client's place in virtual time."""

    tag: int = 0
    """Where its next request starts, when it was served last or came."""
    weight: int = 1
    cost: int = UNIT
    """What one request moves its tag by."""
    needs: set[Need] = field(default_factory=set)
    """The needs with which it waits."""

    def weigh(self, weight: int) -> None:
        """Give it another weight."""
        self.weight, self.cost = weight, UNIT // weight


@dataclass(slots=True)
class Row:
    """A lane of a replica: how many wait in it, and its stamp, which is lower the longer ago it came or was served."""

    waiting: int
    stamp: int


@dataclass(slots=True)
class Group:
    """Everybody who waits with one need."""

    clients: SortedSet[str, int] = field(default_factory=SortedSet)
    """By their tags here, less `lift`."""
    lift: int = 0
    """By how much all of them were moved on, since more lag than `LAG` allows is forgiven."""
    rows: dict[str, dict[str, Row]] = field(default_factory=dict)
    """Who waits: by client, then by replica, the one served longest ago first."""
    waiting: int = 0
    weight: int = 0


class Line:
    """The remembered demands of all replicas, in fair order."""

    def __init__(self) -> None:
        self.groups: dict[Need, Group] = {}
        self.now = 0
        """The pool's virtual time."""
        self._level = 0
        """That time when nothing was left for anybody to fetch: whoever is behind it could not be served."""
        self.stamp = 0
        """Of the row that was put last."""
        self._shares: dict[str, Share] = {}
        self._idle: SortedSet[str, int] = SortedSet()
        """Clients that do not wait, by tag; forgotten when the virtual time has passed it."""
        self._provided: set[str] = set()
        """Clients of which each request had a token, granted or left for its replica, when tokens were dealt last."""
        self._places: dict[str, set[Place]] = {}
        self._due: dict[str, Micros] = {}
        self._expiry: SortedSet[str, Micros] = SortedSet()

    # Who waits

    def remember(self, replica: str, demands: Iterable[tuple[Place, int, int]]) -> None:
        """Put a replica's demands in place of those that it reported before: each with a weight and how many wait."""
        wanted = {place: (weight, waiting) for place, weight, waiting in demands if waiting > 0}
        for place in sorted(self._places.get(replica, set()) - wanted.keys()):
            self._drop(replica, place)
        for place, (weight, waiting) in wanted.items():
            self._set(replica, place, weight, waiting)

    def expect(self, replica: str, due: Micros, expires: Micros) -> None:
        """Note when a replica was told to come back, and until when its demands are remembered."""
        self._due[replica] = due
        self._expiry.put(replica, expires)

    def expire(self, now: Micros) -> None:
        """Forget the demands of replicas that did not come back in time, and clients that idle."""
        while (first := self._expiry.first()) and first[0] < now:
            self.forget(first[1])
        while (idle := self._idle.first()) and idle[0] <= self.now:
            del self._shares[self._idle.pop_first()[1]]
        if not self.groups and self.now > ROLLOVER:
            self.now = self._level = 0
            self._shares.clear()
            self._idle = SortedSet()

    def forget(self, replica: str) -> None:
        """Forget all that a replica reported."""
        self.remember(replica, ())
        self._expiry.remove(replica)
        self._due.pop(replica, None)

    def due(self, replica: str) -> Micros | None:
        """When a replica was told to come back."""
        return self._due.get(replica)

    def places(self, replica: str) -> list[Place]:
        """Where a replica waits."""
        return sorted(self._places.get(replica, set()))

    def waiting(self, replica: str, place: Place) -> int:
        """How many of a replica's requests wait in a place."""
        group = self.groups.get(place.need)
        row = group.rows.get(place.client, {}).get(replica) if group else None
        return row.waiting if row else 0

    def share(self, client: str) -> Share:
        """A client's place in virtual time."""
        return self._shares[client]

    def _set(self, replica: str, place: Place, weight: int, waiting: int) -> None:
        share = self._shares.get(place.client)
        if share is None:
            share = self._shares[place.client] = Share()
        if place.client in self._provided and share.needs and waiting > self.waiting(replica, place):
            self._rejoin(place.client, share)
        if not share.needs:
            share.tag = max(share.tag, self.now)
            self._idle.remove(place.client)
        elif place.need not in share.needs:
            share.tag = max(share.tag, self.lag(share))
        if share.weight != weight:
            for need in share.needs:
                self.groups[need].weight += weight - share.weight
            share.weigh(weight)
        group = self.groups.get(place.need)
        if group is None:
            group = self.groups[place.need] = Group()
        rows = group.rows.get(place.client)
        if rows is None:
            rows = group.rows[place.client] = {}
            share.needs.add(place.need)
            self._forgive(group)
            group.clients.put(place.client, share.tag - group.lift)
            group.weight += weight
        if row := rows.get(replica):
            group.waiting += waiting - row.waiting
            row.waiting = waiting
        else:
            group.waiting += waiting
            self._put_last(rows, replica, waiting)
        self._places.setdefault(replica, set()).add(place)

    def _rejoin(self, client: str, share: Share) -> None:
        """More requests of a client come that had a token for each: these start now, those that it had before them."""
        self._provided.discard(client)
        before = sum([row.waiting for need in share.needs for row in self.groups[need].rows[client].values()])
        share.tag = max(share.tag, self.now - before * share.cost)
        for need in share.needs:
            group = self.groups[need]
            group.clients.put(client, max(group.clients.score(client) or 0, share.tag - group.lift))

    def _put_last(self, rows: dict[str, Row], replica: str, waiting: int) -> None:
        self.stamp += 1
        rows[replica] = Row(waiting, self.stamp)

    def _drop(self, replica: str, place: Place) -> None:
        group = self.groups[place.need]
        rows = group.rows[place.client]
        group.waiting -= rows.pop(replica).waiting
        places = self._places[replica]
        places.discard(place)
        if not places:
            del self._places[replica]
        if not rows:
            self._leave(place, group)

    def _leave(self, place: Place, group: Group) -> None:
        share = self._shares[place.client]
        del group.rows[place.client]
        share.needs.discard(place.need)
        group.clients.remove(place.client)
        group.weight -= share.weight
        if not group.rows:
            del self.groups[place.need]
        if not share.needs:
            self._idle.put(place.client, share.tag)

    # Whose turn it is

    def pass_by(self, client: str, weight: int) -> None:
        """One request got its lease as it came, while nobody waits: it costs its client as much as any other."""
        share = self._shares.get(client)
        if share is None:
            share = self._shares[client] = Share()
        if share.weight != weight:
            share.weigh(weight)
        self.now = max(self.now, share.tag)
        share.tag = self.now + share.cost
        self._idle.put(client, share.tag)

    def serve(self, replica: str, place: Place) -> None:
        """One request of the place got its lease."""
        share = self._shares[place.client]
        group = self.groups[place.need]
        tag = group.clients.score(place.client) or 0
        group.lift = max(group.lift, self.lag(share) - tag)
        start = tag + group.lift
        self.now = max(self.now, start)
        share.tag = start + share.cost
        rows = group.rows[place.client]
        left = rows[replica].waiting - 1
        if left:
            del rows[replica]
            self._put_last(rows, replica, left)
            group.waiting -= 1
        else:
            self._drop(replica, place)
        self._move(place, share)

    def _move(self, served: Place, share: Share) -> None:
        """Put a client that was served behind, wherever it waits; a tag never goes back there."""
        for need in share.needs:
            group = self.groups[need]
            if need != served.need:
                self._forgive(group)
            group.clients.put(served.client, max(group.clients.score(served.client) or 0, share.tag - group.lift))
        if not share.needs:
            self._idle.put(served.client, share.tag)

    def _forgive(self, group: Group) -> None:
        """Leave the first of a group no more than `LAG` requests behind, and all in it as far from it as before."""
        first = group.clients.first()
        if first:
            tag, client = first
            group.lift = max(group.lift, self.lag(self._shares[client]) - tag)

    def lag(self, share: Share) -> int:
        """The tag of a client that is as far behind as it may be."""
        return self._level - LAG * share.cost

    def provide(self, clients: set[str]) -> None:
        """Tokens are dealt, and each request of these clients has one."""
        self._provided = clients

    def level(self) -> None:
        """Nothing is left for anybody to fetch: everybody who could be served was."""
        self._level = self.now

    def refund(self, client: str) -> None:
        """A lease came back unsent: its client is charged nothing."""
        share = self._shares.get(client)
        if share is None:
            return
        share.tag -= share.cost
        for need in share.needs:
            clients = self.groups[need].clients
            clients.put(client, (clients.score(client) or 0) - share.cost)
        if not share.needs:
            self._idle.put(client, share.tag)
