from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from keyturn.config.urls import (
    discovery_url,
    fetchable,
    merge_issuer_settings,
    parse_keys_url,
    parse_store_url,
    parse_upstream_url,
)

from tests.config.samples import loaded, problems

PASSWORD = "pa5ecret"


@pytest.mark.parametrize(
    "url",
    [
        "https://api.getpostman.com",
        "https://api.eu.postman.com:8443",
        "http://127.0.0.1:8081",
        "http://[::1]:8081",
        "http://localhost",
    ],
)
def test_the_upstream_is_a_scheme_a_host_and_a_port(url: str) -> None:
    """Over https; http leads to this machine only. A closing slash is left out."""
    assert parse_upstream_url(url) == url
    assert parse_upstream_url(f"{url}/") == url


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://api.getpostman.com", "https only"),
        ("http://127.0.0.1.example.com", "https only"),
        ("https://api.getpostman.com/v1", "no path"),
        ("https://api.getpostman.com?x=1", "no path"),
        ("https://api.getpostman.com/#x", "no path"),
        (f"https://me:{PASSWORD}@api.getpostman.com", "user name"),
        ("api.getpostman.com", "write `https://`"),
        ("ftp://api.getpostman.com", "write `https://`"),
        ("https://", "write `https://`"),
        ("https://a b", "write `https://`"),
        ("https://host:port", "write `https://`"),
        ("https://[::1", "write `https://`"),
        ("https://a\nb", "write `https://`"),
        (5, "write `https://`"),
    ],
)
def test_another_upstream_is_refused(url: object, message: str) -> None:
    """Keys are never sent in the clear, and what the URL holds is not shown."""
    with pytest.raises(ValueError, match=message) as caught:
        parse_upstream_url(url)
    assert PASSWORD not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("memory://", "memory://"),
        ("redis://localhost", "redis://localhost"),
        ("redis://[::1]:6379/2", "redis://[::1]:6379/2"),
        (f"redis://:{PASSWORD}@h:6379/0", "redis://:…@h:6379/0"),
        (f"rediss://me:{PASSWORD}@h/0?ssl_ca_certs=/ca", "rediss://me:…@h/0?ssl_ca_certs=/ca"),
        (f"redis://h?password={PASSWORD}&db=1", "redis://h?password=…&db=1"),
        (f"unix:///run/redis.sock?db=0&password={PASSWORD}", "unix:///run/redis.sock?db=0&password=…"),
        (f"redis+sentinel://:{PASSWORD}@a:1,b:2/main/0", "redis+sentinel://:…@a:1,b:2/main/0"),
        (f"redis+cluster://:{PASSWORD}@a:1,b:2", "redis+cluster://:…@a:1,b:2"),
    ],
)
def test_a_store_is_shown_without_its_password(url: str, shown: str) -> None:
    """Only `reveal` gives the whole."""
    store = parse_store_url(url)
    assert store.shown == str(store) == shown
    assert store.reveal() == url
    assert store.has_password == (PASSWORD in url)
    assert PASSWORD not in repr(store)
    assert parse_store_url(store) is store


@pytest.mark.parametrize(
    "url",
    [
        "",
        "redis",
        f"postgres://me:{PASSWORD}@h",
        f"memory://{PASSWORD}",
        "redis://",
        f"redis://:{PASSWORD}@",
        f"redis://:{PASSWORD}/x@h",
        f"redis://:{PASSWORD}#x@h",
        f"redis://u:12/{PASSWORD}@h",
        "redis://h/zero",
        "redis://h:port",
        "unix://",
        "unix://h/path",
        "redis+sentinel://a:1,b:2",
        "redis+sentinel://a:1,,b:2/main",
        "redis+cluster://a:1/0",
        "redis://h\n",
        7,
        f"redis://h?{PASSWORD}",
    ],
)
def test_another_store_is_refused(url: object) -> None:
    """The message says what to write and shows nothing of the value."""
    with pytest.raises(ValueError) as caught:
        parse_store_url(url)
    assert "://" in str(caught.value)
    assert PASSWORD not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (
            f"rediss://:{PASSWORD}@h?ssl_cert_reqs=none",
            "no parameter `ssl_cert_reqs` belongs to rediss://; there are db,",
        ),
        (f"rediss://:{PASSWORD}@h?ssl_check_hostname=false", "no parameter `ssl_check_hostname`"),
        ("redis://h?ssl=true", "no parameter `ssl`"),
        ("redis://h?retry_on_timeout=true", "no parameter `retry_on_timeout`"),
        ("redis://h?ssl_ca_certs=/x", "no parameter `ssl_ca_certs`"),
        ("redis+cluster://h?db=1", "no parameter `db`"),
        ("redis+cluster://h?ssl=yes", "`ssl` is `true` or `false`"),
        ("redis+sentinel://h/main?ssl_ca_certs=/x", "`ssl=true` belongs to it"),
        ("rediss://h?ssl_keyfile=/x", "`ssl_keyfile` needs `ssl_certfile`"),
        ("redis://h:0", "the port 0 is not between"),
        ("redis+cluster://h:1,h:65536", "the port 65536 is not between"),
        ("redis://h?db=x", "`db` is a whole number"),
        (f"redis://{PASSWORD}@h", "a user name needs a password"),
        ("redis://h?username=me", "a user name needs a password"),
        ("redis+sentinel://h/main?sentinel_username=me", "a sentinel_username needs a password"),
    ],
)
def test_parameters_that_cannot_be_used_are_named(url: str, message: str) -> None:
    """Before anything is started, and without showing a password."""
    with pytest.raises(ValueError) as caught:
        parse_store_url(url)
    assert message in str(caught.value)
    assert PASSWORD not in str(caught.value)


@given(st.text(st.characters(codec="ascii"), max_size=12), st.sampled_from(["redis", "redis+sentinel", "unix", "x"]))
def test_no_password_shows(noise: str, scheme: str) -> None:
    """Whatever stands around it, a password is either masked or the URL is refused without it."""
    url = f"{scheme}://u{noise}:{PASSWORD}@h/s"
    try:
        shown = str(parse_store_url(url))
    except ValueError as error:
        shown = str(error)
    assert PASSWORD not in shown


@pytest.mark.parametrize("raw", "/#?[")
def test_the_hint_names_where_a_password_is_taken_literally(raw: str) -> None:
    """A broken URL is mostly due to a password that was not percent-encoded."""
    for url in (f"redis://:a{raw}{PASSWORD}@h:6379/0", f"redis+sentinel://u:a{raw}{PASSWORD}@h:1/main"):
        with pytest.raises(ValueError, match=r"`store\.password`") as caught:
            parse_store_url(url)
        assert "`store.password_file`" in str(caught.value)
        assert "percent-encode" in str(caught.value)


@pytest.mark.parametrize(
    ("url", "literal"),
    [
        ("redis://:a%41b@h", True),
        ("redis://u%31:ab@h", True),
        ("redis://h?password=a+b", True),
        ("redis+sentinel://h/main?sentinel_password=a%7Ab", True),
        ("redis://:a+b@h", False),
        ("redis://:a%2Fb%25%20@h", False),
        ("redis://h?password=a%2Bb&db=1", False),
        ("rediss://h?ssl_ca_certs=/a+b", False),
        ("memory://", False),
    ],
)
def test_a_password_that_is_decoded_to_another_is_noticed(url: str, literal: bool) -> None:
    """Nobody encodes letters and digits."""
    assert parse_store_url(url).looks_literal is literal


@pytest.mark.parametrize(
    ("url", "whose"),
    [
        ("redis://:p@h", ""),
        ("redis://h?username=u&password=p", ""),
        ("redis+sentinel://h/m?sentinel_password=p", "sentinel_"),
    ],
)
def test_a_login_is_told_in_the_url(url: str, whose: str) -> None:
    """The store's, or the sentinels'."""
    assert [whose for whose in ("", "sentinel_") if parse_store_url(url).has_login(whose)] == [whose]


@given(
    st.text(min_size=1), st.sampled_from(["redis://h", "unix:///s?db=1", "redis+sentinel://h/m/2", "redis+cluster://h"])
)
def test_a_login_apart_is_taken_literally(secret: str, url: str) -> None:
    """Whatever is in it; it is shown nowhere."""
    store = parse_store_url(url).with_login({"username": secret, "password": secret})
    given = dict(parse_qsl(urlsplit(store.reveal()).query, keep_blank_values=True))
    assert (given["username"], given["password"]) == (secret, secret)
    assert store.shown == url
    assert parse_store_url(url).with_login({}) == parse_store_url(url)


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
    first = merge_issuer_settings(None, {"issuer": "i", "subject": "s", "ca": "x", "leeway": None})
    assert merge_issuer_settings(first, {"leeway": 0, "ca": None}) == {"ca": "x", "leeway": 0}


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
