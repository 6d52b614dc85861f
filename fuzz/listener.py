"""Target: the data listener answers valid HTTP, forwards sound requests only, and keeps nothing, whatever bytes come.

A connection is played without a socket: the pieces go to its protocol, and what is written is collected. The gateway
behind it reads each body to its end and answers; what it was handed is written as the upstream would get it, and read
again by a reader that is as strict as can be.
"""

import asyncio
import logging
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

from hypothesis import strategies as st
from keyturn.access import Access
from keyturn.core.events import Event, RequestLog
from keyturn.core.http import Answer, Fields, Request, Whole
from keyturn.core.model import Client, Secret
from keyturn.upstream.request_writer import HeadWriter
from keyturn.web.connection import CallerConnection
from keyturn.web.connections import Connections
from keyturn.web.forward import Forward, ForwardSettings
from keyturn.web.overload import Bounds

from tests.vectors.document import SECTIONS
from tests.vectors.table import every, filled
from tests.web.callers import receive

TOKEN = b"5ecret-token"
KEY = Secret("PMAK-of-the-pool")
BOUNDS = Bounds(head=8192, fields=32, target=1024)

_SEEDS = sorted({filled(vector, TOKEN) for _, vector in every(SECTIONS) if len(vector.sent) < 1000})  # noqa: PLR2004
_BITS = st.sampled_from(
    [
        b"\r\n", b"\r", b"\n", b"\r\n\r\n", b"\x00", b" ", b"\t", b":", b",", b";", b"0", b"5",
        b"ffffffffffffffff", b"0\r\n\r\n",
        b"Content-Length: 5\r\n", b"Content-Length: 0\r\n", b"Transfer-Encoding: chunked\r\n",
        b"Connection: close\r\n",
        b"Connection: keep-alive\r\n", b"Host: a\r\n", b"X-Api-Key: 5ecret-token\r\n", b"Expect: 100-continue\r\n",
        b"Upgrade: websocket\r\nConnection: upgrade\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX-Api-Key: 5ecret-token\r\n\r\n",
        b"POST / HTTP/1.1\r\n", b"HTTP/1.0\r\n", b"hello", b"chunked", b"\xff",
    ]
)  # fmt: skip
_EDITS = st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 12), _BITS | st.binary(max_size=4)), max_size=4)
_CUTS = st.lists(st.integers(0, 2000), max_size=4)


def _edited(seeds: list[bytes], edits: list[tuple[int, int, bytes]]) -> bytes:
    data = b"".join(seeds)
    for place, length, instead in edits:
        at = place % (len(data) + 1)
        data = data[:at] + instead + data[at + length :]
    return data


def _pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    return [data[start:end] for start, end in pairwise(places)]


_DATA = st.builds(_edited, st.lists(st.sampled_from(_SEEDS) | _BITS, min_size=1, max_size=3), _EDITS)
CONVERSATIONS = st.builds(_pieces, _DATA, _CUTS)

_HEAD = re.compile(
    rb"[A-Z][A-Z_-]* [!-~]+ HTTP/1\.1\r\n(?:[!#$%&'*+.^_`|~0-9A-Za-z-]+:[ \t]*(?:[!-~\x80-\xff\t ]*)\r\n)+\r\n"
)
_ANSWER = re.compile(rb"HTTP/1\.1 (\d{3}) [^\r\n]*\r\n((?:[!#$%&'*+.^_`|~0-9A-Za-z-]+: [^\r\n]*\r\n)*)\r\n")
_LENGTH = re.compile(rb"^content-length: (\d+)\r$", re.IGNORECASE | re.MULTILINE)


class _Gateway:
    """A gateway that reads and answers, and keeps the requests that it got."""

    def __init__(self) -> None:
        self.requests: list[tuple[Request, bytes]] = []

    @asynccontextmanager
    async def handle(self, request: Request, _: RequestLog) -> AsyncIterator[Answer]:
        """Read the body to its end, then answer."""
        body = b""
        if request.body is not None:
            async for part in request.body.chunks():
                body += part
        self.requests.append((request, body))
        yield Answer(200, b"OK", ((b"Content-Length", b"2"),), Whole(b"ok"))

    def rates(self, *_: str | None) -> Fields:
        """Return no rate fields."""
        return ()


class _Transport(asyncio.Transport):
    """The other side of a connection, which reads everything."""

    def __init__(self) -> None:
        super().__init__({"peername": ("192.0.2.1", 1)})
        self.written = b""
        self.closed = False
        self.half_closed = False

    def write(self, data: Any) -> None:
        assert not self.half_closed
        self.written += bytes(data)

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.half_closed = True

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        """Do nothing: there is nothing to pause."""

    def resume_reading(self) -> None:
        """Do nothing: there is nothing to resume."""


class _Complaints(logging.Handler):
    """Collect errors in the log: no input from a wire may cause one."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


class _Observer:
    """An observer that ignores all events."""

    def observe(self, event: Event) -> None:
        """Ignore the event."""


def check(pieces: list[bytes], bounds: Bounds = BOUNDS) -> None:
    """Play a connection, and check every promise."""
    complaints = _Complaints()
    logger = logging.getLogger("keyturn")
    logger.addHandler(complaints)
    try:
        asyncio.run(_play(pieces, bounds))
    finally:
        logger.removeHandler(complaints)
    assert not complaints.records, [record.getMessage() for record in complaints.records]


async def _play(pieces: list[bytes], bounds: Bounds) -> None:
    gateway = _Gateway()
    client = Client("ci", digests=(Secret(TOKEN.decode()).digest(),))
    access = Access([client], anonymous=None, key_header="X-Api-Key", key_query="apikey")
    forward = Forward(
        access,
        gateway,
        _Observer(),
        ForwardSettings(2**16, 1, 1),
        clock=lambda: 0,
        draining=lambda: False,
        leaving=lambda: False,
    )
    connections = Connections(bounds, None)
    connection, transport = CallerConnection(connections, forward), _Transport()
    connection.connection_made(transport)
    for piece in pieces:
        if not transport.closed:
            receive(connection, piece)
            await _settle()
    await _settle()
    _check_answers(transport.written)
    _check_requests(gateway.requests)
    connection.connection_lost(None)
    await _settle()
    assert len(connections) == 0
    assert not connections._peers  # noqa: SLF001  # nothing stays behind
    assert not forward._loops._in_flight  # noqa: SLF001  # as above
    await connections.cut()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def _settle() -> None:
    """Let everything happen that needs no more bytes."""
    for _ in range(60):
        await asyncio.sleep(0)


def _check_answers(written: bytes) -> None:
    """Check that whole answers were written, each with its length, nothing between or after them."""
    while written:
        head = _ANSWER.match(written)
        assert head, written[:200]
        written = written[head.end() :]
        length = _LENGTH.search(head[2])
        if head[1] != b"100":
            assert length, head[0]
            body = int(length[1])
            written = written[body:] if not written.startswith(b"HTTP/1.1 ") else written  # to HEAD there is none
    assert TOKEN not in written


def _check_requests(requests: list[tuple[Request, bytes]]) -> None:
    """Check that each request would reach the upstream as one that no reader can take for another."""
    writer = HeadWriter("api.example", "X-Api-Key")
    for request, body in requests:
        head = writer.write(request, KEY, (), request.body)
        assert _HEAD.fullmatch(head), head
        lower = head.lower()
        assert lower.count(b"\r\nhost: ") == lower.count(b"\r\nx-api-key: ") == lower.count(b"\r\nvia: ") == 1, head
        assert TOKEN not in head
        lengths, chunked = (
            re.findall(rb"\r\ncontent-length: *(\d+)", lower),
            b"\r\ntransfer-encoding: chunked\r\n" in lower,
        )
        assert len(lengths) + chunked <= 1, head
        assert not lengths or int(lengths[0]) == len(body), (head, body)
        assert bool(body) <= bool(lengths or chunked)
        assert not re.search(rb"\r\n(?:connection|te|trailer|upgrade|expect|keep-alive|proxy-[^:]*):", lower), head
