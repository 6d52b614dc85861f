import pytest
from keyturn.core.errors import BadRequest, Unauthenticated
from keyturn.core.exchange import DemandClass
from keyturn.core.model import SECOND, Client
from keyturn.scheduler.tickets import Displaced, Moved, Ticket, quota_of

from tests.core.worlds import limit, pool

CLIENT = Client("a", weight=2)
NARROW = limit(1, 10 * SECOND, "GET /narrow")


def ticket(**more: object) -> Ticket:
    """Of a request that falls under every limit by now."""
    return Ticket(Client("a"), DemandClass((0,)), 7, 2, **{"method": "GET", "path": "/narrow", **more})  # type: ignore[arg-type]


def test_a_ticket_takes_up_what_its_client_and_its_limits_are_now() -> None:
    """With its deadline and urgency as they were."""
    renewed = ticket().renewed(pool(2, NARROW, limit(5, SECOND, "GET /other"), limit(9)), {"a": CLIENT})
    assert renewed == Ticket(CLIENT, DemandClass((0, 2)), 7, 2, method="GET", path="/narrow")


def test_a_pinned_ticket_follows_its_key_to_another_quota() -> None:
    """As long as the key is there."""
    assert ticket(pinned="k1").renewed(pool(2), {"a": CLIENT}).demand_class == DemandClass((0,), "k1")
    with pytest.raises(BadRequest):
        ticket(pinned="k1").renewed(pool(1), {"a": CLIENT})
    with pytest.raises(BadRequest):
        quota_of("k1", pool(1))


def test_a_lane_that_insists_on_a_quota_ends_with_it() -> None:
    """The request may wait in another."""
    insisting = Ticket(Client("a"), DemandClass((0,), "k1"), 7)
    assert insisting.renewed(pool(2), {"a": CLIENT}).demand_class.pinned == "k1"
    with pytest.raises(Displaced):
        insisting.renewed(pool(1), {"a": CLIENT})


def test_a_client_that_is_gone_or_elsewhere() -> None:
    """Is told so, or sent there."""
    with pytest.raises(Unauthenticated, match="client a is not known"):
        ticket().renewed(pool(1), {})
    with pytest.raises(Moved) as moved:
        ticket().renewed(pool(1), {"a": Client("a", pool="other")})
    assert moved.value.client == Client("a", pool="other")


def test_the_proxys_own_tickets_need_no_client() -> None:
    """Nobody of the configuration is asked for."""
    assert ticket(own=True, pinned="k0").renewed(pool(1), {}).client == Client("a")
