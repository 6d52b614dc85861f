"""Prometheus' own tool, which checks and tests what Prometheus is given."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ABSENT = (
    "promtool is not here: install Prometheus (Debian: `apt-get install --no-install-recommends prometheus`; "
    "macOS: `brew install prometheus`), or name the program in PROMTOOL."
)


def promtool(*arguments: str | Path, folder: Path) -> "subprocess.CompletedProcess[str]":
    """Run it to its end."""
    program = os.environ.get("PROMTOOL") or shutil.which("promtool")
    if not program:
        pytest.fail(ABSENT, pytrace=False)
    return subprocess.run(
        [program, *map(str, arguments)], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
