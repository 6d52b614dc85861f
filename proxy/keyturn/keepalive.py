"""TCP keep-alive: what lies between two machines must not forget a connection that waits, and its loss is noticed.

Clouds and firewalls forget a connection after some 240 to 350 s without a packet, and tell neither side. The kernel
asks after two hours by default.
"""

import socket
import sys
from typing import Any

IDLE_SECONDS = 45
"""Seconds without a packet, then the other side is asked whether it is there."""
PROBE_INTERVAL = 15
MAX_PROBES = 4
"""Unanswered questions, then the connection is lost."""

_IDLE_OPTION: int = getattr(socket, "TCP_KEEPALIVE" if sys.platform == "darwin" else "TCP_KEEPIDLE")
OPTIONS: dict[int, int] = {
    _IDLE_OPTION: IDLE_SECONDS,
    socket.TCP_KEEPINTVL: PROBE_INTERVAL,
    socket.TCP_KEEPCNT: MAX_PROBES,
}
"""Socket options of the level `IPPROTO_TCP`."""


SOCKET_OPTIONS: list[tuple[int, int, int]] = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *((socket.IPPROTO_TCP, option, value) for option, value in OPTIONS.items()),
]
"""All of it, as arguments of `setsockopt`."""


def keep_alive(sock: socket.socket) -> None:
    """Turn it on for a socket, or for all that are accepted from it; without effect on other sockets than TCP's."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    for option in SOCKET_OPTIONS:
        sock.setsockopt(*option)


def tcp_socket(address: tuple[Any, ...]) -> socket.socket:
    """A new socket for an entry of `getaddrinfo`, with keep-alive: a `socket_factory` of aiohttp's."""
    family, kind, protocol, *_ = address
    sock = socket.socket(family, kind, protocol)
    keep_alive(sock)
    return sock
