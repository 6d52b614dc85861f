"""How much the suite tries: a brief run by default, the full one with KEYTURN_DEEP set, as `make deep` does."""

import os
from typing import TypeVar

T = TypeVar("T")

DEEP = bool(os.environ.get("KEYTURN_DEEP"))


def deep(full: T, brief: T) -> T:
    """Return the size of a test for this run."""
    return full if DEEP else brief
