"""Dealing: which request gets the next token, and which replica the one after (laws 3 and 4).

`stores/lua/dealing.lua` says the same in Lua.
"""

from bisect import insort
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from heapq import merge

from keyturn.core.closed_buckets import Bucket
from keyturn.core.flows import FairQueue
from keyturn.core.messages import RevisionClass
from keyturn.core.model import Micros
from keyturn.core.revisions import Revisions, RevisionView
from keyturn.core.tokens import TokenBuckets, quota_of

MAX_CANDIDATES = 2_000
"""Candidates that one exchange examines at most."""

MAX_EVENTS = 64
"""Returns of each limit, and reopenings, that are examined to find the next token's replica."""


class Dealer:
    """Chooses among the requests that wait; it changes what is ready, and nothing else."""

    def __init__(self, tokens: TokenBuckets, queue: FairQueue, revisions: Revisions) -> None:
        self._tokens = tokens
        self._queue = queue
        self._revisions = revisions

    def choices(self, most: int) -> Iterator[tuple[RevisionClass, RevisionView, str, str]]:
        """The next requests to be served (class, revision, client, quota). Each is granted before the next."""
        queue, dealt = self._queue, 0
        turns = _ClientTurns(queue)
        for _ in range(MAX_CANDIDATES):
            if dealt == most or not (first := queue.ready.first()):
                break
            score, name = first
            demanded = queue.classes[name]
            view = self._revisions.views[demanded.revision]
            quota = self._tokens.best(view, demanded.limits, demanded.pinned)
            if quota is None:
                queue.ready.remove(name)
                turns.end(name)
                continue
            tag, client = queue.head(name)
            if tag == score:
                dealt += 1
                yield demanded, view, client, quota
                if turns.end(name) and name in queue.classes:
                    turns.begin(name, client)
            elif len(queue.waiting[name]) == 1:
                turns.begin(name, client)
            else:
                queue.ready.put(name, tag)
        turns.end_all()

    def find_ready(self) -> None:
        """Look which classes can be served: those that insist on no quota, and on one of which something changed."""
        queue = self._queue
        names = [*queue.general]
        for quota in self._tokens.touched:
            names += queue.pinned.get(quota, ())
        self._tokens.touched.clear()
        for name in names:
            demanded = queue.classes[name]
            view = self._revisions.views[demanded.revision]
            if name not in queue.ready and self._tokens.best(view, demanded.limits, demanded.pinned) is not None:
                queue.ready.put(name, queue.head(name)[0])

    def look_ahead(self, caller: str) -> tuple[Micros, str] | None:
        """When the next token comes that a waiting class may have, and the replica of which it will be.

        A request may need tokens of several limits, so what comes earlier counts. Where none of the next `MAX_EVENTS`
        events serves anybody, a caller that waits asks again then.
        """
        returned: Counter[Bucket] = Counter()
        seen: Counter[tuple[str, bool]] = Counter()
        for instant, limit, quota, opens in merge(*self._events()):
            if not opens:
                returned[limit, quota] += 1
            if replica := self._served_by(instant, limit, quota, returned):
                return instant, replica
            seen[limit, opens] += 1
            if seen[limit, opens] == MAX_EVENTS:
                return (instant, caller) if self._queue.waits(caller) else None
        return None

    def _events(self) -> Iterator[Iterator[tuple[Micros, str, str, bool]]]:
        """Events to come, soonest first: the returns of each limit, then buckets and quotas that open.

        Each event is an instant, a limit (none for a whole quota), a quota, and whether that opens.
        """
        for limit, cooling in sorted(self._tokens.returns.items()):
            yield _returns(limit, cooling)
        yield ((instant, limit, quota, True) for instant, (limit, quota) in self._tokens.shut.closed)
        yield ((instant, limit, quota, True) for instant, (limit, quota) in self._tokens.shut.probing)
        yield ((instant, "", quota, True) for instant, quota in self._tokens.shut.resting)

    def _served_by(self, at: Micros, limit: str, quota: str, returned: Mapping[Bucket, int]) -> str | None:
        """The replica that a token of this limit on this quota would be for then; `None` if nobody could use it."""
        queue, found = self._queue, None
        for name in [*queue.general, *queue.pinned.get(quota, ())]:
            demanded = queue.classes[name]
            view = self._revisions.views[demanded.revision]
            if demanded.pinned is None and quota not in view.quotas:
                continue
            if limit and all(view.limits[index].id != limit for index in demanded.limits):
                continue
            if not self._tokens.available(view, demanded.limits, quota, at=at, returned=returned):
                continue
            first = (*queue.head(name), name)
            found = first if found is None else min(found, first)
        return queue.replica(found[2], found[1]) if found else None


class _ClientTurns:
    """The classes in which one client waits alone: of each client's, the one whose turn it is is ready, others are not.

    Each request served moves all of them on in the fair order; so a grant would cost a step for each.
    """

    def __init__(self, queue: FairQueue) -> None:
        self._queue = queue
        self._turns: dict[str, list[tuple[int, str]]] = {}
        self._clients: dict[str, str] = {}

    def begin(self, name: str, client: str) -> None:
        """A class may be served that has moved on."""
        turns = self._turns.setdefault(client, [])
        if name not in self._clients:
            self._clients[name] = client
            insort(turns, (self._queue.turn(name, client), name))
        self._queue.ready.remove(name)
        if len(turns) > 1:
            self._queue.ready.remove(turns[1][1])
        self._show(turns)

    def _show(self, turns: list[tuple[int, str]]) -> None:
        self._queue.ready.put(turns[0][1], self._queue.head(turns[0][1])[0])

    def end(self, name: str) -> bool:
        """A class was served, or cannot be any more; says whether it had its turn."""
        client = self._clients.pop(name, None)
        if client is None:
            return False
        turns = self._turns[client]
        del turns[0]  # the only one that was ready
        if turns:
            self._show(turns)
        return True

    def end_all(self) -> None:
        """Those that are left are all ready."""
        for turns in self._turns.values():
            for _, name in turns[1:]:
                self._queue.ready.put(name, self._queue.head(name)[0])


def _returns(limit: str, cooling: Iterable[tuple[Micros, str]]) -> Iterator[tuple[Micros, str, str, bool]]:
    return ((instant, limit, quota_of(member), False) for instant, member in cooling)
