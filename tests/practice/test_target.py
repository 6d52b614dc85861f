import pytest
from keyturn.practice.target import parse_target


@pytest.mark.parametrize(
    ("raw", "segments"),
    [
        ("/", ("",)),
        ("/me", ("me",)),
        ("/collections/?name=x", ("collections",)),
        ("/me//", ("me", "")),
        ("/files/a%2F", ("files", "a/")),
        ("/specs/1/files/components%2Fschemas.json", ("specs", "1", "files", "components/schemas.json")),
        ("/collections/a%20b?x=1", ("collections", "a b")),
        ("http://api.getpostman.com/me?x=1", ("me",)),
        ("https://api.getpostman.com", ("",)),
        ("*", ("",)),
    ],
)
def test_segments(raw: str, segments: tuple[str, ...]) -> None:
    """A path is divided before it is decoded, in origin-form and in absolute-form."""
    assert parse_target(raw).segments == segments


@pytest.mark.parametrize(
    ("raw", "key", "shown"),
    [
        ("/me", "", "/me"),
        ("/me?apikey=PMAK-1", "PMAK-1", "/me?apikey=…"),
        ("/me?a=1&apikey=PMAK%2D1&b=2", "PMAK-1", "/me?a=1&apikey=…&b=2"),
        ("/me?%61pikey=PMAK-1", "PMAK-1", "/me?%61pikey=…"),
        ("/me?apikey=one&apikey=two", "one", "/me?apikey=…&apikey=…"),
        ("/me?Apikey=PMAK-1", "", "/me?Apikey=PMAK-1"),
        ("/me?apikey", "", "/me?apikey…"),
    ],
)
def test_key_is_found_and_hidden(raw: str, key: str, shown: str) -> None:
    """The key in a query is found in every spelling and hidden in logs; the rest is unchanged."""
    target = parse_target(raw)
    assert (target.key, target.shown, target.raw) == (key, shown, raw)
