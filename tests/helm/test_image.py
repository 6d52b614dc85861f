import fnmatch
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helm.charts import render
from tests.process import ROOT

TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8")
INSTRUCTIONS = [line for line in re.sub(r"\\\n", " ", TEXT).splitlines() if line and not line.startswith("#")]
STAGES = [part.splitlines() for part in re.split(r"\n(?=FROM )", "\n".join(INSTRUCTIONS))[1:]]
IGNORE = [
    line
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
]


def arguments(name: str, stage: list[str]) -> list[str]:
    """The arguments of an instruction, for each use."""
    return [line.partition(" ")[2] for line in stage if line.startswith(f"{name} ")]


def copied() -> list[str]:
    """The files of the repository that the build uses."""
    words = [shlex.split(line) for stage in STAGES for line in arguments("COPY", stage) if "--from" not in line]
    return [name for line in words for name in line[:-1]]


def test_hadolint_finds_nothing() -> None:
    """The Dockerfile is clean, without an exception."""
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("no hadolint here")
    found = subprocess.run([hadolint, str(ROOT / "Dockerfile")], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (0, "")
    assert "hadolint ignore" not in TEXT


def test_both_stages_are_of_one_base() -> None:
    """Tag and digest are arguments, so that a build can be repeated."""
    assert [line.split()[1] for stage in STAGES for line in stage if line.startswith("FROM ")] == [
        "python:${TAG}${DIGEST}",
        "python:${TAG}${DIGEST}",
    ]
    assert INSTRUCTIONS[:2] == ["ARG TAG=3.13-slim", "ARG DIGEST="]


def test_dependencies_come_before_the_project() -> None:
    """A change of the project's own code leaves the layer of its dependencies as it is."""
    build = STAGES[0]
    installs = next(index for index, line in enumerate(build) if "requirements/image.txt" in line and "RUN" in line)
    project = next(index for index, line in enumerate(build) if line.startswith("COPY proxy"))
    assert installs < project


def test_hashes_are_checked() -> None:
    """Every install from outside needs hashes and wheels; the project itself needs nothing from outside."""
    commands = [part for line in arguments("RUN", STAGES[0]) for part in line.split("&&") if "install" in part]
    for command in commands:
        assert "--require-hashes" in command or "--no-index" in command, command
        assert "--only-binary :all:" in command or "--no-index" in command, command


def test_the_image_runs_as_the_chart_s_user() -> None:
    """The user is a number, the same as in the chart."""
    (user,) = arguments("USER", STAGES[1])
    context = render().container["securityContext"]
    assert user == f"{context['runAsUser']}:{context['runAsGroup']}"


def test_the_command_is_the_chart_s() -> None:
    """Entry point and command are in exec form, so that PID 1 is the process itself; the chart starts the same."""
    (entry,), (command,) = arguments("ENTRYPOINT", STAGES[1]), arguments("CMD", STAGES[1])
    container = render().container
    assert (json.loads(entry), json.loads(command)) == (container["command"], container["args"])
    assert arguments("STOPSIGNAL", STAGES[1]) == ["SIGTERM"]


def test_nothing_but_the_last_stage_s_own_goes_in() -> None:
    """The last stage copies only what the first has built, and takes the base's pip away."""
    assert arguments("COPY", STAGES[1]) == ["--from=build /opt/keyturn /opt/keyturn"]
    assert "pip uninstall" in arguments("RUN", STAGES[1])[0]


def test_labels() -> None:
    """The image says what it is, by the names of the OCI."""
    (labels,) = arguments("LABEL", STAGES[1])
    for name in ("title", "description", "licenses", "version", "revision"):
        assert f"org.opencontainers.image.{name}=" in labels


def test_the_context_is_what_is_copied() -> None:
    """`.dockerignore` begins with everything, and lets in what the Dockerfile copies, and nothing else."""
    assert IGNORE[0] == "*"
    allowed = {line[1:].removesuffix("/**") for line in IGNORE if line.startswith("!")}
    assert allowed == set(copied())
    assert all((ROOT / name).exists() for name in allowed)
    for name in (".env", "config.yaml", "tests/x.py", ".git/config", "helm/keyturn/values.yaml"):
        assert not any(fnmatch.fnmatch(name, line[1:]) for line in IGNORE if line.startswith("!")), name


@pytest.mark.parametrize("builder", ["docker", "podman", "buildah"])
def test_make_image_takes_the_builder_that_is_ready(builder: str, tmp_path: Path) -> None:
    """The first that answers `info` builds the Dockerfile, with the version and what else is asked for."""
    for name in ("docker", "podman", "buildah"):
        ready = "info" if name == builder else "nothing"
        script = tmp_path / name
        script.write_text(f'#!/bin/sh\n[ "$1" = build ] && echo "{name} $*" || [ "$1" = {ready} ]\n', encoding="utf-8")
        script.chmod(0o755)
    made = subprocess.run(
        ["make", "--no-print-directory", "image", "IMAGE=r.example/k:1", "ARGS=--network host"],
        cwd=ROOT,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    said, command = made.stdout.splitlines()
    assert said == f"Building r.example/k:1 with {builder}"
    assert command.startswith(f"{builder} build --file Dockerfile --tag r.example/k:1 --build-arg VERSION=0.1.0")
    assert command.endswith("--network host .")


def test_make_image_says_what_it_needs(tmp_path: Path) -> None:
    """Without a builder it fails with a sentence."""
    made = subprocess.run(
        ["make", "image", "BUILDER=none other"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert made.returncode == 2
    assert "make image needs one of these, ready to build: none other." in made.stderr
