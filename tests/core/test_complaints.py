import gzip
import json
import zlib
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from keyturn.core.complaints import BODY_LIMIT, Complaint, complaint
from keyturn.core.model import SECOND


def error(message: str = "", **more: object) -> bytes:
    """Return a body in the API's own shape."""
    return json.dumps({"error": {"name": "rateLimited", "message": message, **more}}).encode()


def test_both_families_are_read_alike() -> None:
    """The API's own error shape and a problem (RFC 9457) give the same result."""
    problem = json.dumps({"title": "rateLimited", "status": 429, "detail": "Slowly.", "retryAfter": 5}).encode()
    assert complaint(problem) == complaint(error("Slowly.", retryAfter=5)) == Complaint("rateLimited", "Slowly.", (5,))


def test_every_moment_is_told() -> None:
    """Times in the text, in the error and in its details are all found."""
    body = error("Please retry at 1624391490000, or retry at 1624391491000.", retryAfter="7", details={"retryAfter": 8})
    assert complaint(body).moments == ("1624391490000", "1624391491000", "7", 8)


@pytest.mark.parametrize(
    ("coding", "pack"),
    [
        (b"gzip", gzip.compress),
        (b" X-GZIP ", gzip.compress),
        (b"deflate", zlib.compress),
        (b"deflate", lambda plain: zlib.compress(plain, wbits=-15)),
    ],
)
def test_compressed_errors_are_read(coding: bytes, pack: Callable[[bytes], bytes]) -> None:
    """Compressed error bodies are read, also without zlib's frame."""
    plain = error("Slowly.")
    assert complaint(pack(plain), coding) == complaint(plain)


def test_a_bomb_is_not_unpacked() -> None:
    """At most `BODY_LIMIT` bytes come out of a compressed body."""
    packed = gzip.compress(b" " * (BODY_LIMIT * 1000) + error("Slowly."))
    assert len(complaint(packed, b"gzip").message) <= BODY_LIMIT


@pytest.mark.parametrize(("body", "coding"), [(b"no gzip", b"gzip"), (b"{}", b"br"), (b"{}", b"gzip, br")])
def test_what_cannot_be_read_may_be_about_the_key(body: bytes, coding: bytes) -> None:
    """An error in an unknown coding may be about the key, so the key is checked."""
    found = complaint(body, coding)
    assert found == Complaint(unreadable=True)
    assert [found.about_key(status) for status in (401, 403, 404)] == [True, True, False]
    assert complaint(b"{}", b" Identity") == Complaint()


@pytest.mark.parametrize(
    "body", [b"Please RETRY AT 1624391490000.", b'["Please retry at 1624391490000"]', b'{"error": "x']
)
def test_a_body_that_is_no_error_object_is_all_message(body: bytes) -> None:
    """Plain text, another JSON value or truncated JSON is taken as a message."""
    moments = ("1624391490000",) if b"1624391490000" in body else ()
    assert complaint(body) == Complaint("", body.decode(), moments)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("We are usually operational within the next 5 minutes.", 300),
        ("Try again Within 30 seconds", 30),
        ("within 1 hour", 3600),
        ("within reason", None),
        ("5 minutes", None),
    ],
)
def test_when_an_outage_is_over(text: str, seconds: int | None) -> None:
    """The end of an outage is taken from the error's own words, if it has any."""
    assert complaint(error(text)).over_within == (None if seconds is None else seconds * SECOND)


@pytest.mark.parametrize(
    ("status", "name", "message", "about"),
    [
        (401, "AuthenticationError", "", True),
        (401, "authenticationError", "Something else.", True),
        (401, "Unauthorized", "Invalid API Key. Every request requires a valid API Key to be sent.", True),
        (401, "", "The API key has expired.", True),
        (401, "", "This revoked API key is not accepted.", True),
        (401, "Unauthorized", "You are not authorized to perform this action.", False),
        (401, "AuthenticationError", "You are not authorized to perform this action.", False),
        (401, "", "This API key has no permission: it is invalid here.", False),
        (401, "", "Log in.", False),
        (403, "AuthenticationError", "", True),
        (403, "forbiddenError", "Invalid API key for this role.", False),
        (404, "AuthenticationError", "Invalid API Key.", False),
    ],
)
def test_what_is_about_the_key(status: int, name: str, message: str, about: bool) -> None:
    """A rejected key is told apart from a resource that it may not access."""
    assert Complaint(name, message).about_key(status) is about


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["error", "name", "title", "message", "detail", "details", "retryAfter"]), inner, max_size=4
        )
    ),
    max_leaves=8,
).map(lambda value: json.dumps(value).encode())


@given(st.binary(max_size=300) | JSON, st.sampled_from([b"", b"gzip", b"deflate", b"br"]))
@example(b"[" * 60_000, b"")
@example(gzip.compress(b"{}")[:-9], b"gzip")
@example(b'{"error": {"message": "retry at \xff1624391490000"}}', b"")
def test_no_body_raises(body: bytes, coding: bytes) -> None:
    """Any body is read without failing, and its name and message are text."""
    found = complaint(body, coding)
    assert isinstance(found.name, str)
    assert isinstance(found.message, str)
    assert found.about_key(401) in (True, False)
