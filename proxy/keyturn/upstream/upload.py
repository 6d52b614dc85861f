"""A request's body on its way to the upstream, written beside the wait for the answer."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable

from aiohttp.client_proto import ResponseHandler
from aiohttp.http import StreamWriter

from keyturn.core.http import Body


class Upload:
    """Writes one body: exactly as many bytes as were announced, or in chunks when none were.

    A body that breaks its announcement is not ended properly, so that the upstream sees it truncated.
    """

    __slots__ = ("_body", "_on_written", "_protocol", "answered", "failure", "written")

    def __init__(self, protocol: ResponseHandler, body: Body, on_written: Callable[[], None]) -> None:
        self._protocol = protocol
        self._body = body
        self._on_written = on_written
        self.written = False
        self.answered = False
        self.failure: Exception | None = None
        """Why the body could not be read to its end."""

    async def run(self) -> None:
        """Write the body; when its reader fails, so does the wait for the head."""
        chunks = self._body.chunks()
        try:
            if self._body.length is None:
                await self._write_chunked(chunks)
            else:
                await self._write_counted(chunks, self._body.length)
            self.written = True
            self._protocol.start_timeout()
            self._on_written()
        except _LostError:
            pass
        except Exception as failure:  # noqa: BLE001  # whatever it is, `Wire.send` raises it again
            self.failure = failure
            if not self.answered:
                self._protocol.set_exception(failure)
        finally:
            if isinstance(chunks, AsyncGenerator):
                await chunks.aclose()

    async def _write_chunked(self, chunks: AsyncIterator[bytes]) -> None:
        async for chunk in chunks:
            if chunk:
                self._put(b"%x\r\n%b\r\n" % (len(chunk), chunk))
                await self._drain()
        self._put(b"0\r\n\r\n")

    async def _write_counted(self, chunks: AsyncIterator[bytes], left: int) -> None:
        while left:
            chunk = await anext(chunks, None)
            if chunk is None or len(chunk) > left:
                raise ConnectionError("the body of the request has not the length that its head announces")
            left -= len(chunk)
            self._put(chunk)
            if left:
                await self._drain()

    def _put(self, data: bytes) -> None:
        transport = self._protocol.transport
        if transport is None or transport.is_closing():
            raise _LostError
        transport.write(data)

    async def _drain(self) -> None:
        """Wait while the transport's buffer is full; getting on is progress, so the upstream's time starts anew."""
        if self._protocol.writing_paused:
            try:
                await StreamWriter(self._protocol, asyncio.get_running_loop()).drain()
            except ConnectionError as error:
                raise _LostError from error
        self._protocol.start_timeout()


class _LostError(Exception):
    """The connection was lost under the upload."""
