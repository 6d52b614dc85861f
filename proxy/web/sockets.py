"""Sockets of the file system to listen on, and what keeps a process from listening."""

import errno
import os
import socket
import stat
import sys
from pathlib import Path
from typing import Any

_NOBODY = 0o177
"""Masks every permission but the owner's."""


def unix_socket(path: Path, mode: int) -> socket.socket:
    """A socket bound to `path` with these permissions; at no moment it has wider ones.

    A socket that nobody listens on any more makes room.

    Raises:
        OSError: something else is there.
    """
    _make_room(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(_NOBODY)
    try:
        sock.bind(str(path))
        path.chmod(mode)
    except BaseException:
        sock.close()
        raise
    finally:
        os.umask(mask)
    return sock


KEEPING_PATH: dict[str, Any] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}
"""What `create_unix_server` has to be told so that the end of a server does not remove its socket's path, as it does
from Python 3.13 on."""


def _make_room(path: Path) -> None:
    if not (path.exists() and stat.S_ISSOCK(path.stat().st_mode)):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
        else:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def why(error: OSError) -> str:
    """Why an address cannot be listened at, and what to do."""
    match error.errno:
        case errno.EADDRINUSE:
            return "address in use. Stop what listens there, or choose another in `listen`."
        case errno.EACCES | errno.EPERM:
            return "not permitted. Choose a port from 1024 up, or a path that this user may write to."
        case errno.EADDRNOTAVAIL | None:
            # From Python 3.13 on asyncio tries each address of a name and tells no number when none is there.
            return "this machine has no such address. Choose one that it has, or 0.0.0.0 for all."
        case _:
            return f"{error.strerror or error}. Choose another address in `listen`."
