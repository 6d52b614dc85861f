import socket

from keyturn.keepalive import IDLE_SECONDS, OPTIONS, keep_alive, tcp_socket


def test_idle_connections_are_asked_after_in_time() -> None:
    """Within a minute, and so before clouds forget them."""
    assert 30 <= IDLE_SECONDS <= 60
    with tcp_socket((socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", 1))) as sock:
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert {option: sock.getsockopt(socket.IPPROTO_TCP, option) for option in OPTIONS} == OPTIONS
        assert IDLE_SECONDS in OPTIONS.values()


def test_other_sockets_are_left_alone() -> None:
    """A Unix socket has no such options."""
    with socket.socket(socket.AF_UNIX) as sock:
        keep_alive(sock)
