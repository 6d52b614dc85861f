"""Requests by their framing: where one body ends and the next request begins (request smuggling)."""

from tests.vectors.table import Abandoned, Passes, Refused, Section, Truncated, Unheard, each, post, request

R9110, R9112 = "RFC 9110, {}".format, "RFC 9112, {}".format
CHUNKED = b"Transfer-Encoding: chunked"
LARGE = b"x" * 20_000
"""More than is read before a request waits."""
HELLO = b"5\r\nhello\r\n0\r\n\r\n"

lengths = Section("Content-Length")
lengths.add(
    "A body with Content-Length",
    Passes(b"hello", sees=(b"Content-Length: 5",)),
    R9112("6.2"),
    post(b"Content-Length: 5", body=b"hello"),
    post(b"content-length:5", body=b"hello"),
    post(b"Content-Length: \t5\t ", body=b"hello"),
    post(b"Content-Length: 005", body=b"hello"),
    request(b"Content-Length: 5", body=b"hello"),
    request(b"Content-Length: 5", line=b"DELETE @T HTTP/1.1", body=b"hello"),
)
lengths.add(
    "Another request after a body",
    Passes(b"hello", answers=2),
    R9112("9.3.2"),
    post(b"Content-Length: 5", body=b"hello@N"),
)
lengths.add(
    "Another request after one without a body",
    Passes(sees=(b"Content-Length: 0",), answers=2),
    R9112("6.3"),
    post(body=b"@N"),
    post(b"Content-Length: 0", body=b"@N"),
)
lengths.add(
    "An invalid length",
    Refused(),
    R9112("6.3"),
    *each(
        post(b"Content-Length: @V", body=b"hello@N"),
        [
            b"-1",
            b"+5",
            b"0x5",
            b"5.0",
            b"5e0",
            b"5;",
            b"5,",
            b"five",
            b"",
            b"5 5",
            b"1_0",
            b"5\x0b",
            "\uff15".encode(),
            b'"5"',
            b"5\xa0",
            b"0b1",
            b"\xb2",
        ],
    ),
)
lengths.add(
    "A length beyond 64 bits",
    Refused(),
    R9110("8.6"),
    *each(post(b"Content-Length: @V", body=b"hello@N"), [b"18446744073709551616", b"18446744073709551621", b"9" * 50]),
)
lengths.add(
    "Several lengths, equal or not",
    Refused(),
    R9112("6.3"),
    *each(
        post(b"@V", body=b"hello@N"),
        [b"Content-Length: 5, 5", b"Content-Length: 5, 6", b"Content-Length: 5\r\nContent-Length: 5"],
    ),
    *each(
        post(b"@V", body=b"hello@N"),
        [b"Content-Length: 5\r\nContent-Length: 6", b"Content-Length: 6\r\ncontent-length: 5"],
    ),
)
lengths.add(
    "A name that resembles Content-Length",
    Refused(),
    R9112("5.1"),
    *each(
        post(b"@V: 5", body=b"hello@N"),
        [b"Content-Length ", b" Content-Length", b"Content-Length\x00", b"Content-Length\x0b", b"\x00Content-Length"],
    ),
)
lengths.add(
    "`Connection: content-length` beside a length",
    Passes(b"hello", sees=(b"Content-Length: 5",)),
    R9110("7.6.1"),
    post(b"Content-Length: 5", b"Connection: content-length", body=b"hello"),
)
lengths.add("A truncated body", Unheard(), R9112("8"), post(b"Content-Length: 5", body=b"hel"))
lengths.add(
    "A body truncated beyond `inbound.max_spooled`",
    Truncated(LARGE),
    R9112("8"),
    post(b"Content-Length: 50000", body=LARGE),
)
lengths.add(
    "Another request after an HTTP/1.0 body",
    Passes(b"hello", answers=2),
    R9112("9.3"),
    post(b"Content-Length: 5", b"Connection: keep-alive", version=b"1.0", body=b"hello@N"),
)

codings = Section("Transfer-Encoding")
codings.add(
    "A chunked body",
    Passes(b"hello", sees=(CHUNKED,), hides=(b"content-length",), ends=True),
    R9112("7.1"),
    *each(
        post(b"@V", body=HELLO),
        [CHUNKED, b"transfer-encoding:chunked", b"Transfer-Encoding: cHuNkEd", b"Transfer-Encoding:\t chunked"],
    ),
    request(CHUNKED, body=HELLO),
    post(CHUNKED, b"Connection: transfer-encoding", body=HELLO),
)
codings.add(
    "Both Transfer-Encoding and Content-Length, in any order",
    Refused(),
    R9112("6.1"),
    *each(
        post(b"@V", body=HELLO + b"@N"),
        [CHUNKED + b"\r\nContent-Length: 5", b"Content-Length: 5\r\n" + CHUNKED, b"Content-Length: 0\r\n" + CHUNKED],
    ),
    *each(post(b"@V", body=HELLO + b"@N"), [CHUNKED + b"\r\nContent-Length: 15", b"Content-Length: x\r\n" + CHUNKED]),
)
codings.add(
    "A coding other than chunked, or chunked twice, or not last",
    Refused(),
    R9112("6.1"),
    *each(
        post(b"Transfer-Encoding: @V", body=HELLO + b"@N"),
        [
            b"gzip, chunked",
            b"chunked, chunked",
            b"chunked, identity",
            b"identity",
            b"identity, chunked",
            b"gzip",
            b"deflate",
            b"trailers",
            b"xchunked",
            b"chunkedx",
        ],
    ),
    *each(
        post(b"Transfer-Encoding: @V", body=HELLO + b"@N"),
        [
            b"chunked;q=1",
            b"chunked,",
            b", chunked",
            b",chunked,",
            b'"chunked"',
            b"chun ked",
            b"chunk",
            b"",
            b"chunked\xe9",
            b"\x0bchunked",
            b"chunked\x00",
            b"chunked\x0b",
        ],
    ),
    post(CHUNKED, CHUNKED, body=HELLO),
    post(CHUNKED, b"Transfer-Encoding: identity", body=HELLO),
    post(b"Transfer-Encoding: identity", CHUNKED, body=HELLO),
    post(b"Transfer-Encoding:", CHUNKED, body=HELLO),
)
codings.add(
    "A name that resembles Transfer-Encoding",
    Refused(),
    R9112("5.1"),
    *each(
        post(b"@V: chunked", b"Content-Length: 5", body=b"hello@N"),
        [
            b"Transfer-Encoding ",
            b" Transfer-Encoding",
            b"Transfer-Encoding\t",
            b"Transfer-Encoding\x00",
            b"\x0bTransfer-Encoding",
        ],
    ),
)
codings.add(
    "Transfer-Encoding hidden after a bare CR or LF",
    Refused(),
    R9112("2.2"),
    *each(
        post(b"X: y@VTransfer-Encoding: chunked", b"Content-Length: 5", body=b"hello@N"),
        [b"\r", b"\n", b"\n\r", b"\r\r", b"\x0b", b"\x0c", b"\x00", b"\x85\n"],
    ),
)
codings.add(
    "HTTP/1.0 with Transfer-Encoding",
    Refused(),
    R9112("6.1"),
    post(CHUNKED, version=b"1.0", body=HELLO + b"@N"),
    post(CHUNKED, b"Connection: keep-alive", version=b"1.0", body=HELLO + b"@N"),
    post(CHUNKED, b"Content-Length: 5", version=b"1.0", body=HELLO),
)

chunks = Section("Chunks")
chunks.add(
    "Valid sizes and extensions",
    Passes(b"hello", ends=True),
    R9112("7.1"),
    *each(
        post(CHUNKED, body=b"@V"),
        [
            b"1\r\nh\r\n4\r\nello\r\n0\r\n\r\n",
            b"5;a\r\nhello\r\n0;b\r\n\r\n",
            b"5;a=b;c=d\r\nhello\r\n0\r\n\r\n",
            b'5;a="b;c\\""\r\nhello\r\n0\r\n\r\n',
            b"00000000000005\r\nhello\r\n000\r\n\r\n",
            b"5;" + b"x" * 20_000 + b"\r\nhello\r\n0\r\n\r\n",
        ],
    ),
)
chunks.add(
    "Another request after the last chunk",
    Passes(b"hello", ends=True, text="passes alone"),
    R9112("7.1"),
    post(CHUNKED, body=HELLO + b"@N"),
)
chunks.add("Only the last chunk", Passes(b"", ends=True), R9112("7.1"), post(CHUNKED, body=b"0\r\n\r\n"))
chunks.add(
    "An invalid chunk size",
    Refused(),
    R9112("7.1"),
    *each(
        post(CHUNKED, body=b"@V\r\nhello\r\n0\r\n\r\n@N"),
        [
            b"-5",
            b"+5",
            b"0x5",
            b" 5",
            b"5 ",
            b"5\t",
            b"5.",
            b"0_5",
            b"g",
            b"",
            b";a",
            b"\x005",
            b"5\x00",
            "\uff15".encode(),
            b"five",
            b"5,",
            b'"5"',
            b"5=a",
            b"5 5",
        ],
    ),
)
chunks.add(
    "A chunk size beyond 64 bits",
    Refused(),
    R9112("7.1"),
    *each(
        post(CHUNKED, body=b"@V\r\nhello\r\n0\r\n\r\n@N"),
        [b"10000000000000005", b"f" * 17, b"f" * 40, b"1" + b"0" * 16],
    ),
)
chunks.add(
    "Chunk lines that end in bare LF or bare CR",
    Refused(),
    R9112("2.2"),
    *each(
        post(CHUNKED, body=b"@V@N"),
        [
            b"5\nhello\r\n0\r\n\r\n",
            b"5\rhello\r\n0\r\n\r\n",
            b"5\r\nhello\n0\r\n\r\n",
            b"5\r\nhello\r0\r\n\r\n",
            b"5\r\nhello\r\n0\n\r\n",
            b"5\r\nhello\r\n0\r\n\n",
            b"5\r\nhello\r\n0\n\n",
            b"5\r\r\nhello\r\n0\r\n\r\n",
            b"5\n\rhello\r\n0\r\n\r\n",
        ],
    ),
)
chunks.add(
    "Chunk extensions that hide the end of the line",
    Refused(),
    R9112("7.1.1"),
    *each(
        post(CHUNKED, body=b"5;@V\r\nhello\r\n0\r\n\r\n@N"),
        [b"a\n", b"a\r", b"\n", b"\x00", b'a="\n"', b'a="\r\n"', b"a\rX", b"a\nX: y", b"\x01", b'a="\x00"'],
    ),
    post(CHUNKED, body=b"2;\nxx\r\n4c\r\n0\r\n\r\n@N"),
)
chunks.add(
    "Chunk data longer or shorter than its size",
    Refused(),
    R9112("7.1"),
    *each(
        post(CHUNKED, body=b"@V@N"),
        [
            b"5\r\nhello!\r\n0\r\n\r\n",
            b"5\r\nhell\r\n0\r\n\r\n",
            b"5\r\nhello0\r\n\r\n",
            b"5\r\n\r\nhello\r\n0\r\n\r\n",
            b"5\r\n hello\r\n0\r\n\r\n",
        ],
    ),
)
chunks.add(
    "Garbage after the last chunk",
    Passes(b"hello", ends=True, text="passes alone"),
    R9112("2.2"),
    *each(post(CHUNKED, body=HELLO + b"@V"), [b"0\r\n\r\n", b"5\r\nhello\r\n", b"xx\r\n\r\n"]),
)
chunks.add(
    "An invalid chunk after valid ones",
    Refused(),
    R9112("7.1"),
    *each(post(CHUNKED, body=b"5\r\nhello\r\n@V"), [b"zz\r\n", b"-1\r\n", b"5\n", b"5\r\nhello!\r\n"]),
)
chunks.add(
    "An invalid chunk beyond `inbound.max_spooled`",
    Truncated(LARGE, 400),
    R9112("7.1"),
    *each(
        post(CHUNKED, body=b"4e20\r\n" + LARGE + b"\r\n@W@V"),
        [b"zz\r\n", b"-1\r\n", b"5\n", b"5\r\nhello!\r\n"],
    ),
)
chunks.add(
    "Truncated chunks",
    Unheard(),
    R9112("8"),
    *each(post(CHUNKED, body=b"5\r\nhello@V"), [b"", b"\r\n", b"\r\n0\r\n", b"\r\n5\r\n"]),
)
chunks.add(
    "Chunks truncated beyond `inbound.max_spooled`",
    Truncated(LARGE),
    R9112("8"),
    *each(post(CHUNKED, body=b"4e20\r\n" + LARGE + b"@V"), [b"", b"\r\n", b"\r\n0\r\n", b"\r\n5\r\n"]),
)
chunks.add(
    "The largest possible chunk, never sent",
    Unheard(),
    R9112("7.1"),
    post(CHUNKED, body=b"ffffffffffffffff\r\nhello"),
)

trailers = Section("Trailers")
trailers.add(
    "Trailers of a request",
    Passes(b"hello", hides=(b"x-trailer", b"trailer"), text="passes without them", ends=True),
    R9110("6.5.1"),
    post(CHUNKED, b"Trailer: X-Trailer", body=b"5\r\nhello\r\n0\r\nX-Trailer: 1\r\n\r\n"),
    post(CHUNKED, body=b"5\r\nhello\r\n0\r\nX-Trailer: 1\r\nX-Trailer: 2\r\n\r\n"),
)
trailers.add(
    "Trailers that name request fields",
    Passes(b"hello", hides=(b"evil",), text="passes without them", ends=True),
    R9110("6.5.1"),
    *each(
        post(CHUNKED, body=b"5\r\nhello\r\n0\r\n@V\r\n\r\n"),
        [
            b"X-Api-Key: evil",
            b"Authorization: Bearer evil",
            b"Host: evil",
            b"Connection: evil",
            b"Via: 1.1 evil",
            b"Expect: evil",
            b"Cookie: evil",
        ],
    ),
)
trailers.add(
    "Trailers about framing",
    Refused(),
    R9110("6.5.1"),
    *each(
        post(CHUNKED, body=b"5\r\nhello\r\n0\r\n@V\r\n\r\n@N"),
        [b"Content-Length: 5", b"Transfer-Encoding: x, chunked", b"Content-Length: x"],
    ),
)
trailers.add(
    "Malformed trailers",
    Refused(),
    R9112("7.1.2"),
    *each(
        post(CHUNKED, body=b"5\r\nhello\r\n0\r\n@V\r\n\r\n"),
        [b"X : a", b"X: a\r\n b", b"X: a\x00", b"X: a\n", b"X: a\rb", b"X", b": a", b"GET /next HTTP/1.1"],
    ),
)
trailers.add(
    "Too many or too large trailers",
    Refused(431),
    "RFC 6585, 5",
    *each(post(CHUNKED, body=b"5\r\nhello\r\n0\r\n@V\r\n"), [b"X: 1\r\n" * 500, b"X: " + b"x" * 70_000 + b"\r\n"]),
)

pipelining = Section("Pipelining")
pipelining.add("Several requests at once", Passes(answers=5), R9112("9.3.2"), request(body=b"@N@N@N@N"))
pipelining.add("HEAD before another", Passes(answers=2), R9112("6.3"), request(line=b"HEAD @T HTTP/1.1", body=b"@N"))
pipelining.add(
    "Bytes after `Connection: close` or HTTP/1.0",
    Passes(ends=True, text="passes alone"),
    R9112("9.6"),
    request(b"Connection: close", body=b"@N"),
    request(line=b"GET @T HTTP/1.0", body=b"@N"),
)
pipelining.add(
    "Bytes after a body and `Connection: close`",
    Passes(b"hello", ends=True, text="passes alone"),
    R9112("9.6"),
    post(b"Connection: close", b"Content-Length: 5", body=b"hello@N"),
)
pipelining.add(
    "An empty line after `Connection: close`",
    Passes(ends=True),
    R9112("2.2"),
    request(b"Connection: close", body=b"\r\n"),
)
pipelining.add(
    "Garbage after a request",
    Passes(then=400, ends=True, text="passes, then 400"),
    R9112("2.2"),
    request(body=b"NO HTTP\r\n\r\n@N"),
    request(body=b"\x00@N"),
    request(body=b"{}"),
    request(b"Content-Length: 0", body=b"NO HTTP\r\n\r\n@N"),
)
pipelining.add(
    "Garbage after a body",
    Passes(b"hello", then=400, ends=True, text="passes, then 400"),
    R9112("2.2"),
    post(b"Content-Length: 5", body=b"helloNO HTTP\r\n\r\n@N"),
    post(b"Content-Length: 5", body=b"hello\x00@N"),
)
pipelining.add(
    "A refused request whose body is another request",
    Refused(401, anonymous=True),
    R9112("9.3"),
    b"POST @T HTTP/1.1\r\nHost: a\r\nContent-Length: 500\r\n\r\n@N",
    b"POST @T HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n200\r\n@N",
    b"POST @T HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 500\r\n\r\n@N",
)

expectations = Section("Expect")
expectations.add(
    "100-continue",
    Passes(b"hello", hides=(b"expect",), text="passes, without the field"),
    R9110("10.1.1"),
    *each(post(b"Expect: @V", b"Content-Length: 5", body=b"hello"), [b"100-continue", b"100-CONTINUE"]),
)
expectations.add(
    "100-continue in HTTP/1.0",
    Passes(b"hello", hides=(b"expect",), ends=True, text="passes, without a 100"),
    R9110("10.1.1"),
    post(b"Expect: 100-continue", b"Content-Length: 5", version=b"1.0", body=b"hello"),
)
expectations.add(
    "100-continue without a body", Passes(hides=(b"expect",)), R9110("10.1.1"), request(b"Expect: 100-continue")
)
expectations.add(
    "Another expectation",
    Passes(b"hello", hides=(b"expect",), text="passes, without the field"),
    R9110("10.1.1"),
    post(b"Expect: 200-ok", b"Content-Length: 5", body=b"hello"),
)
expectations.add(
    "100-continue before a body that is too large",
    Refused(413),
    R9110("10.1.1"),
    post(b"Expect: 100-continue", b"Content-Length: 999999999999"),
)

leaving = Section("Leaving")
leaving.add(
    "The caller disconnects before the answer",
    Abandoned(),
    R9112("9.5"),
    request(),
    post(b"Content-Length: 5", body=b"hello"),
)
leaving.add(
    "The caller disconnects within its body",
    Unheard(),
    R9112("9.5"),
    post(b"Content-Length: 5", body=b"hel"),
    post(CHUNKED, body=b"3\r\nhel\r\n"),
)
leaving.add(
    "The caller disconnects within its body, beyond `inbound.max_spooled`",
    Abandoned(LARGE),
    R9112("9.5"),
    post(b"Content-Length: 50000", body=LARGE),
    post(CHUNKED, body=b"4e20\r\n" + LARGE + b"\r\n"),
)

SECTIONS = [lengths, codings, chunks, trailers, pipelining, expectations, leaving]
