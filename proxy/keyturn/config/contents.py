"""What stands in files, told apart by digests: the same digest is the same content.

Loading notes the digest of what it read itself, so whoever looks later sees whether that still stands there.
"""

import codecs
import errno
import os
import stat
from collections.abc import Iterable
from hashlib import file_digest, sha256
from pathlib import Path

from keyturn.core.errors import StartError

UTF_16 = "UTF-16 text: save it as UTF-8 (Windows PowerShell: `Out-File -Encoding ascii`)"
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_NULLS = b"\0\0"
"""Every other byte of ASCII text in UTF-16, also without a byte order mark."""

NOTHING = b""
"""There is no such file, or it cannot be read."""

NO_FILE = b"no file"
"""A pipe, a device and the like: reading it takes something out of it, or waits for ever."""

_SHORT = (errno.EMFILE, errno.ENFILE)
_RAISE_IT = "this machine has no file descriptor left: raise its limit of open files (`LimitNOFILE`, `ulimit -n`)"


def digest(data: bytes) -> bytes:
    """Of a file's content."""
    return sha256(data).digest()


def digest_of_names(names: Iterable[str]) -> bytes:
    """Of a folder, by the names of the key files in it."""
    return digest("/".join(sorted(names)).encode("utf-8", "surrogateescape"))


def key_files(folder: Path) -> list[Path]:
    """The files of a folder that hold keys; hidden ones and folders are not among them.

    A mounted Kubernetes Secret has `..data` and the like beside links to its files.

    Raises:
        OSError: it is no folder, or cannot be read.
    """
    return [path for path in sorted(folder.iterdir()) if not path.name.startswith(".") and not path.is_dir()]


def is_utf_16(data: bytes) -> bool:
    """Whether a text begins as one in UTF-16."""
    return data.startswith(_UTF_16) or _NULLS in (data[:4:2], data[1:4:2])


def decoded(data: bytes) -> str:
    """The text of a file in UTF-8, without the byte order mark that some editors put before it.

    Raises:
        ValueError: it is in UTF-16 or something else; the message goes on from "the file is".
    """
    if is_utf_16(data):
        raise ValueError(UTF_16)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("not UTF-8 text: save it as UTF-8") from None


def content_of(path: Path) -> bytes:
    """The digest of what stands at a path now, wherever its links lead.

    Raises:
        StartError: this machine has no file descriptor left to look.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            return digest_of_names(file.name for file in key_files(path))
        if not stat.S_ISREG(mode):
            return NO_FILE
        with path.open("rb") as file:
            return file_digest(file, "sha256").digest()
    except OSError as error:
        if error.errno in _SHORT:
            raise StartError(_RAISE_IT) from error
        return NOTHING


def check_descriptors() -> None:
    """See that files can be opened at all: by that, reading what is there fails in many ways.

    Raises:
        StartError: this machine has no file descriptor left.
    """
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        if error.errno in _SHORT:
            raise StartError(_RAISE_IT) from error
