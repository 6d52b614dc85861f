"""Answers of the upstream, and what reaches the caller of each."""

from tests.vectors.origin import OK, WAIT, Answering
from tests.vectors.table import BadGateway, Relayed, Section, request

R9110, R9112 = "RFC 9110, {}".format, "RFC 9112, {}".format
LINE = b"HTTP/1.1 200 OK\r\n"
CHUNKED = LINE + b"Transfer-Encoding: chunked\r\n\r\n"
TWO = b"Content-Length: 2\r\n\r\nok"
KEY = b"secret-of-key-one"


def answers(*raw: bytes) -> list[Answering]:
    """Return each of these answers on a kept connection."""
    return [Answering((data,)) for data in raw]


def last(*raw: bytes) -> list[Answering]:
    """Return each of these answers followed by the end of the connection."""
    return [Answering((data,), "close") for data in raw]


framing = Section("Framing of answers")
framing.answers(
    "A body with Content-Length, chunked, or up to the end",
    Relayed(),
    R9112("6.3"),
    *answers(OK, CHUNKED + b"2\r\nok\r\n0\r\n\r\n", CHUNKED + b"1;a=b\r\no\r\n1\r\nk\r\n0\r\n\r\n"),
    *last(LINE + b"\r\nok", b"HTTP/1.0 200 OK\r\n\r\nok", b"HTTP/1.0 200 OK\r\n" + TWO),
)
framing.answers(
    "Both Transfer-Encoding and Content-Length",
    BadGateway(),
    R9112("6.1"),
    *answers(
        LINE + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        LINE + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    ),
)
framing.answers(
    "Several lengths, or an invalid one",
    BadGateway(),
    R9112("6.3"),
    *answers(
        *[
            LINE + b"Content-Length: " + value + b"\r\n\r\nok"
            for value in (
                b"2, 2",
                b"2, 3",
                b"-2",
                b"+2",
                b"two",
                b"0x2",
                b"",
                b"2 2",
                b"9" * 20,
                b"2\r\nContent-Length: 3",
                b"2\r\nContent-Length: 2",
            )
        ]
    ),
)
framing.answers(
    "A coding other than chunked",
    BadGateway(),
    R9112("6.1"),
    *answers(
        *[
            LINE + b"Transfer-Encoding: " + value + b"\r\n\r\n2\r\nok\r\n0\r\n\r\n"
            for value in (
                b"gzip, chunked",
                b"gzip",
                b"identity",
                b"xchunked",
                b"chunked, chunked",
                b"chunked, identity",
                b"",
            )
        ]
    ),
)
framing.answers(
    "HTTP/1.0 with Transfer-Encoding",
    BadGateway(),
    R9112("6.1"),
    *last(b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"),
)
framing.answers(
    "Invalid chunks",
    BadGateway(),
    R9112("7.1"),
    *answers(
        *[
            CHUNKED + data
            for data in (
                b"zz\r\nok\r\n0\r\n\r\n",
                b"2\r\nokay\r\n0\r\n\r\n",
                b"-2\r\nok\r\n0\r\n\r\n",
                b"10000000000000002\r\nok\r\n0\r\n\r\n",
                b"2\nok\n0\n\n",
                b"\r\nok\r\n0\r\n\r\n",
            )
        ]
    ),
)
framing.answers(
    "An invalid chunk after valid ones",
    Relayed(whole=False),
    R9112("7.1"),
    *[Answering((CHUNKED + b"2\r\nok\r\n", WAIT, data)) for data in (b"zz\r\n", b"-1\r\n", b"2\r\nokay\r\n")],
)
framing.answers(
    "A truncated answer",
    Relayed(whole=False),
    R9112("8"),
    *last(
        LINE + b"Content-Length: 5\r\n\r\nok",
        CHUNKED + b"2\r\nok\r\n",
        CHUNKED + b"2\r\nok\r\n0\r\n",
        CHUNKED + b"5\r\nok",
    ),
    Answering((LINE + b"\r\nok",), "reset"),
)
framing.answers(
    "A body longer than Content-Length",
    BadGateway(),
    R9112("6.3"),
    *answers(LINE + TWO + b"EXTRA", LINE + TWO + b"\x00"),
)
framing.answers(
    "A second, unsolicited answer",
    Relayed(text="the second is dropped"),
    R9112("9.2"),
    *answers(
        OK + LINE + b"Content-Length: 4\r\n\r\nevil",
        CHUNKED + b"2\r\nok\r\n0\r\n\r\n" + LINE + b"Content-Length: 4\r\n\r\nevil",
    ),
)
framing.answers(
    "A body where none is allowed",
    BadGateway(),
    R9112("6.3"),
    *answers(b"HTTP/1.1 204 No Content\r\n\r\nevil", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 4\r\n\r\nevil"),
)
framing.answers("204 and 304", Relayed(b"", 204), R9110("15.3.5"), *answers(b"HTTP/1.1 204 No Content\r\n\r\n"))
framing.answers(
    "304 with the length of the representation",
    Relayed(b"", 304, sees=(b"Content-Length: 200",)),
    R9110("8.6"),
    *answers(b"HTTP/1.1 304 Not Modified\r\nContent-Length: 200\r\n\r\n"),
)
framing.answers(
    "HEAD",
    Relayed(b"", sees=(b"Content-Length: 200",)),
    R9110("9.3.2"),
    *answers(LINE + b"Content-Length: 200\r\n\r\n"),
    sent=request(line=b"HEAD @T HTTP/1.1"),
)
framing.answers(
    "HEAD with a body",
    BadGateway(),
    R9110("9.3.2"),
    *answers(LINE + b"Content-Length: 4\r\n\r\nevil"),
    sent=request(line=b"HEAD @T HTTP/1.1"),
)
framing.answers(
    "Trailers of an answer",
    Relayed(hides=(b"x-trailer", b"trailer"), text="passes without them"),
    R9110("6.5.1"),
    *answers(LINE + b"Trailer: X-Trailer\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Trailer: 1\r\n\r\n"),
)
framing.answers(
    "Trailers about framing",
    BadGateway(),
    R9110("6.5.1"),
    *answers(CHUNKED + b"2\r\nok\r\n0\r\nContent-Length: 9\r\n\r\n"),
)

heads = Section("Heads of answers")
heads.answers(
    "Not HTTP/1.x",
    BadGateway(),
    R9112("4"),
    *answers(
        b"garbage\r\n\r\n",
        b"<html>hello</html>",
        b"ICY 200 OK\r\n" + TWO,
        b"HTTP/2.0 200 OK\r\n" + TWO,
        b"HTTP/1.2 200 OK\r\n" + TWO,
        b"HTTP/0.9 200 OK\r\n" + TWO,
        b"\x15\x03\x01\x00\x02\x02\x28",
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    ),
)
heads.answers(
    "An invalid status",
    BadGateway(),
    R9112("4"),
    *answers(
        *[
            b"HTTP/1.1 " + status + b" OK\r\n" + TWO
            for status in (b"20", b"2000", b"000", b"099", b"2O0", b"-20", b"", b"+200")
        ]
    ),
)
heads.answers("A status of no RFC", Relayed(status=599), R9110("15"), *answers(b"HTTP/1.1 599 Odd\r\n" + TWO))
heads.answers(
    "An empty or non-ASCII reason",
    Relayed(),
    R9112("4"),
    *answers(b"HTTP/1.1 200\r\n" + TWO, b"HTTP/1.1 200 \r\n" + TWO, b"HTTP/1.1 200 \xe9\xff\r\n" + TWO),
)
heads.answers(
    "Bare CR and NUL",
    BadGateway(),
    R9110("5.5"),
    *answers(
        LINE + b"X: a\rSet-Cookie: evil\r\n" + TWO,
        LINE + b"X: a\r\r\nSet-Cookie: evil\r\n" + TWO,
        LINE + b"X: a\x00b\r\n" + TWO,
        b"HTTP/1.1 200 a\rb\r\n" + TWO,
        LINE + b"X: a\r\rb\r\n" + TWO,
    ),
)
heads.answers(
    "A folded field line",
    Relayed(sees=(b"X: a b",), text="passes as one line"),
    R9112("5.2"),
    *answers(LINE + b"X: a\r\n b\r\n" + TWO),
)
heads.answers(
    "Lines that end in bare LF",
    Relayed(sees=(b"X: a",), text="passes with CR and LF"),
    R9112("2.2"),
    *answers(b"HTTP/1.1 200 OK\nX: a\nContent-Length: 2\n\nok", LINE + b"X: a\n" + TWO),
)
heads.answers(
    "An invalid field name",
    BadGateway(),
    R9112("5.1"),
    *answers(*[LINE + name + b": 2\r\n" + TWO for name in (b"X ", b"X\t", b"X Y", b"", b"X\x01", b"X\xe9")]),
    *last(
        LINE + b"Content-Length : 2\r\n\r\nok",
        LINE + b"Transfer-Encoding : chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        LINE + b"X\r\n" + TWO,
    ),
)
heads.answers(
    "A head that is too large",
    BadGateway(),
    "RFC 9209, 2.3.16",
    *answers(LINE + b"X: " + b"x" * 70_000 + b"\r\n" + TWO, LINE + b"X: 1\r\n" * 600 + TWO),
)
heads.answers(
    "Fields about the connection",
    Relayed(
        sees=(b"X-Stay: 1",),
        hides=(b"x-hop", b"timeout=5", b"proxy-", b"\r\nte:", b"upgrade", b"connection: close"),
        text="passes without them",
    ),
    R9110("7.6.1"),
    *answers(
        *[
            LINE + field + b"\r\nX-Stay: 1\r\n" + TWO
            for field in (
                b"Connection: X-Hop\r\nX-Hop: 1",
                b"connection: x-hop, close\r\nx-HOP: 1",
                b"Keep-Alive: timeout=5",
                b"Proxy-Authenticate: Basic",
                b"Proxy-Connection: keep-alive",
                b"TE: trailers",
                b"Upgrade: h2c\r\nConnection: upgrade",
                b"Proxy-Authentication-Info: a",
            )
        ]
    ),
)
heads.answers(
    "`Connection` names what is ours or frames the body",
    Relayed(sees=(b"Content-Length: 2", b"Via: 1.1 keyturn", b"Keyturn-Key: team-1")),
    R9110("7.6.1"),
    *answers(LINE + b"Connection: Content-Length, Via, Keyturn-Key, X-Request-Id, Date\r\n" + TWO),
)
heads.answers(
    "Repeated fields",
    Relayed(sees=(b"Set-Cookie: a=b", b"Set-Cookie: c=d"), text="pass in order"),
    R9110("5.3"),
    *answers(LINE + b"Set-Cookie: a=b\r\nSet-Cookie: c=d\r\n" + TWO),
)
heads.answers(
    "A redirect",
    Relayed(b"", 302, sees=(b"Location: http://169.254.169.254/",), text="passes, not followed"),
    R9110("15.4"),
    *answers(b"HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/\r\nContent-Length: 0\r\n\r\n"),
)
heads.answers(
    "The key in a field or in the reason",
    Relayed(sees=(b"X-Echo: a***b", b"Location: /x?apikey=***"), hides=(KEY,), text="passes with `***` in its place"),
    "law 11",
    *answers(b"HTTP/1.1 200 " + KEY + b"\r\nX-Echo: a" + KEY + b"b\r\nLocation: /x?apikey=" + KEY + b"\r\n" + TWO),
)

interim = Section("Interim answers")
interim.answers(
    "An unsolicited 100",
    Relayed(text="ends here"),
    R9110("15.2.1"),
    Answering((b"HTTP/1.1 100 Continue\r\n\r\n", OK)),
    *answers(b"HTTP/1.1 100 Continue\r\n\r\n" + OK),
)
interim.answers(
    "102 and 103",
    Relayed(interim=(b"103",), text="pass before the answer"),
    "RFC 8297, 2",
    *answers(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + OK),
    Answering((b"HTTP/1.1 103 Early Hints\r\nConnection: x\r\nContent-Length: 5\r\n\r\n", OK)),
)
interim.answers(
    "103 to HTTP/1.0",
    Relayed(text="ends here", ends=True),
    R9110("15.2"),
    *answers(b"HTTP/1.1 103 Early Hints\r\n\r\n" + OK),
    sent=request(line=b"GET @T HTTP/1.0"),
)
interim.answers(
    "101",
    BadGateway(),
    R9110("15.2.2"),
    *answers(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\nRAW"),
)
interim.answers(
    "101 to a caller that asked for it",
    BadGateway(ends=True),
    R9110("15.2.2"),
    *answers(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\nRAW"),
    sent=request(
        b"Connection: Upgrade",
        b"Upgrade: websocket",
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        b"Sec-WebSocket-Version: 13",
    ),
)
interim.answers(
    "Endless interim answers",
    BadGateway(),
    R9110("15.2"),
    *answers(b"HTTP/1.1 102 Processing\r\n\r\n" * 300),
    Answering((b"HTTP/1.1 102 Processing\r\n\r\n" * 60,) * 4),
)

ends = Section("Ends of the upstream")
ends.answers(
    "The upstream closes or resets before a head",
    BadGateway(),
    "RFC 9209, 2.3.8",
    *last(b"", b"HTTP/1.1 200 OK\r\nX: "),
    Answering((), "reset"),
    Answering((b"HTTP/1.1 200 O",), "reset"),
)
ends.answers("It closes behind an answer", Relayed(), R9112("9.6"), *last(OK, LINE + b"Connection: close\r\n" + TWO))
ends.answers(
    "The upstream answers before it has read the request",
    Relayed(),
    R9112("9.5"),
    Answering((OK,), early=True),
    sent=request(b"Content-Length: 5", line=b"POST @T HTTP/1.1", body=b"hello"),
)
ends.answers(
    "The upstream refuses an unread body",
    Relayed(status=413, ends=False),
    R9110("15.5.14"),
    Answering((b"HTTP/1.1 413 No\r\nConnection: close\r\n" + TWO,), "close", early=True),
    sent=request(b"Content-Length: 5", line=b"POST @T HTTP/1.1", body=b"hello"),
)

SECTIONS = [framing, heads, interim, ends]
