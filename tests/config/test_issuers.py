from pathlib import Path

import pytest
from keyturn.config.issuers import discovery_url, fetchable, merged, parse_keys_url

from tests.config.samples import loaded, problems


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://issuer.example", True),
        ("https://issuer.example:8443/realms/a?x=1", True),
        ("http://127.0.0.1:8080/keys", True),
        ("http://localhost/keys", True),
        ("http://[::1]/keys", True),
        ("http://issuer.example/keys", False),
        ("http://127.0.0.1.example/keys", False),
        ("https://user@issuer.example", False),
        ("https://issuer.example/#keys", False),
        ("https://issuer.example:port", False),
        ("https://issuer .example", False),
        ("https:///keys", False),
        ("file:///etc/passwd", False),
        ("issuer", False),
        ("", False),
    ],
)
def test_keys_are_fetched_over_https(url: str, expected: bool) -> None:
    """Over plain http only from this machine."""
    assert fetchable(url) is expected
    if expected:
        assert parse_keys_url(url) == url
    else:
        with pytest.raises(ValueError, match="https://"):
            parse_keys_url(url)


def test_the_discovery_document_stands_below_the_issuer() -> None:
    """A path stays, a closing slash does not."""
    for issuer in ("https://a/b", "https://a/b/"):
        assert discovery_url(issuer) == "https://a/b/.well-known/openid-configuration"


def test_settings_of_one_issuer_are_put_together() -> None:
    """Those that are given, and that are the issuer's."""
    first = merged(None, {"issuer": "i", "subject": "s", "ca": "x", "leeway": None})
    assert merged(first, {"leeway": 0, "ca": None}) == {"ca": "x", "leeway": 0}


def entry(name: str, settings: str = "", issuer: str = "https://one.example") -> str:
    """A client with a JSON Web Token."""
    return f'{{name: {name}, jwt: {{issuer: "{issuer}", audience: a, subject: s{settings}}}}}'


def test_what_is_said_of_an_issuer_is_said_once(tmp_path: Path) -> None:
    """The same twice is no problem, another issuer may have its own."""
    clients = [entry("a"), entry("b", ", leeway: 5s"), entry("c", ", leeway: 5s"), entry("d", ", leeway: 6s")]
    assert set(problems(tmp_path, f"clients: [{', '.join(clients)}]")) == {"clients[3].jwt.leeway"}
    clients[3] = entry("d", ", leeway: 6s", "https://two.example")
    loaded(tmp_path, f"clients: [{', '.join(clients)}]")


@pytest.mark.parametrize(
    ("settings", "issuer", "path"),
    [
        ("", "kubernetes/serviceaccount", "issuer"),
        ("", "http://issuer.example", "issuer"),
        (", jwks_url: https://a/keys, jwks_file: pem", "i", "jwks_url"),
        (", jwks_file: pem, ca: pem", "i", "ca"),
        (", jwks_file: pem, bearer_file: pem", "i", "bearer_file"),
        (", jwks_url: http://a/keys", "https://i", "jwks_url"),
        (", algorithms: [HS256]", "https://i", "algorithms[0]"),
        (", algorithms: [none]", "https://i", "algorithms[0]"),
        (", algorithms: []", "https://i", "algorithms"),
        (", leeway: 6m", "https://i", "leeway"),
    ],
)
def test_settings_that_make_no_sense(tmp_path: Path, settings: str, issuer: str, path: str) -> None:
    """Keys from nowhere or from two places, signatures that prove nothing, clocks that are not set."""
    (tmp_path / "pem").write_text("PEM")
    assert set(problems(tmp_path, f"clients: [{entry('a', settings, issuer)}]")) == {f"clients[0].jwt.{path}"}


def test_an_issuer_need_not_be_a_url(tmp_path: Path) -> None:
    """When the place of its keys is given, with any of its clients."""
    clients = [entry("a", "", "i"), entry("b", ", jwks_url: https://a/keys", "i")]
    loaded(tmp_path, f"clients: [{', '.join(clients)}]")
