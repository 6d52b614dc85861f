"""Labels that callers and the upstream have a say in, folded to known ones."""

from http import HTTPStatus

METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
CODES = {status.value: str(status.value) for status in HTTPStatus}

OTHER = "other"

NOBODY = "none"
"""Stands for the pool and the client of a request whose caller is not known."""


def method(name: str) -> str:
    """A known method, or `other`."""
    return name if name in METHODS else OTHER


def code(number: int) -> str:
    """A known status code, the class of an unknown one (`4xx`), or `0` for none."""
    return CODES.get(number) or (f"{number // 100}xx" if 100 <= number <= 599 else "0")  # noqa: PLR2004  # RFC 9110, 15
