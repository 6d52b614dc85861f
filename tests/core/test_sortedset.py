import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from keyturn.core import sortedset
from keyturn.core.sortedset import SortedSet

MEMBERS = st.sampled_from("abcdefgh")
SCORES = st.integers(-3, 3)


class AgainstAPlainList(RuleBasedStateMachine):
    """The same steps on a dictionary that is sorted when it is read."""

    def __init__(self) -> None:
        super().__init__()
        self.set: SortedSet[str, int] = SortedSet()
        self.plain: dict[str, int] = {}

    def entries(self) -> list[tuple[int, str]]:
        """Return the expected entries in order."""
        return sorted((score, member) for member, score in self.plain.items())

    @rule(member=MEMBERS, score=SCORES)
    def put(self, member: str, score: int) -> None:
        """Add or move a member."""
        self.set.put(member, score)
        self.plain[member] = score

    @rule(member=MEMBERS)
    def remove(self, member: str) -> None:
        """Remove a member; return whether it was in."""
        assert self.set.remove(member) == (self.plain.pop(member, None) is not None)

    @precondition(lambda self: self.plain)
    @rule()
    def pop_first(self) -> None:
        """Remove the lowest member."""
        first = self.entries()[0]
        assert self.set.pop_first() == first
        del self.plain[first[1]]

    @invariant()
    def agrees(self) -> None:
        """Order, ranks, scores and membership agree with the dictionary."""
        entries = self.entries()
        assert list(self.set) == entries
        assert len(self.set) == len(entries)
        assert self.set.first() == (entries[0] if entries else None)
        assert [self.set.at(rank) for rank in range(len(entries))] == entries
        assert [self.set.rank(member) for _, member in entries] == list(range(len(entries)))
        for member in "abcdefgh":
            assert self.set.score(member) == self.plain.get(member)
            assert (member in self.set) == (member in self.plain)


class WithMany(AgainstAPlainList):
    """The same with a set for which three members are many."""

    def __init__(self) -> None:
        super().__init__()
        self.few, sortedset.MAX_LIST_SIZE = sortedset.MAX_LIST_SIZE, 3

    def teardown(self) -> None:
        """Restore the bound of few members."""
        sortedset.MAX_LIST_SIZE = self.few


TestAgainstAPlainList = AgainstAPlainList.TestCase
TestWithMany = WithMany.TestCase


@given(st.lists(st.tuples(MEMBERS, st.tuples(SCORES, SCORES))))
def test_scores_may_be_tuples(steps: list[tuple[str, tuple[int, int]]]) -> None:
    """Scores may be tuples, which compare item by item."""
    found: SortedSet[str, tuple[int, int]] = SortedSet()
    for member, score in steps:
        found.put(member, score)
    assert list(found) == sorted((score, member) for member, score in dict(steps).items())


def test_an_empty_set_has_no_entries() -> None:
    """On an empty set `first` and `score` return nothing, ranks and `pop_first` raise."""
    empty: SortedSet[str, int] = SortedSet()
    assert empty.first() is None
    assert empty.score("a") is None
    assert not empty.remove("a")
    with pytest.raises(IndexError):
        empty.at(0)
    with pytest.raises(IndexError):
        empty.pop_first()


def test_a_zero_score_is_a_score() -> None:
    """A member with score 0 is a member, and can be moved and removed."""
    found: SortedSet[str, int] = SortedSet()
    found.put("a", 0)
    found.put("a", 1)
    found.put("b", 0)
    assert repr(found) == "SortedSet([(0, 'b'), (1, 'a')])"
    assert found.remove("b")
    assert list(found) == [(1, "a")]
