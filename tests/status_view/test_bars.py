from io import StringIO

import pytest
from keyturn.status_view.bars import Bar
from rich.console import Console
from rich.table import Table


@pytest.mark.parametrize(
    ("available", "in_use", "size", "drawn"),
    [
        (60, 0, 60, "#" * 30),
        (0, 0, 60, "." * 30),
        (1, 1, 60, "#*" + "." * 28),
        (59, 1, 60, "#" * 29 + "*"),
        (2, 1, 5, "##*.."),
        (0, 0, 0, ""),
    ],
)
def test_a_bar_shows_the_least_token_and_is_full_only_when_all_are_there(
    available: int, in_use: int, size: int, drawn: str
) -> None:
    """Told apart by signs, not by colours only."""
    assert Bar({"available": available, "in_use": in_use, "size": size}).drawn(80).plain == drawn


@pytest.mark.parametrize(("width", "drawn"), [(80, 30), (20, 16), (12, 8)])
def test_a_bar_is_as_wide_as_its_column(width: int, drawn: int) -> None:
    """On one line, however little room there is."""
    table = Table.grid(padding=0)
    table.add_column(no_wrap=True)
    table.add_row("four", Bar({"available": 60, "in_use": 0, "size": 60}))
    out = StringIO()
    Console(file=out, width=width, color_system=None).print(table)
    assert out.getvalue().split() == ["four" + "#" * drawn]
