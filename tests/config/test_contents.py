import os
import resource
from functools import partial
from pathlib import Path

import pytest
from keyturn import config
from keyturn.config.contents import NO_FILE, NOTHING, check_descriptors, content_of, digest, key_files
from keyturn.core.errors import StartError

from tests.process import KEYS, write


def test_a_content_is_known_by_its_digest(tmp_path: Path) -> None:
    """Wherever the links to it lead, and whatever the file is called."""
    (tmp_path / "a").write_text("x")
    (tmp_path / "link").symlink_to("a")
    assert content_of(tmp_path / "link") == content_of(tmp_path / "a") == digest(b"x")
    (tmp_path / "a").write_text("y")
    assert content_of(tmp_path / "link") == digest(b"y")


def test_what_cannot_be_read_is_told_apart(tmp_path: Path) -> None:
    """Nothing there, a link that leads nowhere, and what must not be opened, for that would wait."""
    (tmp_path / "dangling").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    assert content_of(tmp_path / "none") == content_of(tmp_path / "dangling") == NOTHING
    assert content_of(tmp_path / "pipe") == content_of(Path("/dev/null")) == NO_FILE


def test_a_folder_is_known_by_the_names_of_its_key_files(tmp_path: Path) -> None:
    """What a mounted Kubernetes Secret has beside them does not count."""
    (tmp_path / "..2026").mkdir()
    (tmp_path / "..2026" / "a").write_text("x")
    (tmp_path / "..data").symlink_to("..2026")
    (tmp_path / "a").symlink_to("..data/a")
    before = content_of(tmp_path)
    assert key_files(tmp_path) == [tmp_path / "a"]
    (tmp_path / "..2027").mkdir()
    assert content_of(tmp_path) == before
    (tmp_path / "b").write_text("y")
    assert content_of(tmp_path) != before


def test_loading_notes_what_it_read(tmp_path: Path) -> None:
    """The document, the files of secrets and the folders of keys, so that a later look can be compared."""
    keys = tmp_path / "keys"
    keys.mkdir()
    (keys / "a").write_text(f"{KEYS[0]}\n")
    (tmp_path / "b").write_text(KEYS[1])
    pools = {"default": {"keys_dir": "keys", "keys": [{"name": "b", "secret_file": "b"}]}}
    path = write(tmp_path, {"pools": pools})
    loaded = config.load(path, {})
    assert set(loaded.files.contents) == {path, keys, keys / "a", tmp_path / "b"} == set(loaded.watched_files())
    assert loaded.files.contents == {path: content_of(path) for path in loaded.watched_files()}
    assert "contents" not in repr(loaded.files)


def test_without_descriptors_nobody_knows_what_stands_there(tmp_path: Path) -> None:
    """That is not the same as nothing."""
    (tmp_path / "a").write_text("x")
    check_descriptors()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1, hard))
    try:
        for look in (partial(content_of, tmp_path / "a"), check_descriptors):
            with pytest.raises(StartError, match="LimitNOFILE"):
                look()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert content_of(tmp_path / "a") == digest(b"x")
