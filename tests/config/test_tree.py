from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from keyturn.config.tree import Node
from keyturn.config.units import TcpListener
from keyturn.core.errors import Problem

ANYTHING = (
    st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.none()) | st.dictionaries(st.text(), st.none())
)


def test_a_place_is_found_by_names_and_positions() -> None:
    """What is not there is `None`, and so is what is below it."""
    root = Node({"clients": [{"name": "ci"}]})
    (client,) = root["clients"].items()
    assert client["name"].text == "ci"
    assert client["name"].problem("x") == Problem("clients[0].name", "x")
    assert not client["pool"]["of"]["none"].given


@given(ANYTHING)
def test_no_value_is_in_the_way(value: object) -> None:
    """Whatever stands there, looking at it does not fail."""
    node = Node(value)
    assert not node["\0"]["x"].given
    assert all(item.loc for item in node.items())
    assert all(item.loc for _, item in node.entries())
    assert node.text is None or isinstance(node.text, str)
    assert isinstance(node.true, bool)
    assert node.duration("5s") is None or isinstance(node.duration("5s"), int)
    assert isinstance(node.listeners("127.0.0.1:1"), list)
    assert node.path(Path()) is None or isinstance(node.path(Path()), Path)


@pytest.mark.parametrize(
    ("value", "true"), [(True, True), ("true", True), ("on", True), (False, False), ("", False), (None, False)]
)
def test_what_pydantic_takes_for_true_is_true(value: object, *, true: bool) -> None:
    """The environment gives texts."""
    assert Node(value).true is true


def test_listeners_are_those_that_can_be_read() -> None:
    """With the place of each; the default when nothing is given."""
    node = Node({"listen": ["127.0.0.1:1", "nonsense", "127.0.0.1:2"]})["listen"]
    assert [(where.loc, str(listener)) for where, listener in node.listeners("")] == [
        (("listen", 0), "127.0.0.1:1"),
        (("listen", 2), "127.0.0.1:2"),
    ]
    assert [listener for _, listener in Node(None).listeners("127.0.0.1:3")] == [TcpListener("127.0.0.1", 3)]


def test_a_duration_has_a_default() -> None:
    """What is none is `None`."""
    assert Node(None).duration("5s") == 5_000_000
    assert Node("5").duration("5s") is None
