import json
import re
import signal
import socket
import sys
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import yaml
from keyturn import __version__, cli

from tests.config.samples import with_digests
from tests.process import (
    ADMIN_TOKEN,
    KEYS,
    ROOT,
    SECRETS,
    TOKENS,
    Ended,
    ask,
    calling,
    command,
    house,
    request,
    running,
    serving,
    write,
)

BAD = f"""
listen: "8080"
upstrem: {{}}
upstream: {{url: "http://example.com", response_timeout: soon}}
pools: {{default: {{limits: [{{requests: 0, window: 60s}}], keys: [{{name: a, secret: {KEYS[0]}}}, {{name: a}}]}}}}
queue: {{max_wait: 10m}}
clients:
- {{name: ci, token: {TOKENS["ci"]}, weight: heavy}}
- {{name: portal, token: {TOKENS["ci"]}, pool: defualt}}
"""
"""A config.yaml with many mistakes."""

GOOD = f"""
listen: [127.0.0.1:0, "unix:/tmp/keyturn-of-nobody.sock"]
admin_token: {ADMIN_TOKEN}
pools: {{default: {{keys: [{{name: a, secret: {KEYS[0]}}}, {{name: b, secret_file: b}}]}}}}
clients: [{{name: ci, token: {TOKENS["ci"]}, rate: {{requests: 5, window: 90s}}, allow: ["GET /**"]}}]
"""


class Shell:
    """Runs commands in this process, in a folder with an environment of its own."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, capture: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self._patch = patch
        self._capture = capture
        patch.chdir(folder)
        patch.setenv("COLUMNS", "120")
        patch.delenv("POSTMAN_API_KEYS", raising=False)

    def write(self, text: str, name: str = "config.yaml") -> Path:
        """Write a file that only its owner can read."""
        path = self.folder / name
        path.write_text(text, encoding="utf-8")
        path.chmod(0o600)
        return path

    def run(self, *arguments: str, **environ: str) -> Ended:
        """Run a command to its end."""
        with self._patch.context() as patch:
            patch.setattr(sys, "argv", ["keyturn", *arguments])
            for name, value in environ.items():
                patch.setenv(name, value)
            with pytest.raises(SystemExit) as ended:
                cli.main()
        out, err = self._capture.readouterr()
        assert isinstance(ended.value.code, int)
        return Ended(ended.value.code, out, err)


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    """Commands in an empty folder."""
    return Shell(tmp_path, monkeypatch, capsys)


def problems(ended: Ended) -> dict[str, str]:
    """The complaints of a command, by the path that each names."""
    assert all(line.startswith("keyturn: ") for line in ended.complaints), ended.err
    return dict(line.removeprefix("keyturn: ").split(": ", 1) for line in ended.complaints)


# The command line


async def test_help_without_a_command(tmp_path: Path) -> None:
    """`python -m keyturn` alone shows what there is."""
    ended = await command(folder=tmp_path)
    assert (ended.code, ended.err) == (2, "")
    for name in ("serve", "check", "schema", "token", "status", "practice", "demo"):
        assert re.search(rf"\b{name}\b", ended.out)


def test_help_of_each_command(shell: Shell) -> None:
    """Every command has `--help`."""
    for name in ("serve", "check", "schema", "token", "status", "practice", "demo"):
        ended = shell.run(name, "--help")
        assert (ended.code, ended.err) == (0, "")
        assert f" {name} [OPTIONS]" in ended.out


async def test_version(tmp_path: Path) -> None:
    """`--version` needs no command."""
    assert await command("--version", folder=tmp_path) == Ended(0, f"keyturn {__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["serve", "--nope"], "No such option: --nope"),
        (["serv"], "No such command 'serv'"),
        (["serve", "-c"], "Option '-c' requires an argument"),
        (["token"], "Missing argument 'NAME'"),
        (["token", "a b"], "Invalid value for NAME: a name has 1 to 64 of the characters"),
        (["practice", "--port", "99999"], "Invalid value for '--port'"),
        (["practice", "--kind", "odd"], "Invalid value for '--kind'"),
        (["practice", "--window", "1 minute"], "Invalid value for --window: write a whole number and its unit"),
        (["practice", "--key", ""], "keys: must not hold an empty key"),
        (["practice", "--ca", "ca.pem"], "Invalid value for --ca: there is no certificate authority without --tls"),
        (["demo", "--listen", "here"], "listen: write `host:port`"),
    ],
)
def test_bad_command_line(shell: Shell, arguments: list[str], complaint: str) -> None:
    """A mistake in the command line is one line, and exit code 2."""
    ended = shell.run(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert len(ended.complaints) == 1, ended.err
    assert ended.complaints[0].startswith(f"keyturn: {complaint}"), ended.err


async def test_mistake_through_the_real_command_line(tmp_path: Path) -> None:
    """The same by the process itself: one line, no traceback."""
    ended = await command("serve", "--nope", folder=tmp_path)
    assert ended == Ended(2, "", "keyturn: No such option: --nope\n")


# Configuration


async def test_bad_configuration(tmp_path: Path) -> None:
    """`serve` lists every problem with its path, in a line each, without any value; exit code 2."""
    (tmp_path / "config.yaml").write_text(BAD, encoding="utf-8")
    ended = await command("serve", folder=tmp_path)
    assert (ended.code, ended.out) == (2, "")
    assert set(problems(ended)) == {
        "listen",
        "upstrem",
        "upstream.url",
        "upstream.response_timeout",
        "pools.default.limits[0].requests",
        "pools.default.keys[1].name",
        "pools.default.keys[1]",
        "queue.max_wait",
        "clients[0].weight",
        "clients[1].token",
        "clients[1].pool",
    }
    assert "did you mean `upstream`?" in problems(ended)["upstrem"]
    assert [secret for secret in SECRETS if secret in ended.err] == []


async def test_no_key_at_all(tmp_path: Path) -> None:
    """Without any key the message says where to put one."""
    ended = await command("serve", folder=tmp_path)
    assert (ended.code, len(ended.complaints)) == (2, 1)
    assert "POSTMAN_API_KEYS" in ended.err


def test_file_that_cannot_be_read(shell: Shell) -> None:
    """A file that is not there, is a folder or is no YAML is one line."""
    for path in ("missing.yaml", str(shell.folder)):
        for name in ("serve", "check"):
            ended = shell.run(name, "-c", path)
            assert (ended.code, len(ended.complaints)) == (2, 1)
            assert f"{path} cannot be read" in ended.err
    shell.write("a: [")
    ended = shell.run("check")
    assert (ended.code, len(ended.complaints)) == (2, 1)


@pytest.mark.parametrize(
    ("settings", "path"),
    [
        ({"store": {"url": "redis://127.0.0.1?nothing=1"}}, "store.url"),
        ({"tls": {"cert": "config.yaml", "key": "config.yaml"}}, "tls"),
    ],
)
def test_settings_that_cannot_be_carried_out(shell: Shell, settings: Mapping[str, Any], path: str) -> None:
    """`serve` refuses settings that name what is not there, and certificates that are none; so does `check`."""
    shell.write(json.dumps({"listen": "127.0.0.1:0", "admin": "127.0.0.1:0", **settings}))
    for command_ in ("serve", "check"):
        ended = shell.run(command_, POSTMAN_API_KEYS=KEYS[0])
        assert (ended.code, list(problems(ended))) == (2, [path])


async def test_port_in_use(tmp_path: Path) -> None:
    """A port that somebody listens on is one clear line, and exit code 1."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        path = write(tmp_path, {"listen": address, "admin": "127.0.0.1:0"})
        ended = await command("serve", "-c", str(path), folder=tmp_path, environ={"POSTMAN_API_KEYS": KEYS[0]})
    assert (ended.code, ended.out) == (1, "")
    assert ended.complaints == [
        f"keyturn: cannot listen on {address}: address in use. Stop what listens there, or choose another in `listen`."
    ]


async def test_serve_with_keys_of_the_environment(tmp_path: Path) -> None:
    """Without `-c` the folder's config.yaml is read; keys come from POSTMAN_API_KEYS when it gives none."""
    write(tmp_path, {"listen": ["127.0.0.1:0", "127.0.0.1:0"], "admin": "127.0.0.1:0"})
    async with running("serve", folder=tmp_path, environ={"POSTMAN_API_KEYS": ",".join(KEYS)}) as process:
        addresses = await process.ready()
        data = addresses["data"].split(",")
        assert len(set(data)) == 2
        page = await ask(addresses["admin"], request("/metrics", token=None))
        for name in [f"key-{sha256(key.encode()).hexdigest()[:8]}" for key in KEYS]:
            assert (
                f'keyturn_tokens_available{{limit="60/60s",pool="default",quota="{name}"}} 60.0' in page.body.decode()
            )
        for address in data:
            async with calling(address) as caller:
                assert (await caller.ask(request("/me", method="TRACE"))).status == 405
        process.signal(signal.SIGTERM)
        assert await process.ended() == 0


# check, schema, token


def test_check_prints_what_is_in_effect(shell: Shell) -> None:
    """Every default is filled in, and secrets are masked."""
    shell.write(KEYS[1], "b")
    shell.write(GOOD)
    ended = shell.run("check")
    assert (ended.code, ended.err) == (0, "")
    assert [secret for secret in SECRETS if secret in ended.out] == []
    shown = yaml.safe_load(ended.out)
    assert shown["admin_token"] == shown["clients"][0]["token"] == shown["pools"]["default"]["keys"][0]["secret"] == "…"
    assert shown["authentication"] == "required"
    assert shown["upstream"]["url"] == "https://api.getpostman.com"
    assert shown["pools"]["default"]["limits"] == [{"requests": 60, "window": "1m", "match": []}]


def test_check_accepts_what_check_prints(shell: Shell) -> None:
    """Where secrets stand in files of their own, what is in effect is a config.yaml, and prints the same again."""
    shell.write(KEYS[1], "b")
    digest = sha256(TOKENS["ci"].encode()).hexdigest()
    shell.write(
        f"""
        pools: {{default: {{keys: [{{name: b, secret_file: b}}], limits: [{{requests: 5, window: 90s}}]}}}}
        clients: [{{name: ci, token_sha256: {digest}, rate: {{requests: 5, window: 90s}}, allow: ["GET /**"]}}]
        """
    )
    first = shell.run("check")
    shell.write(first.out, "again.yaml")
    assert shell.run("check", "-c", "again.yaml") == first


def test_a_masked_secret_is_no_secret(shell: Shell) -> None:
    """The placeholder that `check` prints for a secret is refused as a secret."""
    shell.write("pools: {default: {keys: [{name: a, secret: " + KEYS[0] + "}]}}")
    shell.write(shell.run("check").out, "again.yaml")
    ended = shell.run("check", "-c", "again.yaml")
    assert (ended.code, list(problems(ended))) == (2, ["pools.default.keys[0].secret"])


def test_check_warns(shell: Shell) -> None:
    """A configuration that works but should be improved gives a warning on stderr; the exit code stays 0."""
    shell.write(GOOD.replace("secret_file: b", f"secret: {KEYS[1]}")).chmod(0o644)
    ended = shell.run("check")
    assert (ended.code, len(ended.complaints)) == (0, 4)
    assert all(line.startswith("keyturn: warning: ") for line in ended.complaints)
    assert [secret for secret in SECRETS if secret in ended.err] == []


def test_check_finds_the_same_as_serve(shell: Shell) -> None:
    """Every problem at once, exit code 2."""
    shell.write(BAD)
    checked, served = shell.run("check"), shell.run("serve")
    assert checked == served
    assert (checked.code, len(problems(checked))) == (2, 11)


@pytest.mark.parametrize(
    ("text", "keys", "code"),
    [
        (None, None, 3),
        (None, "", 3),
        (None, KEYS[0], 0),
        (None, "two words", 2),
        ("{}", None, 3),
        ("{}", KEYS[0], 0),
        ("pools: {default: {keys: [{name: a, secret: x}]}}", None, 0),
        ("pools: {default: {keys: [{name: a}]}}", None, 2),
        ("lisen: x", None, 2),
        ("a: [", None, 2),
    ],
)
def test_any_key(shell: Shell, text: str | None, keys: str | None, code: int) -> None:
    """`check --any-key` prints nothing and tells `make run` whether there is a key: 0 yes, 3 no, 2 ask `serve`."""
    if text is not None:
        shell.write(text)
    environ = {} if keys is None else {"POSTMAN_API_KEYS": keys}
    assert shell.run("check", "--any-key", **environ) == Ended(code, "", "")


def accepts(  # noqa: PLR0911  # one for each form of a value
    schema: Mapping[str, Any], value: Any, root: Mapping[str, Any]
) -> bool:
    """Whether a JSON Schema accepts a value, as far as the schema of the configuration goes."""
    if "$ref" in schema:
        return accepts(root["$defs"][schema["$ref"].rpartition("/")[2]], value, root)
    if "anyOf" in schema and not any(accepts(option, value, root) for option in schema["anyOf"]):
        return False
    if "type" in schema and not isinstance(value, TYPES[schema["type"]]):
        return False
    match value:
        case dict():
            inside = all(accepts(_schema_of(name, schema), value[name], root) for name in value)
            return inside and set(schema.get("required", ())) <= set(value)
        case list():
            return all(accepts(schema.get("items", {}), item, root) for item in value)
        case str():
            return bool(re.search(schema.get("pattern", ""), value)) and value in schema.get("enum", [value])
        case _:
            return value is None or schema.get("minimum", value) <= value <= schema.get("maximum", value)


def _schema_of(name: str, schema: Mapping[str, Any]) -> Any:
    """The schema of one entry of a mapping; `{"enum": []}` accepts nothing."""
    for pattern, body in schema.get("patternProperties", {}).items():
        if re.search(pattern, name):
            return body
    other = schema.get("additionalProperties", True)
    return schema.get("properties", {}).get(name, NOTHING if other is False else {} if other is True else other)


NOTHING: Mapping[str, Any] = {"anyOf": []}
TYPES: Mapping[str, type | tuple[type, ...]] = {
    "array": list,
    "boolean": bool,
    "integer": int,
    "null": type(None),
    "number": (int, float),
    "object": dict,
    "string": str,
}


def test_schema(shell: Shell) -> None:
    """`schema` prints a JSON Schema that accepts config.yaml, with every setting in it uncommented too."""
    ended = shell.run("schema")
    assert (ended.code, ended.err) == (0, "")
    schema = json.loads(ended.out)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    text = with_digests((ROOT / "config.yaml").read_text(encoding="utf-8"))
    for document in (text, re.sub(r"^#(?=\S|  )", "", text, flags=re.MULTILINE)):
        settings = yaml.safe_load(document)
        assert settings["listen"]
        assert accepts(schema, settings, schema)
    assert len(settings) > 10
    for wrong in ('lisen: "x"', "drain: soon", "clients: [{}]", "queue: {max_waiting: -1}", "pools: 1"):
        assert not accepts(schema, yaml.safe_load(wrong), schema)


def test_token_is_printed_once(shell: Shell) -> None:
    """`token` prints a new token and the entry for `clients:` that holds only its digest."""
    seen = set()
    for _ in range(3):
        ended = shell.run("token", "ci.2")
        token, entry = ended.out.split("\n", 1)
        assert ended.code == 0
        assert yaml.safe_load(entry) == [{"name": "ci.2", "token_sha256": sha256(token.encode()).hexdigest()}]
        assert token not in ended.err
        seen.add(token)
    assert len(seen) == 3


async def test_token_makes_a_caller(tmp_path: Path) -> None:
    """The entry that `token` prints, put under `clients:`, lets its token in."""
    ended = await command("token", "portal", folder=tmp_path)
    token, entry = ended.out.split("\n", 1)
    async with house(tmp_path, clients=yaml.safe_load(entry)) as home:
        reply = await home.ask(request("/echo", token=token))
        assert (reply.status, token in reply.body.decode()) == (200, False)
        assert (await home.ask(request("/echo", token=TOKENS["ci"]))).status == 401
        assert await home.keyturn.metric("keyturn_requests_total", client="portal") == 1


# practice


async def test_practice(tmp_path: Path) -> None:
    """`practice` prints where it listens, counts by its options, and ends with Ctrl-C."""
    options = ("--port", "0", "--limit", "2", "--window", "1h", "--kind", "rolling", "--key", KEYS[0])
    async with running("practice", *options, folder=tmp_path) as process:
        url = (await process.ready())["practice"]
        statuses = [(await ask(url, request("/me", token=KEYS[0]))).status for _ in range(3)]
        assert statuses == [200, 200, 429]
        assert (await ask(url, request("/me", token=KEYS[1]))).status == 401
        process.signal(signal.SIGINT)
        assert await process.ended() == 0


async def test_practice_over_tls_behind_the_proxy(tmp_path: Path) -> None:
    """With `--tls --ca FILE` it is an upstream for a `serve` beside it."""
    ca = tmp_path / "ca.pem"
    async with running("practice", "--port", "0", "--tls", "--ca", str(ca), folder=tmp_path) as upstream:
        url = (await upstream.ready())["practice"]
        settings = {"listen": "127.0.0.1:0", "admin": "127.0.0.1:0", "upstream": {"url": url, "ca": "ca.pem"}}
        keys = [{"name": "a", "secret": KEYS[0]}]
        async with serving(write(tmp_path, {**settings, "pools": {"default": {"keys": keys}}})) as keyturn:
            reply = await keyturn.ask(request("/workspaces", token=None))
            assert (reply.status, reply.one("Keyturn-Key")) == (200, "a")


def test_practice_that_cannot_write_its_authority(shell: Shell) -> None:
    """A file that cannot be written is one line, and exit code 1."""
    ended = shell.run("practice", "--port", "0", "--tls", "--ca", "missing/ca.pem")
    assert (ended.code, ended.complaints) == (1, ["keyturn: missing/ca.pem: No such file or directory"])


# Status


async def test_status_of_a_running_proxy(tmp_path: Path) -> None:
    """The command shows what the process does, and never a secret; it is told where by an option or the environment."""
    async with house(tmp_path, admin_token=ADMIN_TOKEN) as home:
        assert (await home.ask(request("/me"))).status == 200
        shown = await command("status", "--url", home.keyturn.admin, folder=tmp_path)
        assert (shown.code, shown.err) == (0, "")
        assert re.search(r"team-1 +10000/60s", shown.out)
        assert re.search(r"^ci +1 +0 ", shown.out, re.MULTILINE)
        told = await command("status", "--json", folder=tmp_path, environ={"KEYTURN_ADMIN": home.keyturn.admin})
        pool = json.loads(told.out)["pools"][0]
        assert [key["state"] for key in pool["keys"]] == ["ready", "ready"]
        assert [(client["name"], client["granted"]) for client in pool["clients"]] == [("ci", 1)]
        assert [secret for secret in SECRETS if secret in shown.out + told.out] == []


async def test_status_without_a_proxy(tmp_path: Path) -> None:
    """One line that says what to do, and exit code 1."""
    ended = await command("status", "--url", f"unix:{tmp_path}/nobody", folder=tmp_path)
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.startswith(f"keyturn: unix:{tmp_path}/nobody: no such file or directory.")
    assert ended.err.count("\n") == 1
