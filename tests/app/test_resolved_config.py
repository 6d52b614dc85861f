import ssl
from pathlib import Path

import pytest
import trustme
from keyturn import config
from keyturn.app.resolved_config import (
    FIXED_SETTINGS,
    ResolvedConfig,
    inbound_tls,
    link_to_store,
    needs_a_restart,
    replica_name,
)
from keyturn.config import Config
from keyturn.config.files import content_of
from keyturn.core.errors import ConfigError

from tests.authorities import Authority
from tests.process import KEYS, write


@pytest.fixture
def authority(tmp_path: Path) -> trustme.CA:
    """With its certificate, and one that it has issued, in files."""
    made = trustme.CA()
    made.cert_pem.write_to_path(tmp_path / "ca.pem")
    issue(tmp_path, made)
    return made


def full(folder: Path, **more: object) -> ResolvedConfig:
    """With all kinds of files."""
    return ResolvedConfig.of(
        configured(folder, tls={**CERTIFICATES, "client_ca": "ca.pem"}, upstream={"ca": "ca.pem"}, **more)
    )


def test_it_knows_what_every_file_holds(tmp_path: Path, authority: trustme.CA) -> None:
    """Also those that loading only names."""
    resolved = full(tmp_path)
    assert resolved.contents == {path: content_of(path) for path in resolved.config.watched_files()}
    assert {path.name for path in resolved.contents} == {"config.yaml", "server.pem", "server.key", "ca.pem"}


def test_everything_that_is_wrong_is_told(tmp_path: Path) -> None:
    """In one run, each with its path."""
    for name in ("server.pem", "server.key", "ca.pem", "keys.json"):
        (tmp_path / name).write_text("nonsense")
    jwt = {"issuer": "https://issuer.example", "audience": "a", "subject": "b", "jwks_file": "keys.json"}
    clients = [{"name": "ci", "jwt": jwt}]
    with pytest.raises(ConfigError) as found:
        full(tmp_path, clients=clients)
    assert problems(found) == ["clients[0].jwt.jwks_file", "tls", "upstream.ca"]
    (tmp_path / "keys.json").write_text('{"keys": []}')
    with pytest.raises(ConfigError) as found:
        full(tmp_path, clients=clients)
    assert problems(found) == ["tls", "upstream.ca"]


def test_what_has_changed_is_known_by_contents(tmp_path: Path, authority: trustme.CA) -> None:
    """A certificate that was issued anew, an authority that was exchanged; the same files are the same."""
    before = full(tmp_path)
    again = full(tmp_path)
    assert not again.tls_differs(before)
    assert not again.trust_differs(before)
    issue(tmp_path, authority)
    issued = full(tmp_path)
    assert issued.tls_differs(before)
    assert not issued.trust_differs(before)
    trustme.CA().cert_pem.write_to_path(tmp_path / "ca.pem")
    exchanged = full(tmp_path)
    assert exchanged.tls_differs(issued)
    assert exchanged.trust_differs(issued)
    plain = ResolvedConfig.of(configured(tmp_path))
    assert plain.tls_differs(before)
    assert plain.trust_differs(before)
    assert not plain.tls_differs(plain)


def test_everybody_is_known_by_name(tmp_path: Path) -> None:
    """Those without a credential too, where none is required."""
    clients = [{"name": "ci", "token": "t" * 20}]
    resolved = ResolvedConfig.of(configured(tmp_path, clients=clients, authentication="off"))
    assert list(resolved.everybody) == ["ci", "local"]
    assert resolved.everybody["ci"] is resolved.clients[0], "the very clients that callers are known as"
    assert list(ResolvedConfig.of(configured(tmp_path, clients=clients)).everybody) == ["ci"]


def test_what_needs_a_restart_is_told_beside_other_problems(tmp_path: Path) -> None:
    """A running process is followed only by what it can become."""
    before = ResolvedConfig.of(configured(tmp_path))
    assert before.follow(configured(tmp_path, queue={"max_wait": "1s"})).config.queue.max_wait == 1_000_000
    with pytest.raises(ConfigError) as found:
        before.follow(configured(tmp_path, listen="127.0.0.1:1"))
    assert problems(found) == ["listen"]
    (tmp_path / "ca.pem").write_text("nonsense")
    with pytest.raises(ConfigError) as found:
        before.follow(configured(tmp_path, listen="127.0.0.1:1", upstream={"ca": "ca.pem"}))
    assert problems(found) == ["listen", "upstream.ca"]


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


@pytest.mark.parametrize("path", FIXED_SETTINGS)
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


CERTIFICATES = {"cert": "server.pem", "key": "server.key"}


def configured(folder: Path, **settings: object) -> Config:
    """A configuration of one key and these settings."""
    pools = {"default": {"keys": [{"name": "a", "secret": KEYS[0]}]}}
    return config.load(write(folder, {"pools": pools, **settings}), {})


def issue(folder: Path, authority: trustme.CA, name: str = "server") -> None:
    """Write a certificate and its key."""
    issued = authority.issue_cert("127.0.0.1")
    issued.cert_chain_pems[0].write_to_path(folder / f"{name}.pem")
    issued.private_key_pem.write_to_path(folder / f"{name}.key")


def problems(found: pytest.ExceptionInfo[ConfigError]) -> list[str]:
    """The paths of what is wrong."""
    return [problem.path for problem in found.value.problems]


def test_tls_of_the_listeners(tmp_path: Path) -> None:
    """None without `tls`; with `client_ca` callers need a certificate, unless it is said to be optional."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    issue(tmp_path, authority)
    assert inbound_tls(configured(tmp_path)) is None
    modes = []
    for more in ({}, {"client_ca": "ca.pem"}, {"client_ca": "ca.pem", "client_certificate": "optional"}):
        context = inbound_tls(configured(tmp_path, tls={**CERTIFICATES, **more}))
        assert context
        modes.append(context.verify_mode)
    assert modes == [ssl.CERT_NONE, ssl.CERT_REQUIRED, ssl.CERT_OPTIONAL]


def test_certificates_of_callers_are_verified_by_the_same_rules(tmp_path: Path) -> None:
    """Strictly only when that is asked for, on every Python; so are those of others, which plans and links make."""
    issued = Authority(tmp_path)
    tls = {"cert": str(issued.cert), "key": str(issued.key), "client_ca": str(issued.ca)}
    for strict in (False, True):
        context = inbound_tls(configured(tmp_path, tls=tls, strict_certificates=strict))
        assert context
        assert bool(context.verify_flags & ssl.VerifyFlags.VERIFY_X509_STRICT) is strict
        assert context.verify_flags & ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN


def test_files_that_are_no_certificates(tmp_path: Path) -> None:
    """A key of another certificate, and an authority that is none, are problems with a path."""
    authority = trustme.CA()
    issue(tmp_path, authority)
    issue(tmp_path, authority, "other")
    (tmp_path / "ca.pem").write_text("no certificate")
    with pytest.raises(ConfigError) as found:
        inbound_tls(configured(tmp_path, tls={"cert": "server.pem", "key": "other.key"}))
    assert problems(found) == ["tls"]
    with pytest.raises(ConfigError) as found:
        inbound_tls(configured(tmp_path, tls={**CERTIFICATES, "client_ca": "ca.pem"}))
    assert problems(found) == ["tls.client_ca"]


def test_the_way_to_a_store_in_this_process_is_none(tmp_path: Path) -> None:
    """Tokens in memory need no connection."""
    assert link_to_store(configured(tmp_path)) is None


def test_every_replica_has_a_name_of_its_own() -> None:
    """The name has only characters that a key in Redis may have."""
    first, second = replica_name(), replica_name()
    assert first != second
    assert all(letter.isalnum() or letter in ".-" for letter in first)
