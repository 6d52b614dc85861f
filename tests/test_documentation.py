"""The pages in Markdown: their links, the files that they name, and the laws that the code cites."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted({*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("bench/*.md"), *ROOT.glob("helm/**/*.md")})
SOURCES = sorted(
    path
    for folder in ("proxy", "tests", "bench", "e2e", "fuzz")
    for pattern in ("*.py", "*.lua")
    for path in (ROOT / folder).rglob(pattern)
)
LAWS = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").partition("\n## The laws\n")[2]
LAW_NUMBERS = {int(number) for number in re.findall(r"^(\d+)\. \*\*", LAWS.partition("\n## ")[0], re.MULTILINE)}
ROOMS = "core|stores|scheduler|gateway|upstream|web|access|telemetry|config|app|bodies"
MODULE_NAME = re.compile(rf"`((?:{ROOMS})/[\w/.]*)`")
FILE_NAME = re.compile(r"`((?:proxy|tests|bench|e2e|fuzz|docs|helm|deploy|requirements)/[\w/.-]*)`")


def relative(path: Path) -> str:
    """The name of a file as a test shows it."""
    return path.relative_to(ROOT).as_posix()


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as forges make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    plain = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("`", "") for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in plain}


def test_there_are_eleven_laws() -> None:
    """The laws are numbered from 1 to 11 in docs/architecture.md."""
    assert set(range(1, 12)) == LAW_NUMBERS


def test_every_law_that_is_cited_exists() -> None:
    """Each "law N" in code, tests and pages is one of docs/architecture.md."""
    cited = {
        (relative(path), int(number))
        for path in (*SOURCES, *PAGES)
        for numbers in re.findall(r"\blaws? (\d+(?:(?:,| and|, and| to) \d+)*)", path.read_text(encoding="utf-8"))
        for number in re.findall(r"\d+", numbers)
    }
    assert {number for _, number in cited} == LAW_NUMBERS, "cite each law somewhere"
    assert {(name, number) for name, number in cited if number not in LAW_NUMBERS} == set()


def test_the_floors_are_those_of_the_import_contract() -> None:
    """The table of floors in docs/architecture.md names the layers of pyproject.toml in their order."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`[^|]*`) \|", text.partition("\n## The floors\n")[2].partition("\n## ")[0], re.MULTILINE)
    named = [{name.strip("/") for name in re.findall(r"`([^`]+)`", row)} for row in rows]
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    assert named == [set(layer.split(" | ")) for layer in layers if layer != "__main__"]


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_links_lead_somewhere(page: Path) -> None:
    """Each relative link names a file that exists and a heading that is in it."""
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in target or target.startswith("mailto:"):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=relative)
def test_files_that_a_page_names_exist(page: Path) -> None:
    """A module or folder that a page names in code marks is there; modules stand without `proxy/keyturn/`."""
    text = page.read_text(encoding="utf-8")
    named = [ROOT / name for name in FILE_NAME.findall(text)]
    named += [ROOT / "proxy" / "keyturn" / name for name in MODULE_NAME.findall(text)]
    assert [relative(path) for path in named if not path.exists()] == []
