"""Requests that repeat a token in every place where a client may put it, and an independent look for it in bytes."""

import re
from base64 import b64decode, b64encode, urlsafe_b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import quote, unquote_to_bytes

KNOWN = "5ecret~token+of/a.known-client"
UNKNOWN = "5ecret-token-of-nobody-at-all"
UPSTREAMS = "5ecret-token-for-the-upstream"

_RUN = re.compile(rb"[A-Za-z0-9+/_-]{8,}")


@dataclass(frozen=True)
class Placement:
    """A request, and the status of its answer; what passes arrives at the upstream once."""

    name: str
    data: bytes
    status: int = 200


def holds(data: bytes, token: str) -> bool:
    """Whether data holds a token: as it is in any letters, percent-encoded up to three times, in Base64."""
    for _ in range(4):
        if token.lower().encode() in data.lower() or any(token.encode() in text for text in _decoded(data)):
            return True
        data = unquote_to_bytes(data)
    return False


def _decoded(data: bytes) -> Iterator[bytes]:
    """Base64 of data at each alignment within a longer word."""
    for found in _RUN.finditer(data):
        for start in range(4):
            word = found[0][start:]
            whole = word[: len(word) // 4 * 4]
            yield b64decode(whole, b"-_" if b"-" in whole or b"_" in whole else None)


def basic(text: str) -> str:
    """Basic credentials."""
    return "Basic " + b64encode(text.encode()).decode()


def encoded(text: str) -> str:
    """Every character percent-encoded."""
    return "".join(f"%{ord(character):02x}" for character in text)


def placements() -> list[Placement]:
    """All of them; the path of each begins with `/p/` and its number."""
    found: list[Placement] = []
    for make in (_credentials, _parameters, _fields, _targets, _paths, _unknown):
        for name, line, fields, status, body in make(KNOWN):
            target = line.replace("@P", f"/p/{len(found)}")
            lines = [f"{'POST' if body else 'GET'} {target} HTTP/1.1", "Connection: close", *fields]
            lines += [] if any(field.lower().startswith("host:") for field in fields) else ["Host: proxy.example"]
            data = "\r\n".join([*lines, "", body]).encode("latin-1")
            found.append(Placement(f"{name}: {line} {fields}", data, status))
    return found


Row = tuple[str, str, list[str], int, str]


def _credentials(token: str) -> Iterator[Row]:
    """Places that hold a credential."""
    values = (
        f"Bearer {token}",
        f"bearer\t{token}",
        f"Bearer \t {token}\t",
        f"Bearer\xa0{token}",
        token,
        f"Token {token}",
        f"ApiKey {token}",
        f'Token token="{token}"',
        f"Bearer <{token}>",
        f"Key {token}",
        basic(f"x:{token}"),
        basic(f"{token}:"),
        basic(token),
        basic(f"{token}:x"),
    )
    for value in values:
        for name in ("Authorization", "Proxy-Authorization"):
            yield "credential", "@P", [f"{name}: {value}"], 200, ""
    for name in ("X-Api-Key", "x-API-key", "X-KEY"):
        yield "credential", "@P", [f"{name}: {token}"], 200, ""
    text = quote(token, safe="")
    for query in (
        f"apikey={text}",
        f"ApiKey={text}",
        f"APIKEY={text}&a=1",
        f"a=1;apikey={text}",
        f"a=1;Apikey={text};b=2",
        f"apikey[]={text}",
        f"apikey%5B%5D={text}",
        f"apikey[0]={text}",
        f"[apikey]={text}",
        f"+apikey={text}",
        f"%61pikey={text}",
        f"%41pikey={encoded(token)}",
        f"a=1&amp;apikey={text}",
        f"apikey={text}&apikey={text}",
    ):
        yield "credential", f"@P?{query}", [], 200, ""


def _parameters(token: str) -> Iterator[Row]:
    """Parameters of other names, beside a credential."""
    key, text = [f"X-Api-Key: {token}"], quote(token, safe="")
    for query in (
        f"token={text}",
        f"access_token={text}&a=1",
        f"a=1&api_key={text}&b=2",
        f"q=aa{text}bb",
        f"a={token}",
        text,
        f"{text}=1",
        f"a={encoded(token)}",
        f"a={quote(text)}",
        f"a={b64encode(token.encode()).decode()}",
        f"a;{text};b",
        f"a={urlsafe_b64encode(b'x' + token.encode()).decode()}",
        f"apikey%3D{text}",
        f"a=1?apikey={text}",
    ):
        yield "parameter", f"@P?{query}", key, 200, ""


def _fields(token: str) -> Iterator[Row]:
    """Fields of every kind, beside a credential."""
    plain = b64encode(f"x:{token}".encode()).decode()
    text = quote(token, safe="")
    for field in (
        f"X-Request-Id: {token.replace('~', '-')}",
        f"X-Correlation-Id: {token}",
        f"Referer: http://p/me?apikey={text}",
        f"Referer: http://p/me?a=1&token={text}",
        f"Referer: http://p/{text}",
        f"Referer: http://x:{text}@p/",
        f"Cookie: a=1; apikey={token}; b=2",
        f"Cookie: {token}",
        f"Cookie: a={text}",
        f"Cookie: a={plain}",
        f"Origin: http://{token}",
        f"User-Agent: curl/8 {token}",
        f"X-{token.replace('/', '')}x: 1",
        f"Authorization: Foo x{token}x",
        f"Authorization: {basic('x:' + token)}",
        f"Authorization: Negotiate {plain}",
        f"X-Api-Key: {token}",
        f"X_Api_Key: {token}",
        f"Api-Key: {token}",
        f"apikey: {token}",
        f"X-Auth-Token: {token}",
        f"X-Forwarded-For: {token}",
        f"Forwarded: for={token}",
        f"Via: 1.1 {token}",
        f"Prefer: wait=5, {token}",
        f"Priority: {token}",
        f'If-None-Match: "{token}"',
        f"Accept: {token}",
        f"tracestate: k={text}",
        f"baggage: a={text}",
        f"traceparent: 00-{token}",
        f"Postman-Token: {token}",
        f"Connection: {token}",
        f"TE: {token}",
        f"Trailer: {token}",
        f"Expect: {token}",
        f"X-Any: {plain}",
        f"X-Any: x{plain}",
        f"X-Any: {text}",
        f"X-Any: {encoded(token)}",
        f"X-HTTP-Method-Override: {token}",
        f"Sec-WebSocket-Protocol: {token}",
        f"Content-Type: a/b; c={token}",
        f"Proxy-Connection: {token}",
        f"Host: {token.partition('/')[0].replace('~', '-').replace('+', '-')}",
    ):
        yield "field", "@P", [f"X-Api-Key: {token}", field], 200, ""
    trace = f"traceparent: 00-{'a' * 32}-{'b' * 16}-01"
    yield "trace", "@P", [f"X-Api-Key: {token}", trace, f"tracestate: k={token},l=1"], 200, ""
    yield "field", "@P", [f"X-Api-Key: {token}", f"Keyturn-Key: {token}"], 403, ""
    chunked = [f"X-Api-Key: {token}", "Transfer-Encoding: chunked", "Trailer: X-Sum"]
    yield "trailer", "@P", chunked, 200, f"2\r\nab\r\n0\r\nX-Sum: {token}\r\nX-Api-Key: {token}\r\n\r\n"


def _targets(token: str) -> Iterator[Row]:
    """Absolute targets."""
    key, text = [f"X-Api-Key: {token}"], quote(token, safe="")
    yield "absolute", f"http://api.getpostman.com@P?apikey={text}", [], 200, ""
    yield "absolute", f"http://api.getpostman.com@P?other={text}", key, 200, ""
    yield "absolute", f"http://x:{text}@api.getpostman.com@P", key, 421, ""
    yield "absolute", f"http://{text}@api.getpostman.com@P", [], 421, ""
    yield "absolute", f"http://{text}.example@P", key, 421, ""
    yield "absolute", f"http://{token.partition('/')[0]}@P", [f"X-Api-Key: {token.partition('/')[0]}"], 421, ""


def _paths(token: str) -> Iterator[Row]:
    """Paths; without a credential beside it, the token is one that stands in no place for it."""
    text = quote(token, safe="")
    plain = b64encode(f"x:{token}".encode()).decode().replace("/", "%2F")
    for path in (text, token, f"x{text}x/y", encoded(token), quote(text), plain):
        yield "path", f"@P/{path}", [f"X-Api-Key: {token}"], 400, ""
        yield "path", f"@P/{path}?a=1", [f"Authorization: {basic('x:' + token)}"], 400, ""
    yield "path", f"@P;apikey={text}", [f"X-Api-Key: {token}"], 400, ""


def _unknown(_: str) -> Iterator[Row]:
    """A token that is nobody's, where a credential is expected and beside it."""
    for credential in (
        f"Authorization: Bearer {UNKNOWN}",
        f"Authorization: Bearer\t{UNKNOWN}",
        f"Authorization: {basic('x:' + UNKNOWN)}",
        f"X-Api-Key: {UNKNOWN}",
        f"Proxy-Authorization: {basic('x:' + UNKNOWN)}",
        f"Proxy-Authorization: {UNKNOWN}",
    ):
        yield "unknown", f"@P/{UNKNOWN}", [credential], 401, ""
        yield "unknown", f"@P/{encoded(UNKNOWN)}", [credential, f"X-Request-Id: {UNKNOWN}"], 401, ""
        yield "unknown", f"http://{UNKNOWN}.example@P", [credential], 421, ""
    for query in ("apikey", "ApiKey", "a=1;apikey", "apikey[]"):
        yield "unknown", f"@P/{UNKNOWN}?{query}={UNKNOWN}", [f"X-Request-Id: {UNKNOWN}"], 401, ""
