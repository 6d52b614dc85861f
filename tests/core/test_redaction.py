from base64 import b64encode, urlsafe_b64encode
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from keyturn.core.model import SHORTEST_SECRET
from keyturn.core.redaction import MAX_VALUES, Redactor

VALUE = st.binary(min_size=SHORTEST_SECRET, max_size=80)


@given(VALUE, st.binary(max_size=20), st.binary(max_size=20))
def test_a_value_is_found_in_every_form(value: bytes, before: bytes, behind: bytes) -> None:
    """A value is found plain, percent-encoded and in Base64 of both alphabets, within any text."""
    hidden = Redactor([value])
    text = before + value + behind
    everywhere = "".join(f"%{byte:02x}" for byte in value).encode()
    twice = quote(quote(value, safe=""), safe="").encode()
    for form in (text, everywhere, twice, b64encode(text), urlsafe_b64encode(text), quote(b64encode(text)).encode()):
        assert hidden.is_in(before + form + behind)
        assert not hidden.is_in(hidden.mask(form))


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=8, max_size=40), st.data())
def test_a_value_is_found_when_some_of_it_is_encoded(value: str, data: st.DataObject) -> None:
    """A value is found when any of its characters are encoded, in either case."""
    encoded = data.draw(st.sets(st.integers(0, len(value) - 1)))
    text = "".join(f"%{ord(char):02X}" if at in encoded or char == "%" else char for at, char in enumerate(value))
    assert Redactor([value.encode()]).is_in(b"/a/" + text.encode())


@pytest.mark.parametrize("value", [b"", b"5ecret!"])
def test_what_is_short_is_not_sought(value: bytes) -> None:
    """Short values are not searched for, since they may occur by chance."""
    hidden = Redactor([value])
    assert not hidden
    assert not hidden.is_in(b"5ecret!")
    assert hidden.mask(b"5ecret!") == b"5ecret!"


def test_other_text_stays() -> None:
    """Text around a plain value stays readable; a text that encodes it is masked as a whole."""
    hidden = Redactor([b"5ecret-a", b"5ecret-b", b"5ecret-a"])
    assert hidden
    assert hidden.mask(b"/x/5ecret-a/y/5ECRET-b") == b"/x/***/y/***"
    assert hidden.mask(b"/x/5%65cret-a/y") == b"***"
    assert hidden.mask(b"/x/%41/y") == b"/x/%41/y"


def test_nothing_shows_it() -> None:
    """The `repr` does not show the value."""
    assert "5ecret" not in repr(Redactor([b"5ecret-a"]))


@pytest.mark.parametrize("worst", [b"%", b"%2", b"%25", b"%41", b"5ecret-", b"5"])
def test_a_long_text_is_read_in_a_few_passes(worst: bytes) -> None:
    """At most three decodings are undone, each in one pass."""
    hidden = Redactor([b"5ecret-a"])
    assert not hidden.is_in(worst * (65_536 // len(worst)))
    encoded = "5ecret-a"
    for times in range(5):
        encoded = encoded.replace("%", "%25") if times else "5%65cret-a"
        assert hidden.is_in(encoded.encode()) is (times < 3)


def test_too_many_values_are_in_every_text() -> None:
    """Beyond a bound of values every text counts as containing one, so the work stays bounded."""
    values = [b"5ecret-%d" % number for number in range(MAX_VALUES + 1)]
    assert not Redactor(values[1:] * 2).is_in(b"/x")
    hidden = Redactor(values)
    assert hidden.too_many
    assert hidden.is_in(b"/x")
    assert hidden.mask(b"/x") == b"***"
