import os
from collections.abc import Callable
from pathlib import Path

import pytest
from keyturn.config.contents import NOTHING, digest
from keyturn.reload import watch
from keyturn.reload.watch import Watch


class Clock:
    """Seconds that the test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def in_place(path: Path, text: str) -> None:
    """As `echo … >` writes."""
    path.write_text(text)


def by_renaming(path: Path, text: str) -> None:
    """As most editors and tools write."""
    beside = path.with_suffix(".new")
    beside.write_text(text)
    beside.rename(path)


def by_removing(path: Path, text: str) -> None:
    """As some editors write."""
    path.unlink()
    path.write_text(text)


@pytest.mark.parametrize("change", [in_place, by_renaming, by_removing])
def test_a_change_is_seen_however_it_is_made(tmp_path: Path, change: Callable[[Path, str], None]) -> None:
    """Written in place, renamed over, removed and made anew."""
    file = tmp_path / "config.yaml"
    file.write_text("one")
    it = Watch()
    assert it.look([file]) == {file: digest(b"one")}
    change(file, "another")
    assert it.look([file]) == {file: digest(b"another")}


def test_swapped_links_are_followed(tmp_path: Path) -> None:
    """A mounted Kubernetes volume: the file links to `..data/file`, and `..data` is swapped by an atomic rename."""
    file = tmp_path / "key"
    file.symlink_to("..data/key")
    it = Watch()
    for number, text in enumerate(["one", "two", "three"]):
        content = tmp_path / f"..{number}"
        content.mkdir()
        (content / "key").write_text(text)
        os.utime(content / "key", (1, 1))
        (tmp_path / "..tmp").symlink_to(content.name)
        (tmp_path / "..tmp").rename(tmp_path / "..data")
        assert it.look([file]) == {file: digest(text.encode())}


def test_a_file_that_goes_and_comes(tmp_path: Path) -> None:
    """Is nothing meanwhile."""
    file = tmp_path / "key"
    it = Watch()
    seen = []
    for text in (None, "one", None, "one"):
        file.unlink(missing_ok=True)
        if text:
            file.write_text(text)
        seen.append(it.look([file])[file])
    assert seen == [NOTHING, digest(b"one"), NOTHING, digest(b"one")]


def test_what_has_not_changed_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But a file that was just written is, since the times of files are rounded."""
    file, clock = tmp_path / "key", Clock()
    file.write_text("one")
    reads: list[Path] = []

    def content_of(path: Path) -> bytes:
        reads.append(path)
        return digest(path.read_bytes())

    monkeypatch.setattr(watch, "content_of", content_of)
    it = Watch(clock)
    told = []
    for _ in range(4):
        it.look([file])
        told.append(len(reads))
        clock.now += 0.6
    assert told == [1, 2, 3, 3]


def test_a_second_writing_with_the_same_times_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the same size, within the time to which they are rounded."""
    file, clock = tmp_path / "key", Clock()
    monkeypatch.setattr(watch, "_mark", lambda _: (1, 2, 3))
    file.write_text("one")
    it = Watch(clock)
    it.look([file])
    clock.now += 0.9
    file.write_text("two")
    clock.now += 0.1
    assert it.look([file]) == {file: digest(b"two")}


def test_what_is_not_looked_at_any_more_is_forgotten(tmp_path: Path) -> None:
    """Names come and go."""
    it = Watch()
    it.look([tmp_path])
    it.look([])
    assert it._seen == {}
