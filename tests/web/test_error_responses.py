import asyncio
import json
from typing import Any

import pytest
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import HttpProcessingError, HttpRequestParser
from keyturn.core import errors as tree
from keyturn.core.errors import (
    BadRequest,
    HeadTooLarge,
    NoKey,
    Refusal,
    TargetTooLong,
    TooMany,
    Unauthenticated,
    Unreachable,
)
from keyturn.core.events import RequestLog
from keyturn.web.error_responses import error_response, plain_response, refusal_of
from keyturn.web.overload import Bounds

from tests.web.callers import split

JOURNAL = RequestLog(id="id-1", method="GET", queued=1500, upstream=20_000)
ACCEPTS_PROBLEM = ((b"accept", b"application/problem+json"),)


def test_a_refusal_has_both_shapes() -> None:
    """Clients of the Postman API read `error.name` and `error.message`, its official SDK `title` and `detail`."""
    status, fields, body = split(error_response(NoKey("No key. Wait.", retry_after=7), JOURNAL, ()))
    assert status == b"HTTP/1.1 503 Service Unavailable"
    assert json.loads(body) == {
        "error": {"name": "noKeyAvailable", "message": "No key. Wait."},
        "type": "about:blank",
        "title": "Service Unavailable",
        "status": 503,
        "detail": "No key. Wait.",
        "name": "noKeyAvailable",
    }
    named = dict(fields)
    date = named.pop(b"Date")
    assert date.endswith(b" GMT")
    assert named == {
        b"Content-Type": b"application/json",
        b"Content-Length": b"%d" % len(body),
        b"Via": b"1.1 keyturn",
        b"X-Request-Id": b"id-1",
        b"Server-Timing": b"queue;dur=1.5, upstream;dur=20.0",
        b"Proxy-Status": b'keyturn; error=destination_unavailable; details="No key. Wait."',
        b"Retry-After": b"7",
    }


def test_a_refusal_is_a_problem_to_who_wants_one() -> None:
    """`application/problem+json` (RFC 9457) when the caller accepts that and no JSON."""
    _, fields, body = split(error_response(BadRequest("Send less."), JOURNAL, ACCEPTS_PROBLEM))
    assert dict(fields)[b"Content-Type"] == b"application/problem+json"
    assert body == split(error_response(BadRequest("Send less."), JOURNAL, ()))[2], "in the same body"


def test_what_is_left_is_told() -> None:
    """If it is known whose limits they are."""
    rates = ((b"X-RateLimit-Limit", b"60"), (b"X-RateLimit-Remaining", b"0"))
    assert set(rates) < set(split(error_response(NoKey("No key."), JOURNAL, (), b"", rates))[1])


def test_an_unknown_caller_is_told_how_to_come_in() -> None:
    """401 comes with `WWW-Authenticate: Bearer`, nothing else does."""
    assert (b"WWW-Authenticate", b"Bearer") in split(error_response(Unauthenticated("Who?"), JOURNAL, ()))[1]
    assert b"WWW-Authenticate" not in error_response(Unreachable("Gone."), JOURNAL, ())


def test_the_key_is_named_when_there_was_one() -> None:
    """`Keyturn-Key` says under which key the request failed."""
    log = RequestLog(id="a", method="GET", key="team-a")
    assert (b"Keyturn-Key", b"team-a") in split(error_response(Unreachable("Gone."), log, ()))[1]


def test_head_has_no_body() -> None:
    """HEAD gets the head that GET would get."""
    status, fields, body = split(error_response(NoKey("No key."), RequestLog(id="a", method="HEAD"), ()))
    assert status.startswith(b"HTTP/1.1 503")
    assert int(dict(fields)[b"Content-Length"]) > 0
    assert body == b""


def test_details_are_a_structured_string() -> None:
    """Quotes and backslashes are escaped, what is not ASCII is replaced (RFC 8941); no message can add a field."""
    refusal = TooMany('Say "please", \\ or…\r\nX: y', reason="turn", retry_after=1)
    _, fields, body = split(error_response(refusal, JOURNAL, (), b"Connection: close"))
    assert dict(fields)[b"Proxy-Status"].endswith(b'; details="Say \\"please\\", \\\\ or???X: y"')
    assert dict(fields)[b"Connection"] == b"close"
    assert json.loads(body)["error"]["message"] == refusal.message


def every_refusal(kind: type[Refusal] = Refusal) -> list[type[Refusal]]:
    """All classes of refusals."""
    return [kind, *(found for below in kind.__subclasses__() for found in every_refusal(below))]


@pytest.mark.parametrize("kind", every_refusal(), ids=lambda kind: kind.__name__)
def test_every_refusal_can_be_answered(kind: type[Refusal]) -> None:
    """Each class of the tree has a status that HTTP knows, a name, and an error type."""
    refusal = kind.__new__(kind)
    Refusal.__init__(refusal, "What to do.")
    status, fields, body = split(error_response(refusal, JOURNAL, ()))
    assert status.startswith(b"HTTP/1.1 %d " % kind.status)
    assert json.loads(body)["error"]["name"] == kind.name
    assert kind.proxy_error.encode() in dict(fields)[b"Proxy-Status"]
    assert kind.__name__ == "Refusal" or kind.__name__ in (tree.__doc__ or "")


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
    refusal = refusal_of(caught.value, BOUNDS)
    assert type(refusal) is expected
    assert words in refusal.message
    assert MARK not in plain_response(refusal).decode()


def test_an_answer_to_a_stranger_ends_the_connection() -> None:
    """To HEAD it has no body."""
    whole, head = plain_response(BadRequest("No.")), plain_response(BadRequest("No."), "HEAD")
    assert whole.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b"\r\nConnection: close\r\n" in whole
    assert json.loads(whole.partition(b"\r\n\r\n")[2])["error"] == {"name": "badRequest", "message": "No."}
    assert head.endswith(b"\r\n\r\n")
