from collections.abc import Mapping

import pytest
from keyturn.core.errors import BadRequest, Unauthenticated
from keyturn.core.exchange import DemandClass
from keyturn.core.model import SECOND, Client, Pool
from keyturn.scheduler.waiter import INTERNAL, Displaced, Moved, Waiter, quota_of

from tests.core.worlds import limit, pool

CLIENT = Client("a", weight=2)
NARROW = limit(1, 10 * SECOND, "GET /narrow")


def request(pinned: str | None = None, quota: str | None = None) -> Waiter:
    """A request that falls under every limit by now, and may insist on a key or a quota."""
    return Waiter(Client("a"), DemandClass((0,), quota), 7, 2, pinned, method="GET", path="/narrow")


def updated(waiter: Waiter, pool_: Pool, clients: Mapping[str, Client] | None = None) -> DemandClass:
    """The needs of a request under another configuration."""
    waiter.update(pool_, {"a": CLIENT} if clients is None else clients)
    return waiter.flow.demand_class


def test_a_request_takes_up_what_its_client_and_its_limits_are_now() -> None:
    """With its deadline and urgency as they were."""
    waiter = request()
    assert updated(waiter, pool(2, NARROW, limit(5, SECOND, "GET /other"), limit(9))) == DemandClass((0, 2))
    assert (waiter.client, waiter.deadline, waiter.urgency) == (CLIENT, 7, 2)
    assert waiter.flow.client == "a"


def test_a_pinned_request_follows_its_key_to_another_quota() -> None:
    """As long as the key is there."""
    assert updated(request("k1"), pool(2)) == DemandClass((0,), "k1")
    with pytest.raises(BadRequest):
        updated(request("k1"), pool(1))
    with pytest.raises(BadRequest):
        quota_of("k1", pool(1))


def test_a_flow_that_insists_on_a_quota_ends_with_it() -> None:
    """The request may wait in another; a copy that insists on one leaves the original as it is."""
    assert updated(request(quota="k1"), pool(2)).pinned == "k1"
    with pytest.raises(Displaced):
        updated(request(quota="k1"), pool(1))
    waiter = request()
    assert waiter.on_quota("k1").flow.demand_class == DemandClass((0,), "k1")
    assert waiter.flow.demand_class == DemandClass((0,))


def test_a_client_that_is_gone_or_elsewhere() -> None:
    """Its request is refused, or sent there."""
    with pytest.raises(Unauthenticated, match="client a is not known"):
        updated(request(), pool(1), {})
    with pytest.raises(Moved) as moved:
        updated(request(), pool(1), {"a": Client("a", pool="other")})
    assert moved.value.client == Client("a", pool="other")


def test_health_checks_need_no_configured_client() -> None:
    """They are the proxy's own requests."""
    waiter = Waiter(INTERNAL, DemandClass((0,)), 7, pinned="k0", path="/")
    assert updated(waiter, pool(1), {}) == DemandClass((0,), "k0")
    assert waiter.internal
