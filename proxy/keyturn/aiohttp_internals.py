"""What this package uses of aiohttp beyond its documentation, each use with its reason."""

from aiohttp.streams import StreamReader

_CHUNK_COST = 128
"""Bytes of memory that a piece of a body takes beside its own."""


def buffered(body: StreamReader) -> int:
    """Bytes of memory that what has been read of a body, and not been taken, keeps: nothing public tells."""
    return body._size + _CHUNK_COST * len(body._buffer)  # noqa: SLF001
