from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.letters import Place, need
from proxy.core.line import Line
from proxy.core.rehearsal import Rehearsal

NEED = need("terms", ("limit",), None)


def serve_first(line: Line, times: int) -> Counter[str]:
    """Serve whose turn it is, so often; who that was."""
    served: Counter[str] = Counter()
    for _ in range(times):
        rehearsal = Rehearsal(line)
        _, client, _ = rehearsal.first(NEED) or (0, "", 0)
        line.serve(rehearsal.serve(NEED, client), Place(client, NEED))
        served[client] += 1
    return served


@pytest.mark.parametrize("fetched", [True, False])
def test_who_had_a_token_for_each_request_has_no_credit_when_more_come(fetched: bool) -> None:
    """What others get until then is theirs, though one of its replicas has not fetched its token yet."""
    line, own, other = Line(), Place("a", NEED), Place("b", NEED)
    line.remember("r", [(own, 1, 1)])
    line.remember("s", [(own, 1, 1), (other, 1, 100)])
    rehearsal = Rehearsal(line)
    for _ in range(20):
        rehearsal.serve(NEED, (rehearsal.first(NEED) or (0, "", 0))[1])
    assert rehearsal.provided() == {"a"}
    line.provide(rehearsal.provided())
    for place in [own] * fetched + [other] * 18:
        line.serve("s", place)
    line.remember("r", [(own, 1, 11)])
    served, left = serve_first(line, 8), 1 if fetched else 2
    assert abs(served["a"] - served["b"]) <= left + 2


def test_who_has_requests_without_a_token_keeps_its_place() -> None:
    """It waited all the time, so more requests change nothing: it gets what it missed."""
    line, own, other = Line(), Place("a", NEED), Place("b", NEED)
    line.remember("r", [(own, 1, 3)])
    line.remember("s", [(other, 1, 100)])
    rehearsal = Rehearsal(line)
    for _ in range(4):
        rehearsal.serve(NEED, (rehearsal.first(NEED) or (0, "", 0))[1])
    assert rehearsal.provided() == set()
    line.provide(rehearsal.provided())
    for _ in range(10):
        line.serve("s", other)
    line.remember("r", [(own, 1, 11)])
    assert serve_first(line, 10) == {"a": 10}


waiting = st.dictionaries(
    st.tuples(st.sampled_from("rst"), st.sampled_from("abcde")), st.integers(1, 5), min_size=1, max_size=15
)


@given(waiting, st.dictionaries(st.sampled_from("abcde"), st.integers(1, 10)))
def test_what_is_played_is_what_happens(rows: dict[tuple[str, str], int], weights: dict[str, int]) -> None:
    """The rehearsal serves in the order in which the line does, and leaves the line as it was."""
    line = Line()
    for replica in "rst":
        own = {name: number for (at, name), number in rows.items() if at == replica}
        line.remember(replica, [(Place(name, NEED), weights.get(name, 1), own[name]) for name in own])
    rehearsal, played = Rehearsal(line), []
    while first := rehearsal.first(NEED):
        played.append((rehearsal.serve(NEED, first[1]), first[1]))
    assert len(played) == sum(rows.values())
    assert rehearsal.provided() == {name for _, name in rows}
    for replica, name in played:
        assert (Rehearsal(line).first(NEED) or ("", ""))[1] == name
        line.serve(replica, Place(name, NEED))
    assert not line.groups
