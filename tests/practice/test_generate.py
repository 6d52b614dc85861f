from random import Random

from keyturn.practice.generate import collection_of, environment_of, practice_run


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
