import json
import runpy
from pathlib import Path
from typing import Any

import pytest

AUDIT = runpy.run_path(str(Path(__file__).parent.parent / "requirements" / "audit.py"))
FLAW = {"id": "PYSEC-1", "fix_versions": ["2.0"]}


def package(name: str, **more: Any) -> dict[str, Any]:
    """A package as pip-audit tells of it."""
    return {"name": name, "version": "1.0", "vulns": [], **more}


@pytest.mark.parametrize(
    ("packages", "code", "words"),
    [
        ([package("a"), package("b")], 0, "Nothing is known against the 2 packages"),
        ([package("a", vulns=[FLAW]), package("b")], 1, "a 1.0: PYSEC-1, mended in 2.0"),
        ([package("a", vulns=[FLAW]), {"name": "b", "skip_reason": "no"}], 1, "PYSEC-1"),
        ([package("a"), {"name": "b", "skip_reason": "no"}], 3, "The audit did NOT run"),
        ([], 3, "The audit did NOT run"),
        (None, 3, "The audit did NOT run"),
    ],
)
def test_an_audit_that_did_not_run_says_so(packages: list[dict[str, Any]] | None, code: int, words: str) -> None:
    """Silence about a package is no clean bill."""
    found, said = AUDIT["judge"](json.dumps({"dependencies": packages}) if packages is not None else "")
    assert found == code
    assert words in "\n".join(said)
