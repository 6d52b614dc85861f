"""Measure the size of Python packages: modules, lines, classes and the lengths of their functions.

    python -m bench.shape proxy/keyturn PATH/TO/httpcore PATH/TO/h11

Each argument is a package's folder; folders named `tests` in it are left out. Lines count docstrings, comments and
empty lines. A function counts from `def` to its last line, without decorators; methods and nested functions count too.
"""

import ast
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

LONG_FUNCTION = 40


@dataclass(frozen=True)
class Shape:
    """The size of one package; `lengths` holds the lines of each function, shortest first."""

    name: str
    modules: int
    lines: int
    classes: int
    lengths: Sequence[int]

    def row(self) -> str:
        """One row of the Markdown table."""
        lengths = self.lengths
        cells = (
            self.name,
            self.modules,
            self.lines,
            self.classes,
            len(lengths),
            f"{statistics.median(lengths):g}",
            lengths[int(0.95 * (len(lengths) - 1))],
            lengths[-1],
            sum(length > LONG_FUNCTION for length in lengths),
        )
        return "| " + " | ".join(map(str, cells)) + " |"


def measure(folder: Path) -> Shape:
    """Read every module of a package. A package without a function is an error of the caller."""
    lines, classes = 0, 0
    lengths: list[int] = []
    modules = [path for path in sorted(folder.rglob("*.py")) if "tests" not in path.relative_to(folder).parts]
    for module in modules:
        text = module.read_text(encoding="utf-8")
        lines += len(text.splitlines())
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef):
                classes += 1
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lengths.append((node.end_lineno or node.lineno) - node.lineno + 1)
    if not lengths:
        sys.exit(f"{folder} holds no Python function: name the folder of a package")
    return Shape(folder.resolve().name, len(modules), lines, classes, sorted(lengths))


def main() -> None:
    """Print a Markdown table with a row for each package."""
    if len(sys.argv) < 2:
        sys.exit("usage: python -m bench.shape FOLDER...")
    head = ("package", "modules", "lines", "classes", "functions", "median", "95 %", "longest", f"over {LONG_FUNCTION}")
    print("| " + " | ".join(head) + " |")
    print("|" + "---|" * len(head))
    for argument in sys.argv[1:]:
        print(measure(Path(argument)).row())


if __name__ == "__main__":
    main()
