from random import Random
from typing import Any

import pytest
from keyturn.practice.contents import (
    collection_of,
    complete_collection,
    completed_values,
    environment_of,
    is_sound_change,
    is_sound_collection,
    is_sound_environment,
    practice_run,
)


def test_same_seed_same_data() -> None:
    """The same seed makes the same collection, another seed another."""
    assert collection_of(Random(1), "A") == collection_of(Random(1), "A")
    assert collection_of(Random(1), "A") != collection_of(Random(2), "A")


def test_collections_are_of_format_2_1() -> None:
    """A collection names the schema v2.1 and holds folders of requests to the base URL."""
    collection = collection_of(Random(3), "Orders")
    assert collection["info"]["schema"].endswith("/v2.1.0/collection.json")
    requests = [item["request"] for folder in collection["item"] for item in folder["item"]]
    assert len(requests) >= 6
    assert all(request["url"]["raw"].startswith("{{baseUrl}}/echo/") for request in requests)


def test_the_practice_run_tests_its_answers() -> None:
    """Each request of the practice run asserts status 200; the variables that they use are its own."""
    values = {value["key"]: value["value"] for value in practice_run("http://127.0.0.1:1")["variable"]}
    assert values == {"baseUrl": "http://127.0.0.1:1", "apiKey": ""}
    items = practice_run("http://127.0.0.1:1")["item"]
    assert len(items) == 3
    for item in items:
        assert "to.have.status(200)" in "".join(item["event"][0]["script"]["exec"])


def test_an_environment_has_the_base_url() -> None:
    """An environment gives the base URL."""
    values = {value["key"]: value["value"] for value in environment_of(Random(1), "http://127.0.0.1:1")}
    assert values["baseUrl"] == "http://127.0.0.1:1"


def nested(depth: int) -> dict[str, Any]:
    """Return a collection of folders in folders."""
    content: dict[str, Any] = {"info": {"name": "A"}, "item": []}
    folder = content
    for _ in range(depth):
        inner: dict[str, Any] = {"name": "folder", "item": []}
        folder["item"].append(inner)
        folder = inner
    return content


def test_ids_are_given_once() -> None:
    """An item without a valid id gets one that stays, and others keep theirs."""
    content: dict[str, Any] = {
        "info": {},
        "item": [{"name": "a"}, {"id": 5}, {"id": ""}, {"id": "mine", "response": [{}, "text"]}],
    }
    complete_collection(content, "7", Random(1))
    first, number, empty, mine = content["item"]
    assert all(isinstance(item["id"], str) and len(item["id"]) == 36 for item in (first, number, empty))
    assert (mine["id"], mine["uid"]) == ("mine", "7-mine")
    assert mine["response"][0]["uid"] == f"7-{mine['response'][0]['id']}"
    before = repr(content)
    complete_collection(content, "7", Random(2))
    assert repr(content) == before


def test_short_forms_are_written_out() -> None:
    """Short forms of the format are answered in their long form."""
    text = {"content": "Text", "type": "text/plain"}
    script = {"listen": "test", "script": {"exec": "one\ntwo"}}
    content: dict[str, Any] = {
        "info": {"name": "A", "description": text},
        "event": [script],
        "item": [
            {"request": "https://a.example", "description": text},
            {"request": {"description": text, "url": "u"}},
            {"event": "none", "response": None},
        ],
    }
    complete_collection(content, "7", Random(1))
    assert content["info"]["description"] == content["item"][0]["description"] == "Text"
    assert content["item"][0]["request"] == {"method": "GET", "header": [], "url": "https://a.example"}
    assert content["item"][1]["request"] == {"description": "Text", "url": "u"}
    assert content["event"][0]["script"]["exec"] == ["one", "two"]


def test_depth_has_no_bound() -> None:
    """Folders may be nested deeper than functions may call themselves."""
    content = nested(5000)
    assert is_sound_collection(content)
    complete_collection(content, "7", Random(1))
    assert content["item"][0]["item"][0]["id"]


@pytest.mark.parametrize("item", [None, {}, [1], [{"item": None}], [{"item": [[]]}]])
def test_unsound_items(item: Any) -> None:
    """Items must be objects in lists, at every depth, in a collection and in a change to it."""
    assert not is_sound_collection({"info": {"name": "A"}, "item": item})
    assert not is_sound_change({"item": item})


@pytest.mark.parametrize(
    ("content", "whole", "change"),
    [
        ({"info": {"name": "A"}, "item": []}, True, True),
        ({"info": {"name": "A"}}, False, True),
        ({"info": {}, "item": []}, False, True),
        ({"info": {"name": None}, "item": []}, False, False),
        ({"info": None, "item": []}, False, False),
        ({"item": []}, False, True),
    ],
)
def test_names(content: dict[str, Any], whole: bool, change: bool) -> None:
    """A collection needs a name, which a change may omit but not remove."""
    assert (is_sound_collection(content), is_sound_change(content)) == (whole, change)


@pytest.mark.parametrize(
    ("content", "sound"),
    [
        ({"name": "A"}, True),
        ({"name": "A", "values": [{}]}, True),
        ({"name": "A", "values": [1]}, False),
        ({"name": "A", "values": {}}, False),
        ({"values": []}, False),
    ],
)
def test_environments(content: dict[str, Any], sound: bool) -> None:
    """An environment needs a name, and its values must be objects."""
    assert is_sound_environment(content) is sound


def test_values_are_completed() -> None:
    """A value is enabled and of the default type unless it says otherwise."""
    assert completed_values([{"key": "a"}, {"key": "b", "enabled": False, "type": "secret"}]) == [
        {"enabled": True, "type": "default", "key": "a"},
        {"enabled": False, "type": "secret", "key": "b"},
    ]
