import pytest

from proxy.core.model import SECOND
from proxy.stores.addresses import Node, parse_address
from proxy.stores.lines import Lines
from proxy.stores.routes import Cluster, Direct, Sentinels, route, slot
from proxy.stores.wire import Refused


@pytest.mark.parametrize(
    ("key", "expected"),
    [("123456789", 12739), ("foo", 12182), ("{foo}x", 12182), ("a{foo}{bar}", 12182), ("{}foo", 9500), ("", 0)],
)
def test_the_slot_of_a_key(key: str, expected: int) -> None:
    """CRC16 of the hash tag, or of the whole key if there is none; the first is the specification's own example."""
    assert slot(key) == expected


@pytest.mark.parametrize(
    ("url", "kind"),
    [("redis://h", Direct), ("unix:///s", Direct), ("redis+sentinel://h/s", Sentinels), ("redis+cluster://h", Cluster)],
)
def test_the_scheme_decides_the_way(url: str, kind: type) -> None:
    """One server, sentinels or a cluster."""
    assert isinstance(route(Lines(parse_address(url)), SECOND), kind)


def test_a_cluster_sends_us_on() -> None:
    """`MOVED` for good, `ASK` for once, without a host to the same one; any other error is the answer."""
    way = Cluster(Lines(parse_address("redis+cluster://a")), SECOND)
    asked = Node("a", 6379)
    assert way.follow("foo", Refused("ASK 12182 b:1"), asked) == Node("b", 1)
    assert way._holders == {}
    assert way.follow("foo", Refused("MOVED 12182 ::1:7"), asked) == Node("::1", 7)
    assert way.follow("foo", Refused("MOVED 12182 :8"), asked) == Node("a", 8)
    assert way._holders == {12182: Node("a", 8)}
    assert way.follow("foo", Refused("ERR no"), asked) is None
    way.forget("foo")
    assert way._holders == {}
    assert Direct(Lines(parse_address("redis://a"))).follow("foo", Refused("MOVED 1 b:1"), asked) is None
