"""The upstream of `bench.hostile`: small answers after a moment, large ones, uploads, a path that fails.

Run as `python -m bench.backend`; prints `ready http://127.0.0.1:PORT` to stderr. Raw HTTP/1.1 with keep-alive: it costs
little beside the proxy. Large answers are written in small pieces, a turn of the event loop each: it stands for an API
of many machines, whose small answers do not wait for large ones.
"""

import asyncio
import sys
from contextlib import suppress

import uvloop

SECONDS = 0.02
"""Seconds until an answer begins, as from a distant API."""
SMALL = b'{"me":"' + b"x" * 1000 + b'"}'
LARGE, JOINED = 64 * 2**20, 40_000_000
"""Bytes of an answer with a length, and of one in chunks."""
PIECE = b"x" * 2**16
LENGTH = b"content-length:"


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Read one request of a kept connection and answer it by its path."""
    head = await reader.readuntil(b"\r\n\r\n")
    _, target, _ = head.split(b" ", 2)
    _, mark, rest = head.lower().partition(LENGTH)
    left = int(rest.partition(b"\r\n")[0]) if mark else 0
    while left > 0 and (data := await reader.read(2**16)):
        left -= len(data)
    await asyncio.sleep(SECONDS)
    if target.startswith(b"/large"):
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % LARGE)
        for _ in range(LARGE // len(PIECE)):
            writer.write(PIECE)
            await writer.drain()
            await asyncio.sleep(0)
    elif target.startswith(b"/joined"):
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for start in range(0, JOINED, len(PIECE)):
            data = PIECE[: JOINED - start]
            writer.write(b"%x\r\n%b\r\n" % (len(data), data))
            await writer.drain()
            await asyncio.sleep(0)
        writer.write(b"0\r\n\r\n")
    else:
        status = b"504 Gateway Timeout" if target.startswith(b"/heavy") else b"200 OK"
        writer.write(b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n%b" % (status, len(SMALL), SMALL))


async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Serve one connection to its end."""
    with suppress(ConnectionError, asyncio.IncompleteReadError):
        while True:
            await answer(reader, writer)
    writer.close()


async def serve() -> None:
    """Listen on a free port of the loopback until the process is ended."""
    server = await asyncio.start_server(connected, "127.0.0.1", 0, backlog=4096)
    print(f"ready http://127.0.0.1:{server.sockets[0].getsockname()[1]}", file=sys.stderr, flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve())
