"""The queueing of `core.line` played forward without changing the line."""

from collections.abc import Iterable, Iterator
from heapq import heappop, heappush, heapreplace
from itertools import islice

from proxy.core.letters import Need
from proxy.core.line import Group, Line, Row

ROWS = 320
"""Of one client and need that are looked at in one exchange: no more tokens are dealt, those foretold among them."""


class Rehearsal:
    """The same queueing played forward without changing the line: for turns, and for tokens that others will fetch.

    Only what is touched is copied, so a step costs O(log clients) however many wait.
    """

    def __init__(self, line: Line) -> None:
        self._line = line
        self._stamp = line.stamp
        self._groups: dict[Need, _Played] = {}
        self.needs: list[Need] = sorted(line.groups)
        """The needs that somebody waits with."""
        self.waiting = sum(group.waiting for group in line.groups.values())
        """Requests that have not been served."""

    def first(self, need: Need) -> tuple[int, str, int] | None:
        """Whose turn it is among those of a need: the client's tag and name, and the stamp of its first row."""
        played = self._played(need)
        first = played.first()
        return (first[0] + played.lift, first[1], played.stamp(first[1])) if first else None

    def serve(self, need: Need, client: str) -> str:
        """Play one request of that client served; returns the replica whose it is."""
        share, played = self._line.share(client), self._played(need)
        tag = played.tag(client)
        played.lift = max(played.lift, self._line.lag(share) - tag)
        start = tag + played.lift
        self._stamp += 1
        replica = played.take(client, self._stamp)
        for each in share.needs:
            other = self._played(each)
            if each != need:
                self._forgive(other)
            other.move(client, start + share.cost - other.lift)
        self.waiting -= 1
        return replica

    def tag(self, need: Need, client: str) -> int:
        """Where the next request of a client starts."""
        return self._played(need).tag(client) + self._played(need).lift

    def rows(self, need: Need, client: str, most: int) -> list[tuple[str, Row]] | None:
        """What a client has left, by replica, in the order of turns; `None` when that is more than `most` rows."""
        return self._played(need).rows(client, most)

    def provided(self) -> set[str]:
        """Clients of which every request was played served."""
        found = {client for played in self._groups.values() for client in played.touched()}
        return {client for client in found if not self._waits(client)}

    def _waits(self, client: str) -> bool:
        groups = self._groups
        return any(need not in groups or groups[need].waits(client) for need in self._line.share(client).needs)

    def _played(self, need: Need) -> "_Played":
        played = self._groups.get(need)
        if played is None:
            played = self._groups[need] = _Played(self._line.groups[need])
        return played

    def _forgive(self, played: "_Played") -> None:
        first = played.first()
        if first:
            tag, client = first
            played.lift = max(played.lift, self._line.lag(self._line.share(client)) - tag)


class _Played:
    """One group during a rehearsal: the line's own order, overlaid with the clients that were served."""

    def __init__(self, group: Group) -> None:
        self.lift = group.lift
        self._group = group
        self._order: Iterator[tuple[int, str]] = iter(group.clients)
        self._head = next(self._order, None)
        self._tags: dict[str, int] = {}
        """Of clients that were moved."""
        self._moved: list[tuple[int, str]] = []
        self._rows: dict[str, list[tuple[str, Row]]] = {}
        self._cut: set[str] = set()  # clients that may have more rows

    def first(self) -> tuple[int, str] | None:
        """The lowest tag that still waits. Tags only grow, so an outdated entry is found when it comes up."""
        tags = self._tags
        while self._head and self._head[1] in tags:
            self._push(self._head[1])
            self._head = next(self._order, None)
        while self._moved and (self._moved[0][0] != tags[self._moved[0][1]] or not self.waits(self._moved[0][1])):
            client = self._moved[0][1]
            if self.waits(client):
                heapreplace(self._moved, (tags[client], client))
            else:
                heappop(self._moved)
        if self._head and (not self._moved or self._head <= self._moved[0]):
            return self._head
        return self._moved[0] if self._moved else None

    def tag(self, client: str) -> int:
        """A client's tag here, less the lift."""
        tag = self._tags.get(client)
        return (self._group.clients.score(client) or 0) if tag is None else tag

    def move(self, client: str, tag: int) -> None:
        """Put a client behind; a tag never goes back."""
        self._tags[client] = max(self.tag(client), tag)

    def stamp(self, client: str) -> int:
        """Of a client's row whose turn it is."""
        rows = self._rows.get(client)
        return rows[0][1].stamp if rows else next(iter(self._group.rows[client].values())).stamp

    def take(self, client: str, stamp: int) -> str:
        """One request of a client is served; its row is put last, with that stamp. Returns the replica whose it is."""
        rows = self._rows.get(client)
        if rows is None:
            rows = self._rows[client] = list(islice(self._group.rows[client].items(), ROWS))
            self._cut |= {client} if len(rows) == ROWS else set()
        replica, row = rows.pop(0)
        if row.waiting > 1:
            rows.append((replica, Row(row.waiting - 1, stamp)))
        return replica

    def rows(self, client: str, most: int) -> list[tuple[str, Row]] | None:
        """A client's rows in their order, if they are known to be no more than that."""
        rows = self._rows.get(client)
        if rows is None:
            rows = list(islice(self._group.rows[client].items(), most + 1))
        return rows if len(rows) <= most and client not in self._cut else None

    def touched(self) -> Iterable[str]:
        """Clients of which some requests were played served."""
        return self._rows

    def waits(self, client: str) -> bool:
        """Whether some of a client's requests are left."""
        return client not in self._rows or bool(self._rows[client])

    def _push(self, client: str) -> None:
        if self.waits(client):
            heappush(self._moved, (self._tags[client], client))
