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


def promtool(
    *arguments: str | Path, folder: Path | None = None, given: str | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run it to its end, with `given` as its input.

    Where it is absent the test is skipped, unless KEYTURN_REQUIRE is set: then it fails.
    """
    program = os.environ.get("PROMTOOL") or shutil.which("promtool")
    if not program:
        if os.environ.get("KEYTURN_REQUIRE"):
            pytest.fail(ABSENT, pytrace=False)
        pytest.skip(ABSENT)
    return subprocess.run(
        [program, *map(str, arguments)],
        cwd=folder,
        input=given,
        capture_output=True,
        text=True,
        timeout=500,  # on a loaded machine
        check=False,
    )
