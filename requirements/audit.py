"""What is known against the packages that are shipped: `make audit`.

pip-audit asks the package index. Exit 1 when something is known; 3 when nobody could be asked about a package, which is
said, since it would otherwise look like a clean bill.
"""

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

RUNTIME = Path(__file__).parent / "runtime.txt"
KNOWN, NOT_ASKED = 1, 3


def ask(file: Path = RUNTIME) -> str:
    """pip-audit's report on pinned requirements; empty when it has none to give."""
    command = [sys.executable, "-m", "pip_audit", "--require-hashes", "--disable-pip", "--format", "json"]
    ended = subprocess.run(  # noqa: S603  # this interpreter, and a file of this folder
        [*command, "--progress-spinner", "off", "--requirement", str(file)], capture_output=True, text=True, check=False
    )
    return ended.stdout


def judge(report: str) -> tuple[int, list[str]]:
    """The exit code, and what to say."""
    try:
        packages: list[Mapping[str, Any]] = json.loads(report)["dependencies"]
    except (ValueError, KeyError, TypeError):
        return NOT_ASKED, ["The audit did NOT run: the package index was not reached. Nothing is known, good or bad."]
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    found = [line for package in packages for line in _told(package)]
    if found:
        return KNOWN, found
    if skipped or not packages:
        names = ", ".join(skipped) if len(skipped) < len(packages) else f"any of the {len(packages)} packages"
        return NOT_ASKED, [f"The audit did NOT run: the package index says nothing about {names}."]
    return 0, [f"Nothing is known against the {len(packages)} packages of {RUNTIME.name}."]


def _told(package: Mapping[str, Any]) -> Iterable[str]:
    for flaw in package.get("vulns", ()):
        fixed = ", ".join(flaw.get("fix_versions", ())) or "no version yet"
        yield f"{package['name']} {package['version']}: {flaw['id']}, mended in {fixed}"


if __name__ == "__main__":
    code, lines = judge(ask())
    print("\n".join(lines))
    sys.exit(code)
