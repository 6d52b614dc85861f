"""`make fuzz` looks for long; here each target is seen to work, and to fail when a promise is broken."""

import pytest
from hypothesis import strategies as st

from fuzz.__main__ import main
from fuzz.running import Target
from fuzz.targets import TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_keeps_its_promise(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A few examples of each."""
    target = Target(name, TARGETS[name], folder=str(tmp_path_factory.mktemp("fuzz")))
    target.run(40)
    assert target.examples >= 40


def test_a_broken_promise_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """With the smallest input that breaks it, and an exit code."""

    def check(number: int) -> None:
        assert number < 1000

    monkeypatch.setattr("fuzz.__main__.TARGETS", {"numbers": (st.integers(), check)})
    monkeypatch.setattr("fuzz.running.FOLDER", "")
    assert main(["--seconds", "60"]) == 1
    assert "example=1000" in capsys.readouterr().err


def test_time_runs_out() -> None:
    """Then it ends, and all is well."""
    assert main(["--seconds", "0"]) == 0
