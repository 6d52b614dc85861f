import ssl
from pathlib import Path

import pytest
import trustme
from keyturn import config
from keyturn.app.parts import inbound_tls, link_to_store, replica_name
from keyturn.config import Config
from keyturn.core.errors import ConfigError

from tests.authorities import Authority
from tests.process import KEYS, write

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
    """Of characters that a key in Redis may have."""
    first, second = replica_name(), replica_name()
    assert first != second
    assert all(letter.isalnum() or letter in ".-" for letter in first)
