"""The table of the vectors in docs/security.md: `python -m tests.vectors.document` writes it, a test compares."""

from collections.abc import Iterator
from pathlib import Path

from tests.vectors import backs, bodies, heads, hops
from tests.vectors.table import Section

SECTIONS = [*heads.SECTIONS, *bodies.SECTIONS, *hops.SECTIONS, *backs.SECTIONS]
FILE = Path(__file__).parent.parent.parent / "docs" / "security.md"
BEGIN, END = "<!-- table of vectors: python -m tests.vectors.document -->\n", "<!-- end of the table -->\n"


def written(text: str) -> str:
    """Return the document with the current table."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + "\n".join(_lines()) + "\n" + END + after


def _lines() -> Iterator[str]:
    yield "| input | outcome | source | variants |"
    yield "|---|---|---|---|"
    for section in SECTIONS:
        yield f"| **{section.title}** | | | |"
        yield from _rows(section)


def _rows(section: Section) -> Iterator[str]:
    for case in section.cases:
        yield f"| {case.what} | {case.must} | {case.source} | {len(case.vectors)} |"


if __name__ == "__main__":
    FILE.write_text(written(FILE.read_text(encoding="utf-8")), encoding="utf-8")
