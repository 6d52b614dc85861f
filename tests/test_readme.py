import asyncio
import re
import shlex
import subprocess
import sys
from itertools import takewhile
from pathlib import Path

import pytest
import yaml
from keyturn.config import load
from keyturn.practice import PracticeApi

from e2e.other_hosts import STAND_INS, Scene
from tests.config.samples import with_digests
from tests.process import ROOT, until

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    line.partition("#")[0].strip() for language, block in BLOCKS if language == "sh" for line in block.splitlines()
]


def divided(command: str) -> tuple[dict[str, str], list[str]]:
    """Split a command into the variables that it sets and its words."""
    words = shlex.split(command)
    settings = list(takewhile(lambda word: re.match(r"\w+=", word), words))
    return dict(word.split("=", 1) for word in settings), words[len(settings) :]


def commands(program: str) -> list[list[str]]:
    """The README's commands of a program, in words."""
    return [words for _, words in map(divided, COMMANDS) if words and words[0] == program]


def keyturn(*arguments: str, folder: Path = ROOT) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "keyturn", *arguments],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT / "proxy"), "POSTMAN_API_KEYS": "one,two", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_readme_is_short() -> None:
    """Under 150 lines."""
    assert len(README.splitlines()) < 150


def test_every_command_is_one_that_a_test_knows() -> None:
    """Every command of the README is run here or by `make e2e`."""
    known = ("make", "keyturn", "curl", "newman")
    assert {divided(command)[1][0] for command in COMMANDS if command} == set(known)


@pytest.mark.parametrize("command", commands("make"), ids=" ".join)
def test_make_knows_its_targets(command: list[str]) -> None:
    """`make run` and `make test` are there."""
    assert subprocess.run(["make", "-n", *command[1:]], cwd=ROOT, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize(
    "command", [words for words in commands("keyturn") if words[1] not in ("serve", "demo", "practice")], ids=" ".join
)
def test_commands_that_end_end_well(command: list[str]) -> None:
    """`token`, `check` and `schema` work as written, from the folder of the README."""
    ended = keyturn(*command[1:])
    assert (ended.returncode, bool(ended.stdout)) == (0, True), ended.stderr


@pytest.mark.parametrize(
    "command", [words for words in commands("keyturn") if words[1] in ("serve", "demo", "practice")], ids=" ".join
)
async def test_commands_that_run_get_ready(command: list[str], tmp_path: Path) -> None:
    """`serve`, `demo` and `practice` start as written (on ports of the system's choice) and end with SIGTERM."""
    example = (ROOT / "config.yaml").read_text(encoding="utf-8").replace(":8080", ":0").replace(":9090", ":0")
    (tmp_path / "config.yaml").write_text(example, encoding="utf-8")
    (tmp_path / "config.yaml").chmod(0o600)
    ports = {"demo": ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"], "practice": ["--port", "0"]}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "keyturn",
        *command[1:],
        *ports.get(command[1], []),
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT / "proxy"), "POSTMAN_API_KEYS": "one,two", "PATH": "/usr/bin:/bin"},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    seen: list[str] = []

    async def ready() -> bool:
        assert process.stderr is not None
        seen.append((await process.stderr.readline()).decode())
        assert seen[-1], seen
        return seen[-1].startswith("ready ")

    await until(ready, "the ready line")
    process.terminate()
    await process.communicate()
    assert process.returncode == 0, seen


def test_the_newman_commands_are_the_ones_that_the_end_to_end_run_uses() -> None:
    """Each form of `e2e/other_hosts.py` is shown, with its arguments and what it sets, and no other is."""
    api = PracticeApi()
    scene = Scene(api, "http://127.0.0.1:8080", ":443", (api, api), Path("ca.pem"), "TOKEN")
    shown = [(settings, words[2:]) for settings, words in map(divided, COMMANDS) if words[:2] == ["newman", "run"]]
    forms = scene.forms()
    assert len(shown) == len(forms)
    for (settings, words), form in zip(shown, forms, strict=True):
        used = [re.sub(rf"{api.run_collection}|{api.run_environment}", "UID", word) for word in form.arguments]
        assert words == [word.replace(":443", "") for word in used][: len(words)]
        assert settings.keys() == form.environment.keys() - STAND_INS | ({"NODE_EXTRA_CA_CERTS"} & settings.keys())
        assert settings.get("http_proxy") == form.environment.get("http_proxy")
        assert ("NODE_EXTRA_CA_CERTS" in settings) is words[0].startswith("https://")


def test_the_configuration_in_brief_is_valid(tmp_path: Path) -> None:
    """The README's configuration loads and has the described effect."""
    (block,) = [block for language, block in BLOCKS if language == "yaml"]
    path = tmp_path / "config.yaml"
    path.write_text(with_digests(block), encoding="utf-8")
    config = load(path, {"POSTMAN_KEY_A": "a", "POSTMAN_KEY_B": "b", "PORTAL_TOKEN": "t"})
    assert [key.name for key in config.pools_of_model()[0].keys] == ["team-a", "team-b"]
    assert config.authentication_required
    assert yaml.safe_load(block)["clients"][0]["weight"] == 2


def test_a_configuration_that_is_only_copied_lets_nobody_in(tmp_path: Path) -> None:
    """The digest that is to be filled in is refused, and `check` says what makes one."""
    (block,) = [block for language, block in BLOCKS if language == "yaml"]
    (tmp_path / "config.yaml").write_text(block, encoding="utf-8")
    ended = keyturn("check", folder=tmp_path)
    assert ended.returncode == 2
    assert re.search(r"clients\[0\]\.token_sha256: .*`keyturn token", ended.stderr)
