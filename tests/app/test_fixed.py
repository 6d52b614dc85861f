from pathlib import Path

import pytest
import trustme
from keyturn.app.fixed import SETTINGS, needs_a_restart

from tests.app.test_parts import CERTIFICATES, configured, issue

CHANGES: dict[str, dict[str, object]] = {
    "listen": {"listen": ["127.0.0.1:1", "127.0.0.1:2"]},
    "admin": {"admin": "127.0.0.1:3"},
    "inbound.socket_mode": {"inbound": {"socket_mode": "0600"}},
    "strict_certificates": {"strict_certificates": True},
    "upstream.url": {"upstream": {"url": "https://api.eu.postman.com"}},
    "upstream.key_header": {"upstream": {"key_header": "X-Other"}},
    "upstream.key_query": {"upstream": {"key_query": "other"}},
    "upstream.max_connections": {"upstream": {"max_connections": 7}},
    "upstream.settle_bound": {"upstream": {"settle_bound": "7s"}},
    "store.url": {"store": {"url": "redis://:secret@127.0.0.1:1/0"}},
    "store.username": {"store": {"username": "other", "password": "secret"}},
    "store.password": {"store": {"password": "secret"}},
    "store.password_file": {"store": {"password_file": __file__}},
    "store.sentinel_username": {"store": {"sentinel_username": "other", "sentinel_password": "secret"}},
    "store.sentinel_password": {"store": {"sentinel_password": "secret"}},
    "store.sentinel_password_file": {"store": {"sentinel_password_file": __file__}},
    "store.prefix": {"store": {"prefix": "other"}},
    "store.timeout": {"store": {"timeout": "7s"}},
    "store.on_loss": {"store": {"on_loss": "wait"}},
    "log.format": {"log": {"format": "text"}},
    "traces.endpoint": {"traces": {"endpoint": "http://127.0.0.1:4318/v1/traces"}},
    "traces.sample": {"traces": {"sample": 0.5}},
}


@pytest.mark.parametrize("path", SETTINGS)
def test_what_is_settled_at_the_start(tmp_path: Path, path: str) -> None:
    """Each is named by its path, with what to do, and without its value."""
    before = configured(tmp_path)
    problem, *more = needs_a_restart(before, configured(tmp_path, **CHANGES[path]))
    assert problem.path == path
    assert [one.path for one in more] == ([path.replace("username", "password")] if "username" in path else [])
    assert "needs a restart" in problem.message
    assert "secret" not in problem.message


def test_listeners_begin_with_tls_or_without_it(tmp_path: Path) -> None:
    """Another certificate is no such thing."""
    authority = trustme.CA()
    issue(tmp_path, authority)
    issue(tmp_path, authority, "other")
    plain, secured = configured(tmp_path), configured(tmp_path, tls=CERTIFICATES)
    other = configured(tmp_path, tls={"cert": "other.pem", "key": "other.key"})
    for before, after in ((plain, secured), (secured, plain)):
        assert [problem.path for problem in needs_a_restart(before, after)] == ["tls"]
    assert list(needs_a_restart(secured, other)) == []


def test_everything_else_may_change(tmp_path: Path) -> None:
    """Keys, limits, callers, waits, what is logged."""
    after = configured(
        tmp_path,
        admin_token="t" * 20,
        inbound={"idle_timeout": "1s", "max_buffered": 1 << 20},
        upstream={"response_timeout": "1s", "connect_timeout": "1s", "max_body": 1},
        pools={"other": {"keys": [{"name": "b", "secret": "x" * 20}], "limits": []}},
        queue={"max_wait": "1s", "max_wait_ceiling": "2s", "max_waiting": 3},
        retry={"attempts": 1, "budget": 0},
        authentication="required",
        clients=[{"name": "ci", "token": "t" * 20, "pool": "other"}],
        drain="1s",
        log={"level": "debug", "sample": 0.5},
    )
    assert list(needs_a_restart(configured(tmp_path), after)) == []
