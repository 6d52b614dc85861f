"""A cheap upstream: TLS, keep-alive, the same 1 KB of JSON for every request.

Run as `python -m bench.upstream CERTIFICATE.pem`; prints `ready https://127.0.0.1:PORT` to stderr. It reads only the
end of each request's head, so it takes requests without a body.
"""

import asyncio
import ssl
import sys
from typing import cast

import uvloop

BODY = (b'{"collection":{"info":{"name":"' + b"x" * 1024)[:1020] + b'"}}}'
HEAD = (
    b"HTTP/1.1 200 OK\r\n"
    b"Content-Type: application/json; charset=utf-8\r\n"
    b"Content-Length: %d\r\n"
    b'ETag: W/"400-Keyturn"\r\n'
    b"Vary: Accept-Encoding\r\n"
    b"X-RateLimit-Limit: 100000\r\n"
    b"X-RateLimit-Remaining: 99999\r\n"
    b"X-RateLimit-Reset: 1\r\n"
    b"\r\n"
) % len(BODY)
ANSWER = HEAD + BODY
END_OF_HEAD = b"\r\n\r\n"


class Answering(asyncio.Protocol):
    """One connection, which answers at the end of each head."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but its class

    def data_received(self, data: bytes) -> None:
        """Answer each head that is complete, and keep the rest."""
        *heads, self._rest = (self._rest + data).split(END_OF_HEAD)
        if heads and self._transport is not None:
            self._transport.write(ANSWER * len(heads))


async def serve(certificate: str) -> None:
    """Listen on a free port of the loopback until the process is ended."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    server = await asyncio.get_running_loop().create_server(Answering, "127.0.0.1", 0, ssl=context, backlog=1024)
    print(f"ready https://127.0.0.1:{server.sockets[0].getsockname()[1]}", file=sys.stderr, flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1]))
