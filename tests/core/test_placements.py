from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keyturn.core.model import SECOND, Key, Micros, Pool, Secret
from keyturn.core.placements import BEAT, SILENT, STOP, Placement, PlacementRevision, Rest, name_of, placement_of, rests
from keyturn.stores.memory import LocalPlacements

from tests.virtual import run

SPAN = 60 * SECOND
SPANS = {"a": SPAN, "b": SPAN}
HERE, THERE = {"k": "a", "other": "a"}, {"k": "b", "other": "a"}


def revision(placement: Placement, rank: int, since: float, heard: float = 0) -> PlacementRevision:
    """Return a revision that appeared and was named so many seconds ago."""
    return PlacementRevision(placement, rank, int(since * SECOND), int(heard * SECOND))


def test_a_placement_is_named_by_where_keys_are() -> None:
    """A placement's name depends on neither order nor names of keys."""
    x, y = Secret("x"), Secret("y")
    one = placement_of((Pool("a", (Key.alone("k", x), Key.alone("l", y)), ()),))
    same = placement_of((Pool("a", (Key.alone("m", y), Key.alone("n", x)), ()),))
    moved = placement_of((Pool("a", (Key.alone("k", x),), ()), Pool("b", (Key.alone("l", y),), ())))
    assert name_of(one) == name_of(same) != name_of(moved)
    assert moved == {x.identity: "a", y.identity: "b"}


def test_a_key_that_nobody_places_elsewhere_never_rests() -> None:
    """A key that no revision places elsewhere never rests."""
    assert rests(revision(HERE, 1, 0), (), SPANS) == {}
    assert rests(revision(HERE, 1, 0), (revision({"else": "b", "other": "a"}, 2, 0),), SPANS) == {}


def test_a_later_revision_has_the_key_while_it_lives() -> None:
    """An older revision's key rests while a later one is alive and until its requests count no more."""
    own = revision(HERE, 1, 1000)
    assert rests(own, (revision(THERE, 2, 5, 1),), SPANS) == {"k": Rest("b", None)}
    gone = revision(THERE, 2, 500, SILENT / SECOND + 10)
    assert rests(own, (gone,), SPANS) == {"k": Rest("b", SPAN - 10 * SECOND)}
    assert rests(own, (revision(THERE, 2, 500, SILENT / SECOND + 60),), SPANS) == {}


def test_a_new_revision_begins_a_window_after_the_others_have_stopped() -> None:
    """A new revision's key rests for a window after the older revisions have stopped."""
    lives = revision(THERE, 1, 1000)
    assert rests(revision(HERE, 2, 0), (lives,), SPANS) == {"k": Rest("b", SPAN + STOP)}
    assert rests(revision(HERE, 2, 10), (lives,), SPANS) == {"k": Rest("b", SPAN + STOP - 10 * SECOND)}
    assert rests(revision(HERE, 2, 100), (lives,), SPANS) == {}
    gone = revision(THERE, 1, 1000, SILENT / SECOND + 50)
    assert rests(revision(HERE, 2, 0), (gone,), SPANS) == {"k": Rest("b", 10 * SECOND)}


@pytest.mark.parametrize("order", [1, -1])
def test_the_longest_rest_counts(order: int) -> None:
    """The longest rest counts if several revisions place a key elsewhere."""
    others = [revision(THERE, 1, 1000), revision({"k": "c"}, 3, 9, 1)][::order]
    assert rests(revision(HERE, 2, 0), others, SPANS) == {"k": Rest("c", None)}


class _Fleet:
    """Replicas that adopt revisions, die and come back, and record when each uses the key in which pool."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.now: Micros = 0
        self.registry = LocalPlacements(lambda: self.now)
        self.going_by: list[Placement | None] = [None] * 3
        self.resting: list[bool] = [False] * 3
        self.next_beat: list[Micros] = [0] * 3
        self.used: list[tuple[Micros, str]] = []

    async def name(self, replica: int) -> None:
        placement = self.going_by[replica]
        assert placement is not None
        own, others = await self.registry.name(placement)
        self.resting[replica] = "k" in rests(own, others, SPANS)
        self.next_beat[replica] = self.now + BEAT

    async def step(self) -> None:
        for replica, placement in enumerate(self.going_by):
            if self.random.random() < 0.005:
                self.going_by[replica] = self.random.choice([HERE, HERE, THERE, THERE, None])
                if self.going_by[replica] is not None:
                    await self.name(replica)
            elif placement is not None and self.now >= self.next_beat[replica]:
                await self.name(replica)
            if (placement := self.going_by[replica]) is not None and not self.resting[replica]:
                self.used.append((self.now, placement["k"]))
        self.now += SECOND // 2


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32))
def test_no_history_uses_a_key_in_two_pools_within_a_window(seed: int) -> None:
    """No history of revisions and deaths uses a key in two pools within a window, nor rests it for good (law 1)."""
    fleet = _Fleet(Random(seed))

    async def live() -> None:
        for _ in range(2000):
            await fleet.step()
        before = len(fleet.used)
        fleet.going_by = [HERE, None, None]
        await fleet.name(0)
        for _ in range(200):
            fleet.now += SECOND
            await fleet.name(0)
        assert not fleet.resting[0], before

    run(live())
    last: dict[str, Micros] = {}
    for at, pool in fleet.used:
        other = last.get("b" if pool == "a" else "a")
        assert other is None or at - other >= SPAN
        last[pool] = at
