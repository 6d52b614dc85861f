from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from keyturn.config.document import MAX_BYTES, parse
from keyturn.core.errors import ConfigError


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
        "b[0].c: stands twice, in lines 3 and 4: keep one",
        "a: stands twice, in lines 1 and 5: keep one",
    ]


def test_aliases_are_copies() -> None:
    """Limits can be shared by pools."""
    made = tree("a: &x [1, {b: 2}]\nc: *x\n")
    assert made["a"] == made["c"] == [1, {"b": 2}]
    assert made["a"] is not made["c"]


def test_mappings_can_be_merged() -> None:
    """What a mapping says itself counts more, then what is merged first."""
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
    assert "part of" in refusal(text.encode())


def test_a_file_has_a_bound() -> None:
    """What is larger than 1 MiB is no configuration."""
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
