from proxy.core.letters import Place, need
from proxy.core.line import Line
from tests.simulation.watch import Shares

NEED = need("terms", ("limit",), None)


def waiting(*clients: str) -> Line:
    """Who waits, with one need and many requests."""
    line = Line()
    line.remember("r", [(Place(client, NEED), 1, 100) for client in clients])
    return line


def test_two_that_wait_may_be_a_token_each_apart() -> None:
    """Law 4 as it is measured: a token each is 1, however long ago the other was ahead."""
    shares, line = Shares(), waiting("a", "b")
    shares.look(line, settled=True)
    for client, worst in (("a", 0.5), ("b", 0.5), ("b", 1.0), ("b", 1.5)):
        shares.got(client, 1)
        shares.look(line, settled=True)
        assert shares.worst == worst


def test_what_is_not_fetched_yet_is_not_measured_but_not_forgotten() -> None:
    """Tokens that are left for another replica are about to be taken."""
    shares, line = Shares(), waiting("a", "b")
    shares.look(line, settled=True)
    for settled, worst in ((False, 0.0), (False, 0.0), (True, 1.5)):
        shares.got("a", 1)
        shares.look(line, settled=settled)
        assert shares.worst == worst


def test_who_has_a_token_for_each_request_is_measured_from_its_next_one() -> None:
    """It does not wait any more: what others get until it comes again is theirs."""
    shares, line = Shares(), waiting("a", "b", "c")
    shares.look(line, settled=True)
    shares.anew("a")
    for _ in range(5):
        shares.got("b", 1)
        shares.got("c", 1)
    shares.look(line, settled=True)
    assert shares.worst == 0
    for worst in (0.5, 1.0, 1.5):
        shares.got("a", 1)
        shares.look(line, settled=True)
        assert shares.worst == worst
