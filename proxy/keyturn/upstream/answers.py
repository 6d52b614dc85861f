"""An answer's body on its way from the upstream, and what becomes of the connection that carries it."""

import asyncio
from typing import Protocol

import aiohttp
from aiohttp.http import HttpProcessingError
from aiohttp.streams import EofStream, StreamReader

from keyturn.core.errors import Broken

LOST = (aiohttp.ClientError, HttpProcessingError, EofStream, OSError)
"""What a lost connection, or an answer that is not HTTP, looks like in aiohttp."""
_PIECE = 2**16
"""Bytes that are handed on at once: more would wait for a slow caller in one lump."""
_REST = 2**16
"""Bytes of an unwanted rest that are read to keep a connection; a longer one is not worth it."""
_REST_SECONDS = 1.0


class Carrier(Protocol):
    """The exchange that a body belongs to."""

    @property
    def reset(self) -> bool:
        """Whether the connection was lost otherwise than by being closed."""

    async def end(self) -> None:
        """The answer has been read in full."""

    async def close(self) -> None:
        """Close the connection, and stop the upload."""

    def abort(self) -> None:
        """Close the connection at once."""


class Stream:
    """A body that is still coming in, and the connection on which it does."""

    __slots__ = ("_ended", "_payload", "_until_close", "_wire")

    def __init__(self, wire: Carrier, payload: StreamReader, *, until_close: bool) -> None:
        self._wire = wire
        self._payload = payload
        self._until_close = until_close
        self._ended = False

    async def read(self) -> bytes:
        """The next bytes, `b""` at the end, when the connection has gone back to its pool.

        Raises:
            Broken: the connection was lost before the end that the answer's framing announced.
        """
        if self._ended:
            return b""
        try:
            data = await self._payload.read(_PIECE)
            if not self._payload.at_eof():
                return data
        except (*LOST, RuntimeError) as error:
            await self._wire.close()
            raise Broken("The upstream broke its answer off.") from error
        except BaseException:
            await self._wire.close()
            raise
        if self._until_close and self._wire.reset:
            broken = Broken("The upstream broke its answer off.")
            self._payload.set_exception(broken)
            await self._wire.close()
            raise broken
        self._ended = True
        await self._wire.end()
        return data

    async def discard(self) -> None:
        """Read a short rest, or close the connection."""
        left = _REST
        try:
            async with asyncio.timeout(_REST_SECONDS):
                while left > 0 and (data := await self.read()):
                    left -= len(data)
        except (Broken, TimeoutError):
            pass
        if not self._ended:
            await self._wire.close()

    def abort(self) -> None:
        """Close the connection at once."""
        self._wire.abort()
