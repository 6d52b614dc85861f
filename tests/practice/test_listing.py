import pytest
from keyturn.practice.answers import ApiError
from keyturn.practice.listing import matching, page_by_cursor, page_by_offset

ROWS = [{"name": name, "type": "team" if name in "ab" else "personal"} for name in "abcde"]


def test_filters() -> None:
    """Rows match the known parameters of the query; others are ignored."""
    assert [row["name"] for row in matching(ROWS, {"type": "team", "apikey": "x"}, ("type", "name"))] == ["a", "b"]
    assert matching(ROWS, {"type": "team", "name": "c"}, ("type", "name")) == []
    assert matching(ROWS, {"type": "team"}, ("name",)) == ROWS


@pytest.mark.parametrize(
    ("query", "names", "meta"),
    [
        ({"limit": "2"}, "ab", {"total": 5, "offset": 0, "limit": 2}),
        ({"limit": "2", "offset": "4"}, "e", {"total": 5, "offset": 4, "limit": 2}),
        ({"offset": "3"}, "de", {"total": 5, "offset": 3, "limit": 5}),
        ({"offset": "9"}, "", {"total": 5, "offset": 9, "limit": 5}),
    ],
)
def test_pages_by_offset(query: dict[str, str], names: str, meta: dict[str, int]) -> None:
    """Limit and offset cut the list, and `meta` describes the page."""
    page = page_by_offset("rows", ROWS, query)
    assert ("".join(row["name"] for row in page["rows"]), page["meta"]) == (names, meta)


def test_pages_by_cursor() -> None:
    """Each page but the last names the next cursor, and together they are the list."""
    query, pages = {"limit": "2"}, []
    while True:
        page = page_by_cursor("rows", ROWS, query)
        pages.append("".join(row["name"] for row in page["rows"]))
        if "nextCursor" not in page["meta"]:
            break
        query = {"limit": "2", "cursor": page["meta"]["nextCursor"]}
    assert pages == ["ab", "cd", "e"]


def test_whole_lists_have_no_meta() -> None:
    """A list without paging is answered as a whole."""
    assert page_by_offset("rows", ROWS, {"name": "a"}) == page_by_cursor("rows", ROWS, {}) == {"rows": ROWS}


@pytest.mark.parametrize(
    ("name", "text"),
    [("limit", text) for text in ("x", "-1", "", "٣", "0", "101")]
    + [("cursor", text) for text in ("x", "é", "LTE=", "")],
)
def test_values_that_cannot_be_used(name: str, text: str) -> None:
    """A limit out of range and an unknown cursor are refused by name of the parameter."""
    with pytest.raises(ApiError, match=name) as caught:
        page_by_cursor("rows", ROWS, {name: text})
    assert caught.value.status == 400


@pytest.mark.parametrize("query", [{"limit": "x"}, {"offset": "-1"}, {"offset": "1.5"}])
def test_offsets_that_cannot_be_used(query: dict[str, str]) -> None:
    """An offset or limit that is not a whole number is refused."""
    with pytest.raises(ApiError, match=next(iter(query))):
        page_by_offset("rows", ROWS, query)
