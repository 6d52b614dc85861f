"""The keys and passwords that stand beside the document: in the environment, in files, and in folders of files."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from keyturn.config.contents import UTF_16, decoded, digest, digest_of_names, is_utf_16, key_files
from keyturn.config.fields import QUOTES, is_name, is_quoted, is_visible
from keyturn.config.tree import Node
from keyturn.core.errors import Problem
from keyturn.core.model import Secret

VARIABLE = "POSTMAN_API_KEYS"
MAX_SECRET_BYTES = 64 << 10
PASSWORD_FILES = ("password_file", "sentinel_password_file")
"""Settings of `store`."""


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
    """Keys separated by commas, without the quotes around each of them or around all, and without a byte order mark.

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
    """A name that stays the same wherever the key stands in the list: the start of its SHA-256."""
    return f"key-{Secret(secret).digest()[:8]}"


def _check(secrets: list[str]) -> list[Problem]:
    problems = []
    for number, secret in enumerate(secrets, 1):
        first = secrets.index(secret) + 1
        if first < number:
            problems.append(Problem(VARIABLE, f"keys {first} and {number} are the same: write each key once"))
        if not is_visible(secret):
            problems.append(Problem(VARIABLE, f"key {number} is not one word of visible ASCII characters"))
        elif is_quoted(secret):
            problems.append(Problem(VARIABLE, f"key {number} has a quote at one end only: take it out"))
    return problems


@dataclass(slots=True)
class KeyFiles:
    """Reads the files of every pool's keys, and those of the store's passwords."""

    base: Path
    secrets: dict[Path, Secret] = field(default_factory=dict)
    listed: dict[Path, tuple[Path, ...]] = field(default_factory=dict)
    passwords: dict[Path, Secret] = field(default_factory=dict)
    """Of the store."""
    contents: dict[Path, bytes] = field(default_factory=dict, repr=False)
    """Digests of what was read."""
    problems: list[Problem] = field(default_factory=list)

    def collect(self, root: Node) -> None:
        """Read what the pools of a document name."""
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
                node.problem("a file's name is no name of a key: 1 to 64 of A-Z, a-z, 0-9, `.`, `_` and `-`")
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
    """The secret of a file that holds one and, at most, blanks and line ends around it, or a byte order mark.

    Raises:
        ValueError: it holds none; the message goes on from the file's name.
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
    """The password of a file that holds one, taken literally but for line ends behind it.

    Raises:
        ValueError: it holds none; the message goes on from the file's name.
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
    """Say that a file cannot be read, without its name: a secret may stand in its place."""
    start = "" if (node.text or "").startswith("/") else f" (a relative path starts from {base.absolute()})"
    return f"the file cannot be read: {reason}{start}"


def why_unreadable(path: Path) -> str | None:
    """Why a file cannot be read, `None` when it can."""
    try:
        with path.open("rb") as file:
            return f"it is {UTF_16}" if is_utf_16(file.read(4)) else None
    except OSError as error:
        return error.strerror
