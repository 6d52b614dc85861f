import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from keyturn.config.yaml_document import MAX_BYTES, Interpolation, parse
from keyturn.core.errors import ConfigError

from tests.config.samples import problems

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
    """Text without `${` is left alone; escaping permits any text."""
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
    ("listen:127.0.0.1:8080\nadmin: x\n", 1, 8, "a space is missing after the colon"),
    ("queue:\n  max_wait:5s\n  max_waiting: 5\n", 2, 12, "a space is missing after the colon"),
    (
        "pools:\n  default:\n    keys:\n      - name:a\n        secret: b\n",
        4,
        14,
        "a space is missing after the colon",
    ),
    ("listen x\nadmin: y\n", 1, 1, "a line without a colon"),
    ("admin: y\nlisten\nqueue: x\n", 2, 1, "a line without a colon"),
    ("a: b: c\n", 1, 5, "a colon that is not allowed here"),
    ("listen: x\n  admin: y\n", 2, 8, "a colon that is not allowed here"),
    ("a: 1\n b: [2]\n", 2, 3, "a colon that is not allowed here"),
    ("queue:\n    a: 1\n  b: 2\n", 3, 3, "does not continue the lines above"),
    ('a: "b" c\n', 1, 8, "does not continue the lines above"),
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
    ("a: | text\n  b\n", 1, 6, "start it on the next line"),
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


def tree(text: str) -> Any:
    """A text's tree, which is without problems."""
    made, problems = parse(text.encode())
    assert problems == []
    return made


def refusal(data: bytes) -> str:
    """Why data is no document at all."""
    with pytest.raises(ConfigError) as caught:
        parse(data)
    (problem,) = caught.value.problems
    assert problem.path == ""
    return problem.message


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "~", "{}"])
def test_an_empty_document_has_no_settings(text: str) -> None:
    """A file of comments is a configuration of defaults."""
    assert tree(text) == {}


@pytest.mark.parametrize("escape", ["U00110000", "UFFFFFFFF", "uD800", "udfff"])
def test_an_escape_that_names_no_character_is_refused(escape: str) -> None:
    """In a value and in a name: it could be written nowhere."""
    for text in (f'a: "\\{escape}"', f'"\\{escape}": a', f'- "x\\{escape}"'):
        assert "names no character" in refusal(text.encode())
    assert tree(r'a: "\u00e9\U0001F511"') == {"a": "é\U0001f511"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("off", "off"),
        ("no", "no"),
        ("yes", "yes"),
        ("true", True),
        ("False", False),
        ("~", None),
        ("null", None),
        ("", None),
        ("12", 12),
        ("-3", -3),
        ("007", "007"),
        ("0x1f", "0x1f"),
        ("0", 0),
        ("0.2", 0.2),
        (".5", 0.5),
        ("1e3", "1e3"),
        ("12.34.56", "12.34.56"),
        ("1:30", "1:30"),
        ("2026-01-01", "2026-01-01"),
        ("1_000", "1_000"),
        ("127.0.0.1:8080", "127.0.0.1:8080"),
        ("'12'", "12"),
        ("'off'", "off"),
        ("${A}", "${A}"),
        ("=", "="),
        (".inf", ".inf"),
        ("!!str 12", "12"),
    ],
)
def test_few_scalars_are_more_than_text(text: str, value: object) -> None:
    """`off` is a word, a digest of digits and an `e` no number, a date a text."""
    found = tree(f"a: {text}")["a"]
    assert found == value
    assert type(found) is type(value)


def test_names_of_settings_are_texts() -> None:
    """A pool may be called 1, off or null."""
    assert tree("{1: a, off: b, null: c, true: d}") == {"1": "a", "off": "b", "null": "c", "true": "d"}


def test_a_name_that_stands_twice_is_a_problem() -> None:
    """Each is reported, with its path and both lines."""
    _, problems = parse(b"a: 1\nb:\n  - {c: 1,\n     c: 2}\na: 2\n")
    assert [str(problem) for problem in problems] == [
        "b[0].c: occurs twice, in lines 3 and 4: keep one",
        "a: occurs twice, in lines 1 and 5: keep one",
    ]


def test_aliases_are_copies() -> None:
    """Limits can be shared by pools."""
    made = tree("a: &x [1, {b: 2}]\nc: *x\n")
    assert made["a"] == made["c"] == [1, {"b": 2}]
    assert made["a"] is not made["c"]


def test_mappings_can_be_merged() -> None:
    """Keys of the mapping itself come first, then those merged first."""
    assert tree("a: &x {b: 1, c: 1}\nd: &y {c: 2, e: 2}\nf:\n  <<: [*x, *y]\n  b: 3\n")["f"] == {"b": 3, "c": 1, "e": 2}
    assert tree("a: &x {b: 1}\nc: {<<: *x, d: 2}")["c"] == {"b": 1, "d": 2}
    assert tree("{'<<': 1}") == {"<<": 1}


def test_only_mappings_can_be_merged() -> None:
    """Anything else behind `<<` is a problem."""
    assert [problem.path for problem in parse(b"a: {<<: 5}")[1]] == ["a"]


def test_a_bomb_of_aliases_is_refused() -> None:
    """Aliases of aliases count as what they stand for."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    assert "aliases" in refusal("\n".join(lines).encode())


def test_a_bomb_of_merges_is_refused() -> None:
    """As are merges of merges."""
    lines = ["a0: &a0 {x: 1}"]
    lines += [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, 10)]
    assert "aliases" in refusal("\n".join(lines).encode())


@pytest.mark.parametrize("text", ["a: &x [*x]", "a: &x {b: *x}", "&x [*x]"])
def test_an_alias_to_its_own_inside_is_refused(text: str) -> None:
    """It would never end."""
    assert "contains it" in refusal(text.encode())


def test_a_file_has_a_bound() -> None:
    """A file larger than 1 MiB is refused."""
    assert "1 MiB" in refusal(b"#" * (MAX_BYTES + 1))
    assert parse(b"#" * MAX_BYTES) == ({}, [])


def test_deep_nesting_is_refused() -> None:
    """It is a message, no crash."""
    assert "deeply" in refusal(b"a: " + b"[" * 20_000 + b"]" * 20_000)


@pytest.mark.parametrize("text", ["[]", "- a", "word", "5"])
def test_a_document_is_a_mapping(text: str) -> None:
    """Anything else is told what settings look like."""
    assert "name: value" in refusal(text.encode())


@pytest.mark.parametrize(
    "text",
    [
        "a: [1",
        "a: b: c",
        "a: 'x",
        'a: "\\q"',
        "\ta: 1",
        "a: *5ecret",
        "a: 1\n---\nb: 2",
        "a: 5ecret: x",
        "%5ecret",
        "a\0b",
    ],
)
def test_what_is_no_yaml_is_refused(text: str) -> None:
    """With its line, and without the text that stands there: it may be a secret."""
    message = refusal(text.encode())
    assert "5ecret" not in message
    assert "not YAML" in message


@pytest.mark.parametrize("text", ["a: !5ecret x", "a: !!binary 5ecret", "a: !!int 5ecret", "a: !!timestamp 2026-01-01"])
def test_tags_are_problems(text: str) -> None:
    """Values are plain."""
    _, problems = parse(text.encode())
    assert [(problem.path, "5ecret" in problem.message) for problem in problems] == [("a", False)]


def test_objects_of_python_are_never_made() -> None:
    """The document cannot run anything."""
    made, problems = parse(b"a: !!python/object/apply:os.system ['exit 1']")
    assert made == {"a": None}
    assert len(problems) == 1


def test_names_that_are_no_words_are_problems() -> None:
    """A list or a mapping names no setting."""
    assert [problem.path for problem in parse(b"? [a, b]\n: c\n")[1]] == [""]


def test_a_file_is_utf_8() -> None:
    """With or without a byte order mark."""
    assert parse("\ufeffa: ü".encode()) == ({"a": "ü"}, [])
    assert "UTF-8" in refusal("a: ü".encode("latin-1"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(codec="ascii", categories=["L", "N", "P", "Zs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1), inner, max_size=3),
)


@given(st.dictionaries(st.text("abc", min_size=1), JSON, max_size=4))
def test_what_is_written_is_read(document: dict[str, Any]) -> None:
    """A document survives being written by the usual library."""
    assert parse(yaml.safe_dump(document).encode()) == (document, [])


@given(st.binary(max_size=60))
def test_no_bytes_do_more_than_fail(data: bytes) -> None:
    """Whatever a file holds, the answer is a tree or a `ConfigError`."""
    try:
        made, _ = parse(data)
    except ConfigError:
        return
    assert isinstance(made, dict)
