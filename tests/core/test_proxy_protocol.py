import socket
import struct

import pytest
from keyturn.core.proxy_protocol import LONGEST_BLOCK, LONGEST_LINE, InvalidProxyHeader, ProxyHeader, read

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
FOUR = socket.inet_aton("192.0.2.7") + socket.inet_aton("192.0.2.1") + struct.pack("!HH", 1000, 443)
SIX = socket.inet_pton(socket.AF_INET6, "2001:db8::7") * 2 + struct.pack("!HH", 1000, 443)


def block(command: int, family: int, content: bytes) -> bytes:
    """Return a header of version 2."""
    return SIGNATURE + bytes([command, family]) + struct.pack("!H", len(content)) + content


def step_by_step(data: bytes) -> tuple[ProxyHeader, int]:
    """Read it as from a connection, in pieces of any size up to what is asked for."""
    taken = 0
    reads = 0
    while True:
        found = read(data[:taken])
        if isinstance(found, ProxyHeader):
            return found, taken
        assert 0 < found <= LONGEST_BLOCK
        reads += 1
        taken += max(1, found // 2) if reads % 2 else found
        assert taken <= len(data)


@pytest.mark.parametrize(
    ("header", "address"),
    [
        (b"PROXY TCP4 192.0.2.7 192.0.2.1 1000 443\r\n", "192.0.2.7"),
        (b"PROXY TCP4 1.1.1.1 2.2.2.2 1 1\r\n", "1.1.1.1"),
        (b"PROXY TCP6 2001:DB8::7 2001:db8::1 65535 65535\r\n", "2001:db8::7"),
        (b"PROXY TCP6 ::ffff:192.0.2.7 ::1 1 1\r\n", "192.0.2.7"),
        (b"PROXY TCP6 " + b"ffff:" * 7 + b"ffff " + b"ffff:" * 7 + b"ffff 65535 65535\r\n", ":".join(["ffff"] * 8)),
        (b"PROXY UNKNOWN\r\n", None),
        (b"PROXY UNKNOWN " + b"x" * (LONGEST_LINE - 16) + b"\r\n", None),
        (block(0x21, 0x11, FOUR), "192.0.2.7"),
        (block(0x21, 0x21, SIX), "2001:db8::7"),
        (block(0x21, 0x11, FOUR + b"\x04\x00\x03abc"), "192.0.2.7"),
        (block(0x21, 0x11, FOUR + bytes(LONGEST_BLOCK - len(FOUR))), "192.0.2.7"),
        (block(0x20, 0x11, FOUR), None),
        (block(0x20, 0x00, b""), None),
        (block(0x21, 0x00, b""), None),
        (block(0x21, 0x00, b"anything"), None),
        (block(0x21, 0x12, FOUR), None),
        (block(0x21, 0x31, bytes(216)), None),
    ],
)
def test_a_header_is_read_and_no_byte_more(header: bytes, address: str | None) -> None:
    """A header is read exactly to its end, in any pieces."""
    assert step_by_step(header + b"GET / HTTP/1.1\r\n\r\n") == (ProxyHeader(address), len(header))


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"P" + b"R" * 20,
        b"PROXY  TCP4 1.1.1.1 2.2.2.2 1 1\r\n",
        b"PROXY TCP4 1.1.1.1 2.2.2.2 1 1 \r\n",
        b"PROXY TCP4 1.1.1.1 2.2.2.2 1\r\n",
        b"PROXY TCP4 1.1.1.1 2.2.2.2 1 65536\r\n",
        b"PROXY TCP4 1.1.1.1 2.2.2.2 1 999999\r\n",
        b"PROXY TCP4 1.1.1.1 2.2.2.2 -1 1\r\n",
        b"PROXY TCP4 1.1.1 2.2.2.2 1 1\r\n",
        b"PROXY TCP4 ::1 ::1 1 1\r\n",
        b"PROXY TCP6 1.1.1.1 2.2.2.2 1 1\r\n",
        b"PROXY TCP4 1.1.1.\xb2 2.2.2.2 1 1\r\n",
        b"PROXY UDP4 1.1.1.1 2.2.2.2 1 1\r\n",
        b"PROXY TCP4 1.1.1.1 2.2.2.2 1 1\nGET",
        b"PROXY UNKNOWN " + b"x" * LONGEST_LINE,
        b"\r\n\r\nGET / HTTP/1.1",
        block(0x31, 0x11, FOUR),
        block(0x22, 0x11, FOUR),
        block(0x11, 0x11, FOUR),
        block(0x21, 0x11, FOUR[:-1]),
        block(0x21, 0x21, SIX[:-1]),
        block(0x21, 0x11, FOUR + bytes(LONGEST_BLOCK - len(FOUR) + 1)),
        SIGNATURE + b"\x21\x11\xff\xff",
    ],
)
def test_anything_else_is_refused(data: bytes) -> None:
    """Anything else is refused as soon as it can be told."""
    with pytest.raises(InvalidProxyHeader):
        step_by_step(data + b"x" * 200)


def test_a_line_is_read_in_few_pieces() -> None:
    """A line is read in few pieces, not byte by byte."""
    line = b"PROXY TCP4 192.168.100.100 192.168.100.101 51000 8080\r\n"
    taken = reads = 0
    while not isinstance(found := read(line[:taken]), ProxyHeader):
        taken, reads = taken + found, reads + 1
    assert reads <= 16
