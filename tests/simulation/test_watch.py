from keyturn.core.flows import FairQueue
from keyturn.core.messages import RevisionClass

from tests.simulation.watch import Shares

DEMANDED = RevisionClass("revision", (0,))


def waiting(*clients: str) -> FairQueue:
    """Return clients that wait in one class, with many requests."""
    queue = FairQueue()
    for client in clients:
        queue.put("r", DEMANDED, client, 1, 100)
    return queue


def test_two_that_wait_may_be_a_token_each_apart() -> None:
    """A token each is 1, however long ago the other was ahead (law 4)."""
    shares, queue = Shares(), waiting("a", "b")
    shares.look(queue)
    for client, worst in (("a", 0.5), ("b", 0.5), ("b", 1.0), ("b", 1.5)):
        shares.got(client, 1)
        shares.look(queue)
        assert shares.worst == worst


def test_clients_that_left_or_got_a_refund_are_measured_anew() -> None:
    """A client that left or got a refund is measured anew."""
    shares, queue = Shares(), waiting("a", "b", "c")
    shares.look(queue)
    shares.anew("a")
    for _ in range(5):
        shares.got("b", 1)
        shares.got("c", 1)
    shares.look(queue)
    assert shares.worst == 0
    for worst in (0.5, 1.0, 1.5):
        shares.got("a", 1)
        shares.look(queue)
        assert shares.worst == worst
    queue.put("r", DEMANDED, "a", 1, 0)
    shares.look(queue)
    queue.put("r", DEMANDED, "a", 1, 1)
    shares.got("a", 1)
    shares.look(queue)
    assert shares.worst == 1.5


def test_clients_in_two_classes_are_not_measured() -> None:
    """A client in two classes is not measured, since its tokens in one cost nobody in the other."""
    shares, queue = Shares(), waiting("a", "b")
    queue.put("r", RevisionClass("revision", (0,), "k0"), "a", 1, 1)
    shares.look(queue)
    for _ in range(5):
        shares.got("a", 1)
        shares.look(queue)
    assert shares.worst == 0
