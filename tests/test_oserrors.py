import socket
import ssl

import pytest
from keyturn.oserrors import words


def _of_openssl() -> ssl.SSLError:
    """An error as OpenSSL makes it, whose text names a line of Python's source."""
    error = ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number (_ssl.c:1006)")
    error.reason = "WRONG_VERSION_NUMBER"
    return error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ConnectionRefusedError(111, "Connect call failed ('127.0.0.1', 18443)"), "connection refused"),
        (
            OSError("Multiple exceptions: [Errno 111] Connect call failed ('::1', 9), [Errno 101] Connect call failed"),
            "connection refused, network is unreachable",
        ),
        (socket.gaierror(-2, "Name or service not known"), "Name or service not known"),
        (ssl.SSLError(1, "wrong version number"), "wrong version number"),
        (_of_openssl(), "wrong version number"),
        (OSError("in words"), "in words"),
        (ConnectionResetError(), "ConnectionResetError"),
    ],
)
def test_a_cause_is_told_in_the_system_s_words(error: OSError, said: str) -> None:
    """Once for each, however many addresses failed with it."""
    assert words(error) == said
