"""One connection to a Redis or Valkey server: bytes out, answers back, in the order in which they were asked for.

Laws of this module: a command is written at most once, never repeated here. An answer belongs to the call that asked
for it: whoever stops waiting (a timeout, a cancellation) takes the connection down, so that no late answer reaches
another. A connection that ended says so (`alive`) as soon as the system has told, before anybody writes to it.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from ssl import SSLContext
from typing import Any, cast

import hiredis

from proxy.stores.addresses import Login, Node

Argument = str | bytes | int


class Refused(Exception):
    """The server answered with an error; `code` is its first word."""

    @property
    def code(self) -> str:
        """Such as `NOSCRIPT`."""
        return str(self).partition(" ")[0]


class Wire(asyncio.Protocol):
    """A connection for one conversation at a time; `heard` is called for each message of a subscribed channel."""

    def __init__(self, heard: Callable[[], None] | None = None) -> None:
        self.alive = False
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._heard = heard
        self._asked: deque[asyncio.Future[Any]] = deque()
        self._reader = hiredis.Reader()
        self._transport: asyncio.Transport

    async def call(self, *command: Argument) -> Any:
        """Send a command and wait for its answer, strings as bytes.

        Raises:
            Refused: the server answered with an error.
            OSError: the connection ended; the command may have been carried out.
        """
        if not self.alive:
            raise ConnectionResetError("the connection has ended")
        asked = asyncio.get_running_loop().create_future()
        self._asked.append(asked)
        self._transport.write(hiredis.pack_command(command))  # type: ignore[arg-type]  # declared as a tuple of one
        try:
            answer = await asked
        except BaseException:
            self.abort()
            raise
        if isinstance(answer, hiredis.ReplyError):
            raise Refused(str(answer))
        return answer

    def abort(self) -> None:
        """End the connection now; what was asked stays unanswered."""
        if self.alive:
            self.alive = False
            self._transport.abort()

    # What the event loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection stands."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one without inheriting from it
        self.alive = True

    def data_received(self, data: bytes) -> None:
        """Bytes came: hand out the answers that are whole."""
        try:
            self._reader.feed(data)
            while (answer := self._reader.gets()) is not False:
                self._answered(answer)
        except hiredis.ProtocolError:
            self.abort()

    def _answered(self, answer: Any) -> None:
        if self._heard and isinstance(answer, list) and answer[0] == b"message":
            self._heard()
        elif not self._asked:  # nobody asked for this: whose the next answer is cannot be known
            self.abort()
        elif not (asked := self._asked.popleft()).done():
            asked.set_result(answer)

    def connection_lost(self, problem: Exception | None) -> None:
        """The connection has ended."""
        self.alive = False
        while self._asked:
            if not (asked := self._asked.popleft()).done():
                asked.set_exception(problem or ConnectionResetError("the server closed the connection"))
        if not self.ended.done():
            self.ended.set_result(None)


async def dial(node: Node, login: Login, tls: SSLContext | None, heard: Callable[[], None] | None = None) -> Wire:
    """Connect to a server and log in.

    Raises:
        Refused: it does not let us in.
        OSError: it is not reachable, or its certificate is refused.
    """
    loop = asyncio.get_running_loop()
    if node.port:
        _, wire = await loop.create_connection(lambda: Wire(heard), node.host, node.port, ssl=tls)
    else:
        _, wire = await loop.create_unix_connection(lambda: Wire(heard), node.host)
    try:
        for command in login.commands():
            await wire.call(*command)
    except BaseException:
        wire.abort()
        raise
    return wire
