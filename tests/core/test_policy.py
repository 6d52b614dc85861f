import re
from functools import cache

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from keyturn.core.policy import Rule, normalise

SEGMENT = st.text("ab.-~*", min_size=1, max_size=4).filter(lambda text: text.strip("."))
PATTERN = st.lists(st.sampled_from(["a", "b", "*", "**", "a*", "*b", "a*b", "*a*", "ab"]), max_size=5)
PATH = st.lists(st.text("ab", min_size=1, max_size=4), max_size=6)
TARGET = st.text("/.a;%25eEfF0\\~?#", max_size=14).map(lambda text: f"/{text}".encode())


def matches_segment(pattern: str, text: str) -> bool:
    """Match one segment against its pattern, by trying everything."""
    if not pattern:
        return not text
    if pattern[0] == "*":
        return any(matches_segment(pattern[1:], text[taken:]) for taken in range(1, len(text) + 1))
    return text[:1] == pattern[0] and matches_segment(pattern[1:], text[1:])


def matches(pattern: tuple[str, ...], path: tuple[str, ...]) -> bool:
    """Match a path against a pattern, by trying everything."""

    @cache
    def fits(at: int, where: int) -> bool:
        if at == len(pattern):
            return where == len(path)
        if pattern[at] == "**":
            return any(fits(at + 1, later) for later in range(where, len(path) + 1))
        return where < len(path) and matches_segment(pattern[at], path[where]) and fits(at + 1, where + 1)

    return fits(0, 0)


@given(PATTERN, PATH, st.booleans())
@example(["**", "a", "**", "b"], ["a", "a", "b", "a", "b"], False)
@example(["**", "*a*", "**", "a*b"], ["aa", "aab", "aabb"], False)
def test_a_pattern_matches_what_it_means(pattern: list[str], path: list[str], closed: bool) -> None:
    """A pattern matches what trying every placement of its wildcards does; a closing slash is ignored."""
    rule = Rule.parse(f"GET /{'/'.join(pattern)}")
    text = "/" + "/".join(path) + ("/" if closed and path else "")
    assert rule.matches("GET", text) == matches(tuple(pattern), tuple(path))


@pytest.mark.parametrize(
    ("rule", "matched", "others"),
    [
        ("GET /collections", ["/collections", "/collections/"], ["/", "/collections/1", "/collection", "/Collections"]),
        ("GET /collections/", ["/collections", "/collections/"], ["/", "/collections/1"]),
        ("GET /workspaces/*", ["/workspaces/1", "/workspaces/1/"], ["/workspaces", "/workspaces/", "/workspaces/1/x"]),
        ("GET /a/**", ["/a", "/a/", "/a/b", "/a/b/c/"], ["/", "/ab", "/b/a"]),
        ("GET /**", ["/", "/a", "/a/b"], []),
        ("GET /", ["/"], ["/a"]),
        ("GET /**/x", ["/x", "/a/x", "/a/b/x/"], ["/ax", "/x/a"]),
        ("GET /a/**/z", ["/a/z", "/a/b/z", "/a/z/z"], ["/a", "/az", "/z"]),
        ("GET /f/*.json", ["/f/a.json", "/f/a.b.json"], ["/f/.json", "/f/a/b.json", "/f/ajson"]),
        ("GET /specs/*/files/*", ["/specs/1/files/components%2Fschemas.json"], ["/specs/1/files/a/b"]),
        ("GET /a+(b)$", ["/a+(b)$"], ["/aab"]),
        ("GET /%7euser/%2f", ["/~user/%2F"], ["/~user/"]),
        ("GET //a/./b", ["/a/b"], ["/a/./b"]),
    ],
)
def test_paths_fall_under_rules(rule: str, matched: list[str], others: list[str]) -> None:
    """`*` is one segment, `**` any number; the rest is literal, in normal form."""
    parsed = Rule.parse(rule)
    assert [path for path in matched + others if parsed.matches("GET", path)] == matched


@pytest.mark.parametrize(
    ("rule", "method", "matched"),
    [
        ("GET /x", "GET", True),
        ("get /x", "GET", True),
        ("GET /x", "get", True),
        ("GET /x", "HEAD", True),
        ("HEAD /x", "GET", False),
        ("POST /x", "HEAD", False),
        ("* /x", "PURGE", True),
        ("M-SEARCH /x", "M-SEARCH", True),
    ],
)
def test_head_falls_under_what_get_falls_under(rule: str, method: str, *, matched: bool) -> None:
    """A rule for GET covers HEAD, not the other way round; `*` is every method."""
    assert Rule.parse(rule).matches(method, "/x") is matched


@pytest.mark.parametrize("text", ["", "GET", "/x", "GET x", "GET /x y", "GET  ", "G(T /x", "GET\t", "** /x"])
def test_what_is_no_rule_is_refused(text: str) -> None:
    """A malformed rule is refused with a message that says what to write."""
    with pytest.raises(ValueError, match="such as"):
        Rule.parse(text)


@pytest.mark.parametrize(
    "text", ["GET /x?y=1", "GET /x#y", "GET /../x", "GET /ü", "GET /%zz", "GET /a\\b", "GET /a%00"]
)
def test_a_rule_that_nothing_could_match_is_refused(text: str) -> None:
    """A rule that no path can match is refused, since it would look like protection."""
    with pytest.raises(ValueError, match="path"):
        Rule.parse(text)


def test_rules_are_equal_by_their_text() -> None:
    """Rules are equal by their text without blanks, so a reload sees changes."""
    assert Rule.parse(" GET   /x ") == Rule.parse("GET /x")
    assert Rule.parse("GET /x").text == "GET /x"
    assert Rule.parse("GET /x") != Rule.parse("GET /y")
    assert len({Rule.parse("GET /x"), Rule.parse("GET /x")}) == 1
    assert "re.compile" not in repr(Rule.parse("GET /x"))


def test_callers_cannot_make_matching_slow() -> None:
    """Matching takes time linear in the path, also for the worst patterns."""
    path = "/" + "/".join(["a"] * 4000)
    assert not Rule.parse("GET /**/a/**/a/**/a/**/b").matches("GET", path)
    assert Rule.parse("GET /**/a/**/a/**/a").matches("GET", path)
    assert not Rule.parse("GET /*a*a*a*a*a*b").matches("GET", "/" + "a" * 8000)


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"/", "/"),
        (b"/a/b", "/a/b"),
        (b"/a/b/", "/a/b/"),
        (b"/a?x=/../y", "/a"),
        (b"/a#x", "/a"),
        (b"//a///b", "/a/b"),
        (b"/./a/./b/.", "/a/b/"),
        (b"/a/../b", "/b"),
        (b"/a/b/..", "/a/"),
        (b"/a/..", "/"),
        (b"/%61%2e%2E/b", "/a../b"),
        (b"/a/%2e%2e/b", "/b"),
        (b"/a%2fb", "/a%2Fb"),
        (b"/%7e%41%3a", "/~A%3A"),
        (b"/%252e%252e/a", "/%252e%252e/a"),
        (b"/a;x=1/b", "/a;x=1/b"),
        (b"/a%3bx/b", "/a%3Bx/b"),
        (b"/%c3%a9/%F0%9F%97%9D", "/%C3%A9/%F0%9F%97%9D"),
        (b"/...", "/..."),
        (b"/a..b", "/a..b"),
        (b"/a%2Fb..c", "/a%2Fb..c"),
    ],
)
def test_paths_have_a_normal_form(target: bytes, path: str) -> None:
    """Paths are normalised by RFC 3986, section 6.2.2, and slashes are merged."""
    assert normalise(target) == path


@pytest.mark.parametrize(
    "target",
    [
        b"",
        b"*",
        b"a",
        b"host:443",
        b"http://h/a",
        b"?a",
        b"/..",
        b"/a/../..",
        b"/%2e%2e/a",
        b"/a//../b",
        b"/a//./../b",
        b"/a/..%2Fb",
        b"/a%2f..%2fb",
        b"/a%2F%2e%2e",
        b"/a%2F.",
        b"/a/..;/b",
        b"/a/.;x/b",
        b"/a/..%3b/b",
        b"/a/..%3Bx%2Fb",
        b"/a/;/../b",
        b"/a/%2f/../b",
        b"/a/b%2Fc/./../d",
        b"/a/;x=1/b",
        b"/a/%3b/b",
        b"/a/b%2F;x/c",
        b"/a/%c0%ae%c0%ae/b",
        b"/a/%c0%af../b",
        b"/a/%e0%80%af/b",
        b"/a/%ed%a0%80/b",
        b"/a/%E9",
        b"/%",
        b"/%2",
        b"/%zz",
        b"/a%00",
        b"/a\\b",
        b"/a%5cb",
        b"/a b",
        b"/a\tb",
        b"/a\r\nb",
        b"/\xc3\xbc",
    ],
)
def test_some_paths_have_no_normal_form(target: bytes) -> None:
    """Paths that servers resolve in different ways have no normal form."""
    assert normalise(target) is None


@given(TARGET)
def test_a_normal_form_is_its_own(target: bytes) -> None:
    """Normalising twice is the same as once."""
    path = normalise(target)
    if path is not None:
        assert normalise(path.encode()) == path


@given(TARGET)
def test_a_normal_form_has_nothing_to_resolve(target: bytes) -> None:
    """A normal form has no empty or dot segments, no needless escapes and no query."""
    path = normalise(target)
    if path is not None:
        assert path.startswith("/")
        assert "//" not in path
        assert not {".", ".."} & set(path.split("/"))
        assert not set("?#\\") & set(path)
        assert not re.search(r"%(2[DdEe]|[46][1-9A-Fa-f]|5[0-9AaFf]|7[0-9AaEe]|3[0-9])", path)
        assert not re.search(r"%[0-9A-F]?[a-f]", path)


@given(st.lists(SEGMENT, min_size=1, max_size=4), st.data())
def test_ways_of_writing_a_path_have_one_normal_form(segments: list[str], data: st.DataObject) -> None:
    """Escaped letters, repeated slashes and dot segments do not evade a rule."""
    plain = "/" + "/".join(segments)
    written = ""
    for segment in segments:
        written += "/" + data.draw(st.sampled_from(["", "/", "./", "x/../"]))
        for letter in segment:
            written += data.draw(st.sampled_from([letter, f"%{ord(letter):02x}"])) if letter != "*" else letter
    assert normalise(written.encode()) == normalise(plain.encode())
    assert Rule.parse(f"GET {written.replace('*', 'a')}").matches("GET", plain.replace("*", "a"))


@given(st.binary(max_size=20))
def test_no_target_makes_it_fail(target: bytes) -> None:
    """Any target is normalised without failing."""
    assert isinstance(normalise(target), str | None)
