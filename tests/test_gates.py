import subprocess
from pathlib import Path

import pytest

from tests import gates


def test_a_warning_is_shown_with_the_file_that_it_is_in() -> None:
    """Lines of an assembled script are those of the file that was put there; others are named as such."""
    files = [("stores/lua/a.lua", "one\ntwo\n"), ("stores/lua/b.lua", "three\nfour\n")]
    text = "one\ntwo\n\nlocal b = (function()\nthree\nfour\nend)()\n"
    found = [gates.located(text, line, files) for line in (1, 2, 5, 6)]
    assert found == ["stores/lua/a.lua:1", "stores/lua/a.lua:2", "stores/lua/b.lua:1", "stores/lua/b.lua:2"]
    assert gates.located(text, 4, files) == "line 4 of the assembled script"


def test_every_lua_file_is_part_of_a_script() -> None:
    """The linter sees each of them."""
    for path in gates.LUA.glob("*.lua"):
        assert any(path.read_text(encoding="utf-8") in script.text for script in gates.SCRIPTS.values()), path.name


def test_long_subjects_are_named_with_their_commit() -> None:
    """72 characters pass, 73 do not."""
    (found,) = gates.long_subjects(f"aaaa {'x' * 72}\nbbbb {'y' * 73}\n")
    assert found.startswith("bbbb: its subject has 73 characters, 72 are allowed: y")


def test_a_gate_that_cannot_run_says_why(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """It passes, unless every gate is required."""
    monkeypatch.setenv("PATH", "")
    assert gates.passes("lua", required=False)
    assert not gates.passes("lua", required=True)
    assert "apt-get install lua-check" in capsys.readouterr().err


def test_a_source_archive_has_no_history(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither has a clone that is shallow; both are told."""
    monkeypatch.setattr(gates, "ROOT", tmp_path)
    with pytest.raises(gates.CannotRunError, match="no clone"):
        list(gates.commits())
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    with pytest.raises(gates.CannotRunError, match="unshallow"):
        list(gates.commits())


def test_what_a_gate_finds_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Each finding is a line."""
    monkeypatch.setitem(gates.GATES, "lua", lambda: iter(["tokens.lua:3: unused variable"]))
    assert not gates.passes("lua", required=False)
    assert capsys.readouterr().err == "lua: tokens.lua:3: unused variable\n"
