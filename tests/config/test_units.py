import pytest
from hypothesis import given
from hypothesis import strategies as st
from keyturn.config.units import (
    TcpListener,
    UnixListener,
    format_duration,
    format_listener,
    parse_admin,
    parse_duration,
    parse_listener,
    parse_trusted,
)
from keyturn.core.model import MILLISECOND, SECOND


@pytest.mark.parametrize(
    ("text", "micros"),
    [
        ("250ms", 250 * MILLISECOND),
        ("10s", 10 * SECOND),
        ("5m", 300 * SECOND),
        ("1h", 3600 * SECOND),
        ("31d", 31 * 86_400 * SECOND),
        ("0s", 0),
        (" 10s ", 10 * SECOND),
    ],
)
def test_a_duration_is_a_whole_number_and_a_unit(text: str, micros: int) -> None:
    """Durations become integers in microseconds."""
    assert parse_duration(text) == micros


@pytest.mark.parametrize("value", [10, 2.5, "10", "2.5", True])
def test_a_number_alone_is_no_duration(value: object) -> None:
    """A number without a unit is refused with advice."""
    with pytest.raises(ValueError, match="write its unit"):
        parse_duration(value)


@pytest.mark.parametrize("value", ["", "s", "10 s", "1m30s", "-1s", "10S", "1.5s", "1w", None, [], "٣s"])
def test_anything_else_is_no_duration(value: object) -> None:
    """The message says what to write."""
    with pytest.raises(ValueError, match="`250ms`"):
        parse_duration(value)


@given(st.integers(0, 10**12))
def test_a_duration_survives_being_written(millis: int) -> None:
    """A written duration is read as the same duration."""
    assert parse_duration(format_duration(millis * MILLISECOND)) == millis * MILLISECOND


def test_durations_are_written_in_their_largest_unit() -> None:
    """As a person would write them."""
    assert [format_duration(parse_duration(text)) for text in ("60s", "90s", "300000ms", "1500ms", "24h", "0ms")] == [
        "1m",
        "90s",
        "5m",
        "1500ms",
        "1d",
        "0s",
    ]


@pytest.mark.parametrize(
    ("text", "listener"),
    [
        ("127.0.0.1:8080", TcpListener("127.0.0.1", 8080)),
        ("localhost:0", TcpListener("localhost", 0)),
        ("[::1]:8080", TcpListener("::1", 8080)),
        ("[fe80::1%eth0]:80", TcpListener("fe80::1%eth0", 80)),
        ("proxy.example:65535", TcpListener("proxy.example", 65535)),
        ("unix:/run/keyturn.sock", UnixListener("/run/keyturn.sock")),
    ],
)
def test_a_listener_is_a_host_and_a_port_or_a_socket(text: str, listener: object) -> None:
    """A parsed address is written in the same form, and stays the same when parsed again."""
    found = parse_listener(text)
    assert found == listener
    assert str(found) == text
    assert parse_listener(found) is found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("127.0.0.1", "port is missing"),
        ("127.0.0.1:http", "port is missing or no number"),
        ("127.0.0.1:70000", "0 to 65535"),
        (":8080", "0.0.0.0:8080"),
        ("*:8080", "0.0.0.0:8080"),
        ("::1:8080", "in brackets"),
        ("[::g]:8080", "no IPv6 address"),
        ("300.1.2.3:80", "neither a name nor an address"),
        ("a b:80", "neither a name nor an address"),
        ("http://x:80", "in brackets"),
        ("unix:run/x", "absolute"),
        ("unix:/run/", "absolute"),
        ("unix:/" + "x" * 200, "shorter"),
        (8080, "host:port"),
    ],
)
def test_a_listener_that_is_none_is_refused(text: object, message: str) -> None:
    """The message says what to write."""
    with pytest.raises(ValueError, match=message):
        parse_listener(text)


@pytest.mark.parametrize(
    ("text", "loopback"),
    [
        ("127.0.0.1:1", True),
        ("127.8.9.1:1", True),
        ("localhost:1", True),
        ("LOCALHOST:1", True),
        ("[::1]:1", True),
        ("[::ffff:127.0.0.1]:1", True),
        ("unix:/x", True),
        ("0.0.0.0:1", False),
        ("[::]:1", False),
        ("[::ffff:10.0.0.1]:1", False),
        ("10.0.0.1:1", False),
        ("localhost.example:1", False),
    ],
)
def test_loopback_is_what_only_this_machine_reaches(text: str, *, loopback: bool) -> None:
    """Names other than localhost count as a network."""
    assert parse_listener(text).loopback is loopback


@pytest.mark.parametrize(
    ("one", "other", "overlap"),
    [
        ("127.0.0.1:1", "127.0.0.1:1", True),
        ("127.0.0.1:1", "127.0.0.1:2", False),
        ("127.0.0.1:0", "127.0.0.1:0", False),
        ("127.0.0.1:1", "127.0.0.2:1", False),
        ("0.0.0.0:1", "127.0.0.1:1", True),
        ("[::]:1", "127.0.0.1:1", True),
        ("unix:/a", "unix:/a", True),
        ("unix:/a", "unix:/b", False),
        ("unix:/a", "127.0.0.1:1", False),
    ],
)
def test_listeners_overlap_on_the_same_port_of_the_same_host(one: str, other: str, *, overlap: bool) -> None:
    """Every host overlaps with each; port 0 with none."""
    assert parse_listener(one).overlaps(parse_listener(other)) is overlap
    assert parse_listener(other).overlaps(parse_listener(one)) is overlap


def test_a_listener_may_expect_the_proxy_protocol() -> None:
    """It is written as it is read, and may not listen where another does."""
    found = parse_listener({"address": "127.0.0.1:1", "proxy_protocol": "true"})
    assert found == TcpListener("127.0.0.1", 1, proxy_protocol=True)
    assert str(found) == "127.0.0.1:1"
    assert found.overlaps(parse_listener("127.0.0.1:1"))
    assert parse_listener(format_listener(found)) == found
    assert format_listener(parse_listener({"address": "127.0.0.1:1"})) == "127.0.0.1:1"
    other = parse_listener({"address": "unix:/a", "proxy_protocol": True})
    assert other.overlaps(parse_listener("unix:/a"))
    assert not parse_admin("127.0.0.1:1").proxy_protocol


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, "address"),
        ({"proxy_protocol": True}, "address"),
        ({"address": 8080}, "address"),
        ({"address": "127.0.0.1:1", "tls": True}, "address"),
        ({"address": {"address": "127.0.0.1:1"}}, "address"),
        ({"address": "127.0.0.1"}, "port is missing"),
        ({"address": "127.0.0.1:1", "proxy_protocol": "v2"}, "`true` or `false`"),
        ({"address": "127.0.0.1:1", "proxy_protocol": None}, "`true` or `false`"),
    ],
)
def test_other_objects_are_no_listeners(value: object, message: str) -> None:
    """The message says what to write; the admin listener takes no object at all."""
    with pytest.raises(ValueError, match=message):
        parse_listener(value)
    with pytest.raises(ValueError, match="host:port"):
        parse_admin(value)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("10.0.0.1", "10.0.0.1/32"),
        (" 10.0.0.0/8 ", "10.0.0.0/8"),
        ("2001:db8::/32", "2001:db8::/32"),
        ("unix", "unix"),
    ],
)
def test_trusted_proxies_are_addresses_and_networks(value: str, found: str) -> None:
    """Or all that connect at Unix sockets."""
    network = parse_trusted(value)
    assert str(network) == found
    assert parse_trusted(network) == network


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", "write an address"),
        ("proxy.example", "write an address"),
        (10, "write an address"),
        (None, "write an address"),
        ("10.0.0.0/33", "write an address"),
        ("10.0.0.1/8", r"write `10\.0\.0\.0/8`"),
        ("0.0.0.0/0", "every caller"),
        ("::/0", "every caller"),
        ("::ffff:10.0.0.0/104", "own form"),
    ],
)
def test_what_is_no_trusted_proxy_is_refused(value: object, message: str) -> None:
    """The message says what to write."""
    with pytest.raises(ValueError, match=message):
        parse_trusted(value)
