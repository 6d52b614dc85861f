"""A set whose members have scores, in the order of the scores: what Redis calls a sorted set.

The state of a pool uses these operations only, so that Lua can say the same line by line: `put` is ZADD,
`remove` ZREM, `score` ZSCORE, `first` and `at` ZRANGE by rank. Each is O(log n), by `sortedcontainers.SortedList`; up
to `MAX_LIST_SIZE` members a plain list is several times faster, since to move so few is next to nothing.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

from sortedcontainers import SortedList

Member = TypeVar("Member")
Score = TypeVar("Score")

MAX_LIST_SIZE = 4_000


class SortedSet(Generic[Member, Score]):
    """Members by score; equal scores are ordered by member."""

    __slots__ = ("_order", "scores")

    def __init__(self) -> None:
        self.scores: dict[Member, Score] = {}
        """Every member's score, to be read only: the shortest way to see who is in."""
        self._order: Any = []

    def put(self, member: Member, score: Score) -> None:
        """Add a member, or give it another score."""
        old, order, entry = self.scores.get(member), self._order, (score, member)
        if old is not None:
            if old == score:
                return
            if len(self.scores) == 1 and type(order) is list:
                self.scores[member], order[0] = score, entry
                return
            self._take_out((old, member))
        self.scores[member] = score
        if type(order) is not list:
            order.add(entry)
        elif order and entry < order[-1]:
            insort(order, entry)
        else:  # most are instants, which come in their order
            order.append(entry)
        if len(order) > MAX_LIST_SIZE and type(order) is list:
            self._order = SortedList(order)

    def remove(self, member: Member) -> bool:
        """Take a member out; says whether it was in."""
        score = self.scores.pop(member, None)
        if score is None:
            return False
        self._take_out((score, member))
        return True

    def _take_out(self, entry: tuple[Score, Member]) -> None:
        order = self._order
        if type(order) is list:
            del order[bisect_left(order, entry)]
        else:
            order.remove(entry)

    def score(self, member: Member) -> Score | None:
        """A member's score, or `None` when it is not in."""
        return self.scores.get(member)

    def rank(self, member: Member) -> int:
        """How many come before a member that is in.

        Raises:
            KeyError: it is not.
        """
        entry = (self.scores[member], member)
        return bisect_left(self._order, entry) if type(self._order) is list else int(self._order.bisect_left(entry))

    def first(self) -> tuple[Score, Member] | None:
        """The lowest score and its member."""
        return self._order[0] if self.scores else None

    def at(self, rank: int) -> tuple[Score, Member]:
        """The entry of that rank, from 0; negative ranks count from the end, as in ZRANGE.

        Raises:
            IndexError: there are not as many.
        """
        entry: tuple[Score, Member] = self._order[rank]
        return entry

    def pop_first(self) -> tuple[Score, Member]:
        """Take the lowest out.

        Raises:
            IndexError: the set is empty.
        """
        score, member = self._order.pop(0)
        del self.scores[member]
        return score, member

    def __iter__(self) -> Iterator[tuple[Score, Member]]:
        return iter(self._order)

    def __len__(self) -> int:
        return len(self.scores)

    def __contains__(self, member: object) -> bool:
        return member in self.scores

    def __repr__(self) -> str:
        return f"SortedSet({list(self._order)!r})"
