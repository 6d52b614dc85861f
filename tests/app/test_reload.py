import asyncio
import os
import resource
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from keyturn.app import reload
from keyturn.app.reload import RETRY_POLLS, Contents, FileWatch, Reloader
from keyturn.config.files import MISSING_FILE, content_of, digest
from keyturn.core.errors import ConfigError, Problem, StartError
from keyturn.core.events import Event, Reloaded
from structlog.testing import capture_logs

from tests.schedulers import Recorder


@dataclass(frozen=True)
class Made:
    """A configuration of one file that holds the names of others."""

    text: str
    contents: Contents


@dataclass
class Office:
    """A reloader that the test turns by hand."""

    file: Path
    taken: list[str] = field(default_factory=list)
    recorder: Recorder = field(default_factory=Recorder)
    readings: int = 0
    while_reading: Callable[[], object] = lambda: None
    refused: str = ""
    """The error with which applying it fails."""

    def __post_init__(self) -> None:
        self.reloader = Reloader(self.read(), self.read, self._adopt, self.recorder)

    def read(self) -> Made:
        self.readings += 1
        text = self.file.read_text()
        contents = {self.file: content_of(self.file)}
        self.while_reading()
        for name in text.split()[1:]:
            path = self.file.parent / name
            if not path.exists():
                raise ConfigError((Problem("name", f"{name} is not there"),))
            contents[path] = content_of(path)
        if "bad" in text:
            raise ConfigError((Problem("a", "is bad"), Problem("b", "too")))
        return Made(text, contents)

    async def _adopt(self, made: Made) -> None:
        if self.refused:
            raise ConfigError((Problem("listen", self.refused),))
        self.taken.append(made.text)

    async def turn(self, times: int = 1, *, asked: bool = False) -> None:
        for _ in range(times):
            if asked:
                self.reloader.request()
            await self.reloader._step()

    def told(self) -> list[Event]:
        told, self.recorder.events[:] = list(self.recorder.events), []
        return told


@pytest.fixture
def office(tmp_path: Path) -> Office:
    """With a configuration that is taken."""
    (tmp_path / "file").write_text("one")
    return Office(tmp_path / "file")


REFUSED = Reloaded(ok=False, reasons=("a: is bad", "b: too"))


async def test_nothing_happens_while_nothing_changes(office: Office) -> None:
    """Nothing is read, nothing is told."""
    await office.turn(20)
    assert (office.readings, office.taken, office.told()) == (1, [], [])


async def test_a_change_is_taken_when_it_stands_still(office: Office) -> None:
    """Two looks in a row have to find the same."""
    office.file.write_text("tw")
    await office.turn()
    office.file.write_text("two")
    await office.turn()
    assert office.taken == []
    await office.turn()
    assert (office.taken, office.told()) == (["two"], [Reloaded(ok=True)])
    await office.turn(20)
    assert (office.readings, office.told()) == (2, [])


async def test_a_change_that_is_taken_back_is_none(office: Office) -> None:
    """Before anybody looked twice."""
    office.file.write_text("two")
    await office.turn()
    office.file.write_text("one")
    await office.turn(3)
    assert (office.readings, office.told()) == (1, [])


async def test_who_asks_is_heard_at_once(office: Office) -> None:
    """Whether anything has changed or not."""
    await office.turn(asked=True)
    office.file.write_text("two")
    await office.turn(asked=True)
    assert office.taken == ["one", "two"]
    assert office.told() == [Reloaded(ok=True)] * 2


async def test_what_is_refused_is_told_once(office: Office) -> None:
    """With every problem and its path; it is told anew when the file has changed, or somebody asks."""
    office.file.write_text("bad")
    await office.turn(2)
    assert office.told() == [REFUSED]
    await office.turn(3 * RETRY_POLLS)
    assert office.told() == []
    office.file.write_text("bad again")
    (office.file.parent / "again").touch()
    await office.turn(2)
    assert office.told() == [REFUSED]
    await office.turn(asked=True)
    assert office.told() == [REFUSED]
    assert office.taken == []


async def test_what_is_mended_is_taken(office: Office) -> None:
    """Also when it is what was in use all the time."""
    office.file.write_text("bad")
    await office.turn(2)
    office.file.write_text("one")
    await office.turn(2)
    assert office.told() == [REFUSED, Reloaded(ok=True)]


async def test_files_that_it_names_may_come_later(office: Office) -> None:
    """A refused configuration is tried again, though nothing that is looked at has changed."""
    office.file.write_text("two more")
    await office.turn(2)
    assert [event.ok for event in office.told() if isinstance(event, Reloaded)] == [False]
    (office.file.parent / "more").write_text("x")
    await office.turn(RETRY_POLLS)
    assert office.taken == ["two more"]
    (office.file.parent / "more").write_text("y")
    await office.turn(2)
    assert office.taken == ["two more"] * 2, "what it names is looked at from now on"


async def test_what_changes_while_it_is_read_is_read_again(office: Office) -> None:
    """A configuration in use is one that stood in all files at one time."""
    (office.file.parent / "more").write_text("1")
    office.file.write_text("two more")
    changes = iter("23")

    def change() -> None:
        if text := next(changes, ""):
            (office.file.parent / "more").write_text(text)

    await office.turn()
    office.while_reading = change
    await office.turn()
    assert (office.taken, office.readings) == (["two more"], 2)
    office.while_reading = lambda: office.file.write_text(f"{office.readings} more")
    await office.turn(asked=True)
    assert len(office.taken) == 1, "what does not come to rest is left for later"
    office.while_reading = lambda: None
    await office.turn(2)
    assert len(office.taken) == 2


async def test_what_cannot_be_taken_up_is_refused(office: Office) -> None:
    """As what cannot be read."""
    office.refused = "needs a restart"
    office.file.write_text("two")
    await office.turn(2)
    assert office.told() == [Reloaded(ok=False, reasons=("listen: needs a restart",))]


async def test_what_can_be_read_once_only_is_never_read_again(tmp_path: Path) -> None:
    """A configuration from a pipe changes nothing by itself, and says why it is refused when somebody asks."""
    office = Office(Path("/dev/null"))
    office.reloader._judged = {Path("/dev/null"): b"of what was read"}
    await office.turn(5)
    assert office.told() == []
    await office.turn(asked=True)
    (refused,) = office.told()
    assert isinstance(refused, Reloaded)
    assert "cannot be read again" in refused.reasons[0]
    assert office.readings == 1


async def test_it_looks_until_it_is_ended(office: Office) -> None:
    """Whatever goes wrong in between."""
    office.reloader._interval = 0.001
    errors = [ZeroDivisionError()]

    def fail() -> None:
        if errors:
            raise errors.pop()

    office.while_reading = fail
    running = asyncio.get_running_loop().create_task(office.reloader.run())
    office.reloader.request()
    async with asyncio.timeout(60):
        while errors:
            await asyncio.sleep(0.001)
        office.file.write_text("two")
        while not office.taken:
            await asyncio.sleep(0.001)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_without_descriptors_nothing_is_taken_for_a_change(office: Office) -> None:
    """It is told once, whoever asked is heard later, and what stands there is looked at again."""
    await office.turn()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1, hard))
    try:
        with capture_logs() as logs:
            await office.turn(3)
            await office.turn(asked=True)
            await office.turn(3)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert [line["event"] for line in logs] == ["the configuration cannot be read now"]
    assert office.told() == []
    assert office.taken == []
    await office.turn(3)
    assert (office.taken, office.told()) == (["one"], [Reloaded(ok=True)])
    office.file.write_text("two")
    await office.turn(2)
    assert office.taken == ["one", "two"]


async def test_a_reading_that_fails_for_want_of_descriptors_is_repeated(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its problems are not those of the configuration."""
    short = [True]

    def check() -> None:
        if short:
            raise StartError("no descriptor left")

    monkeypatch.setattr(reload, "check_descriptors", check)
    office.file.write_text("bad")
    with capture_logs() as logs:
        await office.turn(5)
    assert len(logs) == 1
    assert office.told() == []
    short.clear()
    await office.turn()
    assert office.told() == [REFUSED]


class Clock:
    """Seconds that the test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def in_place(path: Path, text: str) -> None:
    """As `echo … >` writes."""
    path.write_text(text)


def by_renaming(path: Path, text: str) -> None:
    """As most editors and tools write."""
    beside = path.with_suffix(".new")
    beside.write_text(text)
    beside.rename(path)


def by_removing(path: Path, text: str) -> None:
    """As some editors write."""
    path.unlink()
    path.write_text(text)


@pytest.mark.parametrize("change", [in_place, by_renaming, by_removing])
def test_a_change_is_seen_however_it_is_made(tmp_path: Path, change: Callable[[Path, str], None]) -> None:
    """Written in place, renamed over, removed and made anew."""
    file = tmp_path / "config.yaml"
    file.write_text("one")
    it = FileWatch()
    assert it.poll([file]) == {file: digest(b"one")}
    change(file, "another")
    assert it.poll([file]) == {file: digest(b"another")}


def test_swapped_links_are_followed(tmp_path: Path) -> None:
    """A mounted Kubernetes volume: the file links to `..data/file`, and `..data` is swapped by an atomic rename."""
    file = tmp_path / "key"
    file.symlink_to("..data/key")
    it = FileWatch()
    for number, text in enumerate(["one", "two", "three"]):
        content = tmp_path / f"..{number}"
        content.mkdir()
        (content / "key").write_text(text)
        os.utime(content / "key", (1, 1))
        (tmp_path / "..tmp").symlink_to(content.name)
        (tmp_path / "..tmp").rename(tmp_path / "..data")
        assert it.poll([file]) == {file: digest(text.encode())}


def test_a_file_that_goes_and_comes(tmp_path: Path) -> None:
    """Is nothing meanwhile."""
    file = tmp_path / "key"
    it = FileWatch()
    seen = []
    for text in (None, "one", None, "one"):
        file.unlink(missing_ok=True)
        if text:
            file.write_text(text)
        seen.append(it.poll([file])[file])
    assert seen == [MISSING_FILE, digest(b"one"), MISSING_FILE, digest(b"one")]


def test_what_has_not_changed_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But a file that was just written is, since the times of files are rounded."""
    file, clock = tmp_path / "key", Clock()
    file.write_text("one")
    reads: list[Path] = []

    def content_of(path: Path) -> bytes:
        reads.append(path)
        return digest(path.read_bytes())

    monkeypatch.setattr(reload, "content_of", content_of)
    it = FileWatch(clock)
    told = []
    for _ in range(4):
        it.poll([file])
        told.append(len(reads))
        clock.now += 0.6
    assert told == [1, 2, 3, 3]


def test_a_second_writing_with_the_same_times_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change is seen though size and rounded time stay the same."""
    file, clock = tmp_path / "key", Clock()
    monkeypatch.setattr(reload, "_stamp", lambda _: (1, 2, 3))
    file.write_text("one")
    it = FileWatch(clock)
    it.poll([file])
    clock.now += 0.9
    file.write_text("two")
    clock.now += 0.1
    assert it.poll([file]) == {file: digest(b"two")}


def test_what_is_not_looked_at_any_more_is_forgotten(tmp_path: Path) -> None:
    """Names come and go."""
    it = FileWatch()
    it.poll([tmp_path])
    it.poll([])
    assert it._seen == {}
