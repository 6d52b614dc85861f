from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from proxy.core.letters import LimitTerms
from proxy.core.model import MILLISECOND, SECOND, Micros
from proxy.core.timetable import LATE, Slot, Timetable

BOUND = 11 * SECOND
START = 1_700_000_000 * SECOND + 12_345

LIMITS = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 90)), min_size=1, max_size=3)


def tables(limits: list[tuple[int, int]], quotas: int, replicas: int) -> tuple[list[LimitTerms], list[Timetable]]:
    """The timetable of each of so many replicas, for limits of (requests, seconds)."""
    terms = [LimitTerms(f"l{number}", most, window * SECOND) for number, (most, window) in enumerate(limits)]
    names = tuple(f"k{number}" for number in range(quotas))
    return terms, [Timetable(terms, names, rank=rank, replicas=replicas, bound=BOUND) for rank in range(replicas)]


def all_slots(table: Timetable, limits: list[str], pinned: str | None, end: Micros) -> list[Slot]:
    """Those of one replica until then."""
    found: list[Slot] = []
    while (slot := table.next(limits, pinned, found[-1].begin + 1 if found else START)) and slot.begin < end:
        found.append(slot)
    return found


@given(LIMITS, st.integers(1, 5), st.integers(2, 9))
def test_slots_of_all_keep_every_limit(limits: list[tuple[int, int]], quotas: int, replicas: int) -> None:
    """Law 1: however late in its slot each request is sent and counted, no window holds more than the limit.

    Who falls under all limits goes by all of them, who falls under one by that one.
    """
    terms, timetables = tables(limits, quotas, replicas)
    end = START + 20 * (max(one.window for one in terms) + BOUND + LATE)
    for limit in terms:
        slots = sorted(slot for table in timetables for slot in all_slots(table, [limit.id], None, end))
        assert len(set(slots)) == len(slots), "each slot is somebody's alone"
        for quota in {slot.quota for slot in slots}:
            begins = [slot.begin for slot in slots if slot.quota == quota]
            for first, last in zip(begins, begins[limit.requests :], strict=False):
                assert last - (first + LATE + BOUND) >= limit.window
        for table in timetables:
            of_all = all_slots(table, [one.id for one in terms], None, START + 3 * limit.window)
            assert set(of_all) <= set(slots), "who falls under more limits has none of others' slots"


@given(LIMITS, st.integers(1, 5), st.integers(2, 9), st.booleans())
def test_everybody_has_its_turn(limits: list[tuple[int, int]], quotas: int, replicas: int, pinned: bool) -> None:
    """Under every limit, also for who insists on a quota: as often as is told, and without long gaps."""
    terms, timetables = tables(limits, quotas, replicas)
    for table in timetables:
        for names in [[one.id] for one in terms]:
            interval = table.interval(names, "k0" if pinned else None)
            slots = all_slots(table, names, "k0" if pinned else None, START + 20 * interval * (1 if pinned else quotas))
            gaps = [after.begin - before.begin for before, after in pairwise(slots)]
            assert len(slots) in range(18, 23) if pinned else len(slots) >= 18 * quotas
            assert max(gaps) <= interval * (1 if pinned else 2 * quotas)


def test_a_limit_for_all_is_used_well() -> None:
    """Sixty a minute among a hundred replicas: one key serves fifty a minute, although nobody hears of the others."""
    _, timetables = tables([(60, 60)], 1, 100)
    slots = [slot for table in timetables for slot in all_slots(table, ["l0"], None, START + 600 * SECOND)]
    assert len(slots) == 500
    assert timetables[0].interval(["l0"], None) == 120 * SECOND


def test_nothing_is_told_of_quotas_that_are_not_there() -> None:
    """Neither of a pool without any, nor of a key that is out of it."""
    _, (table, *_) = tables([(1, 60)], 2, 2)
    assert table.next(["l0"], "gone", START) is None
    assert table.next(["other"], "k1", START) is not None
    _, (empty, *_) = tables([(1, 60)], 0, 2)
    assert empty.next(["l0"], None, START) is None
    assert (empty.covers("l0"), empty.covers("other")) == (True, False)
    assert empty.interval(["l0"], None) > MILLISECOND
