import pytest
from keyturn.core.model import Secret
from keyturn.upstream.head import HeadWriter

from tests.upstream.origin import KEY, Chunks, a_request

WRITER = HeadWriter("api.example", "X-Api-Key")


def test_what_the_caller_wrote_is_untouched() -> None:
    """Target and fields go out byte for byte, in order, with repetitions; `Host` is the upstream's."""
    fields = ((b"x-A", b"1 \xff"), (b"Accept", b"b"), (b"X-a", b"\xc3\xa9"))
    head = WRITER.write(a_request("GET", b"/a%2Fb?x=%41+", fields), KEY, (), None)
    assert head == (
        b"GET /a%2Fb?x=%41+ HTTP/1.1\r\nHost: api.example\r\nx-A: 1 \xff\r\nAccept: b\r\nX-a: \xc3\xa9\r\n"
        b"X-Api-Key: PMAK-of-the-pool\r\nVia: 1.1 keyturn\r\nX-Request-Id: id-1\r\n\r\n"
    )


def test_nothing_of_ours_can_be_spoofed() -> None:
    """A key, a request id or a framing among the caller's fields is replaced, in any spelling."""
    fields = (
        (b"X-API-KEY", b"mine"),
        (b"x-request-id", b"mine"),
        (b"host", b"mine"),
        (b"transfer-encoding", b"gzip"),
        (b"connection", b"close"),
        (b"content-length", b"7"),
    )
    head = WRITER.write(a_request(fields=fields), KEY, (), None)
    assert b"mine" not in head
    assert head.lower().count(b"x-api-key") == head.count(b"Host: ") == 1
    assert b"encoding" not in head
    assert b"onnection" not in head
    assert b"\r\nContent-Length: 0\r\n" in head


def test_the_pools_fields_replace_those_of_the_same_name() -> None:
    """A field of the pool's configuration wins over the caller's."""
    head = WRITER.write(
        a_request(fields=((b"x-extra", b"theirs"), (b"X-Other", b"theirs"))), KEY, ((b"X-Extra", b"ours"),), None
    )
    assert b"X-Extra: ours\r\n" in head
    assert b"x-extra: theirs" not in head
    assert b"X-Other: theirs\r\n" in head


def test_via_lists_the_proxies_in_order() -> None:
    """Our `Via` goes behind those of the proxies before us."""
    head = WRITER.write(a_request(fields=((b"Via", b"1.0 a"), (b"X", b"y"), (b"via", b"1.1 b"))), KEY, (), None)
    assert b"\r\nVia: 1.0 a, 1.1 b, 1.1 keyturn\r\n" in head


@pytest.mark.parametrize(
    ("method", "length", "framing"),
    [
        ("GET", None, b""),
        ("HEAD", None, b""),
        ("DELETE", None, b""),
        ("OPTIONS", None, b""),
        ("POST", None, b"Content-Length: 0"),
        ("PUT", None, b"Content-Length: 0"),
        ("PATCH", None, b"Content-Length: 0"),
        ("POST", 7, b"Content-Length: 7"),
        ("GET", 2, b"Content-Length: 2"),
        ("PUT", -1, b"Transfer-Encoding: chunked"),
    ],
)
def test_framing_follows_the_body(method: str, length: int | None, framing: bytes) -> None:
    """A length stays a length, chunks stay chunks, and an empty POST says that it is empty."""
    body = None if length is None else Chunks(length=length if length >= 0 else None)
    head = WRITER.write(a_request(method), KEY, (), body)
    assert [line for line in head.split(b"\r\n") if line.startswith((b"Content-L", b"Transfer"))] == [framing] * bool(
        framing
    )


def test_a_key_cannot_add_fields() -> None:
    """A key with a line break is not sent, and the error does not show it."""
    with pytest.raises(ValueError, match="line break") as caught:
        WRITER.write(a_request(), Secret("PMAK\r\nX-Evil: 1"), (), None)
    assert "PMAK" not in str(caught.value)
