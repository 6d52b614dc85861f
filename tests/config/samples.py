"""Configurations to try, and a way to load them."""

import re
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from textwrap import dedent

import pytest
from keyturn.config import Config, load
from keyturn.core.errors import ConfigError

MARK = "5ecret"
"""In every secret of the tests; it must not appear in anything that is shown."""

KEYS = {"POSTMAN_API_KEYS": f"PMAK-{MARK}-1,PMAK-{MARK}-2"}


def write(folder: Path, text: str) -> Path:
    """A config.yaml that only its owner can read."""
    path = folder / "config.yaml"
    path.write_text(dedent(text), encoding="utf-8")
    path.chmod(0o600)
    return path


def loaded(folder: Path, text: str, environ: Mapping[str, str] = KEYS) -> Config:
    """The configuration of a text."""
    return load(write(folder, text), environ)


def problems(folder: Path, text: str, environ: Mapping[str, str] = KEYS) -> dict[str, str]:
    """Problems of a text: messages by path. No message shows a secret."""
    with pytest.raises(ConfigError) as caught:
        loaded(folder, text, environ)
    assert MARK not in str(caught.value)
    assert MARK not in repr(caught.value.problems)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    found: dict[str, str] = {}
    for problem in caught.value.problems:
        found[problem.path] = f"{found[problem.path]} | {problem.message}" if problem.path in found else problem.message
    return found


_PLACEHOLDER = re.compile(r"<printed by keyturn token [\w-]+>")


def with_digests(text: str) -> str:
    """An example with the digest of a token of its own in place of each placeholder, as a user fills them in."""
    return _PLACEHOLDER.sub(lambda found: sha256(f"5ecret for {found[0]}".encode()).hexdigest(), text)
