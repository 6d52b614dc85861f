import asyncio
import json
from typing import Any

import pytest
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import HttpProcessingError, HttpRequestParser
from keyturn.core.errors import BadRequest, HeadTooLarge, TargetTooLong
from keyturn.web.bounds import Bounds
from keyturn.web.malformed import plain, what_is_wrong

BOUNDS = Bounds(head=8192, fields=16, target=1024)
MARK = "5ecret"


def parsed(data: bytes) -> Any:
    """The first head in data, read as a connection reads it."""
    loop = asyncio.get_running_loop()
    parser = HttpRequestParser(
        BaseProtocol(loop),
        loop,
        2**16,
        max_line_size=BOUNDS.target,
        max_field_size=BOUNDS.head,
        max_headers=BOUNDS.fields,
    )
    messages, _, _ = parser.feed_data(data)
    return messages[0][0]


@pytest.mark.parametrize(
    ("data", "expected", "words"),
    [
        (f"GET /{MARK}{'x' * 1024} HTTP/1.1\r\n\r\n", TargetTooLong, "1024 bytes"),
        (f"GET / HTTP/1.1\r\nHost: a\r\nX: {MARK}{'x' * 8192}\r\n\r\n", HeadTooLarge, "8192 bytes"),
        (
            f"GET / HTTP/1.1\r\nHost: a\r\n{f'X: {MARK}' * 1}\r\n" + "X: 1\r\n" * 16 + "\r\n",
            HeadTooLarge,
            "16 are read",
        ),
        (f"GET {MARK} HTTP/1.1\r\nHost: a\r\n\r\n", BadRequest, "target is malformed"),
        (f"GET / HTTP/1.1\r\nX: {MARK}\r\n\r\n", BadRequest, "Host"),
        (f"GET / HTTP/1.1\r\nHost: a\r\nX {MARK}: 1\r\n\r\n", BadRequest, "Invalid header token"),
        (f"GET / HTTP/1.1\r\nHost: a\r\nSec-WebSocket-Key1: {MARK}\r\n\r\n", BadRequest, "field is malformed"),
        (f"{MARK} / HTTP/1.1\r\n\r\n", BadRequest, "Invalid method"),
    ],
)
async def test_it_says_what_is_wrong_and_quotes_nothing(data: str, expected: type, words: str) -> None:
    """The parser's own message would show what was sent."""
    with pytest.raises(HttpProcessingError) as caught:
        parsed(data.encode())
    refusal = what_is_wrong(caught.value, BOUNDS)
    assert type(refusal) is expected
    assert words in refusal.message
    assert MARK not in plain(refusal).decode()


def test_an_answer_to_a_stranger_ends_the_connection() -> None:
    """To HEAD it has no body."""
    whole, head = plain(BadRequest("No.")), plain(BadRequest("No."), "HEAD")
    assert whole.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b"\r\nConnection: close\r\n" in whole
    assert json.loads(whole.partition(b"\r\n\r\n")[2])["error"] == {"name": "badRequest", "message": "No."}
    assert head.endswith(b"\r\n\r\n")
