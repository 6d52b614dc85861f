"""The rules of the house that no linter knows."""

import ast
import graphlib
import json
import re
import sys
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from keyturn import __version__

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "proxy" / "keyturn"
MODULES = sorted(PACKAGE.rglob("*.py"))
LUA = sorted((PACKAGE / "stores" / "lua").glob("*.lua"))
REQUIREMENTS = sorted((ROOT / "requirements").glob("*.txt"))

LONGEST_MODULE = 400
LONGEST_FUNCTION = 60
LONGEST_README = 150

UNTESTED = {
    "__main__.py": "one call of cli.main, which tests/test_cli.py runs",
    "core/events.py": "value objects and a protocol, without a line that decides",
    "core/levels.py": "value objects without a line that decides",
    "core/http.py": "protocols and two frozen records; whoever implements them is tested",
}
"""Modules that need no test file of their own, each with its reason. An `__init__.py` only says what is inside."""

IMPORTED_AS = {"prometheus-client": "prometheus_client", "pyjwt": "jwt", "pyyaml": "yaml"}
"""Distributions whose module has another name."""


def relative(path: Path) -> str:
    """The name of a module as a test shows it."""
    return path.relative_to(PACKAGE).as_posix()


def expected_tests(module: Path) -> Path:
    """Where the tests of a module are expected: proxy/keyturn/a/b.py -> tests/a/test_b.py."""
    inside = module.relative_to(PACKAGE)
    return ROOT / "tests" / inside.parent / f"test_{inside.name}"


def pyproject() -> dict[str, Any]:
    """The project's own description."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@cache
def tree(module: Path) -> ast.Module:
    """The syntax tree of a module."""
    return ast.parse(module.read_text(encoding="utf-8"))


def functions(module: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function and method of a module, nested ones too."""
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def distribution(requirement: str) -> str:
    """The normalised name (PEP 503) at the head of a requirement."""
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found, requirement
    return re.sub(r"[-_.]+", "-", found[0]).lower()


def blocks(file: Path) -> dict[str, str]:
    """A requirement file's entries: name and pinned version, with all that stands with it."""
    text = file.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]
    return {distribution(line): line for line in lines}


OPTIONAL = {"opentelemetry": "telemetry/traces.py", "requests": "telemetry/traces.py"}
"""Packages of an extra, and the only module that may import each: everything else works without the extra."""


def imports(modules: Iterable[Path] = MODULES) -> set[str]:
    """Top-level names of all modules that the package imports."""
    found = set()
    for module in modules:
        for node in ast.walk(tree(module)):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize("module", [path for path in MODULES if path.name != "__init__.py"], ids=relative)
def test_every_module_has_a_test_file_of_its_own(module: Path) -> None:
    """A module's tests stand where its name says, or the module is exempt for a written reason."""
    expected = expected_tests(module)
    assert expected.exists() != (relative(module) in UNTESTED), expected


def test_exemptions_are_of_modules_that_exist() -> None:
    """An exemption goes when its module goes."""
    assert set(UNTESTED) <= {relative(module) for module in MODULES}


@pytest.mark.parametrize("module", MODULES, ids=relative)
def test_modules_stay_short(module: Path) -> None:
    """A module that outgrows this has begun to do a second thing."""
    assert len(module.read_text(encoding="utf-8").splitlines()) <= LONGEST_MODULE


@pytest.mark.parametrize("module", MODULES, ids=relative)
def test_functions_stay_short(module: Path) -> None:
    """A function is read at a glance; its lines count from `def` to its last one."""
    lengths = {function.name: (function.end_lineno or 0) - function.lineno + 1 for function in functions(module)}
    assert {name: lines for name, lines in lengths.items() if lines > LONGEST_FUNCTION} == {}


@pytest.mark.parametrize("module", MODULES, ids=relative)
def test_docstrings_begin_with_their_subject(module: Path) -> None:
    """A stranger understands a docstring alone: none begins with a word that hangs on the line above it."""
    text = module.read_text(encoding="utf-8")
    assert re.findall(r'^ *"""(?:Who|Whoever|Whose|What|Which|Of) .*', text, re.MULTILINE) == []


def test_the_readme_stays_short() -> None:
    """The README is read in one sitting; the rest is in docs/."""
    readme = ROOT / "README.md"
    assert not readme.exists() or len(readme.read_text(encoding="utf-8").splitlines()) < LONGEST_README


# Names


def words(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


VAGUE = words("""
    ABOUT AFTER AGAIN AHEAD ALL ALONE ALWAYS AND ANY APART AROUND AT AWAY BACK BEFORE BESIDE BEST BEYOND BIG BOTH
    BOUND BY CLOSE COME EACH EARLY ENOUGH EVERY FAR FARTHEST FAST FASTEST FEW FEWER FEWEST FIRST FLOOR FOR FRESH FROM
    GIVE GO GRACE HALF HIGHEST IN INTO IS IT ITS KEEP KEPT KNOCK LARGE LARGEST LAST LATE LATER LEAST LESS LONG LONGER
    LONGEST LOOK LOOKS LOST LOWEST MANY MAX MIN MORE MOST NEVER NEXT NO NOT NOTHING NOW OF OFF ON ONCE ONE OR OUT OVER
    OWN PART PATIENCE PIECE PLENTY QUICK QUIET ROUND ROUNDS SECONDS SELDOM SHARE SHORT SHORTEST SLOW SLOWEST SMALL
    SMALLEST SOME SOON SPARE STALE STEP STEPS TAKE TELL THAN TIMES TO TOGETHER TOO UNTIL WAIT WHAT WHEN WHOLE WIDE
    WITH WITHIN
""")
"""Words that say how much, how long or when, but not of what. A constant has another word besides, its subject."""


def twice(names: Iterable[str]) -> set[str]:
    """The names that stand there more than once."""
    return {name for name, number in Counter(names).items() if number > 1}


def test_no_class_name_stands_twice() -> None:
    """A name means one thing in the whole package."""
    classes = [node.name for module in MODULES for node in ast.walk(tree(module)) if isinstance(node, ast.ClassDef)]
    assert twice(classes) == set()


def test_no_module_name_stands_twice() -> None:
    """A module is found, and spoken of, by its basename."""
    assert twice(path.stem for path in MODULES if path.name != "__init__.py") == set()


def constants(body: Iterable[ast.stmt]) -> Iterator[str]:
    """The names in capitals that a module or its classes assign, but for type variables of one letter."""
    for node in body:
        match node:
            case ast.Assign(targets=targets):
                names = [name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]
            case ast.AnnAssign(target=ast.Name(id=name)):
                names = [name]
            case ast.ClassDef(body=inner) | ast.If(body=inner):
                yield from constants(inner)
                continue
            case _:
                continue
        yield from (name for name in names if name.isupper() and len(name) > 1)


@pytest.mark.parametrize("module", MODULES, ids=relative)
def test_constants_have_a_subject(module: Path) -> None:
    """`MAX_CAUSES`, not `MOST`: at least one word of a constant's name says what it is about."""
    names = constants(tree(module).body)
    vague = {name for name in names if set(name.strip("_").split("_")) <= VAGUE}
    assert vague == set()


def test_no_import_goes_in_a_circle() -> None:
    """Neither at the start of a module nor inside its functions."""
    modules = {".".join(("keyturn", *path.relative_to(PACKAGE).with_suffix("").parts)): path for path in MODULES}
    modules = {name.removesuffix(".__init__"): path for name, path in modules.items()}
    graph: dict[str, set[str]] = {}
    for module, path in modules.items():
        named = set()
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Import):
                named |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                inside = {f"{node.module}.{alias.name}" for alias in node.names}
                named |= {name if name in modules else node.module for name in inside}
        graph[module] = named & set(modules) - {module}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"a circle: {' <- '.join(error.args[1])}")


# Lua


@pytest.mark.parametrize("file", LUA, ids=lambda file: file.name)
def test_lua_stays_short(file: Path) -> None:
    """The bounds of modules and functions hold for the scripts, too; luacheck does the rest in `make check`."""
    lines = file.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= LONGEST_MODULE
    begin = 0
    for number, line in enumerate(lines):
        if re.match(r"(local )?function ", line):
            begin = number
        assert line != "end" or number - begin < LONGEST_FUNCTION, lines[begin]


# Requirements


@pytest.mark.parametrize("file", REQUIREMENTS, ids=lambda file: file.name)
def test_requirements_are_pinned_with_hashes(file: Path) -> None:
    """Every entry names one version and the SHA-256 of its files."""
    pinned = re.compile(r"[a-z0-9-]+==\S+( ; .+?)?(\s+--hash=sha256:[0-9a-f]{64})+\s*")
    entries = blocks(file)
    assert entries
    assert [entry for entry in entries.values() if not pinned.fullmatch(entry)] == []


@pytest.mark.parametrize("file", REQUIREMENTS, ids=lambda file: file.name)
def test_requirements_name_no_host(file: Path) -> None:
    """Where packages come from is the business of the machine that installs them."""
    assert re.search(r"://|--[a-z-]*(index-url|find-links)|\bfile:", file.read_text(encoding="utf-8")) is None


def test_node_packages_are_pinned_and_name_no_host() -> None:
    """The lock file of the end-to-end run's clients holds hashes, and no address to fetch from."""
    lock = json.loads((ROOT / "e2e" / "package-lock.json").read_text(encoding="utf-8"))
    packages = [package for path, package in lock["packages"].items() if path]
    assert packages
    assert [package for package in packages if "integrity" not in package or "resolved" in package] == []


def test_requirement_files_agree() -> None:
    """A package has the same version at run time, in development and when the project is built."""
    versions: dict[str, set[str]] = {}
    for file in REQUIREMENTS:
        for name, entry in blocks(file).items():
            versions.setdefault(name, set()).add(entry.split()[0])
    assert {name: found for name, found in versions.items() if len(found) > 1} == {}


def test_requirement_files_follow_the_project() -> None:
    """Requirements of pyproject.toml are in the compiled files: run `make lock` after a change."""
    project = pyproject()
    groups = {
        "runtime.txt": project["project"]["dependencies"],
        "image.txt": [
            *project["project"]["dependencies"],
            *(name for names in project["project"]["optional-dependencies"].values() for name in names),
        ],
        "dev.txt": project["project"]["dependencies"] + project["dependency-groups"]["dev"],
        "build.txt": project["dependency-groups"]["build"],
        "chart.txt": project["dependency-groups"]["chart"],
        "browser.txt": project["dependency-groups"]["browser"],
        "lock.txt": project["dependency-groups"]["lock"],
        "audit.txt": project["dependency-groups"]["audit"],
    }
    for file, asked in groups.items():
        names = {distribution(entry) for entry in asked if isinstance(entry, str)}
        assert names <= set(blocks(ROOT / "requirements" / file)), file


def test_runtime_dependencies_are_imported() -> None:
    """A dependency that no module imports is only a risk."""
    project = pyproject()
    names = {distribution(entry) for entry in project["project"]["dependencies"]}
    modules = {name: IMPORTED_AS.get(name, name.replace("-", "_")) for name in names}
    imported = imports()
    assert {name for name, module in modules.items() if module not in imported} == set()


def test_imports_are_installed() -> None:
    """Imported modules are pinned for run time or part of Python, so they exist without the development tools."""
    names = blocks(ROOT / "requirements" / "runtime.txt")
    installed = {IMPORTED_AS.get(name, name.replace("-", "_")) for name in names}
    assert imports() - installed - sys.stdlib_module_names - set(OPTIONAL) == {"keyturn"}


@pytest.mark.parametrize("name", OPTIONAL)
def test_what_an_extra_brings_is_imported_in_one_place(name: str) -> None:
    """No other module imports that one at its top level, only inside the functions that need it."""
    assert [relative(module) for module in MODULES if name in imports([module])] == [OPTIONAL[name]]
    dotted = f"keyturn.{OPTIONAL[name].removesuffix('.py').replace('/', '.')}"
    for module in MODULES:
        at_start = tree(module).body
        assert dotted not in {node.module for node in at_start if isinstance(node, ast.ImportFrom)}


def test_versions_agree() -> None:
    """The project, the package and the image carry the same version, and the changelog tells what is in it."""
    version = pyproject()["project"]["version"]
    assert __version__ == version
    assert f"ARG VERSION={version}\n" in (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_project_is_built_with_what_is_pinned() -> None:
    """The build backend of an isolated build and of ours are the same."""
    project = pyproject()
    assert project["build-system"]["requires"] == project["dependency-groups"]["build"]
