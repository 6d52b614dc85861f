"""Fields and protocols that end at each hop: Go's `ReverseProxy` cases, and the classes of pingora's advisories."""

from tests.vectors.table import Passes, Refused, Section, each, post, request

R9110, R9112 = "RFC 9110, {}".format, "RFC 9112, {}".format
WEBSOCKET = (
    b"Connection: Upgrade",
    b"Upgrade: websocket",
    b"Sec-WebSocket-Version: 13",
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)

hops = Section("Hop by hop")
hops.add(
    "Fields about the connection",
    Passes(
        sees=(b"X-Stay: 1",),
        hides=(b"keep-alive", b"proxy-", b"te: ", b"trailer", b"connection"),
        text="passes without them",
    ),
    R9110("7.6.1"),
    *each(
        request(b"@V", b"X-Stay: 1"),
        [
            b"Connection: keep-alive",
            b"Keep-Alive: timeout=5",
            b"Proxy-Connection: keep-alive",
            b"Proxy-Authorization: Basic eDp5",
            b"Proxy-Authenticate: Basic",
            b"TE: trailers",
            b"TE: trailers, deflate;q=0.5",
            b"Trailer: X-Checksum",
            b"pRoXy-Anything: 1",
        ],
    ),
)
hops.add(
    "Fields that `Connection` names",
    Passes(sees=(b"X-Stay: 1",), hides=(b"x-hop", b"x-other", b"connection"), text="passes without them"),
    R9110("7.6.1"),
    *each(
        request(b"@V", b"X-Hop: 1", b"x-hop: 2", b"X-Stay: 1"),
        [
            b"Connection: X-Hop",
            b"connection: x-hop",
            b"Connection: keep-alive , X-Hop ,",
            b"Connection: ,,\tX-HOP",
            b"Connection: a\r\nConnection: X-Hop",
        ],
    ),
    request(b"Connection: X-Hop, X-Other", b"X-Hop: 1", b"X-Other: 1", b"X-Stay: 1"),
)
hops.add(
    "`Connection` names a field that the proxy sets",
    Passes(sees=(b"X-Api-Key: secret-of-key-one",), text="passes with the field"),
    R9110("7.6.1"),
    *each(
        request(b"Connection: @V"),
        [
            b"X-Api-Key",
            b"X-Api-Key, Host, Via, X-Request-Id",
            b"x-api-key, keep-alive",
            b"Host",
            b"Via",
            b"X-Request-Id",
        ],
    ),
)
hops.add(
    "`Connection` names what frames or describes the body",
    Passes(b"hello", sees=(b"Content-Length: 5", b"Content-Type: a/b", b"Content-Encoding: x"), text="passes with it"),
    R9110("7.6.1"),
    *each(
        post(b"Connection: @V", b"Content-Length: 5", b"Content-Type: a/b", b"Content-Encoding: x", body=b"hello"),
        [b"Content-Length", b"content-type, content-encoding", b"Transfer-Encoding, Content-Length"],
    ),
)
hops.add(
    "`Connection: close`",
    Passes(hides=(b"connection",), ends=True),
    R9112("9.6"),
    *each(request(b"@V"), [b"Connection: close", b"Connection: keep-alive, close", b"connection: CLOSE"]),
)
hops.add(
    "HTTP/1.0 with `Connection: keep-alive`",
    Passes(),
    R9112("9.3"),
    request(b"Connection: keep-alive", line=b"GET @T HTTP/1.0"),
)
hops.add(
    "One or several keys of the caller's",
    Passes(
        sees=(b"X-Api-Key: secret-of-key-one",), hides=(b"evil", b"secret-token"), text="passes with the pool's only"
    ),
    "law 11",
    *each(request(b"@V"), [b"X-Api-Key: evil", b"x-api-key: evil", b"X-API-KEY: evil\r\nX-Api-Key: evil"]),
    request(line=b"GET @T?apikey=evil HTTP/1.1"),
    request(line=b"GET @T?%61pikey=evil&apikey=evil HTTP/1.1"),
)
hops.add(
    "A `Via` of another proxy",
    Passes(sees=(b"Via: 1.0 fred, 1.1 p.example.net (x), 1.1 keyturn",), text="passes with ours after it"),
    R9110("7.6.3"),
    request(b"Via: 1.0 fred", b"Via: 1.1 p.example.net (x)"),
)
hops.add(
    "A `Via` of a Keyturn",
    Passes(sees=(b"Via: 1.1 keyturn, 1.1 keyturn",), text="passes (a sidecar before a gateway)"),
    R9110("7.6.3"),
    request(b"Via: 1.1 keyturn"),
)
hops.add(
    "A `Via` of many Keyturns",
    Refused(508, keeps=True),
    R9110("7.6.3"),
    request(b"Via: 1.1 keyturn, 1.1 keyturn, 1.1 Keyturn, HTTP/1.1 keyturn (x)"),
    request(*[b"Via: 1.1 keyturn"] * 4),
)
hops.add(
    "End-to-end fields",
    Passes(
        sees=(
            b"Authorization: Basic eDp5",
            b"Cookie: a=b",
            b"Accept-Encoding: gzip",
            b"Range: bytes=0-1",
        ),
        text="pass unchanged",
    ),
    R9110("7.6.1"),
    request(
        b"Authorization: Basic eDp5",
        b"Cookie: a=b",
        b"Accept-Encoding: gzip",
        b"Range: bytes=0-1",
    ),
)
hops.add(
    "Intermediaries' fields about the caller",
    Passes(sees=(b"X-Stay: 1",), hides=(b"forwarded", b"192.0.2.1", b"x-real"), text="passes without them"),
    "RFC 7239, 8.3",
    *each(
        request(b"@V", b"X-Stay: 1"),
        [
            b"Forwarded: for=192.0.2.1",
            b"X-Forwarded-For: 192.0.2.1",
            b"x-forwarded-HOST: 192.0.2.1",
            b"X_Forwarded_For: 192.0.2.1",
            b"X-Real-IP: 192.0.2.1",
            b"X-Envoy-External-Address: 192.0.2.1",
        ],
    ),
)

upgrades = Section("Upgrade")
upgrades.add(
    "An upgrade",
    Passes(hides=(b"upgrade", b"connection"), ends=True, text="passes as a plain request"),
    R9110("7.8"),
    request(*WEBSOCKET),
    request(b"Connection: keep-alive, Upgrade", b"Upgrade: foo, websocket"),
    request(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQAAP__"),
    request(b"Upgrade: websocket"),
    request(b"Connection: Upgrade", b"Upgrade: TLS/1.0"),
    request(*WEBSOCKET, line=b"GET @T HTTP/1.0"),
)
upgrades.add(
    "Bytes after an upgrade",
    Passes(hides=(b"upgrade",), ends=True, text="passes alone, the bytes are dropped"),
    R9110("7.8"),
    request(*WEBSOCKET, body=b"@N"),
    request(b"Connection: Upgrade", b"Upgrade: h2c", body=b"@N"),
    request(b"Connection: Upgrade", b"Upgrade: h2c", body=b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n@N"),
    request(b"Upgrade: foo", body=b"@N"),
    request(*WEBSOCKET, body=b"\x81\x05hello@N"),
    request(*WEBSOCKET, line=b"GET @T HTTP/1.0", body=b"@N"),
)
upgrades.add(
    "An upgrade with a body",
    Passes(b"hello", hides=(b"upgrade",), ends=True, text="passes with its body alone"),
    R9110("7.8"),
    post(*WEBSOCKET, b"Content-Length: 5", body=b"hello@N"),
    post(*WEBSOCKET, b"Transfer-Encoding: chunked", body=b"5\r\nhello\r\n0\r\n\r\n@N"),
    post(b"Connection: Upgrade", b"Upgrade: h2c", b"Content-Length: 5", body=b"hello@N"),
)
upgrades.add(
    "`Connection: upgrade` without `Upgrade`",
    Passes(answers=2),
    R9110("7.8"),
    request(b"Connection: upgrade", body=b"@N"),
)
upgrades.add(
    "The first draft of WebSocket (a body without length)",
    Refused(),
    R9110("7.8"),
    request(*WEBSOCKET, b"Sec-WebSocket-Key1: 1", body=b"12345678"),
)

SECTIONS = [hops, upgrades]
