import os
import resource
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from keyturn import config
from keyturn.config.files import (
    IRREGULAR_FILE,
    MAX_SECRET_BYTES,
    MISSING_FILE,
    KeyFiles,
    check_descriptors,
    content_of,
    digest,
    key_files,
    password_in,
    secret_in,
    why_unreadable,
    with_environment_keys,
)
from keyturn.config.problems import Node
from keyturn.core.errors import Problem, StartError
from keyturn.core.model import Secret

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
    assert content_of(tmp_path / "none") == content_of(tmp_path / "dangling") == MISSING_FILE
    assert content_of(tmp_path / "pipe") == content_of(Path("/dev/null")) == IRREGULAR_FILE


def test_a_folder_is_known_by_the_names_of_its_key_files(tmp_path: Path) -> None:
    """Other entries of a mounted Kubernetes Secret are ignored."""
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


MARK = "5ecret"


def environment(value: str) -> dict[str, str]:
    """An environment with keys."""
    return {"POSTMAN_API_KEYS": value}


@pytest.mark.parametrize(
    "tree",
    [
        {},
        {"pools": None},
        {"pools": {}},
        {"pools": {"default": None}},
        {"pools": {"default": {"keys": None}}},
        {"pools": {"default": {"keys": []}}},
    ],
)
def test_the_default_pool_takes_its_keys_from_the_environment(tree: dict[str, Any]) -> None:
    """When it names none itself; their names follow from the secrets, and blanks do not count."""
    made, problems = with_environment_keys(tree, environment(" a , ,b,"))
    assert problems == []
    assert made["pools"]["default"]["keys"] == [
        {"name": "key-ca978112", "secret": "a"},
        {"name": "key-3e23e816", "secret": "b"},
    ]


def test_a_key_of_the_environment_is_named_alike_wherever_it_stands() -> None:
    """Taking the first one off the list renames no other: its quota would begin anew."""
    before, after = (
        with_environment_keys({}, environment(text))[0]["pools"]["default"]["keys"] for text in ("a,b,c", "c,b")
    )
    assert after == [before[2], before[1]]


@pytest.mark.parametrize(
    "tree",
    [
        {"pools": {"default": {"keys": [{"name": "x"}]}}},
        {"pools": {"default": {"keys_dir": "/keys"}}},
        {"pools": {"team": {}}},
        {"pools": []},
        {"pools": ["default"]},
        {"pools": {"default": "nonsense"}},
    ],
)
def test_other_pools_do_not(tree: dict[str, Any]) -> None:
    """Neither does one that names its keys, nor what is no pool."""
    assert with_environment_keys(tree, environment("a")) == (tree, [])


def test_without_the_variable_there_are_no_keys() -> None:
    """The default pool is there all the same."""
    assert with_environment_keys({"queue": 1}, {}) == ({"queue": 1, "pools": {"default": {}}}, [])


def test_keys_of_the_environment_differ() -> None:
    """One key twice would be one budget spent twice; neither is shown."""
    _, problems = with_environment_keys({}, environment(f"{MARK},x,{MARK},{MARK} y"))
    assert problems == [
        Problem("POSTMAN_API_KEYS", "keys 1 and 3 are the same: write each key once"),
        Problem("POSTMAN_API_KEYS", "key 4 is not one word of visible ASCII characters: check it for spaces"),
    ]


def collected(base: Path, pool: dict[str, Any]) -> KeyFiles:
    """The files of one pool's keys."""
    files = KeyFiles(base)
    files.collect(Node({"pools": {"default": pool}}))
    return files


def test_a_secret_file_holds_one_secret(tmp_path: Path) -> None:
    """A line end after it is left out; a relative path starts from the configuration's folder."""
    (tmp_path / "b").write_text("5ecret\n")
    files = collected(tmp_path, {"keys": [{"secret_file": "b"}, {"secret_file": str(tmp_path / "b")}]})
    assert files.secrets == {tmp_path / "b": Secret("5ecret")}
    assert files.problems == []


@pytest.mark.parametrize(
    ("content", "message"), [("", "is empty"), (" \n", "is empty"), ("a b", "more than one"), ("ü", "more than one")]
)
def test_a_file_without_a_secret_is_a_problem(tmp_path: Path, content: str, message: str) -> None:
    """With the path of its setting."""
    (tmp_path / "b").write_text(content)
    (problem,) = collected(tmp_path, {"keys": [{}, {"secret_file": "b"}]}).problems
    assert problem.path == "pools.default.keys[1].secret_file"
    assert message in problem.message


@pytest.mark.parametrize("named", [MARK, f"/{MARK}", f"{MARK}/x"])
def test_a_file_that_is_not_there_is_not_shown(tmp_path: Path, named: str) -> None:
    """A secret may stand in the place of its file's name."""
    (problem,) = collected(tmp_path, {"keys": [{"secret_file": named}]}).problems
    assert "cannot be read: No such file or directory" in problem.message
    assert MARK not in problem.message
    assert (str(tmp_path) in problem.message) != named.startswith("/")


def test_a_folder_holds_one_file_for_each_key(tmp_path: Path) -> None:
    """As Kubernetes mounts a Secret: what is hidden, and folders, are no keys."""
    data = tmp_path / "..2026_11"
    data.mkdir()
    for name in ("b", "a.key"):
        (data / name).write_text(f"{name}-5ecret\n")
        (tmp_path / name).symlink_to(data / name)
    (tmp_path / "..data").symlink_to(data)
    (tmp_path / "folder").mkdir()
    (tmp_path / ".hidden").write_text("x")
    files = collected(Path("/"), {"keys_dir": str(tmp_path)})
    assert files.problems == []
    assert files.listed == {tmp_path: (tmp_path / "a.key", tmp_path / "b")}
    assert files.secrets[tmp_path / "b"] == Secret("b-5ecret")


def test_an_empty_folder_is_no_problem(tmp_path: Path) -> None:
    """Keys may come later."""
    files = collected(Path("/"), {"keys_dir": str(tmp_path)})
    assert (files.listed, files.problems) == ({tmp_path: ()}, [])


def test_problems_of_a_folder_stand_at_its_setting(tmp_path: Path) -> None:
    """A file that is empty, one whose name is none of a key, and a folder that is not there."""
    (tmp_path / "empty").write_text("")
    (tmp_path / "not a name").write_text("x")
    assert [problem.path for problem in collected(Path("/"), {"keys_dir": str(tmp_path)}).problems] == [
        "pools.default.keys_dir"
    ] * 2
    (problem,) = collected(tmp_path, {"keys_dir": "none"}).problems
    assert "cannot be read" in problem.message


def test_a_file_holds_one_secret_and_nothing_else() -> None:
    """Blanks and line ends around it do not count."""
    assert secret_in(b" x\r\n") == Secret("x")
    for data, why in ((b"\xff", "not UTF-8"), (b" ", "empty"), (b"x" * (MAX_SECRET_BYTES + 1), "KiB")):
        with pytest.raises(ValueError, match=why):
            secret_in(data)


def test_a_file_that_can_be_read_has_no_reason(tmp_path: Path) -> None:
    """Otherwise it is the system's."""
    (tmp_path / "s").write_text("x")
    assert why_unreadable(tmp_path / "s") is None
    assert why_unreadable(tmp_path / "t") == "No such file or directory"
    assert why_unreadable(tmp_path) == "Is a directory"


@pytest.mark.parametrize(
    "value", ['"a,b"', "'a,b'", '"a","b"', " 'a' , \"b\" ", '"a, b"', "\ufeffa,b", '\ufeff"a,b"', "\"'a','b'\""]
)
def test_quotes_around_keys_of_the_environment_are_no_part_of_them(value: str) -> None:
    """`docker --env-file` keeps them, around the whole or around each key."""
    made, problems = with_environment_keys({}, environment(value))
    assert problems == []
    assert [key["secret"] for key in made["pools"]["default"]["keys"]] == ["a", "b"]


@pytest.mark.parametrize("value", ['"a,b', "a,b'", "a,'b"])
def test_a_quote_without_its_other_one_is_a_problem(value: str) -> None:
    """Nobody knows what it was meant for."""
    (problem,) = with_environment_keys({}, environment(value))[1]
    assert "a quote at one end only" in problem.message


@pytest.mark.parametrize("read", [secret_in, password_in])
def test_a_byte_order_mark_is_no_part_of_a_secret(read: Callable[[bytes], Secret]) -> None:
    """A byte order mark of UTF-8 is accepted; UTF-16 is refused, with or without one."""
    assert read("\ufeffPMAK-1\r\n".encode()) == Secret("PMAK-1")
    for data in (f"\ufeff{MARK}".encode("utf-16-le"), f"\ufeff{MARK}".encode("utf-16-be"), MARK.encode("utf-16-le")):
        with pytest.raises(ValueError, match="UTF-16 text: save it as UTF-8") as caught:
            read(data)
        assert MARK not in str(caught.value)


def test_quotes_around_the_secret_of_a_file_are_refused() -> None:
    """They were meant for a shell."""
    with pytest.raises(ValueError, match="quotes around the secret"):
        secret_in(f'"{MARK}"\n'.encode())


@pytest.mark.parametrize("text", [" a b ", "\"q'", "päss", "p%41+/#?[@", "a\tb"])
def test_a_password_is_taken_literally(text: str) -> None:
    """But for line ends behind it."""
    assert password_in(f"{text}\r\n".encode()) == Secret(text)
    assert why_unreadable(Path(__file__)) is None


@pytest.mark.parametrize(("data", "why"), [(b"", "is empty"), (b"\n", "is empty"), (b"\xff", "is not UTF-8")])
def test_a_file_without_a_password_is_a_problem(data: bytes, why: str) -> None:
    """Whatever else it holds."""
    with pytest.raises(ValueError, match=why):
        password_in(data)
