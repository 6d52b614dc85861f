"""Texts that make a regular expression work hard: beginnings of what it matches, and parts of it again and again."""

import re
from collections.abc import Iterator
from heapq import nlargest
from itertools import islice, product
from re import _constants as codes  # type: ignore[attr-defined]  # private, and the only way to a pattern's parts
from re import _parser as parser  # type: ignore[attr-defined]  # as above
from typing import Any, AnyStr, NamedTuple

from fuzz.backtracking import Program, TooManySteps, letters_of, program

SEARCHING = frozenset({"search", "sub", "subn", "split", "findall", "finditer"})
"""Methods that start over after each character where nothing matches."""
_SHORT = 80
"""Length of the attacks that are tried; the worst one can then be made longer."""
_BUDGET = 200_000
_LONGEST_PART, _MOST_HEADS, _MOST_PUMPS, _MOST_LETTERS, _BEST = 40, 16, 200, 12, 20
_PREFERRED = "aA0\"',;:=. /\\-_?&[("


class Attack(NamedTuple):
    """A text of any length: `head`, then `pump` again and again, then `tail`."""

    head: str
    pump: str
    tail: str

    def text(self, length: int) -> str:
        """Return a text of so many characters."""
        times = max(1, (length - len(self.head) - len(self.tail)) // len(self.pump))
        return self.head + self.pump * times + self.tail


def steps(pattern: "re.Pattern[AnyStr]", text: str, *, searching: bool, budget: int) -> int:
    """Count the steps of searching for all matches in a text, or for one at its beginning that fails at its end.

    Raises:
        TooManySteps: more than the budget.
    """
    return _look_through(program(pattern, never_ends=not searching), text, budget, searching=searching)


def _look_through(made: Program, text: str, budget: int, *, searching: bool) -> int:
    letters = [ord(letter) for letter in text]
    made.steps, made.budget = 0, budget
    if not searching:
        made.run(letters, 0)
    position = 0
    while searching and position <= len(letters):
        end = made.run(letters, position)
        position = end if end is not None and end > position else position + 1
    return made.steps


def worst(pattern: "re.Pattern[AnyStr]", *, searching: bool) -> Attack:
    """Return the attack that takes most steps for its length."""
    tree = parser.parse(pattern.pattern, pattern.flags)
    made = program(pattern, never_ends=not searching)

    def density(attack: Attack) -> float:
        text = attack.text(_SHORT)
        try:
            return _look_through(made, text, _BUDGET, searching=searching) / len(text)
        except TooManySteps:
            return _BUDGET

    attacks = [Attack(*parts) for parts in product(_heads(tree, pattern.flags), _pumps(tree, pattern.flags), [""])]
    attacks = nlargest(_BEST, attacks, density)
    if searching:  # a match at the end would hide what all the beginnings before it cost
        attacks += [attack._replace(tail=tail) for attack in attacks for tail in _letters(tree, pattern.flags)]
    return max(attacks, key=density)


def _letters(tree: Any, flags: int) -> list[str]:
    """Return one character of each kind that the pattern tells apart."""
    sets = {letters for kind, of in _parts(tree) if (letters := letters_of(kind, of, flags)) is not None}
    order = [*map(ord, _PREFERRED), *range(256)]
    found: dict[tuple[bool, ...], int] = {}
    for code in order:
        found.setdefault(tuple(code in letters for letters in sets), code)
    kinds = sorted(found, key=sum, reverse=True)  # those that many sets name: they can be read in several ways
    return [chr(found[kind]) for kind in kinds[:_MOST_LETTERS]]


def _parts(tree: Any) -> Iterator[tuple[Any, Any]]:
    for kind, of in tree:
        yield kind, of
        for inner in _inside(kind, of):
            yield from _parts(inner)


def _inside(kind: Any, of: Any) -> list[Any]:
    if kind is codes.SUBPATTERN:
        return [of[3]]
    if kind is codes.BRANCH:
        return list(of[1])
    if kind in (codes.MAX_REPEAT, codes.MIN_REPEAT, codes.POSSESSIVE_REPEAT):
        return [of[2]]
    if kind in (codes.ASSERT, codes.ASSERT_NOT):
        return [of[1]]
    return [of] if kind is codes.ATOMIC_GROUP else []


def _sample(tree: Any, flags: int) -> str:
    """Return a short text that a part of a pattern matches, with each repeated part at least once."""
    text = ""
    for kind, of in tree:
        letters = letters_of(kind, of, flags)
        if letters is not None:
            text += next((letter for letter in _PREFERRED if ord(letter) in letters), chr(min(letters, default=0)))
        elif kind is codes.BRANCH:
            text += _sample(of[1][0], flags)
        elif kind in (codes.MAX_REPEAT, codes.MIN_REPEAT, codes.POSSESSIVE_REPEAT):
            text += _sample(of[2], flags) * max(1, min(of[0], _LONGEST_PART))
        elif kind not in (codes.ASSERT, codes.ASSERT_NOT):
            text += "".join(_sample(inner, flags) for inner in _inside(kind, of))
    return text


def _heads(tree: Any, flags: int) -> list[str]:
    """Prefixes of each part, with and without its optional pieces."""
    found = dict.fromkeys(["", *_before(tree, flags, "")])
    return list(islice(found, _MOST_HEADS))


def _before(tree: Any, flags: int, head: str) -> Iterator[str]:
    for part in tree:
        yield head
        for inner in _inside(*part):
            yield from _before(inner, flags, head)
        head += _sample([part], flags)


def _pumps(tree: Any, flags: int) -> list[str]:
    """Characters, parts of the pattern and rows of them, and pairs of characters."""
    letters = _letters(tree, flags)
    found = dict.fromkeys(letters)
    for sequence in _sequences(tree):
        for begin in range(len(sequence)):
            for end in range(begin + 1, len(sequence) + 1):
                text = _sample(sequence[begin:end], flags)
                if 0 < len(text) <= _LONGEST_PART:
                    found[text] = None
    pairs = map("".join, product(letters, repeat=2))
    return list(islice(dict.fromkeys([*letters, *islice(found, _MOST_PUMPS // 2), *pairs]), _MOST_PUMPS))


def _sequences(tree: Any) -> Iterator[Any]:
    yield tree
    for kind, of in tree:
        for inner in _inside(kind, of):
            yield from _sequences(inner)
