"""Time is linear in what others send: each regular expression of the house and each reader, at its worst, in steps."""

import ast
import re
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import keyturn
import pytest
from keyturn.access.jwts import subject_pattern
from keyturn.config.yaml_document import _Loader
from keyturn.core import headers
from keyturn.core.credentials import parameter
from keyturn.core.policy import Rule
from keyturn.core.references import OwnReferences
from keyturn.web.overload import Bounds

from fuzz import listener, readers
from fuzz.attacks import SEARCHING, Attack, steps, worst
from fuzz.backtracking import TooManySteps
from fuzz.readers import READERS, Text
from fuzz.running import Target
from fuzz.steps import steps_of
from tests.depth import deep
from tests.process import request, serving, write

SIZES = deep((2**14, 2**16), brief=(2**12, 2**14))
"""Lengths of texts that are compared, in bytes."""
GROWTH = 4.5
"""Bound on the growth of steps when the text is four times as long: linear is 4."""
MOST = 2000
"""Steps for each character."""

_FUNCTIONS = SEARCHING | {"compile", "match", "fullmatch"}
_ROOT = Path(keyturn.__file__).parent

MADE: dict[tuple[str, str], tuple[str, list["re.Pattern[Any]"]]] = {
    ("keyturn.access.jwts", "subject_pattern"): (
        "fullmatch",
        [subject_pattern(text) for text in ("a:*", "a*b*c:*:*d*e", "*:*", "***")],
    ),
    ("keyturn.config.yaml_document", ""): (
        "match",
        [pattern for resolvers in _Loader.yaml_implicit_resolvers.values() for _, pattern in resolvers],
    ),
    ("keyturn.core.credentials", "parameter"): ("sub", [parameter(name) for name in ("apikey", "k", "a.b")]),
    ("keyturn.core.policy", "_compile"): (
        "fullmatch",
        [
            Rule.parse(f"GET {path}").pattern
            for path in ("/**", "/a/*/b", "/*a*b*c/*", "/**/a/**/b*c/*", "/a/**/b/**/*c*d*e/**", "/**/*/**/*a/*a")
        ],
    ),
    ("keyturn.core.references", "__init__"): ("sub", list(OwnReferences("https://a")._patterns.values())),
}
"""Functions that make patterns of something else: how these are asked, and samples; by module and function."""

HANDED_ON = {"keyturn.config.fields": "fullmatch", "keyturn.core.credentials": "split"}
"""Methods that functions call on patterns they are given (`_matching`, `_kept`), by module."""


class Use(NamedTuple):
    """A pattern, and how it is asked."""

    where: str
    pattern: "re.Pattern[Any]"
    searching: bool


@cache
def uses() -> list[Use]:
    """Every pattern of the package, by its source."""
    found: list[Use] = []
    for path in sorted(_ROOT.rglob("*.py")):
        name = ".".join(("keyturn", *path.relative_to(_ROOT).with_suffix("").parts)).removesuffix(".__init__")
        text = path.read_text()
        assert not re.search(r"^\s*from re import", text, re.MULTILINE), f"import re itself in {name}, to be found here"
        if re.search(r"^\s*import re\b", text, re.MULTILINE):
            found += _uses_of(name, ast.parse(text))
    return list(dict.fromkeys(found))


def _uses_of(module: str, tree: ast.Module) -> Iterator[Use]:
    names = {
        id(value): target.id
        for statement in tree.body
        if isinstance(statement, ast.Assign)
        for target, value in zip(_members(statement.targets[0]), _members(statement.value), strict=False)
        if isinstance(target, ast.Name)
    }
    for call, function in _calls(tree):
        where = f"{module}:{call.lineno}"
        asked = {call.func.attr} if isinstance(call.func, ast.Attribute) else set()
        if id(call) in names:
            name = names[id(call)]
            asked = _asked(tree, name) or {HANDED_ON[module]}
            patterns = [getattr(import_module(module), name)]
        elif asked == {"compile"}:
            assert (module, function) in MADE, f"list samples of the pattern made at {where} in MADE"
            method, patterns = MADE[module, function]
            asked = {method}
        else:
            patterns = [re.compile(ast.literal_eval(call.args[0]))]
        yield from (Use(where, pattern, bool(asked & SEARCHING)) for pattern in patterns)


def _members(of: ast.expr) -> list[ast.expr]:
    """Names and values assigned together in one statement."""
    return of.elts if isinstance(of, ast.Tuple) else [of]


def _calls(tree: ast.AST, function: str = "") -> Iterator[tuple[ast.Call, str]]:
    """Calls of `re`, and the function in which each stands."""
    for node in ast.iter_child_nodes(tree):
        inside = node.name if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else function
        if isinstance(node, ast.Call) and _is_of_re(node.func):
            yield node, inside
        yield from _calls(node, inside)


def _is_of_re(called: ast.expr) -> bool:
    if not isinstance(called, ast.Attribute) or called.attr not in _FUNCTIONS:
        return False
    return isinstance(called.value, ast.Name) and called.value.id == "re"


def _asked(tree: ast.Module, name: str) -> set[str]:
    """The methods of a pattern that a module calls."""
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == name
    }


def test_all_patterns_are_found() -> None:
    """As many as there are places where `re` is asked, in every part of the package that has any."""
    where = {use.where.partition(":")[0] for use in uses()}
    asking = {path for path in _ROOT.rglob("*.py") if re.search(r"^import re$", path.read_text(), re.MULTILINE)}
    assert len(where) == len(asking)
    assert {use.pattern for use in uses()} >= {of for _, made in MADE.values() for of in made}


@pytest.mark.parametrize("use", uses(), ids=lambda use: use.where)
def test_a_pattern_takes_linear_time(use: Use) -> None:
    """Four times the length of the worst text that is found takes four times the steps, and not too many a byte."""
    attack = worst(use.pattern, searching=use.searching)
    small, large = _steps(use.pattern, attack, SIZES, searching=use.searching)
    assert large <= GROWTH * small, (attack, small, large)


def _steps(pattern: "re.Pattern[Any]", attack: Attack, sizes: Sequence[int], *, searching: bool) -> list[int]:
    texts = [attack.text(size) for size in sizes]
    return [steps(pattern, text, searching=searching, budget=MOST * len(text)) for text in texts]


_OLD_QUOTED = rb'"(?:[^"\\]|\\.)*+"'


@pytest.mark.parametrize(
    ("pattern", "searching"),
    [
        (rb'(?:[^",]|' + _OLD_QUOTED + rb'|")+', True),
        (rb"\s*([a-z]+)\s*(?:=\s*(" + _OLD_QUOTED + rb"|[^\s;]*)\s*)?(?:;|\Z)", False),
        (rb"[ \t]*,[ \t]*", True),
        (rb"(https?)://([^/?]*)(.*)", False),
        (rb"(?<=[?&])([^=&#]*pass[^=&#]*=)[^&#]*", True),
        (rb"\$\$\{|\$\{(?P<body>[^}]*)\}|(?P<open>\$\{)", True),
        (rb"<Redis\(.*?host=([^,]*),port=(\d+).*?\)>\)>\)> - \w+:(\w+)", True),
        (rb"(?:a+)+b", False),
        (rb"(?:a|a)*b", False),
    ],
)
def test_what_is_not_linear_is_found(pattern: bytes, searching: bool) -> None:
    """Patterns that this house once had, and the classics: the worst of each is found, and too much."""
    made = re.compile(pattern)
    attack = worst(made, searching=searching)
    try:
        small, large = _steps(made, attack, (2**8, 2**10), searching=searching)
    except TooManySteps:
        return
    assert large > 2 * GROWTH * small, attack


_QUOTES = [Text(b'a="', b'\\"'), Text(b"", b'","'), Text(b"", b'"', b"a"), Text(b"", b'\\",')]
_NUMBERS = [Text(b"", b"1"), Text(b"", b"1;w=1,", b"1"), Text(b"", b" ", b"1"), Text(b'"', b'\\"'), Text(b"a=", b"(")]
WORST = {
    "Accept": [*_QUOTES, Text(b"a", b";"), Text(b"a;", b" ", b"q"), Text(b"", b"a/b;q=0,")],
    "Connection": [Text(b"", b"x,"), Text(b"", b" ,")],
    "Origin": [Text(b"http://", b"a."), Text(b"http://127", b".1"), Text(b"http://", b"a")],
    "Prefer": [*_QUOTES, Text(b"a=", b" ", b"x y"), Text(b"", b"a=b ,"), Text(b"", b" ")],
    "Priority": [
        Text(b"", b"a,", b"a"),
        Text(b"a=(", b" "),
        Text(b"a", b";a"),
        Text(b'a="', b"\\\\"),
        Text(b"a=", b"1"),
    ],
    "Via": [*_QUOTES, Text(b"1.1 ", b"a"), Text(b"1.1", b" ", b"("), Text(b"", b"1.1 keyturn,")],
    "X-Request-Id": [Text(b"", b"a")],
    "Accept of a scrape": [Text(b"", b"text/plain;a=b,"), Text(b"text/plain", b";a=b")],
    "trace": [Text(b"", b" "), Text(b"00-", b"0"), Text(b"", b"a=b,")],
    "credentials": [Text(b"", b"a&"), Text(b"", b"%61"), Text(b"apikey=", b"&apikey="), Text(b"", b" ")],
    "JSON Web Token": [Text(b"", b"."), Text(b"e30", b"a", b".e30.a")],
    "target": [Text(b"http://", b"a"), Text(b"http://a?", b"/?"), Text(b"[", b":")],
    "path": [Text(b"", b"a/"), Text(b"", b"a"), Text(b"", b"%2e/"), Text(b"a", b"/./.."), Text(b"a/b", b";a%2F")],
    "path in a log": [Text(b"bearer", b" "), Text(b"", b"authorization:"), Text(b"authorization=", b"a ")],
    "answer's names": [Text(b"", b"a")],
    "answer's Connection": [Text(b"", b"x,")],
    "answer's references": [Text(b"<//", b"a"), Text(b"", b"<//"), Text(b"https:", b"/"), Text(b"", b"anchor =")],
    "answer's limits": [Text(b"", b"1;w=1\n"), Text(b"", b'"a";q=1;w=1\n')],
    "answer's body": [Text(b"", b"api key "), Text(b"", b"missing "), Text(b"", b"retry at 1"), Text(b"", b"within ")],
    **dict.fromkeys(("RateLimit", "RateLimit-Policy", "X-RateLimit-Limit"), _NUMBERS),
    **dict.fromkeys(("X-RateLimit-Remaining", "X-RateLimit-Reset", "Retry-After", "Age"), _NUMBERS[:3]),
    "X-RateLimit-Remaining-Month": _NUMBERS[:3],
    "Cache-Status": [Text(b"", b";"), Text(b";", b" "), Text(b"", b";hit "), Text(b";hit", b" ", b"a")],
    "X-Cache": [Text(b"", b"hi")],
    "Date": [Text(b"", b"Mon, "), Text(b"", b"1:")],
}
"""The worst texts of each reader; `Text` repeats the middle of one."""


@pytest.mark.parametrize("name", READERS)
def test_a_reader_takes_linear_time(name: str) -> None:
    """Each of its worst texts takes four times the steps when it is four times as long."""
    for text in WORST[name]:
        small, large = (steps_of(READERS[name], text.of(size)) for size in SIZES)
        assert large <= GROWTH * small, (text, small, large)


def test_the_fuzzer_finds_a_reader_that_is_not_linear(monkeypatch: pytest.MonkeyPatch) -> None:
    """The list splitter that stopped the process for seconds, put back."""
    monkeypatch.setattr(headers, "_SEPARATOR", re.compile(rb'(?:[^",]|' + _OLD_QUOTED + rb'|")+'))
    monkeypatch.setattr(headers, "_members", lambda value: headers._SEPARATOR.findall(value))  # noqa: PLW0108  # it is replaced while steps are counted
    texts = readers.TEXTS.filter(lambda example: example[0] in ("Accept", "Prefer", "Via"))
    with pytest.raises(AssertionError, match="steps for"):
        Target("readers", (texts, readers.check), folder="").run(5000)


def hostile(length: int) -> bytes:
    """A request without a credential whose lists are one string of escapes that never ends."""
    quotes = Text(b'a="', b'\\"').of(length // 2).decode()
    return request("/me", f"Accept: {quotes}", f"Via: {quotes}", token=None)


def test_a_listener_reads_a_head_in_linear_time() -> None:
    """From its bytes to the answer 401; within these steps the loop does nothing else."""
    small, large = (steps_of(lambda data: listener.check([data], Bounds()), hostile(size)) for size in (15_000, 60_000))
    assert large <= GROWTH * small


async def test_who_is_not_known_is_told_so_whatever_it_accepts(tmp_path: Path) -> None:
    """60 kB of escapes, through the real process."""
    settings = {
        "listen": "127.0.0.1:0",
        "admin": "127.0.0.1:0",
        "pools": {"default": {"keys": [{"name": "k", "secret": "secret-of-the-pool"}]}},
        "clients": [{"name": "ci", "token": "token-of-the-client"}],
    }
    async with serving(write(tmp_path, settings)) as keyturn:
        reply = await keyturn.ask(hostile(60_000))
        assert (reply.status, reply.error) == (401, "AuthenticationError")
        assert (await keyturn.page("/healthz")).status == 200
