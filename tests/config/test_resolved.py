from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import pytest
from keyturn.config import Config, effective, load
from keyturn.core.model import MILLISECOND, SECOND, Client, Issuer, Jwt, Key, Limit, Secret
from keyturn.core.policy import Rule

from tests.config.samples import KEYS, loaded


def test_a_pool_of_the_model_has_keys_limits_and_headers(tmp_path: Path) -> None:
    """Its keys stand in the file, in files of their own, and in a folder, in this order."""
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "z").write_text("zz\n")
    (tmp_path / "b").write_text("bb\n")
    (pool,) = loaded(
        tmp_path,
        """
        pools:
          team:
            guard: 50ms
            limits:
              - {requests: 300, window: 60s}
              - {requests: 10, window: 10s, match: ["GET /collections"]}
            keys:
              - {name: a, secret: aa, quota: shared}
              - {name: b, secret_file: b}
            keys_dir: keys
            headers: {X-Extra: value}
        authentication: required
        """,
        {},
    ).pools_of_model()
    assert pool.name == "team"
    assert pool.keys == (
        Key("a", Secret("aa"), "shared"),
        Key.alone("b", Secret("bb")),
        Key.alone("z", Secret("zz")),
    )
    assert pool.limits == (Limit(300, 60 * SECOND), Limit(10, 10 * SECOND, (Rule.parse("GET /collections"),)))
    assert pool.guard == 50 * MILLISECOND
    assert pool.headers == (("X-Extra", "value"),)


def test_a_client_of_the_model_has_what_it_may_do(tmp_path: Path) -> None:
    """And the digests of its tokens, each once."""
    (full, short) = loaded(
        tmp_path,
        """
        pools: {default: , team: {keys: [{name: a, secret: x}]}}
        clients:
          - name: full
            token: t
            token_sha256: "ABABABABABABABABABABABABABABABABABABABABABABABABABABABABABABABAB"
            pool: team
            weight: 5
            urgency: 1
            max_waiting: 7
            max_in_flight: 9
            rate: {requests: 600, window: 1m}
            allow: ["GET /**"]
            pin: true
          - {name: short, token: s}
        """,
    ).client_models()
    assert full == Client(
        name="full",
        pool="team",
        weight=5,
        urgency=1,
        max_waiting=7,
        max_in_flight=9,
        rate=(600, 60 * SECOND),
        allow=(Rule.parse("GET /**"),),
        pin=True,
        digests=(Secret("t").digest(), "ab" * 32),
    )
    assert short == Client("short", max_in_flight=128, digests=(Secret("s").digest(),))


@pytest.mark.parametrize(
    ("text", "required"),
    [
        ("", False),
        ("clients: [{name: a, token: x}]", True),
        ("listen: 0.0.0.0:8080", True),
        ("listen: [127.0.0.1:0, 10.0.0.1:0]", True),
        ("listen: unix:/run/k.sock", False),
        ("authentication: required", True),
        ("{authentication: off, clients: [{name: a, token: x}]}", False),
        ("{authentication: off, listen: 0.0.0.0:0, allow_anonymous_network: true}", False),
    ],
)
def test_authentication_is_required_when_others_can_call(tmp_path: Path, text: str, *, required: bool) -> None:
    """With clients, or on a network, unless it is off by name; who is anonymous follows."""
    config = loaded(tmp_path, text)
    assert config.authentication_required is required
    assert (config.anonymous_client() is None) is required


def test_anonymous_callers_have_a_name_and_rights(tmp_path: Path) -> None:
    """A sidecar names its service."""
    config = loaded(
        tmp_path,
        'anonymous: {name: "${SERVICE}", weight: 3, rate: {requests: 1, window: 1s}}',
        KEYS | {"SERVICE": "shop"},
    )
    assert config.anonymous_client() == Client("shop", weight=3, rate=(1, SECOND), max_in_flight=128)


def test_a_client_of_the_model_has_what_proves_it(tmp_path: Path) -> None:
    """A name in its certificate, its JSON Web Tokens; what is said of an issuer with one client holds for all."""
    for name in ("cert", "keys.json"):
        (tmp_path / name).write_text("PEM")
    config = loaded(
        tmp_path,
        """
        tls: {cert: cert, key: cert, client_ca: cert}
        clients:
          - {name: a, certificate: {san: a.example}}
          - {name: b, jwt: {issuer: "https://one", audience: x, subject: "s:*", leeway: 5s, algorithms: [ES256]}}
          - {name: c, jwt: {issuer: "https://one", audience: y, subject: t, jwks_file: keys.json}}
          - {name: d, jwt: {issuer: "https://two", audience: y, subject: t}}
        """,
    )
    a, b, c, d = config.client_models()
    one = Issuer("https://one", jwks_file=str(tmp_path / "keys.json"), algorithms=("ES256",), leeway=5 * SECOND)
    assert (a.san, a.jwt) == ("a.example", None)
    assert (b.san, b.jwt) == (None, Jwt(one, "x", "s:*"))
    assert c.jwt == Jwt(one, "y", "t")
    assert d.jwt == Jwt(Issuer("https://two"), "y", "t")
    assert tmp_path / "keys.json" in config.watched_files()


def test_files_that_are_named_are_watched(tmp_path: Path) -> None:
    """The document, secrets, folders of keys and what is in them, certificates; each once."""
    (tmp_path / "keys").mkdir()
    for name in ("keys/z", "b", "cert", "ca"):
        (tmp_path / name).write_text(name.replace("/", ""))
    config = loaded(
        tmp_path,
        """
        tls: {cert: cert, key: cert}
        upstream: {ca: ca}
        pools: {default: {keys: [{name: b, secret_file: b}], keys_dir: keys}}
        """,
    )
    names = ["config.yaml", "b", "keys/z", "keys", "cert", "ca"]
    assert config.watched_files() == tuple(tmp_path / name for name in names)
    assert load(None, KEYS).watched_files() == ()


def test_a_configuration_can_be_made_without_a_file() -> None:
    """For tests and tools: secrets in it count, files do not."""
    config = Config.model_validate({"pools": {"default": {"keys": [{"name": "a", "secret": "x"}]}}})
    assert config.has_keys
    assert not Config().has_keys


def test_a_configuration_does_not_change() -> None:
    """A reload makes another."""
    config = load(None, KEYS)
    with pytest.raises(ValueError, match="frozen"):
        config.drain = 5  # type: ignore[misc]
    assert load(None, KEYS) == config
    assert load(None, {"POSTMAN_API_KEYS": "other"}) != config


def test_limits_of_one_size_have_names_of_their_own(tmp_path: Path) -> None:
    """Metrics and rate fields tell two limits apart that differ in what they match only."""
    path = tmp_path / "config.yaml"
    narrow = "{requests: 10, window: 10s, match: [GET /%s]}"
    limits = ", ".join((narrow % "a", "{requests: 60, window: 60s}", narrow % "b", narrow % "c"))
    path.write_text(f"pools: {{default: {{limits: [{limits}]}}}}")
    (pool,) = load(path, {"POSTMAN_API_KEYS": "one"}).pools_of_model()
    assert [limit.name for limit in pool.limits] == ["10/10s", "60/60s", "10/10s-2", "10/10s-3"]


PASSWORDS = ["p%41+/#?[]@ ", "a&password=b", '"quoted"', "ünï", "x"]


@pytest.mark.parametrize("password", PASSWORDS)
def test_the_stores_password_is_taken_literally(tmp_path: Path, password: str) -> None:
    """From the environment and from a file, which is watched; beside a user name, for the store and the sentinels."""
    (tmp_path / "password").write_text(f"{password}\n", encoding="utf-8")
    environ = {**KEYS, "REDIS_PASSWORD": password}
    for setting in ("password: '${REDIS_PASSWORD}'", "password_file: password"):
        config = loaded(
            tmp_path,
            f"store: {{url: 'redis+sentinel://h/main', username: a%41, sentinel_{setting}, {setting}}}",
            environ,
        )
        given = dict(parse_qsl(urlsplit(config.store_url.reveal()).query))
        assert given == {"username": "a%41", "password": password, "sentinel_password": password}
        assert (tmp_path / "password" in config.watched_files()) == ("file" in setting)
        assert len(password) == 1 or password not in f"{config!r}{effective(config)}{config.store_url}"


def test_a_store_without_a_login_has_its_url(tmp_path: Path) -> None:
    """As it is written."""
    for store in ("{url: 'redis://:p@h'}", "{url: '${STORE:-memory://}', password: p, sentinel_password: p}"):
        config = loaded(tmp_path, f"store: {store}")
        assert config.store_url == config.store.url, "in memory a password may be there for later"
