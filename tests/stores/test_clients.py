import ssl
from pathlib import Path
from typing import Any

import pytest
from keyturn.core.model import SECOND
from keyturn.keepalive import OPTIONS
from keyturn.stores.clients import Opened, opener
from redis.asyncio import Redis, RedisCluster

from tests.stores.servers import Certificates

PASSWORD = "pa5s@cret"
QUOTED = "pa5s%40cret"


def opened(url: str) -> Opened:
    """Return a client for a URL without connecting it."""
    return opener(url, SECOND)()


def settings(url: str) -> dict[str, Any]:
    """Return the settings of connections to the servers of a URL."""
    client = opened(url).client
    return dict(client.connection_pool.connection_kwargs if isinstance(client, Redis) else client.connection_kwargs)


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("redis://h", {"host": "h", "port": 6379}),
        ("redis://[::1]:7/2", {"host": "::1", "port": 7, "db": 2}),
        ("redis://[::1]", {"host": "::1", "port": 6379, "db": 0}),
        ("unix:///run/a%20b.sock?db=2", {"path": "/run/a b.sock", "db": 2}),
    ],
)
def test_a_url_names_a_server(url: str, place: dict[str, Any]) -> None:
    """Without a port, a URL means the default port of servers."""
    assert place.items() <= settings(url).items()


def test_a_url_names_sentinels() -> None:
    """A URL names sentinels with their default port; the path is the service and a database."""
    way = opened("redis+sentinel://a:1,b/main/3")
    assert way.sentinel
    asked = [one.connection_pool.connection_kwargs for one in way.sentinel.sentinels]
    assert [(one["host"], one["port"]) for one in asked] == [("a", 1), ("b", 26379)]
    assert isinstance(way.client, Redis)
    assert way.client.connection_pool.service_name == "main"  # type: ignore[attr-defined]  # a sentinels' pool
    assert settings("redis+sentinel://a:1,b/main/3")["db"] == 3


def test_a_url_names_nodes_of_a_cluster() -> None:
    """The listed nodes stay entry points, whatever the cluster says about itself."""
    client = opened("redis+cluster://a:1,[::1]").client
    assert isinstance(client, RedisCluster)
    assert [(node.host, node.port) for node in client.startup_nodes] == [("a", 1), ("::1", 6379)]
    assert not client.nodes_manager._dynamic_startup_nodes


@pytest.mark.parametrize(
    ("url", "login"),
    [
        ("redis://h", (None, None, 0)),
        (f"redis://:{QUOTED}@h", (None, PASSWORD, 0)),
        (f"redis://me:{QUOTED}@h/3", ("me", PASSWORD, 3)),
        (f"redis://h?username=me&password={QUOTED}&db=3", ("me", PASSWORD, 3)),
        (f"unix://me:{QUOTED}@/s?db=3", ("me", PASSWORD, 3)),
        (f"redis+sentinel://:{QUOTED}@h/main/3", (None, PASSWORD, 3)),
        (f"redis+cluster://me:{QUOTED}@h", ("me", PASSWORD, 0)),
    ],
)
def test_a_login_is_read_from_the_url(url: str, login: tuple[str | None, str | None, int]) -> None:
    """User, password and database come from the authority of the URL, its path or its query."""
    given = settings(url)
    assert (given["username"], given["password"], given.get("db", 0)) == login


def test_sentinels_have_a_login_of_their_own() -> None:
    """Sentinels and servers get their own credentials only."""
    for url, theirs, ours in (
        (f"redis+sentinel://h/main?sentinel_username=me&sentinel_password={QUOTED}", PASSWORD, None),
        (f"redis+sentinel://me:{QUOTED}@h/main", None, PASSWORD),
    ):
        way = opened(url)
        assert way.sentinel
        assert way.sentinel.sentinels[0].connection_pool.connection_kwargs["password"] == theirs
        assert settings(url)["password"] == ours


@pytest.mark.parametrize("url", ["redis://h", "unix:///s", "redis+sentinel://h/main", "redis+cluster://h"])
def test_nothing_is_done_twice(url: str) -> None:
    """The client retries nothing, since a command may have run."""
    way = opened(url)
    asked = way.sentinel.sentinels if way.sentinel else []
    made = [settings(url), *(one.connection_pool.connection_kwargs for one in asked)]
    for one in made:
        assert not one.get("retry_on_error")
        assert not one.get("retry_on_timeout")
        assert one["protocol"] == 2
        assert one["driver_info"] is None
    retries = [one["retry"] for one in made if "retry" in one]
    retries += [way.client.retry] if isinstance(way.client, RedisCluster) else []
    assert retries
    assert [retry.get_retries() for retry in retries] == [0] * len(retries)


def test_tls_is_always_verified(tmp_path: Path) -> None:
    """TLS verifies certificate and name, with the given CA and client certificate."""
    files = Certificates(tmp_path)
    own = f"ssl_ca_certs={files.ca}&ssl_certfile={files.client}&ssl_keyfile={files.key}"
    for url in (f"rediss://h?{own}", f"redis+sentinel://h/s?ssl=true&{own}", f"redis+cluster://h?ssl=true&{own}"):
        given = settings(url)
        assert given["ssl_ca_certs"] == str(files.ca)
        assert given["ssl_certfile"] == str(files.client)
        assert given["ssl_keyfile"] == str(files.key)
        assert given["ssl_cert_reqs"] == "required"
        assert given["ssl_check_hostname"] is True
        assert given["ssl_min_version"] is ssl.TLSVersion.TLSv1_2
        assert given["ssl_exclude_verify_flags"] == [ssl.VerifyFlags.VERIFY_X509_STRICT]
    sentinel = opened(f"redis+sentinel://h/s?ssl=true&{own}").sentinel
    assert sentinel
    assert sentinel.sentinels[0].connection_pool.connection_kwargs["ssl_check_hostname"] is True
    assert "ssl_cert_reqs" not in settings("redis+cluster://h?ssl=false")


def test_files_that_cannot_be_used_are_named() -> None:
    """An unusable file is named in a message without passwords."""
    with pytest.raises(ValueError, match="cannot use /no/such/ca for TLS: No such file") as caught:
        opener(f"rediss://:{QUOTED}@h?ssl_ca_certs=/no/such/ca", SECOND)
    assert PASSWORD not in str(caught.value)


def test_connections_are_asked_whether_they_are_there() -> None:
    """TCP connections use keep-alive, Unix sockets do not."""
    for url in ("redis://h", "redis+sentinel://h/service", "redis+cluster://h"):
        made = settings(url)
        assert (made["socket_keepalive"], made["socket_keepalive_options"]) == (True, OPTIONS)
    assert "socket_keepalive_options" not in settings("unix:///tmp/x")
