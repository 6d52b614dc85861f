import json

from proxy.core.exchange import Demand, Spent, Throttled, Turns, Unsent
from proxy.core.letters import Call, News
from proxy.stores.codec import decode, encode
from tests.core.worlds import lane


def call(*demands: Demand) -> Call:
    """A letter with these demands and one settlement of each kind."""
    ended = (Spent("1", 5), Unsent("2"), Throttled("3", 0, 7, (0,)))
    return Call("r", 2, 1, "e", 9, 1, "t", ended, demands)


def test_a_letter_is_small_json() -> None:
    """Durations stay integers, and what is not said is left out."""
    letter = json.loads(encode(call(Demand(lane(), 2, 3))))
    assert letter["settlements"] == [["s", "1", 5], ["u", "2"], ["t", "3", 0, 7, [0]]]
    assert letter["demands"] == [["a", 2, 3, [0]]]
    assert "held" not in letter


def test_an_answer_speaks_of_the_lanes_of_its_call() -> None:
    """Grants and turns name demands by their number."""
    asked = call(Demand(lane(), 2, 3))
    answer = [b"e", 10, 77, [], [[b"8", 0, b"k0", 1]], [[0, [5], [2, 9]]], [[3, 1, 4]], -1, [], 2, [[b"k0", 6]]]
    reply = decode([*answer, 1, b"10 2 60-a 1 5-b#2 0"], asked)
    assert (reply.rank, reply.news) == (1, News(10, 2, (("60-a", 1), ("5-b#2", 0))))
    assert decode([*answer, 0, b""], asked).news is None
    assert (reply.era, reply.tick, reply.instant, reply.again, reply.replicas) == ("e", 10, 77, None, 2)
    assert [(grant.lease, grant.lane, grant.probe) for grant in reply.grants] == [("8", lane(), True)]
    assert reply.turns == {lane(): Turns((5,), ((2, 9),))}
    assert reply.foreign == (("k0", 6),)
