from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import pytest
from keyturn.config import Config, effective, load
from keyturn.core.errors import ConfigError
from keyturn.core.model import MILLISECOND, SECOND, Client, Issuer, Jwt, Key, Limit, Secret
from keyturn.core.policy import Rule

from tests.config.samples import KEYS, MARK, loaded, problems, write


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


def test_without_a_file_there_are_defaults() -> None:
    """The keys come from the environment."""
    config = load(None, KEYS)
    (pool,) = config.pools_of_model()
    secrets = [Secret(f"PMAK-{MARK}-{number}") for number in (1, 2)]
    assert list(pool.keys) == [Key.alone(f"key-{secret.digest()[:8]}", secret) for secret in secrets]
    assert config.has_keys


def test_without_keys_there_is_no_configuration() -> None:
    """The message names the variable."""
    with pytest.raises(ConfigError) as caught:
        load(None, {})
    (problem,) = caught.value.problems
    assert problem.path == "pools.default.keys"
    assert "POSTMAN_API_KEYS" in problem.message


def test_a_file_that_is_not_there_is_a_problem(tmp_path: Path) -> None:
    """It was asked for."""
    with pytest.raises(ConfigError, match=r"none\.yaml cannot be read: No such file"):
        load(tmp_path / "none.yaml", KEYS)
    with pytest.raises(ConfigError, match="Is a directory"):
        load(tmp_path, KEYS)


@pytest.mark.parametrize("text", [b"- a list\n", b"a: [\n", b"\xff\xfe", b"#" * (1 << 20) + b"#"])
def test_a_file_that_is_no_configuration_is_named(tmp_path: Path, text: bytes) -> None:
    """A problem of a whole file is reported with the file's name, since no setting can be named."""
    path = tmp_path / "config.yaml"
    path.write_bytes(text)
    with pytest.raises(ConfigError) as caught:
        load(path, {})
    assert [problem.path for problem in caught.value.problems] == [str(path)]


def test_an_empty_file_is_defaults(tmp_path: Path) -> None:
    """As is one of comments."""
    assert loaded(tmp_path, "# nothing") == loaded(tmp_path, "")
    assert loaded(tmp_path, "").pools_of_model() == load(None, KEYS).pools_of_model()


def test_every_problem_is_found_in_one_run(tmp_path: Path) -> None:
    """Problems of names, variables, values, their combination and files are reported; no value is shown."""
    found = problems(
        tmp_path,
        f"""
        authentication: off
        listen: 0.0.0.0:80
        queue: {{max_wait: 1h, max_waiting: -1}}
        queue2: {MARK}
        pools:
          default:
            guard: 100
            guard: 100ms
            keys:
              - {{name: a, secret: {MARK}, secret_file: {MARK}}}
              - {{name: a, secret: "${{NONE}}"}}
            limits: [{{requests: 1, window: 60s, match: [{MARK}]}}]
        clients:
          - {{name: b, token: {MARK}, weight: 0}}
          - {{name: c, token: {MARK}, wieght: 1}}
        """,
    )
    assert set(found) == {
        "authentication",
        "queue.max_wait",
        "queue.max_waiting",
        "queue2",
        "pools.default.guard",
        "pools.default.keys[0]",
        "pools.default.keys[0].secret_file",
        "pools.default.keys[1].name",
        "pools.default.keys[1].secret",
        "pools.default.limits[0].match[0]",
        "clients[0].weight",
        "clients[1].token",
        "clients[1].wieght",
    }
    assert found["clients[1].wieght"] == "unknown key; did you mean `weight`?"


def test_a_missing_variable_is_reported_once(tmp_path: Path) -> None:
    """And nothing else about the value that it would have given."""
    found = problems(tmp_path, 'queue: {max_waiting: "${NONE}"}\nclients: [{name: a, token: "${NONE}"}]')
    assert set(found) == {"queue.max_waiting", "clients[0].token"}
    assert all(message.count("NONE is not set") == 1 and "|" not in message for message in found.values())


def test_variables_can_give_any_kind_of_value(tmp_path: Path) -> None:
    """A whole `${…}` becomes what its setting asks for."""
    environ = KEYS | {"N": "5", "F": "0.5", "T": "true", "D": "5m", "L": "127.0.0.1:0", "O": "off", "TOKEN": MARK}
    config = loaded(
        tmp_path,
        """
        listen: ${L}
        authentication: ${O}
        queue: {max_wait: "${D}", max_waiting: "${N}"}
        retry: {budget: "${F}"}
        anonymous: {pin: "${T}", name: "${SERVICE:-local}"}
        clients: [{name: a, token: "${TOKEN}"}]
        """,
        environ,
    )
    assert config.queue.max_waiting == 5
    assert config.queue.max_wait == 300_000_000
    assert config.retry.budget == 0.5
    assert config.anonymous.pin
    assert str(config.listen[0]) == "127.0.0.1:0"
    assert not config.authentication_required
    assert config.clients[0].token == Secret(MARK)


def test_a_file_can_leave_the_keys_to_the_environment(tmp_path: Path) -> None:
    """Its limits hold for them."""
    config = loaded(tmp_path, "pools: {default: {limits: [{requests: 300, window: 60s}]}}")
    (pool,) = config.pools_of_model()
    assert [key.secret for key in pool.keys] == [Secret(f"PMAK-{MARK}-{number}") for number in (1, 2)]
    assert pool.limits[0].requests == 300


def test_nothing_shows_a_secret(tmp_path: Path) -> None:
    """Neither `repr` nor `str` of what was loaded."""
    (tmp_path / "f").write_text(MARK + "f")
    config = loaded(
        tmp_path,
        f"""
        admin_token: {MARK}a
        store: {{url: "redis://:{MARK}@h/0"}}
        pools: {{default: {{keys: [{{name: a, secret: {MARK}b}}, {{name: b, secret_file: f}}]}}}}
        clients: [{{name: a, token: {MARK}c}}]
        """,
    )
    shown = [config, config.files, config.pools_of_model(), config.client_models(), config.store.url]
    assert all(MARK not in repr(part) and MARK not in str(part) for part in shown)
    assert MARK in config.store.url.reveal()


def test_what_stands_in_plain_text_is_remembered(tmp_path: Path) -> None:
    """A default in the file does, a variable does not."""
    config = loaded(
        tmp_path,
        f"""
        admin_token: "${{NONE:-{MARK}a}}"
        store: {{url: "redis://:{MARK}@h/0"}}
        pools: {{default: {{keys: [{{name: a, secret: {MARK}b}}, {{name: b, secret: "${{K}}"}}]}}}}
        clients: [{{name: a, token: "${{T}}"}}, {{name: b, token: {MARK}c}}]
        """,
        {"K": "k", "T": "t"},
    )
    assert config.files.plain == (
        "admin_token",
        "clients[1].token",
        "pools.default.keys[0].secret",
        "store.url",
    )


def test_paths_start_from_the_files_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the process runs."""
    monkeypatch.chdir("/")
    for name in ("ca", "k"):
        (tmp_path / name).write_text("x")
    config = load(write(tmp_path, "upstream: {ca: ca}\npools: {default: {keys: [{name: a, secret_file: k}]}}"), {})
    assert config.upstream.ca == tmp_path / "ca"
    assert config.pools["default"].keys[0].secret_file == tmp_path / "k"
    assert config.has_keys


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("pools:\n  keys:\n    - {name: a, secret: x}\n", "pools.keys", "write one, such as `default:`, above `keys`"),
        ("pools:\n  limits:\n    - {requests: 1, window: 1s}\n", "pools.limits", "indent `limits` below"),
        ("pools:\n  default:\n  keys:\n    - {name: a, secret: x}\n", "pools.keys", "indent `keys` below"),
        ("pools:\n  guard: 1s\n", "pools.guard", "indent `guard` below"),
        ("pools:\n  keys_dir: /keys\n", "pools.keys_dir", "indent `keys_dir` below"),
        ("pools:\n  url: x\n", "pools.url", "there is `upstream.url`: check the indentation"),
        ("pools:\ndefault:\n  keys: []\n", "default", "indent it under `pools:`"),
        ("url: https://x\n", "url", "there is `upstream.url`, `store.url`: check the indentation"),
        ("requests: 5\n", "requests", "`pools.NAME.limits[].requests`"),
        ("max_wait: 5s\n", "max_wait", "there is `queue.max_wait`"),
        ("upstream:\n  queue: {}\n", "upstream.queue", "there is `queue`: check the indentation"),
        ("queue:\n  join: true\n  store:\n    url: memory://\n", "queue.store", "there is `store`"),
        ("pools:\n  default:\n    window: 5s\n", "pools.default.window", "`pools.NAME.limits[].window`"),
        ("weight: 5\n", "weight", "`clients[].weight`"),
        ("queue:\n  max_wait:5s\n", "queue", "a space after the colon"),
    ],
)
def test_a_setting_on_the_wrong_level_is_told_where_it_belongs(
    tmp_path: Path, text: str, place: str, words: str
) -> None:
    """One line for it, not a list of what is missing elsewhere."""
    found = problems(tmp_path, text)
    assert words in found[place]
    assert set(found) == {place}


def test_settings_of_a_pool_that_look_like_a_pool_are_told_where_they_belong(tmp_path: Path) -> None:
    """`headers` is a mapping, as a pool is."""
    found = problems(tmp_path, "pools:\n  headers:\n    X-A: b\n")
    assert "indent `headers` below" in found["pools.headers.X-A"]


def test_a_byte_order_mark_before_the_document_is_no_part_of_it(tmp_path: Path) -> None:
    """A byte order mark of UTF-8 is accepted; UTF-16 is refused with advice."""
    path = write(tmp_path, "")
    path.write_bytes("\ufeffqueue: {join: true}".encode())
    assert load(path, KEYS).queue.join
    path.write_bytes("\ufeffqueue: {join: true}".encode("utf-16-le"))
    with pytest.raises(ConfigError, match="the file is UTF-16 text: save it as UTF-8"):
        load(path, KEYS)


@pytest.mark.parametrize("secret", ['"PMAK-5ecret"', "'PMAK-5ecret'", '"PMAK-5ecret'])
def test_quotes_around_a_secret_of_the_environment_are_refused(tmp_path: Path, secret: str) -> None:
    """They would be a part of it."""
    pools = "{default: {keys: [{name: a, secret: '${IT}'}]}}"
    text = f"admin_token: ${{IT}}\npools: {pools}\nclients: [{{name: b, token: '${{IT}}'}}]\n"
    found = problems(tmp_path, text, {"IT": secret})
    assert set(found) == {"admin_token", "pools.default.keys[0].secret", "clients[0].token"}
    assert all("take them out" in message for message in found.values())
