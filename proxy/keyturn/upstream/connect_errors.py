"""Errors of this machine, told apart from those of the upstream, about which they say nothing."""

import errno
import socket
import ssl

import aiohttp

from keyturn.config.files import check_descriptors
from keyturn.core.errors import LocalCause, StartError

_ERRNOS: dict[int, LocalCause] = {
    errno.EMFILE: "descriptors",
    errno.ENFILE: "descriptors",
    errno.EADDRNOTAVAIL: "ports",
    errno.ENOBUFS: "memory",
    errno.ENOMEM: "memory",
    errno.EACCES: "forbidden",
    errno.EPERM: "forbidden",
    errno.ENETDOWN: "network",
    errno.ENETUNREACH: "network",
}
_LOOKUPS: dict[int, LocalCause] = {
    socket.EAI_AGAIN: "resolver",
    socket.EAI_FAIL: "resolver",
    socket.EAI_SYSTEM: "resolver",
    socket.EAI_MEMORY: "memory",
}

CAUSE_MESSAGES: dict[LocalCause, str] = {
    "descriptors": "has no file descriptor left for a connection to {name}: raise its limit of open files "
    "(`LimitNOFILE`, `ulimit -n`), or lower `inbound.max_connections`",
    "ports": "has no local address or port left for a connection to {name}: close other connections to it, or widen "
    "`net.ipv4.ip_local_port_range`",
    "memory": "has no memory left for a connection to {name}: give it more, or lower `upstream.max_connections`",
    "forbidden": "does not permit a connection to {name}: see its firewall and its security policy",
    "network": "has no network that leads to {name}: see its interfaces and routes",
    "resolver": "cannot look up the name of {name}: see its resolver (`/etc/resolv.conf`)",
    "threads": "can start no thread for looking up {name}: raise its limit of processes (`TasksMax`, `ulimit -u`)",
}
"""The message for each cause, with what to do; `name` is the upstream's authority."""


def local_cause(error: BaseException) -> LocalCause | None:
    """The cause on this machine for which a connection failed; `None` when the cause is elsewhere.

    Numbers of TLS errors and of look-ups mean other things than those of system calls.
    """
    if isinstance(error, aiohttp.ClientConnectorError):
        error = error.os_error
    match error:
        case ssl.SSLError():
            return None
        case socket.gaierror():
            return "descriptors" if _out_of_descriptors() else _LOOKUPS.get(error.errno or 0)
        case OSError():
            return _ERRNOS.get(error.errno or 0)
        case RuntimeError() if "thread" in str(error):
            return "threads"
        case _:
            return None


def _out_of_descriptors() -> bool:
    """Whether no file can be opened now: by that, look-ups fail in ways of their own."""
    try:
        check_descriptors()
    except StartError:
        return True
    return False
