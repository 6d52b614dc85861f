from pathlib import Path

import pytest
import trustme
from keyturn.app.plan import Plan
from keyturn.config.contents import content_of
from keyturn.core.errors import ConfigError

from tests.app.test_parts import CERTIFICATES, configured, issue, problems


@pytest.fixture
def authority(tmp_path: Path) -> trustme.CA:
    """With its certificate, and one that it has issued, in files."""
    made = trustme.CA()
    made.cert_pem.write_to_path(tmp_path / "ca.pem")
    issue(tmp_path, made)
    return made


def full(folder: Path, **more: object) -> Plan:
    """With all kinds of files."""
    return Plan.of(configured(folder, tls={**CERTIFICATES, "client_ca": "ca.pem"}, upstream={"ca": "ca.pem"}, **more))


def test_it_knows_what_every_file_holds(tmp_path: Path, authority: trustme.CA) -> None:
    """Also those that loading only names."""
    plan = full(tmp_path)
    assert plan.contents == {path: content_of(path) for path in plan.config.watched_files()}
    assert {path.name for path in plan.contents} == {"config.yaml", "server.pem", "server.key", "ca.pem"}


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
    plain = Plan.of(configured(tmp_path))
    assert plain.tls_differs(before)
    assert plain.trust_differs(before)
    assert not plain.tls_differs(plain)


def test_everybody_is_known_by_name(tmp_path: Path) -> None:
    """Those without a credential too, where none is required."""
    clients = [{"name": "ci", "token": "t" * 20}]
    plan = Plan.of(configured(tmp_path, clients=clients, authentication="off"))
    assert list(plan.everybody) == ["ci", "local"]
    assert plan.everybody["ci"] is plan.clients[0], "the very clients that callers are known as"
    assert list(Plan.of(configured(tmp_path, clients=clients)).everybody) == ["ci"]


def test_what_needs_a_restart_is_told_beside_other_problems(tmp_path: Path) -> None:
    """A running process is followed only by what it can become."""
    before = Plan.of(configured(tmp_path))
    assert before.follow(configured(tmp_path, queue={"max_wait": "1s"})).config.queue.max_wait == 1_000_000
    with pytest.raises(ConfigError) as found:
        before.follow(configured(tmp_path, listen="127.0.0.1:1"))
    assert problems(found) == ["listen"]
    (tmp_path / "ca.pem").write_text("nonsense")
    with pytest.raises(ConfigError) as found:
        before.follow(configured(tmp_path, listen="127.0.0.1:1", upstream={"ca": "ca.pem"}))
    assert problems(found) == ["listen", "upstream.ca"]
