"""Keys and passwords beside the document (in the environment, in files, in directories), and digests of files."""

import codecs
import errno
import os
import stat
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

from keyturn.config.fields import QUOTES, is_name, is_quoted, is_visible
from keyturn.config.problems import Node
from keyturn.core.errors import Problem, StartError
from keyturn.core.model import Secret

UTF_16 = "UTF-16 text: save it as UTF-8 (Windows PowerShell: `Out-File -Encoding ascii`)"
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_NULLS = b"\0\0"
"""Every other byte of ASCII text in UTF-16, also without a byte order mark."""

MISSING_FILE = b""
"""The digest of a file that is missing or cannot be read."""

IRREGULAR_FILE = b"no file"
"""The digest of a pipe, a device and the like: reading one consumes data or blocks."""

_NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE)
_RAISE_LIMIT = "this machine has no file descriptor left: raise its limit of open files (`LimitNOFILE`, `ulimit -n`)"


def digest(data: bytes) -> bytes:
    """The digest of a file's content."""
    return sha256(data).digest()


def digest_of_names(names: Iterable[str]) -> bytes:
    """The digest of a directory: of the names of its key files."""
    return digest("/".join(sorted(names)).encode("utf-8", "surrogateescape"))


def key_files(folder: Path) -> list[Path]:
    """The key files of a directory, without hidden files and directories.

    A mounted Kubernetes Secret has `..data` and the like beside links to its files.

    Raises:
        OSError: it is no directory, or cannot be read.
    """
    return [path for path in sorted(folder.iterdir()) if not path.name.startswith(".") and not path.is_dir()]


def is_utf_16(data: bytes) -> bool:
    """Whether a text begins like UTF-16."""
    return data.startswith(_UTF_16) or _NULLS in (data[:4:2], data[1:4:2])


def decoded(data: bytes) -> str:
    """Decode the text of a file in UTF-8, without a byte order mark.

    Raises:
        ValueError: it is in another encoding; the message continues "the file is".
    """
    if is_utf_16(data):
        raise ValueError(UTF_16)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("not UTF-8 text: save it as UTF-8") from None


def content_of(path: Path) -> bytes:
    """The digest of what a path, with its links followed, holds now.

    Raises:
        StartError: this machine has no file descriptor left.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            return digest_of_names(file.name for file in key_files(path))
        if not stat.S_ISREG(mode):
            return IRREGULAR_FILE
        with path.open("rb") as file:
            return file_digest(file, "sha256").digest()
    except OSError as error:
        if error.errno in _NO_DESCRIPTOR:
            raise StartError(_RAISE_LIMIT) from error
        return MISSING_FILE


def check_descriptors() -> None:
    """Check that files can be opened at all.

    Raises:
        StartError: this machine has no file descriptor left.
    """
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        if error.errno in _NO_DESCRIPTOR:
            raise StartError(_RAISE_LIMIT) from error


VARIABLE = "POSTMAN_API_KEYS"
MAX_SECRET_BYTES = 64 << 10
PASSWORD_FILES = ("password_file", "sentinel_password_file")
"""Settings of `store` that name password files."""


def with_environment_keys(tree: dict[str, Any], environ: Mapping[str, str]) -> tuple[dict[str, Any], list[Problem]]:
    """Give the pool `default` the keys of `POSTMAN_API_KEYS` when it has neither `keys` nor `keys_dir`."""
    pools = {"default": {}} if tree.get("pools") in (None, {}) else tree["pools"]
    if not isinstance(pools, dict) or "default" not in pools:
        return tree, []
    pool = {} if pools["default"] is None else pools["default"]
    if not isinstance(pool, dict) or pool.get("keys") or pool.get("keys_dir"):
        return tree, []
    secrets = [part for part in _listed(environ.get(VARIABLE, "")) if part]
    if not secrets:
        return {**tree, "pools": pools}, []
    sound = [secret for secret in dict.fromkeys(secrets) if is_visible(secret) and not is_quoted(secret)]
    keys = [{"name": _name_of(secret), "secret": secret} for secret in sound]
    return {**tree, "pools": {**pools, "default": {**pool, "keys": keys}}}, _check(secrets)


def _listed(text: str) -> list[str]:
    """Split keys at commas, without quotes around each or all of them, and without a byte order mark.

    `docker --env-file` and the like keep the quotes of a value.
    """
    text = text.strip().removeprefix("\ufeff").strip()
    parts = [part.strip() for part in text.split(",")]
    if _is_quoted_whole(text) and not all(map(_is_quoted_whole, parts)):
        parts = [part.strip() for part in text[1:-1].split(",")]
    return [part[1:-1].strip() if _is_quoted_whole(part) else part for part in parts]


def _is_quoted_whole(text: str) -> bool:
    return len(text) > 1 and text[0] == text[-1] and text[0] in QUOTES


def _name_of(secret: str) -> str:
    """A name that does not depend on the other keys: the start of the SHA-256."""
    return f"key-{Secret(secret).digest()[:8]}"


def _check(secrets: list[str]) -> list[Problem]:
    problems = []
    for number, secret in enumerate(secrets, 1):
        first = secrets.index(secret) + 1
        if first < number:
            problems.append(Problem(VARIABLE, f"keys {first} and {number} are the same: write each key once"))
        if not is_visible(secret):
            problems.append(
                Problem(VARIABLE, f"key {number} is not one word of visible ASCII characters: check it for spaces")
            )
        elif is_quoted(secret):
            problems.append(Problem(VARIABLE, f"key {number} has a quote at one end only: delete it"))
    return problems


@dataclass(slots=True)
class KeyFiles:
    """Read the key files of all pools and the password files of the store."""

    base: Path
    secrets: dict[Path, Secret] = field(default_factory=dict)
    listed: dict[Path, tuple[Path, ...]] = field(default_factory=dict)
    passwords: dict[Path, Secret] = field(default_factory=dict)
    """Passwords of the store, by file."""
    contents: dict[Path, bytes] = field(default_factory=dict, repr=False)
    """Digests of the files that were read."""
    problems: list[Problem] = field(default_factory=list)

    def collect(self, root: Node) -> None:
        """Read all files that a document names."""
        for _, pool in root["pools"].entries():
            for key in pool["keys"].items():
                path = key["secret_file"].path(self.base)
                if path:
                    self._read(path, key["secret_file"], self.secrets, secret_in)
            folder = pool["keys_dir"].path(self.base)
            if folder:
                self._list(folder, pool["keys_dir"])
        for name in PASSWORD_FILES:
            path = root["store"][name].path(self.base)
            if path:
                self._read(path, root["store"][name], self.passwords, password_in)

    def _list(self, folder: Path, node: Node) -> None:
        try:
            files = key_files(folder)
        except OSError as error:
            self.problems.append(node.problem(unreadable(node, self.base, error.strerror)))
            return
        self.contents[folder] = digest_of_names(path.name for path in files)
        self.listed[folder] = tuple(path for path in files if self._is_key(path, node))

    def _is_key(self, path: Path, node: Node) -> bool:
        if not is_name(path.name):
            self.problems.append(
                node.problem(
                    "the name of a file cannot name a key: rename it to 1 to 64 of A-Z, a-z, 0-9, `.`, `_` and `-`"
                )
            )
            return False
        return self._read(path, node, self.secrets, secret_in)

    def _read(self, path: Path, node: Node, found: dict[Path, Secret], read: Callable[[bytes], Secret]) -> bool:
        if path in found:
            return True
        try:
            data = _bytes_of(path)
            self.contents[path] = digest(data)
            found[path] = read(data)
        except OSError as error:
            self.problems.append(node.problem(unreadable(node, self.base, error.strerror)))
        except ValueError as error:
            self.problems.append(node.problem(f"the file {error}"))
        return path in found


def _bytes_of(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_SECRET_BYTES + 1)


def secret_in(data: bytes) -> Secret:
    """Read a secret from a file's content, without surrounding white space and byte order mark.

    Raises:
        ValueError: it holds none; the message continues "the file".
    """
    text = _text_of(data).strip()
    if not text:
        raise ValueError("is empty: write the secret into it")
    if not is_visible(text):
        raise ValueError("holds more than one word of visible ASCII characters: write only the secret into it")
    if is_quoted(text):
        raise ValueError("holds quotes around the secret: write only the secret into it")
    return Secret(text)


def password_in(data: bytes) -> Secret:
    """Read a password from a file's content, literally but for trailing line ends.

    Raises:
        ValueError: it holds none; the message continues "the file".
    """
    text = _text_of(data).rstrip("\r\n")
    if not text:
        raise ValueError("is empty: write the password into it")
    return Secret(text)


def _text_of(data: bytes) -> str:
    if len(data) > MAX_SECRET_BYTES:
        raise ValueError(f"has more than {MAX_SECRET_BYTES >> 10} KiB: write only the secret into it")
    try:
        return decoded(data)
    except ValueError as error:
        raise ValueError(f"is {error}") from None


def unreadable(node: Node, base: Path, reason: str | None) -> str:
    """Explain that a file cannot be read, without its name: it may be a misplaced secret."""
    start = "" if (node.text or "").startswith("/") else f" (a relative path starts from {base.absolute()})"
    return f"the file cannot be read: {reason}{start}"


def why_unreadable(path: Path) -> str | None:
    """The reason why a file cannot be read; `None` when it can."""
    try:
        with path.open("rb") as file:
            return f"it is {UTF_16}" if is_utf_16(file.read(4)) else None
    except OSError as error:
        return error.strerror
