from pathlib import Path

import pytest
from keyturn.config import load
from keyturn.core.errors import ConfigError
from keyturn.core.model import Key, Secret

from tests.config.samples import KEYS, MARK, loaded, problems, write


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
    """What is wrong with a file as a whole is told with its name, since there is no setting to name."""
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
    """Of the YAML's names, of variables, of values, between values, and of files; no value is shown."""
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
        ("pools:\n  limits:\n    - {requests: 1, window: 1s}\n", "pools.limits", "indent `limits` below it"),
        ("pools:\n  default:\n  keys:\n    - {name: a, secret: x}\n", "pools.keys", "indent `keys` below it"),
        ("pools:\n  guard: 1s\n", "pools.guard", "indent `guard` below it"),
        ("pools:\n  keys_dir: /keys\n", "pools.keys_dir", "indent `keys_dir` below it"),
        ("pools:\n  url: x\n", "pools.url", "there is `upstream.url`: check the indentation"),
        ("pools:\ndefault:\n  keys: []\n", "default", "indent it under `pools:`"),
        ("url: https://x\n", "url", "there is `upstream.url`, `store.url`: check the indentation"),
        ("requests: 5\n", "requests", "`pools.NAME.limits[].requests`"),
        ("max_wait: 5s\n", "max_wait", "there is `queue.max_wait`"),
        ("upstream:\n  queue: {}\n", "upstream.queue", "there is `queue`: check the indentation"),
        ("queue:\n  join: true\n  store:\n    url: memory://\n", "queue.store", "there is `store`"),
        ("pools:\n  default:\n    window: 5s\n", "pools.default.window", "`pools.NAME.limits[].window`"),
        ("weight: 5\n", "weight", "`clients[].weight`"),
        ("queue:\n  max_wait:5s\n", "queue", "a blank behind the colon"),
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
    assert "indent `headers` below it" in found["pools.headers.X-A"]


def test_a_byte_order_mark_before_the_document_is_no_part_of_it(tmp_path: Path) -> None:
    """Of UTF-8; UTF-16 is refused with what to do."""
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
