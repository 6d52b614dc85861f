import pytest
from keyturn.core.errors import LoopDetected
from keyturn.core.http import Request
from keyturn.core.model import Client
from keyturn.web.loops import MAX_PASSES, LoopDetector


def a_request(request_id: str = "id-1", method: str = "GET", target: bytes = b"/me") -> Request:
    """A request of nobody in particular."""
    return Request(request_id, Client("ci"), method, target, target.decode(), (), None, 3, 0)


def test_a_request_that_comes_back_is_known() -> None:
    """As soon as it does, and however many proxies it has passed on the way round."""
    loops = LoopDetector()
    loops.enter(a_request(), 0)
    for passed in (1, 2, 3):
        with pytest.raises(LoopDetected):
            loops.check("id-1", "GET", b"/me", passed)


def test_a_chain_of_proxies_is_no_loop() -> None:
    """Two requests of one id, through a sidecar and this gateway: each names the sidecar only as it comes in."""
    loops = LoopDetector()
    for _ in range(3):
        loops.check("id-1", "GET", b"/me", 1)
        loops.enter(a_request(), 1)
    with pytest.raises(LoopDetected):
        loops.check("id-1", "GET", b"/me", 2)


@pytest.mark.parametrize(
    ("request_id", "method", "target"), [("id-2", "GET", b"/me"), ("id-1", "PUT", b"/me"), ("id-1", "GET", b"/you")]
)
def test_another_request_is_no_loop(request_id: str, method: str, target: bytes) -> None:
    """Whatever differs."""
    loops = LoopDetector()
    loops.enter(a_request(), 0)
    loops.check(request_id, method, target, 1)


def test_what_has_ended_is_forgotten() -> None:
    """The last of several with one id too; nothing is kept."""
    loops = LoopDetector()
    marks = [loops.enter(a_request(), 0) for _ in range(2)]
    loops.leave(marks[0])
    with pytest.raises(LoopDetected):
        loops.check("id-1", "GET", b"/me", 1)
    loops.leave(marks[1])
    loops.check("id-1", "GET", b"/me", 1)
    assert not loops._under_way


def test_so_many_proxies_are_a_loop_in_any_case() -> None:
    """Somebody on the way round may give the request another id."""
    with pytest.raises(LoopDetected):
        LoopDetector().check("id-1", "GET", b"/me", MAX_PASSES)
