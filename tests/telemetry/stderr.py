"""Capture of stderr while a test runs."""

import json
from typing import Any

import pytest


class Stderr:
    """The text written to stderr since `forget`."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self._text = ""

    def getvalue(self) -> str:
        """All of it."""
        self._text += self._capsys.readouterr().err
        return self._text

    def forget(self) -> None:
        """Begin anew."""
        self.getvalue()
        self._text = ""


def entries(stderr: Stderr) -> list[dict[str, Any]]:
    """The entries logged as JSON, one a line."""
    return [json.loads(line) for line in stderr.getvalue().splitlines()]
