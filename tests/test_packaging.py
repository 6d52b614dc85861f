"""The distributed packages: the wheel and the source distribution."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.process import ROOT


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with both, made by the build backend itself."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    return folder


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder into which the wheel was unpacked."""
    folder = tmp_path_factory.mktemp("installed")
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_the_wheel_has_every_file_of_the_package(installed: Path) -> None:
    """Scripts for Redis and the status page's files are in it, too; nothing else but its metadata is."""
    package = {path.relative_to(ROOT / "proxy") for path in (ROOT / "proxy").rglob("*") if path.is_file()}
    package = {path for path in package if "__pycache__" not in path.parts}
    files = {path.relative_to(installed) for path in installed.rglob("*") if path.is_file()}
    assert {path for path in files if not path.parts[0].endswith(".dist-info")} == package
    assert {path.suffix for path in package} == {".py", ".lua", ".html", ".css", ".js", ".svg", ".typed"}


@pytest.mark.parametrize("arguments", [["--help"], ["schema"], ["check"], ["token", "ci"]], ids=" ".join)
def test_the_wheel_runs_without_its_sources(arguments: list[str], installed: Path, tmp_path: Path) -> None:
    """The commands work from any folder, with the wheel's files alone."""
    ended = subprocess.run(
        [sys.executable, "-m", "keyturn", *arguments],
        cwd=tmp_path,
        env={"PYTHONPATH": str(installed), "POSTMAN_API_KEYS": "one", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, bool(ended.stdout)) == (0, True), ended.stderr


def test_the_command_is_called_keyturn(installed: Path) -> None:
    """The wheel installs one command."""
    (scripts,) = installed.glob("*.dist-info/entry_points.txt")
    assert scripts.read_text(encoding="utf-8").split() == ["[console_scripts]", "keyturn", "=", "keyturn.__main__:main"]


def test_the_sources_are_complete(built: Path) -> None:
    """The source distribution has what a clone has, so its tests and its chart can be run from it."""
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as files:
        names = {name.partition("/")[2] for name in files.getnames()}
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    cloned = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=False)
    if cloned.returncode:
        pytest.skip("these sources are no clone")
    assert names == {*filter(lambda name: (ROOT / name).exists(), cloned.stdout.splitlines()), "PKG-INFO"}
