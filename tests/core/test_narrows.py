from hypothesis import given
from hypothesis import strategies as st
from keyturn.core.model import MILLISECOND, SECOND, Micros
from keyturn.core.narrows import BUSY, GUARD, KEEP, MOST, RECHECK, UNTOLD, Narrows, Way
from keyturn.core.signals import Route

LIST, ONE = Route.of("GET", "/collections"), Route.of("GET", "/collections/1")
BOTH = ("k0", "k1")
NOW: Micros = 1_000 * SECOND


def test_what_did_not_show_does_not_hold_anybody_up() -> None:
    """Another route, another quota."""
    narrows = Narrows()
    assert narrows.way(LIST, BOTH, NOW) == Way()
    narrows.refused(LIST, "k0", NOW, 7 * SECOND, 10, None)
    assert narrows.way(ONE, BOTH, NOW) == Way()
    assert narrows.way(LIST, ("k1",), NOW) == Way()
    assert not narrows.took(LIST, "k1")


def test_the_other_quota_serves_meanwhile() -> None:
    """And when both are closed, the first that opens is waited for."""
    narrows = Narrows()
    until = narrows.refused(LIST, "k0", NOW, 7 * SECOND, 10, None)
    assert until == NOW + 7 * SECOND + GUARD
    assert {narrows.way(LIST, BOTH, NOW) for _ in range(4)} == {Way("k1")}
    narrows.refused(LIST, "k1", NOW, None, 10, None)
    assert narrows.way(LIST, BOTH, NOW) == Way(later=until)
    assert narrows.way(LIST, ("k1",), NOW) == Way(later=NOW + UNTOLD + GUARD)
    assert {narrows.way(LIST, BOTH, NOW + 20 * SECOND) for _ in range(4)} == {Way("k0"), Way("k1")}


def test_without_a_size_one_goes_at_a_time() -> None:
    """The others look again soon, and go when it is counted no longer."""
    narrows = Narrows()
    now = narrows.refused(LIST, "k0", NOW, 2 * SECOND, None, None)
    assert narrows.way(LIST, ("k0",), now) == Way("k0")
    assert narrows.took(LIST, "k0")
    assert narrows.way(LIST, ("k0",), now) == Way(later=now + BUSY)
    narrows.ended(LIST, "k0", now + SECOND, counted=True)
    assert narrows.way(LIST, ("k0",), now + SECOND) == Way(later=now + 3 * SECOND + GUARD)
    narrows.took(LIST, "k0")
    narrows.ended(LIST, "k0", now + 4 * SECOND, counted=False)
    assert narrows.way(LIST, ("k0",), now + 4 * SECOND) == Way("k0"), "what was not sent costs nothing"


def test_a_refusal_is_never_shortened() -> None:
    """The later of two times counts."""
    narrows = Narrows()
    until = narrows.refused(LIST, "k0", NOW, 9 * SECOND, 10, None)
    assert narrows.refused(LIST, "k0", NOW + SECOND, SECOND, 10, None) == until


def test_it_is_forgotten_in_time() -> None:
    """The upstream may have changed its mind; what is under way is waited for."""
    narrows = Narrows()
    until = narrows.refused(LIST, "k0", NOW, SECOND, 10, None)
    narrows.took(LIST, "k0")
    assert narrows.way(LIST, ("k0",), until + KEEP) == Way("k0")
    narrows.ended(LIST, "k0", until, counted=False)
    assert narrows.way(LIST, ("k0",), until + KEEP) == Way()
    assert len(narrows) == 0


def test_a_plan_that_is_used_up_is_avoided_and_asked_again() -> None:
    """Nobody waits for it: with no other quota the upstream itself says so."""
    narrows = Narrows()
    narrows.used_up(LIST, "k0", NOW, 604_800 * SECOND)
    assert narrows.way(LIST, BOTH, NOW) == Way("k1")
    narrows.used_up(LIST, "k1", NOW, None)
    assert narrows.way(LIST, BOTH, NOW) == Way()
    assert narrows.way(LIST, BOTH, NOW + RECHECK) == Way()
    assert len(narrows) == 0
    narrows.used_up(LIST, "k0", NOW, 9 * SECOND)
    assert narrows.way(LIST, BOTH, NOW + 9 * SECOND) == Way()


def test_what_is_kept_is_bounded() -> None:
    """Callers choose their paths; the route that was refused longest ago goes first."""
    narrows = Narrows()
    for number in range(MOST + 1):
        narrows.refused(Route("GET", f"r{number}", 1), "k0", NOW, SECOND, 1, None)
    assert len(narrows) == MOST
    assert narrows.way(Route("GET", "r0", 1), ("k0",), NOW) == Way()
    assert narrows.way(Route("GET", "r1", 1), ("k0",), NOW).later is not None


@given(
    st.integers(1, 5),
    st.integers(1, 20),
    st.lists(st.tuples(st.integers(0, 4_000), st.integers(0, 900), st.booleans()), max_size=80),
)
def test_never_more_than_showed(size: int, window: int, requests: list[tuple[int, int, bool]]) -> None:
    """After the refusal at most the limit's size is counted in any of its windows, wherever in a trip that happens."""
    narrows = Narrows()
    now = narrows.refused(LIST, "k0", NOW, 0, size, window * SECOND)
    trips: list[tuple[Micros, Micros]] = []
    for pause, trip, sent in requests:
        now += pause * MILLISECOND
        if narrows.way(LIST, ("k0",), now).quota is None:
            continue
        narrows.took(LIST, "k0")
        narrows.ended(LIST, "k0", now + trip * MILLISECOND, counted=sent)
        if sent:
            trips.append((now, now + trip * MILLISECOND))
    for _, start in trips:
        assert sum(1 for begin, end in trips if end >= start and begin < start + window * SECOND) <= size
