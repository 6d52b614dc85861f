"""The load: connections that each send a request when the last is answered (a closed loop), and check each answer.

Run as `python -m bench.load HOST:PORT REQUESTS CONNECTIONS BODY_LENGTH`, with one caller's token a line on stdin; the
connections take them in turn. Prints one line of JSON: `requests`, `seconds`, `p50`, `p99` (milliseconds).
"""

import asyncio
import json
import sys
import time
from dataclasses import dataclass, field
from typing import cast

import uvloop

END_OF_HEAD = b"\r\n\r\n"
LENGTH = b"\r\ncontent-length:"


class UnexpectedAnswerError(Exception):
    """An answer that is not the upstream's, whole."""


@dataclass
class Run:
    """The requests that are still to be sent, the answers so far, and the future that ends with the last."""

    left: int
    body_length: int
    done: asyncio.Future[None]
    open: int = 0
    took: list[float] = field(default_factory=list)

    def take(self) -> bool:
        """Take one of the requests that are left; return whether there was one."""
        self.left -= 1
        return self.left >= 0

    def leave(self) -> None:
        """Note that a connection is done."""
        self.open -= 1
        if not self.open and not self.done.done():
            self.done.set_result(None)

    def fail(self, reason: str) -> None:
        """End the run: a measurement with a wrong answer is worthless."""
        if not self.done.done():
            self.done.set_exception(UnexpectedAnswerError(reason))


class Caller(asyncio.Protocol):
    """One connection with one caller's token."""

    def __init__(self, run: Run, host: str, token: str) -> None:
        lines = (
            "GET /collections/10000001-0f3b7d1e-practice?access=full HTTP/1.1",
            f"Host: {host}",
            f"X-Api-Key: {token}",
            "Accept: application/json",
            "User-Agent: keyturn-bench",
        )
        self._request = "\r\n".join((*lines, "", "")).encode()
        self._run = run
        self._transport: asyncio.Transport | None = None
        self._received = b""
        self._sent_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but its class

    def data_received(self, data: bytes) -> None:
        """Collect an answer, check it when it is whole, and send the next request."""
        self._received += data
        head, mark, body = self._received.partition(END_OF_HEAD)
        if not mark or len(body) < self._run.body_length:
            return
        self._run.took.append(time.perf_counter() - self._sent_at)
        if problem := self._problem(head, body):
            self._run.fail(f"{problem}: {self._received[:600]!r}")
            return
        self._received = b""
        self.send()

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail, unless the run is over."""
        self._run.fail(f"the connection was closed after {len(self._run.took)} answers ({exc})")

    def send(self) -> None:
        """Send the next request, if there is one."""
        if not self._run.take() or self._transport is None:
            self._run.leave()
            return
        self._sent_at = time.perf_counter()
        self._transport.write(self._request)

    def _problem(self, head: bytes, body: bytes) -> str | None:
        if not head.startswith(b"HTTP/1.1 200 "):
            return "the status is not 200"
        _, mark, rest = head.lower().partition(LENGTH)
        announced = int(rest.partition(b"\r\n")[0]) if mark else None
        if announced != self._run.body_length or len(body) != announced:
            return f"the body has {len(body)} bytes, announced are {announced}"
        return None


async def measure(
    address: str, requests: int, connections: int, body_length: int, tokens: list[str]
) -> dict[str, float]:
    """Open every connection, then send all the requests; the time counts from the first request to the last answer."""
    host, _, port = address.rpartition(":")
    loop = asyncio.get_running_loop()
    run = Run(requests, body_length, loop.create_future(), open=connections)
    callers = []
    for number in range(connections):
        token = tokens[number % len(tokens)]
        _, caller = await loop.create_connection(lambda token=token: Caller(run, address, token), host, int(port))  # type: ignore[misc]
        callers.append(caller)
    begin = time.perf_counter()
    for caller in callers:
        caller.send()
    await run.done
    seconds = time.perf_counter() - begin
    took = sorted(run.took)
    p50, p99 = (1000 * took[int(len(took) * share)] for share in (0.5, 0.99))
    return {"requests": len(took), "seconds": seconds, "p50": p50, "p99": p99}


def main() -> None:
    """Read the arguments, measure, print."""
    address, requests, connections, body_length = sys.argv[1:5]
    tokens = sys.stdin.read().split()
    try:
        result = uvloop.run(measure(address, int(requests), int(connections), int(body_length), tokens))
    except (UnexpectedAnswerError, OSError) as error:
        sys.exit(f"bench.load: {error}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
