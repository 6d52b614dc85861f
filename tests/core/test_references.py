import pytest
from keyturn.core.references import OwnReferences

API = OwnReferences("https://api.getpostman.com")
LOCAL = OwnReferences("http://127.0.0.1:8443")


def told(references: OwnReferences, name: str, value: str) -> str:
    """Return a field's value for the caller."""
    ((kept, rest),) = references.relative(((name.encode(), value.encode()),))
    assert kept == name.encode()
    return rest.decode()


@pytest.mark.parametrize("name", ["Location", "location", "Content-Location"])
@pytest.mark.parametrize(
    ("value", "rest"),
    [
        ("https://api.getpostman.com/x", "/x"),
        ("https://api.getpostman.com:443/x%2Fy?a=b#c", "/x%2Fy?a=b#c"),
        ("HTTPS://API.GetPostman.com/x", "/x"),
        ("http://api.getpostman.com/x", "/x"),
        ("http://api.getpostman.com:80/x", "/x"),
        ("http://api.getpostman.com:443/x", "/x"),
        ("//api.getpostman.com/x", "/x"),
        ("https://api.getpostman.com", "/"),
        ("https://api.getpostman.com/", "/"),
        ("https://api.getpostman.com?x=1", "/?x=1"),
        ("https://api.getpostman.com#x", "/#x"),
        ("https://api.getpostman.com:/x", "/x"),
        ("https://api.getpostman.com./x", "/x"),
        ("https://u:p@api.getpostman.com/x", "/x"),
        (" https://api.getpostman.com/x", "/x"),
        ("https:api.getpostman.com/x", "/x"),
        ("https:\\\\api.getpostman.com\\x", "/x"),
        ("https://api.getpostman.com//evil.example/x", "/.//evil.example/x"),
        ("https://api.getpostman.com/\\evil.example", "/./\\evil.example"),
    ],
)
def test_a_reference_to_the_upstream_becomes_a_path(name: str, value: str, rest: str) -> None:
    """A reference to the upstream becomes a path in every spelling, and never another authority."""
    assert told(API, name, value).strip() == rest


@pytest.mark.parametrize(
    "value",
    [
        "",
        "/x",
        "x",
        "?x",
        "//other.example/x",
        "https://api.getpostman.com:444/x",
        "https://api.getpostman.com:80/x",
        "https://api.getpostman.com.evil.example/x",
        "https://api.getpostman.comx",
        "https://xapi.getpostman.com/x",
        "https://api.getpostman.com@evil.example/x",
        "https://evil.example/?u=https://api.getpostman.com/x",
        "ftp://api.getpostman.com/x",
        "https://api-getpostman.com/x",
    ],
)
def test_other_references_stay(value: str) -> None:
    """Other references stay byte for byte."""
    assert told(API, "Location", value) == value


def test_a_port_of_its_own_is_part_of_the_authority() -> None:
    """With a port of its own the upstream still has the other scheme's default port."""
    for own in ("http://127.0.0.1:8443/x", "https://127.0.0.1:8443/x", "https://127.0.0.1/x", "//127.0.0.1:8443/x"):
        assert told(LOCAL, "Location", own) == "/x"
    assert told(LOCAL, "Location", "http://127.0.0.1/x") == "http://127.0.0.1/x"
    assert told(OwnReferences("http://[::1]:80"), "Location", "http://[::1]/x") == "/x"


@pytest.mark.parametrize(
    ("value", "rest"),
    [
        (
            '<https://api.getpostman.com/x?p=2>; rel="next", <https://other.example/>; rel=a',
            '</x?p=2>; rel="next", <https://other.example/>; rel=a',
        ),
        ("<https://api.getpostman.com>;rel=a,<//api.getpostman.com/b>", "</>;rel=a,</b>"),
        ('</x>; rel=a; anchor="https://api.getpostman.com/y"', '</x>; rel=a; anchor="/y"'),
        ('</x>; title="see https://api.getpostman.com/y"', '</x>; title="see https://api.getpostman.com/y"'),
        (
            "<https://other.example/?u=https://api.getpostman.com/>",
            "<https://other.example/?u=https://api.getpostman.com/>",
        ),
    ],
)
def test_every_link_is_looked_at(value: str, rest: str) -> None:
    """The target and the anchor of each link are rewritten (RFC 8288)."""
    assert told(API, "Link", value) == rest


@pytest.mark.parametrize(
    ("value", "rest"),
    [
        ("5; url=https://api.getpostman.com/x", "5; url=/x"),
        ("0;URL='http://api.getpostman.com/x'", "0;URL='/x'"),
        ("0,https://api.getpostman.com/x", "0,/x"),
        ("5", "5"),
        (
            "0; url=https://other.example/?n=https://api.getpostman.com/",
            "0; url=https://other.example/?n=https://api.getpostman.com/",
        ),
    ],
)
def test_a_refresh_is_a_redirect(value: str, rest: str) -> None:
    """`Refresh` is read as browsers do."""
    assert told(API, "Refresh", value) == rest


def test_no_other_field_is_touched() -> None:
    """Other fields stay the same objects."""
    fields = ((b"X-Location", b"https://api.getpostman.com/x"), (b"Content-Type", b"a/b"))
    assert API.relative(fields) is fields
