import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from keyturn.practice.answers import ApiError, Page
from keyturn.practice.catalogue import (
    COLLECTIONS,
    ENVIRONMENTS,
    WORKSPACES,
    Catalogue,
    matching,
    merged,
    page_by_cursor,
    page_by_offset,
)
from keyturn.practice.contents import OWNER, PRACTICE_RUN

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


@pytest.fixture
def catalogue() -> Catalogue:
    """Return a fresh catalogue."""
    return Catalogue(1, lambda: "http://127.0.0.1:1")


def data(page: Page | None) -> Any:
    """Return the data of a page."""
    assert page is not None
    return json.loads(page.body)


def collection(name: str) -> dict[str, Any]:
    """Return a small collection."""
    return {"info": {"name": name, "schema": "v2.1"}, "item": []}


def test_seed_decides(catalogue: Catalogue) -> None:
    """The same seed gives the same lists, another seed others."""
    again, other = Catalogue(1, str), Catalogue(2, str)
    assert catalogue.entries("collection", {}).body == again.entries("collection", {}).body
    assert catalogue.entries("collection", {}).body != other.entries("collection", {}).body
    assert catalogue.workspaces({}).body == again.workspaces({}).body


def test_a_few_hundred(catalogue: Catalogue) -> None:
    """There are a few hundred items, each with an id of its own."""
    ids = [
        *(item["id"] for item in data(catalogue.workspaces({}))["workspaces"]),
        *(item["id"] for item in data(catalogue.entries("collection", {}))["collections"]),
        *(item["id"] for item in data(catalogue.entries("environment", {}))["environments"]),
    ]
    assert len(set(ids)) == len(ids) == WORKSPACES + COLLECTIONS + ENVIRONMENTS


def test_workspaces_divide_everything(catalogue: Catalogue) -> None:
    """Each collection is in exactly one workspace, whose list agrees with its page."""
    found = []
    for workspace in data(catalogue.workspaces({}))["workspaces"]:
        page = data(catalogue.workspace(workspace["id"]))["workspace"]
        uids = [item["uid"] for item in page["collections"]]
        assert uids == [
            item["uid"] for item in data(catalogue.entries("collection", {"workspace": workspace["id"]}))["collections"]
        ]
        found += uids
    assert len(found) == len(set(found)) == COLLECTIONS


def test_unknown_workspace_is_empty(catalogue: Catalogue) -> None:
    """The list of an unknown workspace is empty, its page does not exist."""
    assert data(catalogue.entries("environment", {"workspace": "nowhere"})) == {"environments": []}
    assert catalogue.workspace("nowhere") is None


def test_found_by_uid_and_by_id(catalogue: Catalogue) -> None:
    """An entry is found under its uid and its id, and its page carries both."""
    entry = catalogue.named("collection", PRACTICE_RUN)
    assert catalogue.find("collection", entry.uid) is catalogue.find("collection", entry.id) is entry
    assert catalogue.find("environment", entry.uid) is None
    assert data(entry.page())["collection"]["info"]["uid"] == entry.uid


def test_every_entry_can_be_shown(catalogue: Catalogue) -> None:
    """Every entry of the lists has a page, made once."""
    for item in data(catalogue.entries("collection", {}))["collections"]:
        entry = catalogue.find("collection", item["uid"])
        assert entry is not None
        assert entry.page() is entry.page()
        assert data(entry.page())["collection"]["info"]["name"] == item["name"]


def test_add_change_remove(catalogue: Catalogue) -> None:
    """A new entry is listed, can be replaced and patched, and is gone when deleted."""
    home = data(catalogue.workspaces({}))["workspaces"][3]["id"]
    entry = catalogue.add("collection", collection("New"), home)
    assert entry.uid in [item["uid"] for item in data(catalogue.workspace(home))["workspace"]["collections"]]
    catalogue.replace("collection", entry, collection("Newer"))
    assert catalogue.patch(entry, {"info": {"description": "Text"}})["description"] == "Text"
    said = data(entry.page())["collection"]
    assert (said["info"]["name"], said["info"]["description"]) == ("Newer", "Text")
    catalogue.remove("collection", entry)
    assert catalogue.find("collection", entry.uid) is None
    assert entry.uid not in [item["uid"] for item in data(catalogue.workspace(home))["workspace"]["collections"]]


def test_collections_can_be_asked_for(catalogue: Catalogue) -> None:
    """Collections are filtered by name and workspace, and paged; environments by workspace only."""
    run = catalogue.named("collection", PRACTICE_RUN)
    named = data(catalogue.entries("collection", {"name": PRACTICE_RUN}))["collections"]
    assert [item["uid"] for item in named] == [run.uid]
    elsewhere = {
        "name": PRACTICE_RUN,
        "workspace": next(
            ref for ref in (item["id"] for item in data(catalogue.workspaces({}))["workspaces"]) if ref != run.workspace
        ),
    }
    assert data(catalogue.entries("collection", elsewhere)) == {"collections": []}
    assert len(data(catalogue.entries("collection", {"limit": "7"}))["collections"]) == 7
    assert len(data(catalogue.entries("environment", {"limit": "7", "name": "x"}))["environments"]) == ENVIRONMENTS


def test_workspaces_can_be_asked_for(catalogue: Catalogue) -> None:
    """Workspaces are filtered by type, creator and content, and paged."""
    run = catalogue.named("collection", PRACTICE_RUN)

    def found(**query: str) -> list[str]:
        return [item["id"] for item in data(catalogue.workspaces(query))["workspaces"]]

    assert len(found(type="team")) + len(found(type="personal")) == WORKSPACES
    assert (len(found(createdBy=str(OWNER))), found(createdBy="1")) == (WORKSPACES, [])
    assert found(elementType="collection", elementId=run.uid) == [run.workspace]
    assert found(elementType="collection", elementId="none") == []
    assert found(limit="2") == found()[:2]


def test_named_says_when_there_is_none(catalogue: Catalogue) -> None:
    """An unknown name is an error."""
    with pytest.raises(LookupError):
        catalogue.named("environment", "No such name")


@pytest.mark.parametrize(
    ("target", "change", "result"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [1]}, {"a": [2, 3]}, {"a": [2, 3]}),
        ([1], {"a": {"b": None}}, {"a": {}}),
        ({"a": 1}, "text", "text"),
    ],
)
def test_merge_patch_examples(target: Any, change: Any, result: Any) -> None:
    """A merge patch does what RFC 7396 shows."""
    assert merged(target, change) == result


@given(
    st.dictionaries(st.text(max_size=3), st.integers() | st.none()), st.dictionaries(st.text(max_size=3), st.integers())
)
def test_merge_patch_twice_is_once(change: dict[str, Any], target: dict[str, Any]) -> None:
    """A merge patch applied twice changes nothing more."""
    once = merged(target, change)
    assert merged(once, change) == once
