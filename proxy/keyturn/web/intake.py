"""What a transport talks to: it bounds each read, which a plain protocol cannot.

A transport hands a plain protocol whatever it could read at once, up to 256 KiB, which a thousand connections would all
hold before any of them could be paused.
"""

import asyncio

from keyturn.web.parsing import MOST_READ, Parsing

_INTO = memoryview(bytearray(MOST_READ))
"""Where every read goes: bytes are taken out of it before the event loop does anything else."""


class Intake(asyncio.BufferedProtocol):
    """Reads for a connection as many bytes as it can take, and passes everything else on."""

    __slots__ = ("_connection",)

    def __init__(self, connection: Parsing) -> None:
        self._connection = connection

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002  # uvloop always says 64 KiB, asyncio nothing
        """As much room as may be read at once."""
        return _INTO[: self._connection.appetite()]

    def buffer_updated(self, nbytes: int) -> None:
        """So many bytes have been read."""
        if not self._connection.deaf:
            self._connection.data_received(bytes(_INTO[:nbytes]))

    def take(self, data: bytes) -> None:
        """Take bytes that were read before the connection was there."""
        self._connection.data_received(data)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is there."""
        self._connection.connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        """It is closed."""
        self._connection.connection_lost(exc)

    def eof_received(self) -> None:
        """The caller sends no more."""
        self._connection.eof_received()

    def pause_writing(self) -> None:
        """The caller takes less than is written to it."""
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        """The caller has taken what was written."""
        self._connection.resume_writing()
