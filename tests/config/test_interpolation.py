import pytest
from hypothesis import given
from hypothesis import strategies as st
from keyturn.config.interpolation import Interpolation

ENVIRON = {"A": "apple", "EMPTY": "", "NESTED": "${A}"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("${A}", "apple"),
        ("x-${A}-${A}", "x-apple-apple"),
        ("${A:-pear}", "apple"),
        ("${NONE:-pear}", "pear"),
        ("${NONE:-}", ""),
        ("${EMPTY}", ""),
        ("${EMPTY:-pear}", "pear"),
        ("${NONE:-a:-b}", "a:-b"),
        ("$${A}", "${A}"),
        ("$$${A}", "$${A}"),
        ("${NESTED}", "${A}"),
        ("$A", "$A"),
        ("100$", "100$"),
    ],
)
def test_variables_are_replaced(text: str, value: str) -> None:
    """As a shell does: a default stands in for a variable that is not set or empty."""
    interpolation = Interpolation(ENVIRON)
    assert interpolation.apply(text) == value
    assert interpolation.problems == []


@pytest.mark.parametrize("text", ["${}", "${A", "${1A}", "${A-x}", "${ A }", "${A:-${B}}", "${A?}"])
def test_what_is_no_reference_is_a_problem(text: str) -> None:
    """Nothing that looks like a reference passes as it stands."""
    interpolation = Interpolation(ENVIRON)
    interpolation.apply({"a": [text]})
    assert [(problem.path, "`${NAME}`" in problem.message) for problem in interpolation.problems] == [("a[0]", True)]
    assert interpolation.broken == {("a", 0)}


def test_a_missing_variable_is_a_problem_with_its_path() -> None:
    """The message names the variable and says what to do."""
    interpolation = Interpolation(ENVIRON)
    interpolation.apply({"clients": [{"token": "${CI_TOKEN}"}]})
    (problem,) = interpolation.problems
    assert problem.path == "clients[0].token"
    assert "CI_TOKEN is not set" in problem.message
    assert "${CI_TOKEN:-default}" in problem.message


def test_only_values_are_replaced() -> None:
    """Names of settings, numbers and booleans stay."""
    tree = {"${A}": 1, "b": [True, None, 2.5, {"c": "${A}"}]}
    assert Interpolation(ENVIRON).apply(tree) == {"${A}": 1, "b": [True, None, 2.5, {"c": "apple"}]}


def test_it_is_known_what_the_environment_supplied() -> None:
    """A default that is used stands in the file, and counts as such."""
    interpolation = Interpolation(ENVIRON)
    interpolation.apply({"a": "${A}", "b": "${B:-plain}", "c": "plain", "d": "$${A}"})
    assert interpolation.supplied == {("a",)}


def test_the_environment_is_not_shown() -> None:
    """It holds secrets."""
    assert "apple" not in repr(Interpolation(ENVIRON))


@given(st.text())
def test_text_without_references_stays(text: str) -> None:
    """What holds no `${` is left alone; escaped, everything can be said."""
    escaped = text.replace("${", "$${")
    interpolation = Interpolation(ENVIRON)
    value = interpolation.apply(escaped)
    assert interpolation.problems == []
    if "$${" not in text:
        assert value == text


def test_bytes_that_are_no_text_are_a_problem() -> None:
    """They could be shown nowhere; the message shows them neither."""
    interpolation = Interpolation({"BYTES": "/run/\udcff"})
    interpolation.apply({"a": "${BYTES}"})
    (problem,) = interpolation.problems
    assert problem.message == "the environment variable BYTES holds bytes that are no UTF-8"
