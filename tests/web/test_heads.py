"""Where heads end, however they come, and what they cost."""

import itertools

from hypothesis import given
from hypothesis import strategies as st
from keyturn.web.heads import HeadCount

HEADS = b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\n\r\n"


def lengths(data: bytes, cuts: list[int]) -> list[int]:
    """The lengths of the heads in data that comes in pieces."""
    places = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    count, found = HeadCount(), []
    for start, end in itertools.pairwise(places):
        piece, at = data[start:end], 0
        while at < len(piece):
            length = count.length(piece, at)
            count.add(piece[at : at + length])
            at += length
            if HEADS.startswith(b"\r\n\r\n", start + at - 4):
                found.append(count.received)
                count.begin()
    return found


@given(st.lists(st.integers(0, 100), max_size=8))
def test_a_head_ends_behind_its_empty_line(cuts: list[int]) -> None:
    """Wherever its bytes are cut; what stands behind belongs to the next."""
    assert lengths(HEADS, cuts) == [27, 19]


def test_text_beyond_ascii_costs_more() -> None:
    """For the whole head, since one character widens the text that it stands in."""
    count = HeadCount()
    count.add(b"x" * 1000)
    assert count.cost == 2000
    assert count.affordable(2000) == 1000
    count.add("€".encode())
    assert count.cost == 5 * 1003
    assert count.affordable(2000) == 400
    count.begin()
    assert count.cost == 0
