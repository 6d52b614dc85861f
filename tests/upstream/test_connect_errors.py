import errno
import os
import resource
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from keyturn.core.errors import LocalCause
from keyturn.upstream.connect_errors import CAUSE_MESSAGES, local_cause


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    """As if all were in use."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (OSError(errno.EMFILE, ""), "descriptors"),
        (OSError(errno.ENETDOWN, ""), "network"),
        (PermissionError(errno.EACCES, ""), "forbidden"),
        (socket.gaierror(socket.EAI_AGAIN, ""), "resolver"),
        (socket.gaierror(socket.EAI_MEMORY, ""), "memory"),
        (socket.gaierror(socket.EAI_NONAME, ""), None),
        (ConnectionRefusedError(errno.ECONNREFUSED, ""), None),
        (OSError("Multiple exceptions"), None),
        (OSError(errno.EHOSTUNREACH, ""), None),
        (ssl.SSLError(errno.EPERM, "its numbers are its own"), None),
        (TimeoutError(), None),
        (RuntimeError("can't start new thread"), "threads"),
        (RuntimeError("anything"), None),
    ],
    ids=repr,
)
def test_the_machines_troubles_are_told_from_the_upstreams(error: Exception, cause: LocalCause | None) -> None:
    """By what the system says."""
    assert local_cause(error) == cause
    assert cause is None or cause in CAUSE_MESSAGES


def test_without_descriptors_look_ups_fail_in_ways_of_their_own() -> None:
    """Even so that the name seems not to exist."""
    error = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    with no_descriptor_left():
        with pytest.raises(OSError, match="Too many"):
            os.open(os.devnull, os.O_RDONLY)
        assert local_cause(error) == "descriptors"
    assert local_cause(error) is None
