from pathlib import Path

import pytest

from proxy.stores.addresses import Login, Node, parse_address
from tests.stores.servers import Certificates

PASSWORD = "pa5s@cret"
QUOTED = "pa5s%40cret"


@pytest.mark.parametrize(
    ("url", "nodes"),
    [
        ("redis://h", [Node("h", 6379)]),
        ("redis://[::1]:7/2", [Node("::1", 7)]),
        ("redis://[::1]", [Node("::1", 6379)]),
        ("unix:///run/a%20b.sock?db=2", [Node("/run/a b.sock", 0)]),
        ("redis+sentinel://a:1,b/main", [Node("a", 1), Node("b", 26379)]),
        ("redis+cluster://a:1,b", [Node("a", 1), Node("b", 6379)]),
    ],
)
def test_a_url_names_servers(url: str, nodes: list[Node]) -> None:
    """Without a port, the one that the kind of server listens on."""
    assert list(parse_address(url).nodes) == nodes


@pytest.mark.parametrize(
    ("url", "commands"),
    [
        ("redis://h", []),
        ("redis://h/0", []),
        (f"redis://:{QUOTED}@h", [("AUTH", PASSWORD)]),
        (f"redis://me:{QUOTED}@h/3", [("AUTH", "me", PASSWORD), ("SELECT", "3")]),
        (f"redis://h?username=me&password={QUOTED}&db=3", [("AUTH", "me", PASSWORD), ("SELECT", "3")]),
        (f"unix://me:{QUOTED}@/s?db=3", [("AUTH", "me", PASSWORD), ("SELECT", "3")]),
        (f"redis+sentinel://:{QUOTED}@h/main/3", [("AUTH", PASSWORD), ("SELECT", "3")]),
        (f"redis+cluster://me:{QUOTED}@h", [("AUTH", "me", PASSWORD)]),
    ],
)
def test_a_connection_begins_with_the_login(url: str, commands: list[tuple[str, ...]]) -> None:
    """User, password and database come from the front of the URL, its path, or its query."""
    address = parse_address(url)
    assert address.login.commands() == commands
    assert address.sentinel_login == Login()
    assert PASSWORD not in repr(address)


def test_sentinels_have_a_login_of_their_own() -> None:
    """The servers' is not sent to them, nor theirs to the servers."""
    address = parse_address(f"redis+sentinel://h/main?sentinel_username=me&sentinel_password={QUOTED}")
    assert address.service == "main"
    assert address.sentinel_login.commands() == [("AUTH", "me", PASSWORD)]
    assert address.login.commands() == []


def test_tls_is_always_verified(tmp_path: Path) -> None:
    """By the scheme or by `ssl=true`, with the system's CAs or one's own; certificate and name are checked."""
    files = Certificates(tmp_path)
    own = f"ssl_ca_certs={files.ca}&ssl_certfile={files.client}&ssl_keyfile={files.key}"
    for url in (
        f"rediss://h?{own}",
        f"redis+sentinel://h/s?ssl=true&{own}",
        "redis+cluster://h?ssl=true",
        "rediss://h",
    ):
        tls = parse_address(url).tls
        assert tls
        assert tls.check_hostname
        assert tls.verify_mode.name == "CERT_REQUIRED"
    assert parse_address("redis+cluster://h?ssl=false").tls is None


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (f"rediss://:{QUOTED}@h?ssl_cert_reqs=none", "no parameter `ssl_cert_reqs` belongs to rediss://"),
        (f"rediss://:{QUOTED}@h?ssl_check_hostname=false", "no parameter `ssl_check_hostname`"),
        ("redis://h?ssl=true", "no parameter `ssl`"),
        ("redis+cluster://h?db=1", "no parameter `db`"),
        ("redis+cluster://h?ssl=yes", "`ssl` is `true` or `false`"),
        ("redis://h?ssl_ca_certs=/x", "write rediss://"),
        (f"rediss://:{QUOTED}@h?ssl_ca_certs=/no/such/ca", "cannot use /no/such/ca for TLS: No such file"),
        ("redis://h:0", "port 0"),
        ("redis://h?db=x", "`db` is a whole number"),
        ("redis://me@h", "a user name needs a password"),
    ],
)
def test_what_cannot_be_used_is_refused(url: str, message: str) -> None:
    """The message says what is wrong and shows no password."""
    with pytest.raises(ValueError) as caught:
        parse_address(url)
    assert message in str(caught.value)
    assert PASSWORD not in str(caught.value)
