"""Gates of `make check` that no other command has: `python -m tests.gates lua commits`.

A gate that cannot run says why and passes; with `KEYTURN_REQUIRE` set, as in `.ci/run`, it fails instead.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from keyturn.stores import bucket_reader, scripts

ROOT = Path(__file__).parent.parent
LUA = ROOT / "proxy" / "keyturn" / "stores" / "lua"

SUBJECT_LENGTH = 72
SUBJECTS_SINCE = "a0ebeb71db634fbac05e45cb9b57bb9d11f9f92e"
"""The commit after which every subject has to be short."""

SCRIPTS = {"exchange": scripts.EXCHANGE, "snapshot": scripts.SNAPSHOT, "buckets": bucket_reader.READ_BUCKETS}
LUACHECK = [
    *("luacheck", "-", "--no-color", "--codes", "--std", "lua51", "--max-line-length", "140"),
    *("--max-cyclomatic-complexity", "25"),
    *("--globals", "redis", "cjson", "cmsgpack", "KEYS", "ARGV"),
    *("--ignore", "211/MILLISECOND", "211/save_state", "241/expiring"),  # the snapshot uses a part of storage.lua
]


class CannotRunError(Exception):
    """A tool or the history is missing; the message says how to get it."""


# Lua


def located(text: str, line: int, files: Iterable[tuple[str, str]]) -> str:
    """Return `file.lua:line` for a line of an assembled script, given the names and texts of its files."""
    for name, part in files:
        start = text.find(part)
        first = text.count("\n", 0, start) + 1
        if start >= 0 and first <= line < first + part.count("\n"):
            return f"{name}:{line - first + 1}"
    return f"line {line} of the assembled script"


def lua() -> Iterator[str]:
    """Yield what luacheck finds in the store's scripts, each as it is assembled and sent."""
    if shutil.which("luacheck") is None:
        raise CannotRunError("luacheck is not installed: `apt-get install lua-check`, or `luarocks install luacheck`")
    files = [(f"stores/lua/{path.name}", path.read_text(encoding="utf-8")) for path in sorted(LUA.glob("*.lua"))]
    found: dict[str, None] = {}
    for script in SCRIPTS.values():
        ended = subprocess.run(LUACHECK, input=script.text, capture_output=True, text=True, check=False)
        warnings = re.findall(r"^\s+stdin:(\d+):\d+: (.*)$", ended.stdout, re.MULTILINE)
        found |= {f"{located(script.text, int(line), files)}: {said}": None for line, said in warnings}
        if ended.returncode and not warnings:
            found[ended.stdout + ended.stderr] = None
    yield from found


# Commits


def long_subjects(log: str) -> Iterator[str]:
    """Yield a sentence for each line `hash subject` of a log whose subject is too long."""
    for line in log.splitlines():
        commit, _, subject = line.partition(" ")
        if len(subject) > SUBJECT_LENGTH:
            yield f"{commit}: its subject has {len(subject)} characters, {SUBJECT_LENGTH} are allowed: {subject}"


def commits() -> Iterator[str]:
    """Yield the commits since `SUBJECTS_SINCE` whose subject is too long for `git log --oneline`."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        raise CannotRunError("this is no clone with a history (git and its repository are needed)")
    command = ["git", "-C", str(ROOT), "log", "--no-merges", "--format=%h %s", f"{SUBJECTS_SINCE}..HEAD"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise CannotRunError(f"the history does not reach back to {SUBJECTS_SINCE[:7]}: `git fetch --unshallow`")
    yield from long_subjects(ended.stdout)


GATES: dict[str, Callable[[], Iterator[str]]] = {"lua": lua, "commits": commits}


def passes(name: str, *, required: bool) -> bool:
    """Run a gate and print what it finds."""
    try:
        found = list(GATES[name]())
    except CannotRunError as problem:
        print(f"{name}: NOT checked: {problem}", file=sys.stderr)
        return not required
    for line in found:
        print(f"{name}: {line}", file=sys.stderr)
    if not found:
        print(f"{name}: nothing found")
    return not found


def main(names: Iterable[str]) -> int:
    """Run gates, all of them by default; 1 when one has found something."""
    passed = [passes(name, required="KEYTURN_REQUIRE" in os.environ) for name in names or GATES]
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
