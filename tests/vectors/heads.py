"""Requests by their line and their fields, after the tests of llhttp, aiohttp and the HTTP Garden."""

from tests.vectors.table import Passes, Refused, Section, each, post, request

R9110, R9112 = "RFC 9110, {}".format, "RFC 9112, {}".format

lines = Section("Request line")
lines.add("HTTP/1.1 and HTTP/1.0", Passes(line=b"GET @T HTTP/1.1"), R9112("2.3"), request())
lines.add(
    "HTTP/1.0, with a Host or without",
    Passes(line=b"GET @T HTTP/1.1", ends=True),
    R9112("2.3"),
    request(line=b"GET @T HTTP/1.0"),
    request(line=b"GET @T HTTP/1.0", host=None),
)
lines.add(
    "Another HTTP version, or none",
    Refused(),
    R9112("2.3"),
    *each(
        request(line=b"GET @T@V"),
        [b"", b" HTTP/0.9", b" HTTP/1.2", b" HTTP/2.0", b" HTTP/3", b" HTTP/1", b" HTTP/1.01", b" HTTP/01.1"],
    ),
    *each(
        request(line=b"GET @T@V"),
        [b" http/1.1", b" HTTP/1.1x", b" HTTP /1.1", b" HTTP/ 1.1", b" HTTP/1,1", b" XTTP/1.1"],
    ),
)
lines.add(
    "An invalid or lower-case method",
    Refused(),
    R9110("9.1"),
    *each(
        request(line=b"@V @T HTTP/1.1"),
        [b"get", b"Get", b"GET,", b"GE\x01T", b"GET\x00", b"G\xc9T", b"", b"FOO", b"A" * 5000, b"(GET)", b'"GET"'],
    ),
)
lines.add(
    "Every method of an RFC",
    Passes(text="passes with its method"),
    R9110("9"),
    *each(
        request(line=b"@V @T HTTP/1.1"),
        [
            b"GET",
            b"HEAD",
            b"POST",
            b"PUT",
            b"PATCH",
            b"DELETE",
            b"OPTIONS",
            b"PROPFIND",
            b"REPORT",
            b"SEARCH",
            b"QUERY",
        ],
    ),
)
lines.add(
    "Stray whitespace, bare CR or bare LF in the line",
    Refused(),
    R9112("3"),
    *each(
        request(line=b"@V"),
        [
            b" GET @T HTTP/1.1",
            b"GET\t@T HTTP/1.1",
            b"GET @T\tHTTP/1.1",
            b"GET @T HTTP/1.1 ",
            b"GET @T HTTP/1.1 x",
            b"GET @T x HTTP/1.1",
            b"GET @T\x0b HTTP/1.1",
            b"GET @T HTTP/1.1\rX: y",
            b"GET @T HTTP/1.1\nX: y",
            b"GET @T HTTP/1.1\r\r\nX: y",
            b"GET @T\r HTTP/1.1",
            b"GET @T\n HTTP/1.1",
        ],
    ),
)
lines.add(
    "Several spaces between its parts",
    Passes(line=b"GET @T HTTP/1.1"),
    R9112("3"),
    request(line=b"GET  @T HTTP/1.1"),
    request(line=b"GET @T  HTTP/1.1"),
)
lines.add("Empty lines before the request line", Passes(), R9112("2.2"), b"\r\n" + request(), b"\r\n\r\n" + request())
lines.add(
    "Control characters or non-ASCII bytes in the target",
    Refused(),
    R9112("3.2"),
    *each(
        request(line=b"GET @T@V HTTP/1.1"), [b"\x00", b"\x01", b"\x1f", b"\x7f", b"\x80", b"\xe9", "\u00fc".encode()]
    ),
)
lines.add(
    "A fragment in the target",
    Refused(),
    R9112("3.2"),
    *each(request(line=b"GET @T@V HTTP/1.1"), [b"#", b"#x", b"?a#b"]),
)
lines.add(
    "A target of unknown form",
    Refused(),
    R9112("3.2"),
    *each(
        request(line=b"GET @V HTTP/1.1"),
        [
            b"",
            b"*",
            b"v",
            b"?a",
            b"api.getpostman.com:443",
            b"http:",
            b"http:///v",
            b"http://:80/v",
            b"://a/v",
            b"ftp://a/v",
        ],
    ),
    *each(
        request(line=b"GET @V HTTP/1.1"),
        [b"file:///etc/passwd", b"http://a:99999/v", b"javascript:x", b"http://[::1/v"],
    ),
)
lines.add(
    "An absolute target of a Postman API",
    Passes(line=b"GET @T HTTP/1.1", text="passes as a path"),
    R9112("3.2.2"),
    *each(
        request(line=b"GET @V@T HTTP/1.1"),
        [
            b"http://api.getpostman.com",
            b"https://api.getpostman.com",
            b"HTTP://API.getpostman.COM",
            b"http://api.getpostman.com:80",
            b"https://api.postman.com:443",
        ],
    ),
)
lines.add(
    "An absolute target of another authority",
    Refused(421, keeps=True),
    R9110("15.5.20"),
    *each(
        request(line=b"GET @V@T HTTP/1.1"),
        [
            b"http://evil.example",
            b"http://api.getpostman.com@evil.example",
            b"http://evil.example@api.getpostman.com",
            b"http://api.getpostman.com.evil.example",
            b"http://api.getpostman.com:8080",
            b"http://169.254.169.254",
            b"http://localhost",
        ],
    ),
)
lines.add(
    "A path that looks like an authority",
    Passes(line=b"GET //evil.example@T HTTP/1.1", text="passes as a path"),
    R9112("3.2.1"),
    request(line=b"GET //evil.example@T HTTP/1.1"),
)
lines.add(
    "CONNECT",
    Refused(405),
    R9110("9.3.6"),
    *each(request(line=b"CONNECT @V HTTP/1.1", body=b"@N"), [b"a:443", b"a", b"[::1]:80"]),
)
lines.add(
    "TRACE",
    Refused(405),
    R9110("9.3.8"),
    request(line=b"TRACE @T HTTP/1.1", body=b"@N"),
    request(b"Content-Length: 2", line=b"TRACE @T HTTP/1.1", body=b"ok@N"),
)
lines.add(
    "Another protocol",
    Refused(anonymous=True),
    R9112("2.2"),
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    bytes.fromhex("16030100a5010000a10303") + b"x" * 100,
    b"SSH-2.0-OpenSSH_9.0\r\n",
    b"EHLO example.com\r\n",
    b"*1\r\n$4\r\nPING\r\n",
    b"\x00\x00\x00\x00\x00\x00",
    b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
)

fields = Section("Fields")
fields.add(
    "A folded field line",
    Refused(),
    R9112("5.2"),
    request(b"X: a", b" b"),
    request(b"X: a", b"\tb"),
    request(b"X:", b" b"),
    request(b"X: a", b" "),
    request(b"Transfer-Encoding:", b" chunked"),
)
fields.add(
    "Whitespace before the first field",
    Refused(),
    R9112("2.2"),
    b"GET @T HTTP/1.1\r\n Host: a\r\nHost: a\r\n@A\r\n\r\n",
)
fields.add(
    "Whitespace before the colon",
    Refused(),
    R9112("5.1"),
    *each(request(b"@V: chunked"), [b"X ", b"X\t", b"Transfer-Encoding ", b"Content-Length\t", b"X\x0b"]),
)
fields.add(
    "An invalid field name",
    Refused(),
    R9110("5.1"),
    *each(
        request(b"@V: a"),
        [b"", b" ", b"X Y", b"X\x00", b"X\x01", b"X\x7f", b"X\xe9", b"X(Y)", b"X,Y", b'"X"', b"X[1]", b"X@Y", b"X/Y"],
    ),
    request(b"X"),
    request(b"Transfer-Encoding chunked"),
)
fields.add(
    "NUL, bare CR, bare LF and other control characters in a value",
    Refused(),
    R9110("5.5"),
    *each(
        request(b"X: a@Vb"),
        [
            b"\x00",
            b"\x01",
            b"\x08",
            b"\x0b",
            b"\x0c",
            b"\x1b",
            b"\x7f",
            b"\r",
            b"\n",
            b"\rTransfer-Encoding: chunked\r",
            b"\nY: ",
        ],
    ),
    request(b"X: \r"),
    request(b"X: a\r\r"),
)
fields.add(
    "Lines that end in bare LF or bare CR",
    Refused(),
    R9112("2.2"),
    b"GET @T HTTP/1.1\nHost: a\n@A\n\n",
    b"GET @T HTTP/1.1\r\nHost: a\n@A\r\n\r\n",
    b"GET @T HTTP/1.1\r\nHost: a\r\n@A\r\n\n",
    b"GET @T HTTP/1.1\r\nHost: a\r\n@A\n\r\n",
    b"GET @T HTTP/1.1\r\nHost: a\r\n@A\r\r\n\r\n",
    b"GET @T HTTP/1.1\rHost: a\r@A\r\r",
)
fields.add(
    "Whitespace around a value",
    Passes(sees=(b"X: a\tb",)),
    R9110("5.5"),
    request(b"X:a\tb"),
    request(b"X:  \ta\tb \t "),
)
fields.add("An empty value", Passes(sees=(b"X: ",)), R9110("5.5"), request(b"X:"), request(b"X: \t "))
fields.add(
    "Non-ASCII bytes in a value",
    Passes(sees=(b"X: \xe9\xff\x80",), text="pass unchanged"),
    R9110("5.5"),
    request(b"X: \xe9\xff\x80"),
)
fields.add(
    "Repeated fields",
    Passes(sees=(b"X: 1", b"x: 2", b"X: 1"), text="pass in order"),
    R9110("5.3"),
    request(b"X: 1", b"x: 2", b"X: 1"),
)
fields.add(
    "A singleton field twice",
    Refused(),
    R9110("5.3"),
    *each(request(b"@V: a", b"@V: b"), [b"Content-Type", b"User-Agent", b"Host", b"Content-Range"]),
)
fields.add(
    "A name that becomes a sensitive one when `_` is read as `-`",
    Passes(hides=(b"x_api_key", b"transfer_encoding", b"content_length", b"keyturn_key"), text="passes without it"),
    R9112("6.1"),
    *each(
        request(b"@V"),
        [
            b"X_Api_Key: evil",
            b"x-api_key: evil",
            b"Transfer_Encoding: chunked",
            b"Content_Length: 5",
            b"Keyturn_Key: a",
        ],
    ),
)

hosts = Section("Host")
hosts.add("No Host", Refused(), R9112("3.2"), request(host=None))
hosts.add(
    "Several Host fields, equal or not",
    Refused(),
    R9112("3.2"),
    *each(request(b"@V"), [b"Host: a", b"Host: b", b"host: a", b"HOST:"]),
)
hosts.add(
    "An invalid Host",
    Refused(),
    R9112("3.2"),
    *each(
        request(host=b"Host: @V"),
        [
            b"a b",
            b"a, b",
            b"a\tb",
            b"u@a",
            b"a/b",
            b"a?b",
            b"a#b",
            b"a:b",
            b"a:1:2",
            b"a:123456",
            b'"a"',
            b"<a>",
            b"\xe9",
            b"[::1",
            b"::1",
            b"a\\b",
            b"http://a",
        ],
    ),
)
hosts.add(
    "A Host of another name",
    Passes(hides=(b"host: other",), text="passes with the upstream's"),
    R9112("3.2"),
    *each(
        request(host=b"Host:@V"),
        [b"", b" other", b" other:80", b" other:", b" [::1]:80", b" other_x", b" 192.0.2.1", b" OTHER.example."],
    ),
)
hosts.add(
    "A Host beside an absolute target",
    Passes(line=b"GET @T HTTP/1.1", hides=(b"host: other",), text="passes with the upstream's"),
    R9112("3.2.2"),
    request(line=b"GET http://api.getpostman.com@T HTTP/1.1", host=b"Host: other"),
)

sizes = Section("Size")
sizes.add(
    "A target beyond `inbound.max_target`",
    Refused(414),
    R9112("3"),
    request(line=b"GET @T" + b"x" * 32_768 + b" HTTP/1.1"),
)
sizes.add(
    "A head beyond `inbound.max_head`",
    Refused(431),
    "RFC 6585, 5",
    request(b"X: " + b"x" * 66_000),
    request(b"X" * 66_000 + b": x"),
    request(*[b"X: " + b"x" * 1000] * 66),
    b"GET @T HTTP/1.1\r\n@A\r\nX: " + b"x" * 66_000,
)
sizes.add("More fields than `inbound.max_fields`", Refused(431), "RFC 6585, 5", request(*[b"X: 1"] * 200))
sizes.add(
    "A large head",
    Passes(),
    R9112("3"),
    request(b"X: " + b"x" * 60_000),
    request(*[b"X: 1"] * 100),
    request(line=b"GET @T?" + b"x" * 30_000 + b" HTTP/1.1", body=b""),
)
sizes.add(
    "A body beyond `upstream.max_body`",
    Refused(413),
    R9110("15.5.14"),
    *each(post(b"Content-Length: @V", body=b"@N"), [b"104857601", b"18446744073709551615"]),
)

SECTIONS = [lines, fields, hosts, sizes]
