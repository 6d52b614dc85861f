"""TLS handshakes that fail: who tried, why it failed, and an answer for callers that speak plain HTTP.

Event loops say nothing of a handshake that failed, for its error is an `OSError`. One that is none goes to the loop's
exception handler, together with the transport, and so with the caller's address.
"""

import asyncio
import os
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from keyturn.core.errors import BadRequest
from keyturn.web.malformed import plain

Mention = Callable[[str, asyncio.Transport | None], None]
"""Takes what happened, and the connection on which it did."""

_PLAIN = {"HTTP_REQUEST", "HTTPS_PROXY_REQUEST"}
"""What OpenSSL calls a handshake that is plain HTTP."""
_AGAIN = (ssl.SSLWantReadError, ssl.SSLWantWriteError, ssl.SSLSyscallError)


class HandshakeFailed(Exception):
    """A handshake came to nothing; `why` is OpenSSL's word for it."""

    def __init__(self, why: str, mention: Mention) -> None:
        super().__init__(why)
        self.why = why
        self.mention = mention


def watch(tls: ssl.SSLContext, mention: Mention) -> None:
    """Mention the handshakes with this context that fail; it is called within the running loop."""

    class Handshake(ssl.SSLObject):
        def do_handshake(self) -> None:
            try:
                super().do_handshake()
            except _AGAIN:
                raise
            except ssl.SSLError as error:
                raise HandshakeFailed(error.reason or type(error).__name__, mention) from None

    tls.sslobject_class = Handshake
    loop = asyncio.get_running_loop()
    if loop.get_exception_handler() is not _hear:
        loop.set_exception_handler(_hear)


def _hear(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    error, transport = context.get("exception"), context.get("transport")
    if not isinstance(error, HandshakeFailed):
        loop.default_exception_handler(context)
    elif error.why in _PLAIN:
        error.mention("plain HTTP on a port of TLS", transport)
        refusal = BadRequest("This port speaks TLS, and was sent plain HTTP. Use https://, not http://.")
        with suppress(OSError, AttributeError):  # the transport is being closed, its socket is still there
            os.write(transport.get_extra_info("socket").fileno(), plain(refusal))  # type: ignore[union-attr]
    else:
        error.mention(f"a TLS handshake that failed ({error.why.lower().replace('_', ' ')})", transport)
