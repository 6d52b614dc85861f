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
    """As it is, percent-encoded in whole, in Base64 of both alphabets, whatever stands around it."""
    hidden = Redactor([value])
    text = before + value + behind
    everywhere = "".join(f"%{byte:02x}" for byte in value).encode()
    twice = quote(quote(value, safe=""), safe="").encode()
    for form in (text, everywhere, twice, b64encode(text), urlsafe_b64encode(text), quote(b64encode(text)).encode()):
        assert hidden.is_in(before + form + behind)
        assert not hidden.is_in(hidden.mask(form))


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=8, max_size=40), st.data())
def test_a_value_is_found_when_some_of_it_is_encoded(value: str, data: st.DataObject) -> None:
    """Any of its characters, in letters of either case."""
    encoded = data.draw(st.sets(st.integers(0, len(value) - 1)))
    text = "".join(f"%{ord(char):02X}" if at in encoded or char == "%" else char for at, char in enumerate(value))
    assert Redactor([value.encode()]).is_in(b"/a/" + text.encode())


@pytest.mark.parametrize("value", [b"", b"5ecret!"])
def test_what_is_short_is_not_sought(value: bytes) -> None:
    """It may stand there by chance."""
    hidden = Redactor([value])
    assert not hidden
    assert not hidden.is_in(b"5ecret!")
    assert hidden.mask(b"5ecret!") == b"5ecret!"


def test_other_text_stays() -> None:
    """The rest of a text that shows a value plainly can be read; of one that encodes it, nothing."""
    hidden = Redactor([b"5ecret-a", b"5ecret-b", b"5ecret-a"])
    assert hidden
    assert hidden.mask(b"/x/5ecret-a/y/5ECRET-b") == b"/x/***/y/***"
    assert hidden.mask(b"/x/5%65cret-a/y") == b"***"
    assert hidden.mask(b"/x/%41/y") == b"/x/%41/y"


def test_nothing_shows_it() -> None:
    """Not its `repr`."""
    assert "5ecret" not in repr(Redactor([b"5ecret-a"]))


@pytest.mark.parametrize("worst", [b"%", b"%2", b"%25", b"%41", b"5ecret-", b"5"])
def test_a_long_text_is_read_in_a_few_passes(worst: bytes) -> None:
    """Each decoding is one, and there are three at the most: what is encoded once more is not what it was made of."""
    hidden = Redactor([b"5ecret-a"])
    assert not hidden.is_in(worst * (65_536 // len(worst)))
    encoded = "5ecret-a"
    for times in range(5):
        encoded = encoded.replace("%", "%25") if times else "5%65cret-a"
        assert hidden.is_in(encoded.encode()) is (times < 3)


def test_too_many_values_are_in_every_text() -> None:
    """Each takes a pass over the text, and whoever sends them chooses how many: the work stays bounded."""
    values = [b"5ecret-%d" % number for number in range(MAX_VALUES + 1)]
    assert not Redactor(values[1:] * 2).is_in(b"/x")
    hidden = Redactor(values)
    assert hidden.too_many
    assert hidden.is_in(b"/x")
    assert hidden.mask(b"/x") == b"***"
