"""Sockets of the file system to listen on, and what keeps a process from listening."""

import asyncio
import errno
import os
import socket
import stat
from pathlib import Path
from typing import Any

_NOT_HERE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
"""An address is not this machine's."""
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


async def tcp_sockets(host: str, port: int) -> list[socket.socket]:
    """Sockets bound to each address of a host that this machine has.

    Raises:
        OSError: one of them is in use, or none is this machine's.
    """
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    socks: list[socket.socket] = []
    addresses = list(dict.fromkeys(found))
    try:
        for family, kind, protocol, _, address in addresses:
            try:
                socks.append(_bound(socket.socket(family, kind, protocol), address))
            except OSError as error:
                if error.errno not in _NOT_HERE or (address == addresses[-1][4] and not socks):
                    raise
    except BaseException:
        for sock in socks:
            sock.close()
        raise
    return socks


def _bound(sock: socket.socket, address: tuple[Any, ...]) -> socket.socket:
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
    except BaseException:
        sock.close()
        raise
    return sock


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
