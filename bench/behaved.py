"""The well-behaved client of `bench.hostile`: asks at a fixed pace, however its earlier requests end.

Run as `python -m bench.behaved HOST:PORT TARGET RATE SECONDS TOGETHER BYTES TOKEN`: `RATE` requests a second,
`TOGETHER` at a time, each with an answer of so many bytes. Prints one line of JSON: how many were `asked`, the answers
by their `codes` (0: none in time, or a broken one), and the `seconds` that the served ones took, or those without an
answer had waited. A request counts from the moment at which it was due, so one that a stopped process keeps from being
sent counts, too; a large answer (`BYTES` beyond a million) counts from its head, since it waits for its turn before.
"""

import asyncio
import json
import sys
import time
from collections import Counter

import uvloop
from keyturn.tasks import finish, spawn

PATIENCE = 3.0
"""Seconds to wait for the last requests."""
LARGE = 1_000_000

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Client:
    """Kept connections and the outcomes of requests; `expected` is the length of an answer, 0 for any."""

    def __init__(self, address: str, head: bytes, expected: int = 0) -> None:
        host, _, port = address.rpartition(":")
        self._where = host, int(port)
        self._head = head
        self._expected = expected
        self._idle: list[Streams] = []
        self.codes: Counter[int] = Counter()
        self.seconds: list[float] = []

    async def ask(self, due: float) -> None:
        """Send one request over an idle connection, or a new one."""
        code, began = 0, due
        try:
            streams = self._idle.pop() if self._idle else await asyncio.open_connection(*self._where, limit=2**20)
            reader, writer = streams
            try:
                writer.write(self._head)
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                if self._expected >= LARGE:
                    began = time.perf_counter()
                length = await _body(reader, head)
            except BaseException:
                writer.transport.abort()
                raise
            status = int(head.split(b" ", 2)[1])
            code = status if status != 200 or self._expected in (0, length) else 0
            if b"\r\nconnection: close" in head:
                writer.close()
            else:
                self._idle.append(streams)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self.codes[code] += 1
            if code in (0, 200):
                self.seconds.append(time.perf_counter() - began)


async def _body(reader: asyncio.StreamReader, head: bytes) -> int:
    """Read a body to its end; returns its length."""
    if b"\r\ntransfer-encoding: chunked" in head:
        total = 0
        while length := int(await reader.readuntil(b"\r\n"), 16):
            await reader.readexactly(length + 2)
            total += length
        await reader.readexactly(2)
        return total
    _, _, rest = head.partition(b"\r\ncontent-length:")
    left = total = int(rest.partition(b"\r\n")[0])
    while left:
        data = await reader.read(min(left, 2**18))
        if not data:
            raise asyncio.IncompleteReadError(b"", left)
        left -= len(data)
    return total


async def measure(client: Client, rate: float, seconds: float, together: int) -> int:
    """Send requests for so long, wait a while for the last ones, and return how many there were."""
    began, turns = time.perf_counter(), round(rate * seconds / together)
    tasks: set[asyncio.Task[None]] = set()
    asked = 0
    for turn in range(turns):
        due = began + turn * together / rate
        await asyncio.sleep(due - time.perf_counter())
        for _ in range(together):
            asked += 1
            spawn(client.ask(due), name=f"request {asked}", owner=tasks)
    if tasks:
        await asyncio.wait(tasks, timeout=PATIENCE)
    await finish(tasks)
    return asked


def main() -> None:
    """Read the arguments, measure, print."""
    address, target, rate, seconds, together, expected, token = sys.argv[1:]
    head = f"GET {target} HTTP/1.1\r\nHost: {address}\r\nX-Api-Key: {token}\r\n\r\n".encode()
    client = Client(address, head, int(expected))
    asked = uvloop.run(measure(client, float(rate), float(seconds), int(together)))
    print(json.dumps({"asked": asked, "codes": client.codes, "seconds": sorted(client.seconds)}))


if __name__ == "__main__":
    main()
