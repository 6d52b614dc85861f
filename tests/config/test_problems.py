from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from keyturn.config import Config
from keyturn.config.problems import REMOVED_SETTINGS, RENAMED_SETTINGS, Loc, Node, did_you_mean, path_of, problems_of
from keyturn.config.units import TcpListener
from keyturn.core.errors import Problem
from pydantic import BaseModel, ConfigDict, Field, ValidationError

ANYTHING = (
    st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.none()) | st.dictionaries(st.text(), st.none())
)


def test_a_place_is_found_by_names_and_positions() -> None:
    """A missing entry is `None`, and so is everything below it."""
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
    """A missing duration is the default; one that cannot be read is `None`."""
    assert Node(None).duration("5s") == 5_000_000
    assert Node("5").duration("5s") is None


class Inner(BaseModel):
    """A section."""

    model_config = ConfigDict(extra="forbid")

    weight: int = Field(default=1, ge=1, le=10)
    kind: Literal["one", "two"] = "one"
    part: bool = False
    share: float = Field(default=0.5, gt=0, lt=1)
    name: str = Field(default="x", min_length=1, max_length=3)


class Outer(BaseModel):
    """A document."""

    model_config = ConfigDict(extra="forbid")

    inner: Inner = Inner()
    many: tuple[Inner, ...] = ()
    named: Mapping[str, Inner] = {}
    either: int | bool | None = None
    needed: int


@pytest.mark.parametrize(
    ("loc", "path"),
    [
        ((), ""),
        (("clients", 2, "weight"), "clients[2].weight"),
        (("pools", "default", "keys", 0, "secret"), "pools.default.keys[0].secret"),
        (("pools", "a.b", "guard"), 'pools["a.b"].guard'),
        (("headers", "X" * 40), 'headers["…"]'),
        (("a b",), '["…"]'),
        ((0,), "[0]"),
    ],
)
def test_a_place_is_written_as_a_path(loc: Loc, path: str) -> None:
    """An overlong name is not shown: it may be a secret in the wrong place."""
    assert path_of(loc) == path


def test_a_near_miss_is_named() -> None:
    """A far one is not."""
    assert did_you_mean("wieght", ["weight", "urgency"]) == "; did you mean `weight`?"
    assert did_you_mean("colour", ["weight", "urgency"]) == ""


def found(document: Any) -> dict[str, str]:
    """The problems of a document, by path."""
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate(document)
    return {problem.path: problem.message for problem in problems_of(caught.value, Outer, document)}


@pytest.mark.parametrize(
    ("document", "path", "message"),
    [
        ({"inner": {"weight": "5ecret"}}, "inner.weight", "write a whole number"),
        ({"inner": {"weight": 1.5}}, "inner.weight", "write a whole number"),
        ({"inner": {"weight": 0}}, "inner.weight", "write a number of at least 1"),
        ({"inner": {"weight": 11}}, "inner.weight", "write a number of at most 10"),
        ({"inner": {"share": 0}}, "inner.share", "write a number above 0"),
        ({"inner": {"share": 1}}, "inner.share", "write a number below 1"),
        ({"inner": {"share": []}}, "inner.share", "write a number"),
        ({"inner": {"kind": "5ecret"}}, "inner.kind", "write one of `one`, `two`"),
        ({"inner": {"part": "5ecret"}}, "inner.part", "write `true` or `false`"),
        ({"inner": {"name": 5}}, "inner.name", "write text, in quotes"),
        ({"inner": {"name": ""}}, "inner.name", "at least 1"),
        ({"inner": {"name": "5ecret"}}, "inner.name", "at most 3"),
        ({"inner": {"wieght": 1}}, "inner.wieght", "unknown key; did you mean `weight`?"),
        ({"named": {"a": {"wieght": 1}}}, "named.a.wieght", "unknown key; did you mean `weight`?"),
        ({"named": {"many": {"wieght": 1}}}, "named.many.wieght", "unknown key; did you mean `weight`?"),
        ({"many": [{}, {"colour": 1}]}, "many[1].colour", "unknown key; known here: weight, kind"),
        ({"5ecret" * 10: 1}, '["…"]', "unknown key"),
        ({"inner": "5ecret"}, "inner", "write a mapping"),
        ({"named": ["5ecret"]}, "named", "write a mapping"),
        ({"many": "5ecret"}, "many", "write a list"),
        ({"many": ["5ecret"]}, "many[0]", "write a mapping"),
        ({"either": "5ecret"}, "either", "write"),
        ({}, "needed", "is missing"),
    ],
)
def test_each_mistake_is_told_what_to_write(document: dict[str, Any], path: str, message: str) -> None:
    """The path holds nothing but what stands in the document, the message no value."""
    problems = found(document)
    assert message in problems[path]
    assert "5ecret" not in str(problems)


def test_every_mistake_is_found_in_one_run() -> None:
    """Nobody has to start over and over."""
    assert set(found({"inner": {"weight": 0, "kind": 1}, "many": [{"part": 7}], "x": 1})) == {
        "inner.weight",
        "inner.kind",
        "many[0].part",
        "x",
        "needed",
    }


def problem_with(setting: str) -> str:
    """The problem of a document with one setting, `section.name`."""
    section, name = setting.split(".")
    with pytest.raises(ValidationError) as caught:
        Config.model_validate({section: {name: 1}})
    (problem,) = problems_of(caught.value, Config, {section: {name: 1}})
    return str(problem)


@pytest.mark.parametrize(("old", "new"), RENAMED_SETTINGS.items())
def test_an_old_setting_is_reported_with_its_new_name(old: str, new: str) -> None:
    """The new name is a setting of the configuration, and the old one is not."""
    assert problem_with(old) == f"{old}: was renamed: write `{new}`"
    section, name = new.split(".")
    fields = Config.model_fields[section].annotation.model_fields  # type: ignore[union-attr]  # a section
    assert name in fields
    assert old.split(".")[1] not in fields


@pytest.mark.parametrize("setting", REMOVED_SETTINGS)
def test_a_removed_setting_is_reported_with_the_reason(setting: str) -> None:
    """The message says to delete it instead of suggesting another name."""
    assert problem_with(setting) == f"{setting}: was removed, since {REMOVED_SETTINGS[setting]}: delete it"
