import asyncio
import errno
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop

from proxy.web.sockets import KEEPING_PATH, unix_socket, why


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666])
def test_a_socket_has_its_permissions(tmp_path: Path, mode: int) -> None:
    """Whatever the mask of the process is, which stays as it was."""
    before = os.umask(0o077)
    try:
        unix_socket(tmp_path / "socket", mode).close()
        assert stat.S_IMODE((tmp_path / "socket").stat().st_mode) == mode
        assert os.umask(0o077) == 0o077
    finally:
        os.umask(before)


def test_nobody_connects_before_the_permissions_are_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between its making and its permissions a socket is its owner's alone."""
    seen = []
    change = Path.chmod

    def watched(path: Path, mode: int) -> None:
        seen.append(stat.S_IMODE(path.stat().st_mode))
        change(path, mode)

    monkeypatch.setattr(Path, "chmod", watched)
    unix_socket(tmp_path / "socket", 0o666).close()
    assert seen == [0o600]


def test_only_a_socket_makes_room(tmp_path: Path) -> None:
    """And only one that nobody listens on."""
    path = tmp_path / "socket"
    with unix_socket(path, 0o660) as listening:
        listening.listen()
        with pytest.raises(OSError, match="in use") as caught:
            unix_socket(path, 0o660)
        assert caught.value.errno == errno.EADDRINUSE
    unix_socket(path, 0o660).close()
    with pytest.raises(OSError, match="in use"), socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (errno.EADDRINUSE, "address in use"),
        (errno.EACCES, "not permitted"),
        (errno.EADDRNOTAVAIL, "no such address"),
        (errno.ENOENT, "No such file or directory"),
    ],
)
def test_an_error_says_what_to_do(number: int, text: str) -> None:
    """In words, with the way out."""
    assert text in why(OSError(number, os.strerror(number)))


@pytest.mark.parametrize("loop", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_the_end_of_a_server_leaves_its_path(loop: Callable[[Any], None], tmp_path: Path) -> None:
    """Whoever made the socket removes it; both loops would do so by themselves from Python 3.13 on."""
    path = tmp_path / "proxy.sock"

    async def scenario() -> None:
        make = asyncio.get_running_loop().create_unix_server
        server = await make(asyncio.Protocol, sock=unix_socket(path, 0o600), **KEEPING_PATH)
        server.close()
        await server.wait_closed()
        assert path.exists()

    loop(scenario())
