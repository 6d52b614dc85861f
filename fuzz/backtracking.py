"""A backtracking matcher that counts the steps of a regular expression, instead of timing it.

It does what `re` does, without `re`'s shortcuts: each test of a character, each assertion and each return to a choice
is a step. Characters beyond Latin-1 are taken for one that no set names.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from re import _constants as codes  # type: ignore[attr-defined]  # private, and the only way to a pattern's parts
from re import _parser as parser  # type: ignore[attr-defined]  # as above
from typing import Any, AnyStr

_LETTERS = 256
_LINE_FEED = ord("\n")
_WORD = frozenset(code for code in range(_LETTERS) if re.match(r"\w", chr(code), re.ASCII))


class TooManySteps(Exception):
    """Matching took more steps than its budget."""


@dataclass(frozen=True, slots=True)
class _Instruction:
    """`char`, `split`, `jump`, `at`, `atomic`, `look` or `end`; where it leads besides the next one."""

    kind: str
    letters: frozenset[int] = frozenset()
    to: int = 0
    test: Callable[[Sequence[int], int], bool] | None = None
    inner: "Program | None" = None
    wanted: bool = True

    def passes(self, text: Sequence[int], position: int, counter: "Program") -> int | None:
        """Return the position after the instruction, `None` when it fails."""
        if self.kind == "char":
            return position + 1 if position < len(text) and text[position] in self.letters else None
        if self.test is not None:
            return position if self.test(text, position) else None
        assert self.inner is not None
        end = self.inner.run(text, position - self.to, counter) if position >= self.to else None
        if (end is not None) != self.wanted:
            return None
        return end if self.kind == "atomic" else position


@dataclass(slots=True)
class Program:
    """A pattern whose steps can be counted; `never_ends` makes every match fail at its end, so that all is tried."""

    code: list[_Instruction] = field(default_factory=list)
    steps: int = 0
    budget: int = 0
    never_ends: bool = False

    def run(
        self, text: Sequence[int], start: int, counter: "Program | None" = None, *, whole: bool = False
    ) -> int | None:
        """Return the end of a match that begins at `start`, or `None`; `counter` counts the steps, or else the program.

        Raises:
            TooManySteps: it took more than the budget.
        """
        counter = counter or self
        choices = [(0, start)]
        while choices:
            here, position = choices.pop()
            while True:
                counter.steps += 1
                if counter.steps > counter.budget:
                    raise TooManySteps
                one = self.code[here]
                if one.kind == "end":
                    if self.never_ends or (whole and position != len(text)):
                        break
                    return position
                if one.kind == "split":
                    choices.append((one.to, position))
                elif one.kind != "jump":
                    after = one.passes(text, position, counter)
                    if after is None:
                        break
                    position = after
                here = one.to if one.kind == "jump" else here + 1
        return None


def program(pattern: "re.Pattern[AnyStr]", *, never_ends: bool = False) -> Program:
    """Compile a pattern.

    Raises:
        NotImplementedError: it has a part whose steps cannot be counted here.
    """
    made = _Compiler(pattern.flags).program(parser.parse(pattern.pattern, pattern.flags))
    made.never_ends = never_ends
    return made


@dataclass(slots=True)
class _Compiler:
    flags: int

    def program(self, tree: Any) -> Program:
        made = Program()
        self.sequence(made.code, tree)
        made.code.append(_Instruction("end"))
        return made

    def sequence(self, code: list[_Instruction], tree: Any) -> None:
        for kind, of in tree:
            letters = letters_of(kind, of, self.flags)
            if letters is not None:
                code.append(_Instruction("char", letters))
            else:
                self._part(code, kind, of)

    def _part(self, code: list[_Instruction], kind: Any, of: Any) -> None:
        if kind is codes.SUBPATTERN:
            self.sequence(code, of[3])
        elif kind is codes.BRANCH:
            self._branches(code, of[1])
        elif kind in (codes.MAX_REPEAT, codes.MIN_REPEAT):
            self._repeat(code, *of, lazily=kind is codes.MIN_REPEAT)
        elif kind is codes.POSSESSIVE_REPEAT:
            inner = Program()
            self._repeat(inner.code, *of, lazily=False)
            inner.code.append(_Instruction("end"))
            code.append(_Instruction("atomic", inner=inner))
        elif kind is codes.ATOMIC_GROUP:
            code.append(_Instruction("atomic", inner=self.program(of)))
        elif kind in (codes.ASSERT, codes.ASSERT_NOT):
            direction, tree = of
            back = tree.getwidth()[0] if direction < 0 else 0
            code.append(_Instruction("look", to=back, inner=self.program(tree), wanted=kind is codes.ASSERT))
        elif kind is codes.AT and of in _PLACES:
            code.append(_Instruction("at", test=_PLACES[of]))
        else:
            raise NotImplementedError(f"steps of {kind} {of} cannot be counted")

    def _branches(self, code: list[_Instruction], branches: list[Any]) -> None:
        ends = []
        for index, branch in enumerate(branches):
            last = index == len(branches) - 1
            choice = len(code)
            if not last:
                code.append(_Instruction("split"))
            self.sequence(code, branch)
            if not last:
                ends.append(len(code))
                code.append(_Instruction("jump"))
                code[choice] = _Instruction("split", to=len(code))
        for end in ends:
            code[end] = _Instruction("jump", to=len(code))

    def _repeat(self, code: list[_Instruction], least: int, most: Any, tree: Any, *, lazily: bool) -> None:
        if most is codes.MAXREPEAT and tree.getwidth()[0] == 0:
            raise NotImplementedError("a part that is repeated without end may be empty: its steps cannot be counted")
        for _ in range(least):
            self.sequence(code, tree)
        if most is codes.MAXREPEAT:
            begin = len(code)
            self._choice(code, tree, lazily=lazily, again=begin)
            return
        open_ends = [self._choice(code, tree, lazily=lazily) for _ in range(most - least)]
        for place in open_ends:
            code[place] = _Instruction(code[place].kind, to=len(code))

    def _choice(self, code: list[_Instruction], tree: Any, *, lazily: bool, again: int | None = None) -> int:
        """Compile one more repetition or none; return the instruction that leaves."""
        choice = len(code)
        code.append(_Instruction("split"))
        leaves = choice
        if lazily:  # the first thing that is tried is to leave
            leaves = len(code)
            code.append(_Instruction("jump"))
            code[choice] = _Instruction("split", to=len(code))
        self.sequence(code, tree)
        if again is not None:
            code.append(_Instruction("jump", to=again))
        code[leaves] = _Instruction(code[leaves].kind, to=len(code))
        return leaves


def letters_of(kind: Any, of: Any, flags: int) -> frozenset[int] | None:
    """Return the characters that a part stands for, `None` when it is no single one."""
    if kind is codes.LITERAL:
        found = {of}
    elif kind is codes.NOT_LITERAL:
        return frozenset(range(_LETTERS)) - _folded({of}, flags)
    elif kind is codes.ANY:
        return frozenset(range(_LETTERS)) - (set() if flags & re.DOTALL else {_LINE_FEED})
    elif kind is codes.IN:
        return _set(of, flags)
    else:
        return None
    return _folded(found, flags)


def _set(parts: Any, flags: int) -> frozenset[int]:
    found: set[int] = set()
    for kind, of in parts:
        if kind is codes.LITERAL:
            found.add(of)
        elif kind is codes.RANGE:
            found.update(range(of[0], min(of[1] + 1, _LETTERS)))
        elif kind is codes.CATEGORY:
            found |= _CATEGORIES[of]
    letters = _folded(found, flags)
    return frozenset(range(_LETTERS)) - letters if parts[0][0] is codes.NEGATE else letters


def _folded(found: set[int], flags: int) -> frozenset[int]:
    if not flags & re.IGNORECASE:
        return frozenset(found)
    cases = {other for code in found for other in (chr(code).lower(), chr(code).upper())}
    return frozenset(ord(other) for other in cases if len(other) == 1)


def _category(pattern: str) -> frozenset[int]:
    return frozenset(code for code in range(_LETTERS) if re.match(pattern, chr(code), re.ASCII))


_CATEGORIES = {
    codes.CATEGORY_DIGIT: _category(r"\d"),
    codes.CATEGORY_NOT_DIGIT: _category(r"\D"),
    codes.CATEGORY_SPACE: _category(r"\s"),
    codes.CATEGORY_NOT_SPACE: _category(r"\S"),
    codes.CATEGORY_WORD: _category(r"\w"),
    codes.CATEGORY_NOT_WORD: _category(r"\W"),
}


def _is_boundary(text: Sequence[int], position: int) -> bool:
    before = position > 0 and text[position - 1] in _WORD
    return before != (position < len(text) and text[position] in _WORD)


def _ends_a_line(text: Sequence[int]) -> bool:
    return bool(text) and text[-1] == _LINE_FEED


_PLACES: dict[Any, Callable[[Sequence[int], int], bool]] = {
    codes.AT_BEGINNING: lambda _, position: position == 0,
    codes.AT_BEGINNING_STRING: lambda _, position: position == 0,
    codes.AT_END: lambda text, position: (
        position == len(text) or (position == len(text) - 1 and text[position] == _LINE_FEED)
    ),
    codes.AT_END_STRING: lambda text, position: position == len(text),
    codes.AT_BOUNDARY: _is_boundary,
    codes.AT_NON_BOUNDARY: lambda text, position: not _is_boundary(text, position),
}
