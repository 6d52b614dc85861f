"""What the process asks of the kernel for itself, as far as it is permitted."""

import resource
from contextlib import suppress

MOST_FILES = 2**20
"""More than any configuration needs; some systems take no larger number."""


def settle() -> None:
    """Leave no core dump, which would hold the keys; open as many files as the hard limit permits."""
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
