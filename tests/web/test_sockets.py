import asyncio
import errno
import os
import socket
import stat
from pathlib import Path

import pytest
from keyturn.web.sockets import tcp_sockets, unix_socket, why


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


async def test_a_name_is_bound_at_each_of_its_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that this machine does not have are left out, as that of IPv6 where there is none."""
    loop = asyncio.get_running_loop()
    foreign, here = ((socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, 0)) for host in ("203.0.113.7", "127.0.0.1"))

    def names(*found: object) -> None:
        async def getaddrinfo(*_: object, **__: object) -> list[object]:
            return list(found)

        monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)

    for found in ((foreign, here), (here, foreign), (here, here)):
        names(*found)
        (sock,) = await tcp_sockets("somewhere", 0)
        assert sock.getsockname()[0] == "127.0.0.1"
        sock.close()
    names(foreign)
    with pytest.raises(OSError, match=os.strerror(errno.EADDRNOTAVAIL)):
        await tcp_sockets("somewhere", 0)


async def test_an_address_in_use_lets_go_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of a name is bound then."""
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.create_server(("127.0.0.1", 0)) as free:
        addresses = [free.getsockname(), taken.getsockname()]
        free.close()

        async def getaddrinfo(*_: object, **__: object) -> list[object]:
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in addresses]

        monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)
        with pytest.raises(OSError, match=os.strerror(errno.EADDRINUSE)):
            await tcp_sockets("somewhere", 0)
        socket.create_server(addresses[0]).close()
