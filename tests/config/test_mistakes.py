import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from keyturn.config.document import parse
from keyturn.core.errors import ConfigError

from tests.config.samples import problems

JARGON = re.compile(r"<|token|scalar|block|flow|mapping|anchor\b.*scanning|while|expected|parser|0x|'\\")
"""Words of the parser's, which nobody looks for in a configuration."""


def told(text: str) -> str:
    """The mistake found in a text."""
    with pytest.raises(ConfigError) as caught:
        parse(text.encode())
    (problem,) = caught.value.problems
    return problem.message


MISTAKES = [
    ("queue:\n\tmax_wait: 5s\n", 2, 1, "a tab"),
    ("queue:\n  max_wait:\t5s\n", 2, 12, "a tab"),
    ("queue:\n  max_wait: 5s\n\tmax_waiting: 5\n", 3, 1, "a tab"),
    ("clients:\n  - name: a\n  \tweight: 2\n", 3, 3, "a tab"),
    ("\tlisten: x\n", 1, 1, "a tab"),
    ("listen: 'x\nadmin: y\n", 1, 9, "a quote that is not closed"),
    ('a: 1\nlisten: "x\n', 2, 9, "a quote that is not closed"),
    ("listen: [a, b\nadmin: c\n", 1, 9, "`[`"),
    ("a: 1\nlog: {level: info\nadmin: c\n", 2, 6, "`{`"),
    ("listen:127.0.0.1:8080\nadmin: x\n", 1, 8, "a blank is missing behind the colon"),
    ("queue:\n  max_wait:5s\n  max_waiting: 5\n", 2, 12, "a blank is missing behind the colon"),
    (
        "pools:\n  default:\n    keys:\n      - name:a\n        secret: b\n",
        4,
        14,
        "a blank is missing behind the colon",
    ),
    ("listen x\nadmin: y\n", 1, 1, "a line without a colon"),
    ("admin: y\nlisten\nqueue: x\n", 2, 1, "a line without a colon"),
    ("a: b: c\n", 1, 5, "a colon where none may stand"),
    ("listen: x\n  admin: y\n", 2, 8, "a colon where none may stand"),
    ("a: 1\n b: [2]\n", 2, 3, "a colon where none may stand"),
    ("queue:\n    a: 1\n  b: 2\n", 3, 3, "does not go on what stands above"),
    ('a: "b" c\n', 1, 8, "does not go on what stands above"),
    ("a: - b\n", 1, 4, "a `- `"),
    ("a: @b\n", 1, 4, "needs quotes"),
    ("a: `b`\n", 1, 4, "needs quotes"),
    ("a: %b\n", 1, 4, "needs quotes"),
    ("a: *b\n", 1, 4, "`*`"),
    ("a: * b\n", 1, 5, "needs quotes"),
    ('a: "\\q"\n', 1, 6, "a backslash"),
    ("a: 1\n---\nb: 2\n", 2, 1, "a second document"),
    ("a: 1\nb: x\x00y\n", 2, 5, "a character that YAML does not allow"),
    ("a: ]\n", 1, 4, "a value is missing"),
    ("a: | text\n  b\n", 1, 6, "begin it on the next line"),
]


@pytest.mark.parametrize(("text", "line", "column", "why"), MISTAKES)
def test_mistakes_are_told_in_plain_words(text: str, line: int, column: int, why: str) -> None:
    """With the place where it is to be corrected, and without the parser's words."""
    message = told(text)
    assert message.startswith(f"line {line}, column {column}: this is not YAML: ")
    assert why in message
    assert not JARGON.search(message)


@given(st.text("ab:-#'\"[]{},&*!|>%@`\t\n \\", max_size=24))
def test_no_mistake_is_told_in_the_parsers_words(text: str) -> None:
    """Whatever stands there."""
    try:
        parse(text.encode())
    except ConfigError as error:
        (problem,) = error.problems
        assert not JARGON.search(problem.message.partition("needs quotes")[0].replace("a mapping", ""))


def test_the_file_is_named(tmp_path: Path) -> None:
    """In place of a setting."""
    ((path, message),) = problems(tmp_path, "queue:\n\tmax_wait: 5s\n").items()
    assert path == str(tmp_path / "config.yaml")
    assert "line 2" in message
