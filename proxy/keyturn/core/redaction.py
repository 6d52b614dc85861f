"""Redaction: find values that must neither be passed on nor shown, in every form that a head may contain.

A value is found as it is, percent-encoded (in whole or in part, up to three times) and in Base64 (RFC 4648, sections 4
and 5), alone or as a part of something longer, such as the `user:password` of Basic credentials (RFC 7617).
"""

from binascii import b2a_base64
from collections.abc import Iterable, Iterator
from urllib.parse import unquote_to_bytes

from keyturn.core.model import SHORTEST_SECRET

MAX_VALUES = 16
"""Distinct values that are searched for. Each costs a pass over the text, and callers choose their number."""

_MASK = b"***"
_DECODINGS = 3
_to_urlsafe = bytes.maketrans(b"+/", b"-_")


class Redactor:
    """Finds and masks values of at least `SHORTEST_SECRET` bytes; shorter ones may occur by chance.

    With more than `MAX_VALUES` of them (`too_many`), every text is assumed to contain one. False if there is nothing to
    search for. Its `repr` shows no value.
    """

    __slots__ = ("_forms", "too_many")

    def __init__(self, values: Iterable[bytes]) -> None:
        sought = list(dict.fromkeys([value for value in values if len(value) >= SHORTEST_SECRET]))
        self.too_many: bool = len(sought) > MAX_VALUES
        self._forms: list[bytes] = []
        for value in sought[:MAX_VALUES]:
            self._forms += _forms(value)

    def __bool__(self) -> bool:
        return bool(self._forms)

    def __repr__(self) -> str:
        return "Redactor(…)"

    def is_in(self, data: bytes) -> bool:
        """Whether data contains one of the values in any form."""
        if self.too_many:
            return True
        for form in self._forms:  # every request is looked through, and `any` and `in` take twice as long
            if data.find(form) >= 0:
                return True
        return data.find(b"%") >= 0 and any(form in text for text in _decoded(data) for form in self._forms)

    def mask(self, data: bytes) -> bytes:
        """Data with `***` in place of each value, in any case; `***` alone if one is encoded."""
        for form in self._forms if not self.too_many else ():
            data = _masked(data, form)
        return _MASK if self.is_in(data) else data


def _masked(data: bytes, form: bytes) -> bytes:
    """Data with `***` in place of a form; `re` would take the product of both lengths for it."""
    pieces = data.lower().split(form.lower())
    begin = 0
    for index, piece in enumerate(pieces):
        end = begin + len(piece)
        pieces[index] = data[begin:end]
        begin = end + len(form)
    return _MASK.join(pieces)


def _forms(value: bytes) -> list[bytes]:
    """The value, and its Base64 behind none, one and two other bytes: those characters that depend on it alone."""
    size = len(value) * 8
    encoded = [
        b2a_base64(value)[: size // 6],
        b2a_base64(b"\0" + value)[2 : (size + 8) // 6],
        b2a_base64(b"\0\0" + value)[3 : (size + 16) // 6],
    ]
    text = b"".join(encoded)
    if b"+" in text or b"/" in text:
        encoded += [form.translate(_to_urlsafe) for form in encoded if b"+" in form or b"/" in form]
    return [value, *encoded]


def _decoded(data: bytes) -> Iterator[bytes]:
    """Data with its percent-encoding removed, repeatedly as long as that changes it."""
    for _ in range(_DECODINGS):
        before, data = data, unquote_to_bytes(data)
        if data == before:
            return
        yield data
