import pytest

from proxy.core.errors import BadRequest
from proxy.core.events import Journal
from proxy.core.exchange import Kind
from proxy.core.http import Request
from proxy.core.model import SECOND, Client
from proxy.core.signals import Route
from proxy.gateway.passage import Passage
from tests.core.worlds import limit, pool
from tests.gateway.settings import Bytes

POOL = pool(2, limit(60), limit(10, 10 * SECOND, "GET /collections"))


def passage(
    method: str = "GET",
    path: str | None = "/me",
    *,
    pinned: str | None = None,
    body: bytes | None = None,
    peer: str = "",
) -> Passage:
    """A request that came at 1 s and may wait for 5 s."""
    given = Bytes(body) if body is not None else None
    request = Request("id", Client("a"), method, b"/", path, (), given, 2, 5 * SECOND, pinned, peer=peer)
    return Passage.of(request, Journal(), POOL, SECOND)


def test_what_a_request_waits_with() -> None:
    """Its deadline, its urgency, the limits that it falls under, the quota of the key that it names."""
    ticket = passage().ticket
    assert (ticket.deadline, ticket.urgency, ticket.kind) == (6 * SECOND, 2, Kind((0,)))
    assert ticket.caller is None
    assert passage(peer="192.0.2.1").ticket.caller == ("192.0.2.1", "GET", "/me")
    assert passage(path="/collections").ticket.kind == Kind((0, 1))
    assert passage(pinned="k1").ticket.kind == Kind((0,), "k1")
    with pytest.raises(BadRequest):
        passage(pinned="k9")


@pytest.mark.parametrize(
    ("method", "repeatable"),
    [
        ("GET", True),
        ("HEAD", True),
        ("PUT", True),
        ("DELETE", True),
        ("OPTIONS", True),
        ("POST", False),
        ("PATCH", False),
    ],
)
def test_what_may_be_sent_twice(method: str, repeatable: bool) -> None:
    """Idempotent methods, as long as their body can be read again."""
    one = passage(method, body=b"{}")
    assert (one.repeatable, one.replayable) == (repeatable, True)
    assert one.body is not None
    one.body.replayable = False
    assert (one.repeatable, one.replayable) == (False, False)


def test_its_route() -> None:
    """What an upstream would limit together."""
    assert passage("HEAD", "/collections/1").route == Route("GET", "collections", 2)
