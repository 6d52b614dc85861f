import tracemalloc
from ipaddress import ip_network

import pytest
from keyturn.core import forwarded
from keyturn.core.forwarded import TrustedProxies, telling
from keyturn.core.http import Fields

BALANCER, INNER = "10.0.0.1", "10.9.9.9"
TRUSTED = TrustedProxies((ip_network("10.0.0.0/8"), ip_network("2001:db8:ffff::/48"), "unix"))


def fields(*lines: str) -> Fields:
    """Return the fields of lines."""
    pairs = (line.partition(": ") for line in lines)
    return tuple((name.encode(), value.encode("latin-1")) for name, _, value in pairs)


def caller(*lines: str, peer: str = BALANCER, proxies: TrustedProxies = TRUSTED) -> str:
    """Return the caller that fields name."""
    return proxies.caller(peer, fields(*lines))


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        (["X-Forwarded-For: 192.0.2.7"], "192.0.2.7"),
        (["x-forwarded-FOR: 192.0.2.7 , 10.0.0.2,10.0.0.3"], "192.0.2.7"),
        (["X-Forwarded-For: 1.1.1.1, 192.0.2.7"], "192.0.2.7"),
        (["X-Forwarded-For: 1.1.1.1", "X-Forwarded-For: 192.0.2.7"], "192.0.2.7"),
        (["X-Forwarded-For: 192.0.2.7", "X-Forwarded-For: 10.0.0.2"], "192.0.2.7"),
        (["X-Forwarded-For: 192.0.2.7:4711"], "192.0.2.7"),
        (["X-Forwarded-For: 2001:DB8::7"], "2001:db8::7"),
        (["X-Forwarded-For: [2001:db8::7]:4711, [2001:db8:ffff::1]"], "2001:db8::7"),
        (["X-Forwarded-For: ::ffff:192.0.2.7"], "192.0.2.7"),
        (["X-Forwarded-For: , ,192.0.2.7, "], "192.0.2.7"),
        (["X-Forwarded-For: " + "x" * 60_000 + ", 192.0.2.7"], "192.0.2.7"),
        (["Forwarded: " + '"' * 60_000, "Forwarded: for=192.0.2.7"], "192.0.2.7"),
        (["X-Forwarded-For: 10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        (["Forwarded: for=192.0.2.7"], "192.0.2.7"),
        (["Forwarded: For=192.0.2.7;proto=https;by=10.0.0.1 , for=10.0.0.2"], "192.0.2.7"),
        (['Forwarded: for="192.0.2.7:4711"'], "192.0.2.7"),
        (['Forwarded: for="[2001:db8::7]:_gw";host="a,b"'], "2001:db8::7"),
        ([r'Forwarded: for=1.1.1.1, by="\"," ; for="\1\92.0.2.7";;'], "192.0.2.7"),
        (["Forwarded: for=192.0.2.7:80"], "192.0.2.7"),
        (['Forwarded: for="', "Forwarded: for=192.0.2.7"], "192.0.2.7"),
        (['Forwarded: for=", for=192.0.2.7'], "192.0.2.7"),
        ([r'Forwarded: for=1.1.1.1;x="\, for=192.0.2.7'], "192.0.2.7"),
        (["Forwarded: for=192.0.2.7", "X-Forwarded-For: 1.1.1.1, 192.0.2.7"], "192.0.2.7"),
    ],
)
def test_the_last_that_no_trusted_proxy_has_is_the_caller(lines: list[str], found: str) -> None:
    """The last untrusted address is the caller's, and its own entries before that change nothing."""
    assert caller(*lines) == found


@pytest.mark.parametrize(
    "lines",
    [
        [],
        ["X-Forwarded-For: "],
        ["X-Forwarded-For: ,,"],
        ["X-Forwarded-For: 192.0.2.7, unknown"],
        ["X-Forwarded-For: 192.0.2.7, unknown, 10.0.0.2"],
        ["X-Forwarded-For: 192.0.2.256"],
        ["X-Forwarded-For: 192.0.2.7x"],
        ["X-Forwarded-For: 192.0.2.7:123456"],
        ["X-Forwarded-For: [192.0.2.7]"],
        ["X-Forwarded-For: [2001:db8::7"],
        ["X-Forwarded-For: fe80::1%eth0"],
        ["X-Forwarded-For: unix"],
        ["X-Forwarded-For: 192.0.2.\xb2"],
        ["X-Forwarded-For: " + "0" * 60_000 + "192.0.2.7"],
        ["X-Forwarded-For: 192.0.2.7" + ", 10.0.0.2" * 500],
        ["Forwarded: for=192.0.2.7" + ", for=10.0.0.2" * 500],
        ["X-Forwarded-For: 192.0.2.7" + "," * 4096],
        ["X_Forwarded_For: 192.0.2.7"],
        ["Forwarded: for=unknown"],
        ["Forwarded: for=_hidden, for=10.0.0.2"],
        ["Forwarded: proto=https"],
        ["Forwarded: for"],
        ["Forwarded: for=192.0.2.7;for=192.0.2.8"],
        ["Forwarded: for = 192.0.2.7"],
        ['Forwarded: for="192.0.2.7'],
        ['Forwarded: for="192.0.2.7"x'],
        ["Forwarded: for=192.0.2.7 proto=https"],
        ["Forwarded: for=192.0.2.7", "X-Forwarded-For: 192.0.2.8"],
        ["Forwarded: for=unknown", "X-Forwarded-For: 192.0.2.8"],
    ],
)
def test_without_an_address_it_is_the_peers_own(lines: list[str]) -> None:
    """Without an address, or with two that disagree, the caller is the peer."""
    assert caller(*lines) == BALANCER


def test_strangers_are_not_believed() -> None:
    """Fields of untrusted peers are ignored; a Unix socket is trusted when it is named."""
    assert caller("X-Forwarded-For: 192.0.2.7", peer="203.0.113.1") == "203.0.113.1"
    assert caller("X-Forwarded-For: 192.0.2.7", proxies=TrustedProxies()) == BALANCER
    assert caller("X-Forwarded-For: 192.0.2.7", peer="unix") == "192.0.2.7"
    assert (
        caller("X-Forwarded-For: 192.0.2.7", peer="unix", proxies=TrustedProxies((ip_network("0.0.0.0/1"),))) == "unix"
    )
    assert caller("X-Forwarded-For: 192.0.2.7", peer="") == ""
    assert "::ffff:10.0.0.1" in TRUSTED
    assert (bool(TRUSTED), bool(TrustedProxies())) == (True, False)


@pytest.mark.parametrize(
    "line", [",", '"', "\\", '\\"', "for=,", 'for="', ";", " ", " ;", "for=10.0.0.1,", 'for="10.0.0.1",', "x=y;", ', "']
)
def test_reading_takes_little_memory(line: str) -> None:
    """Reading takes no more than one copy of the fields."""
    peaks = []
    for size in (1 << 13, 1 << 16):
        text = (line * size)[:size].encode()
        tracemalloc.start()
        for name in (b"Forwarded", b"X-Forwarded-For"):
            assert TRUSTED.caller(BALANCER, ((name, text),)) == BALANCER
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] <= 2 * (1 << 16)


def test_patterns_do_not_backtrack() -> None:
    """Patterns read a million characters without backtracking."""
    long = 1_000_000
    for text in (b"\\" * long, b'"' + b"\\x" * long, b" " * long, b"a" * long, b"=" * long):
        assert not forwarded._PAIR.fullmatch(text + b"\0")  # what callers' bytes meet
        assert not any(found[1] is None for found in forwarded._BOUNDARY.finditer(text))


def told(peer: str, found: str, *lines: str, trusted: bool) -> list[str]:
    """Return the fields for the upstream, as lines."""
    shown = telling(peer, found, fields("Host: proxy.example", *lines), "http", trusted=trusted)
    return [f"{name.decode()}: {value.decode()}" for name, value in shown]


def test_the_upstream_learns_of_a_caller_itself() -> None:
    """Fields that an untrusted caller wrote are replaced."""
    lines = ("X-Forwarded-For: 1.1.1.1", "Forwarded: for=1.1.1.1", "X-Forwarded-Proto: https", "X-Forwarded-Host: x")
    assert told("192.0.2.7", "192.0.2.7", *lines, trusted=False) == [
        'Forwarded: for=192.0.2.7;host="proxy.example";proto=http',
        "X-Forwarded-For: 192.0.2.7",
        "X-Forwarded-Host: proxy.example",
        "X-Forwarded-Proto: http",
    ]


def test_the_upstream_learns_what_a_trusted_proxy_said() -> None:
    """The upstream gets a trusted proxy's fields, followed by the proxy itself, in both families of fields."""
    lines = ("X-Forwarded-For: 1.1.1.1, 2001:db8::7", "X-Forwarded-Proto: https", "X-Forwarded-Host: public.example")
    assert told(BALANCER, "2001:db8::7", *lines, trusted=True) == [
        'Forwarded: for="[2001:db8::7]", for=10.0.0.1;host="proxy.example";proto=http',
        "X-Forwarded-For: 1.1.1.1, 2001:db8::7, 10.0.0.1",
        "X-Forwarded-Host: public.example",
        "X-Forwarded-Proto: https",
    ]


def test_the_upstream_does_not_learn_what_is_not_believed() -> None:
    """Fields that disagree are dropped, and a Unix socket has no address."""
    lines = ("X-Forwarded-For: 192.0.2.7", "Forwarded: for=192.0.2.8")
    assert told("unix", "unix", *lines, trusted=True)[:2] == [
        'Forwarded: for=unknown;host="proxy.example";proto=http',
        "X-Forwarded-For: unknown",
    ]
    assert telling("192.0.2.7", "192.0.2.7", (), "https", trusted=False)[:2] == (
        (b"Forwarded", b"for=192.0.2.7;proto=https"),
        (b"X-Forwarded-For", b"192.0.2.7"),
    )
