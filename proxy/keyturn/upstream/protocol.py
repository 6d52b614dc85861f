"""aiohttp's protocol for one connection, made to carry many answers cheaply and to fail loudly.

aiohttp makes a parser and several timers for every answer. Here a parser is kept for the next answer, and put aside
while none is awaited: what comes then is never read as an answer. One timer stands for all; it is moved on when it goes
off before its time.
"""

import asyncio
from random import random
from time import monotonic
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.helpers import _EXC_SENTINEL
from aiohttp.streams import StreamReader

KEPT_ALIVE = 15.0
"""Seconds for which an idle connection is kept: fewer than servers wait, which so seldom close it under a request."""
_SPREAD = 0.2
"""Which part of its age a connection may lack, by chance: those that were made together end at different times."""
_ON_ITS_WAY = 1.0
"""Seconds by which a connection is left alone before the upstream closes it."""
_BUFFER = 2**16
"""Bytes of an answer that are read ahead; reading stops at twice as many, so that memory stays flat."""
_LONGEST_LINE = 2**16
_MOST_FIELDS = 512


class UpstreamProtocol(ResponseHandler):
    """A connection whose reader learns of everything that goes wrong, also in the middle of an answer."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._spare_parser: Any = None
        """The parser of the last answer that had a body, ready for the next."""
        self._was_paused = False
        """Whether reading this answer was paused: then its parser may hold something back, and go on doing so."""
        self._deadline: float | None = None
        """When reading times out; the timer itself may go off earlier."""

        self.kept_for: float = KEPT_ALIVE
        """Seconds for which the connection may be idle, and be used again."""
        self._made = monotonic()
        self._part = 1 - _SPREAD * random()  # noqa: S311  # it hides nothing

        self.chunked: bool = False
        """Whether this answer is in chunks: its last trailer would become the first field of the next answer."""

    def keep(self, told: str) -> None:
        """Take note of the upstream's `Keep-Alive`: for how long it lets a connection be idle."""
        for parameter in told.split(","):
            name, _, seconds = parameter.partition("=")
            if name.strip().lower() == "timeout" and seconds.strip().isdecimal():
                self.kept_for = min(KEPT_ALIVE, float(seconds) - _ON_ITS_WAY)

    def lasts(self, now: float, idle_since: float, max_age: float) -> bool:
        """Whether the connection may be used for one more request; instants in seconds of the monotonic clock."""
        return now - idle_since < self.kept_for and now - self._made < max_age * self._part

    def expect(self, *, without_body: bool, timeout: float) -> None:
        """Get ready for one answer; `timeout` seconds may pass without a sign of it once `start_timeout` is called."""
        self._was_paused = self.chunked = False
        if without_body or self._spare_parser is None:
            self.set_response_params(
                skip_payload=without_body,
                read_until_eof=True,
                auto_decompress=False,
                read_timeout=timeout,
                read_bufsize=_BUFFER,
                max_line_size=_LONGEST_LINE,
                max_field_size=_LONGEST_LINE,
                max_headers=_MOST_FIELDS,
            )
        else:
            self._parser, self._spare_parser = self._spare_parser, None
            self._read_timeout = timeout
            self._skip_payload = False

    def rest(self) -> None:
        """The answer has been read in full: whatever comes before the next `expect` makes the connection unfit."""
        if not (self._skip_payload or self._was_paused or self.chunked):
            self._spare_parser = self._parser
        self._parser = None

    # When the connection fails

    def set_exception(self, exc: BaseException, exc_cause: BaseException = _EXC_SENTINEL) -> None:
        """The connection has failed: say so to whoever waits for a head, and to whoever reads a body."""
        payload = self._payload
        super().set_exception(exc, exc_cause)
        _fail(payload, exc)

    def abort(self) -> None:
        """Close at once, and say so to whoever reads a body."""
        payload = self._payload
        super().abort()
        _fail(payload, aiohttp.ClientConnectionError("closed by us"))

    def close(self) -> None:
        """Close, and say so to whoever reads a body."""
        payload = self._payload
        super().close()
        _fail(payload, aiohttp.ClientConnectionError("closed by us"))

    def connection_lost(self, exc: BaseException | None) -> None:
        """The connection is gone, and its timer with it."""
        super().connection_lost(exc)
        self._spare_parser = None
        if self._read_timeout_handle is not None:
            self._read_timeout_handle.cancel()
            self._read_timeout_handle = None

    # Reading

    def pause_reading(self) -> None:
        """Read nothing for a while."""
        self._was_paused = True
        super().pause_reading()

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Go on reading; aiohttp asks for it behind every piece of a body, whether reading was paused or not."""
        if self._was_paused:
            super().resume_reading(resume_parser)

    def _reschedule_timeout(self) -> None:
        if self._read_timeout:
            self._deadline = self._loop.time() + self._read_timeout
            if self._read_timeout_handle is None:
                self._read_timeout_handle = self._loop.call_at(self._deadline, self._on_read_timeout)

    def _drop_timeout(self) -> None:
        self._deadline = None

    def _on_read_timeout(self) -> None:
        self._read_timeout_handle = None
        if self._deadline is None:
            return
        if self._loop.time() < self._deadline:
            self._read_timeout_handle = self._loop.call_at(self._deadline, self._on_read_timeout)
        else:
            super()._on_read_timeout()


def _fail(payload: StreamReader | None, error: BaseException) -> None:
    """Let a body's reader meet an error.

    It is told once more in the next turn of the loop: a reader that the end of a chunk has just woken looks for bytes
    only, finds none, and would wait for ever.
    """
    if payload is not None and not payload.is_eof() and payload.exception() is None:
        payload.set_exception(error)
        asyncio.get_running_loop().call_soon(payload.set_exception, error)
