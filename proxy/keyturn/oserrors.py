"""Causes of system errors for people to read; a library's own message may be a piece of its source code."""

import os
import re
import socket
import ssl

_ERRNO = re.compile(r"\[Errno (\d+)\]")
"""Several errors in one, of a name with several addresses, stand in its text only."""


def words(error: OSError) -> str:
    """Name the cause, such as `connection refused`; several ones if the addresses of a name failed in several ways."""
    if isinstance(error, ssl.SSLError):
        reason = getattr(error, "reason", None)  # as OpenSSL names it, WRONG_VERSION_NUMBER; ssl's own errors have none
        return reason.replace("_", " ").lower() if reason else error.strerror or type(error).__name__
    if isinstance(error, socket.gaierror):
        return error.strerror or type(error).__name__
    numbers = [error.errno] if error.errno else [*map(int, _ERRNO.findall(str(error)))]
    causes = dict.fromkeys(os.strerror(number).lower() for number in numbers)
    return ", ".join(causes) or error.strerror or str(error) or type(error).__name__
