"""The hostile clients of `bench.hostile`, each of one kind, as a process of its own.

Run as `python -m bench.attacks KIND HOST:PORT NUMBER TOKEN SOURCE`, `SOURCE` being the address that it connects from;
prints `ready KIND` to stderr when all of its connections have been opened and have sent what they could, or after a
while. It ends by itself after `LONGEST` seconds. A connection that the proxy ends is opened again, no more than `AGAIN`
of them a second.
"""

import argparse
import select
import socket
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import cycle

LONGEST = 60.0
PATIENCE = 3.0
"""Seconds after which an attack begins even if connections are missing."""
AGAIN = 50
FILLER = 60_000
"""Bytes of a large field: nearly as many as `inbound.max_head` permits."""
ENDED = select.POLLERR | select.POLLHUP | getattr(select, "POLLRDHUP", 0)


@dataclass(frozen=True)
class Attack:
    """The behaviour of each connection.

    `opening` is sent first, as far as the proxy reads it. Then, `pace` times a second over all connections, the next
    connection in turn sends the next of `drops` and takes `takes` bytes. `waits`: only when what it sent has been
    answered, so no answer is left unread.
    """

    opening: bytes = b""
    drops: tuple[bytes, ...] = (b"",)
    pace: float = 0.0
    takes: int = 0
    waits: bool = False


def head(line: str, *fields: str) -> bytes:
    """The head of a request."""
    return "\r\n".join([f"{line} HTTP/1.1", "Host: proxy", *fields, "", ""]).encode()


def attack(kind: str, number: int, token: str) -> Attack:
    """Return the attack of a kind with so many connections."""
    known, unknown = f"X-Api-Key: {token}", "X-Api-Key: nobody"
    escapes = 'a="' + '\\"' * (FILLER // 2 - 2)  # a quoted string without its end
    fill = "X-Fill: " + "x" * FILLER
    fields = (f"Accept: {escapes}", unknown), (f"Via: {escapes}", unknown), (f"Prefer: {escapes}", known)
    heads = tuple(head("GET /small", *each) for each in fields)
    heavy = head("POST /heavy", known, "Content-Length: 0")
    attacks = {
        "heads": Attack(drops=heads, pace=10, takes=2**16, waits=True),
        "uploads": Attack(head("POST /upload", known, "Content-Length: 1048576"), (b"x" * 2048,), pace=number),
        "readers": Attack(head("GET /large", known)),
        "bodies": Attack(head("POST /upload", unknown, "Content-Length: 1048576") + b"x" * 2**18),
        "pipelined": Attack(head("GET /small", unknown, fill) * 20),
        "half-heads": Attack(head("GET /small", fill)[:-2]),
        "failures": Attack(drops=(heavy,), pace=30, takes=2**16, waits=True),
        "joined": Attack(head("GET /joined", known), pace=20 * number, takes=1024),
    }
    return attacks[kind]


class Line:
    """One connection: what it has still to send, and whether an answer is due."""

    def __init__(self, address: tuple[str, int], source: str, opening: bytes, *, narrow: bool) -> None:
        self.sock = socket.socket()
        self.sock.bind((source, 0))
        if narrow:  # the kernel is not to take the answer in its place
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.sock.setblocking(False)
        with suppress(BlockingIOError):
            self.sock.connect(address)
        self.due = memoryview(opening)
        self.unanswered = False

    def send(self) -> None:
        """Send as much as the proxy reads now.

        Raises:
            OSError: the connection has ended.
        """
        with suppress(BlockingIOError):
            while self.due:
                self.due = self.due[self.sock.send(self.due) :]

    def take(self, number: int) -> bool:
        """Read at most so many bytes; returns whether there were any.

        Raises:
            OSError: the connection has ended.
        """
        try:
            if not self.sock.recv(number):
                raise ConnectionResetError
        except BlockingIOError:
            return False
        self.unanswered = False
        return True


class Attacker:
    """The connections of one attack."""

    def __init__(self, kind: Attack, address: tuple[str, int], number: int, source: str) -> None:
        self._kind = kind
        self._address = address
        self._source = source
        self._number = number
        self._poll = select.poll()
        self._lines: dict[int, Line] = {}
        self._turns: deque[int] = deque()
        self._opened = 0
        self._drops = cycle(kind.drops)

    def run(self) -> Iterator[bool]:
        """Serve the connections until the process ends; yields each time whether all of them are in place."""
        began = last = time.monotonic()
        paced = 0.0
        while True:
            now = time.monotonic()
            while self._opened < self._number + AGAIN * (now - began) and len(self._lines) < self._number:
                self._open()
            paced = min(paced + self._kind.pace * (now - last), self._number)
            last = now
            while paced >= 1:
                paced -= 1
                self._go_on()
            for descriptor, what in self._poll.poll(20):
                self._serve(descriptor, what)
            yield not any(line.due for line in self._lines.values())

    def _open(self) -> None:
        line = Line(self._address, self._source, self._kind.opening, narrow=self._kind.takes < 2**16)
        self._opened += 1
        self._lines[line.sock.fileno()] = line
        self._turns.append(line.sock.fileno())
        self._poll.register(line.sock, select.POLLOUT | ENDED)

    def _end(self, descriptor: int) -> None:
        self._poll.unregister(descriptor)
        self._turns.remove(descriptor)
        self._lines.pop(descriptor).sock.close()

    def _serve(self, descriptor: int, what: int) -> None:
        """Serve a connection that can be written to or read from, or has ended."""
        line = self._lines[descriptor]
        try:
            if what & ENDED:
                raise ConnectionResetError
            line.send()
        except OSError:
            self._end(descriptor)
            return
        if not line.due:
            self._poll.modify(descriptor, ENDED)

    def _go_on(self) -> None:
        """Let the next connection in turn send its drop and read what it may."""
        if not self._turns:
            return
        self._turns.rotate(-1)
        descriptor = self._turns[-1]
        line = self._lines[descriptor]
        try:
            if self._kind.takes:
                line.take(self._kind.takes)
            if line.due or (self._kind.waits and line.unanswered):
                return
            line.due, line.unanswered = memoryview(next(self._drops)), True
            line.send()
        except OSError:
            self._end(descriptor)
            return
        if line.due:
            self._poll.modify(descriptor, select.POLLOUT | ENDED)


def main() -> None:
    """Read the arguments, then attack."""
    parser = argparse.ArgumentParser(prog="python -m bench.attacks", description=__doc__)
    for name in ("kind", "address", "number", "token", "source"):
        parser.add_argument(name)
    given = parser.parse_args()
    host, _, port = given.address.rpartition(":")
    number, began, told = int(given.number), time.monotonic(), False
    attacker = Attacker(attack(given.kind, number, given.token), (host, int(port)), number, given.source)
    for in_place in attacker.run():
        spent = time.monotonic() - began
        if not told and (in_place or spent > PATIENCE):
            print(f"ready {given.kind}", file=sys.stderr, flush=True)
            told = True
        if spent > LONGEST:
            return


if __name__ == "__main__":
    main()
