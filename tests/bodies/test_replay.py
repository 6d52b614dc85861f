import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from keyturn.bodies.replay import Bodies, BodySettings, ReplayBody
from keyturn.bodies.spool import Spool
from keyturn.core.errors import Refusal, TooMany, TooSlow
from keyturn.core.events import Event, SpoolFailed
from keyturn.core.model import SECOND
from keyturn.tasks import finish, spawn

from tests.virtual import micros, run

SETTINGS = BodySettings(memory=10, ahead=40, files=400, upload_time=5 * SECOND)


class Stream:
    """A body that comes in chunk by chunk and is read once."""

    def __init__(self, *chunks: bytes, length: int | None = None) -> None:
        self.length = length
        self.left = list(chunks)

    def chunks(self) -> AsyncIterator[bytes]:
        """Itself."""
        return self

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if not self.left:
            raise StopAsyncIteration
        return self.left.pop(0)


class Drops(Stream):
    """A body of which a byte comes each second."""

    async def __anext__(self) -> bytes:
        await asyncio.sleep(1)
        return await super().__anext__()


class Kept(Bodies):
    """Bodies, and what was told of them."""

    def __init__(self, settings: BodySettings = SETTINGS, folder: Path | str | None = None) -> None:
        super().__init__(settings, self, micros, Spool(str(folder)) if folder else None)
        self.events: list[Event] = []

    def observe(self, event: Event) -> None:
        """Keep it."""
        self.events.append(event)

    def body(self, *chunks: bytes, length: int | None = None, client: str = "a") -> ReplayBody:
        """One of them."""
        return ReplayBody(Stream(*chunks, length=length), client, self)

    async def quiet(self) -> None:
        """Wait until the thread has done what it was asked for."""
        if self.spool is not None:
            await self.spool.run(lambda: None)

    @property
    def used(self) -> tuple[int, int]:
        """The bytes that are taken, in memory and in files."""
        return self.memory.used, self.files.used


async def read(body: ReplayBody, most: int | None = None) -> bytes:
    """Return at most so many of its chunks."""
    found = b""
    chunks = body.chunks()
    while most is None or most > 0:
        chunk = await anext(chunks, None)
        if chunk is None:
            break
        found += chunk
        most = None if most is None else most - 1
    await chunks.aclose()  # type: ignore[attr-defined]  # it is a generator
    return found


@given(
    chunks=st.lists(st.binary(min_size=1, max_size=9), max_size=8),
    known=st.booleans(),
    files=st.booleans(),
    mosts=st.tuples(st.integers(0, 9), st.integers(0, 9)),
)
def test_every_reading_begins_at_the_beginning(
    chunks: list[bytes], known: bool, files: bool, mosts: tuple[int, int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """As long as a body is replayable each reading yields all of it; what was taken of the room is given back."""
    whole = b"".join(chunks)

    async def scenario() -> None:
        kept = Kept(folder=tmp_path_factory.getbasetemp() if files else None)
        await kept.open()
        body = kept.body(*chunks, length=len(whole) if known else None)
        await body.read_ahead(0)
        bound = 40 if files else 10
        if len(whole) < bound:
            assert sum(kept.used) == len(whole)
        for most in (*mosts, None):
            found = await read(body, most)
            assert whole.startswith(found)
            assert most is not None or found == whole
            assert body.replayable or len(whole) >= bound
            if not body.replayable:
                with pytest.raises(RuntimeError):
                    body.chunks()
                break
        for _ in range(2):
            body.close()
        assert kept.used == (0, 0)
        kept.close()

    asyncio.run(scenario())


async def test_where_a_body_is_kept(tmp_path: Path) -> None:
    """A small one in memory, a larger one in a file; of one that came in chunks it shows on the way."""
    kept = Kept(folder=tmp_path)
    await kept.open()
    for chunks, length, used in (
        ((b"x" * 10,), 10, (10, 0)),
        ((b"x" * 11,), 11, (0, 11)),
        ((b"x" * 4,), None, (4, 0)),
        ((b"x" * 4,) * 5, None, (0, 20)),
        ((b"x" * 8,) * 20, 160, (0, 40)),
        ((b"x" * 30,) * 3, 90, (0, 60)),
    ):
        body = kept.body(*chunks, length=length)
        await body.read_ahead(0)
        assert kept.used == used
        assert await read(body) == b"".join(chunks)
        assert body.replayable is (sum(map(len, chunks)) < 40)
        body.close()
    kept.close()


async def test_nothing_is_read_ahead_beyond_the_bound(tmp_path: Path) -> None:
    """The rest stays where it is until the body is sent, and what was taken stays taken until its end."""
    kept = Kept(folder=tmp_path)
    await kept.open()
    source = Stream(*[b"x" * 10] * 9, length=90)
    body = ReplayBody(source, "a", kept)
    await body.read_ahead(0)
    assert len(source.left) == 5
    assert len(await read(body)) == 90
    assert (body._kept, body._file, kept.used) == ([], None, (0, 40))
    body.close()
    assert kept.used == (0, 0)
    kept.close()


def test_the_rest_has_its_time() -> None:
    """It is given up after `upload_time` from its first reading on, however steadily it comes."""

    async def scenario() -> None:
        kept = Kept()
        body = ReplayBody(Drops(*[b"x"] * 30, length=30), "a", kept)
        came = micros()
        await body.read_ahead(0)
        began = micros()
        assert began - came == 10 * SECOND
        with pytest.raises(TooSlow, match="5 s"):
            await read(body)
        assert micros() - began == 5 * SECOND
        body.close()
        assert kept.used == (0, 0)

    run(scenario())


async def test_what_is_here_too_late_is_too_late() -> None:
    """A body whose bytes never have to be waited for has no more time than another."""
    kept = Kept(BodySettings(memory=10, upload_time=0))
    body = kept.body(*[b"x" * 10] * 3, length=30)
    await body.read_ahead(0)
    with pytest.raises(TooSlow):
        await read(body)
    body.close()


def test_a_body_waits_for_room() -> None:
    """In its client's own order and no longer than it may; the time is told apart."""

    async def scenario() -> None:
        kept, tasks = Kept(BodySettings(memory=2**24)), set[asyncio.Task[Any]]()
        first = kept.body(b"x" * 2**24, length=2**24)
        await first.read_ahead(0)
        second, third, other = (kept.body(b"x", length=1, client=client) for client in "aab")
        await other.read_ahead(0)
        with pytest.raises(TooMany) as refused:
            await second.read_ahead(3 * SECOND)
        assert (refused.value.reason, refused.value.retry_after, second.waited) == ("bodies", 3, 3 * SECOND)
        reading = spawn(third.read_ahead(3 * SECOND), name="read", owner=tasks)
        await asyncio.sleep(1)
        first.close()
        await reading
        assert (third.waited, kept.used) == (SECOND, (2, 0))
        for body in (second, third, other):
            body.close()
        assert kept.used == (0, 0)
        await finish(tasks)

    run(scenario())


async def test_a_reading_that_is_cancelled_keeps_nothing(tmp_path: Path) -> None:
    """Whatever it was doing: its room is given back, its file is closed."""
    kept, tasks = Kept(folder=tmp_path), set[asyncio.Task[Any]]()
    await kept.open()
    for turns in range(12):
        body = kept.body(*[b"x" * 5] * 6, length=None if turns % 2 else 30)
        reading = spawn(body.read_ahead(0), name="read", owner=tasks)
        for _ in range(turns):
            await asyncio.sleep(0)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        file = body._file
        body.close()
        await kept.quiet()
        assert kept.used == (0, 0)
        assert file is None or file._file is None or file._file.closed
    kept.close()


async def test_a_disk_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that were not written stay in memory and the rest streams; each time is counted, the first is logged."""
    kept = Kept(folder=tmp_path)
    await kept.open()

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    for length in (60, None):
        chunks = [b"%02d34567890" % number for number in range(6)]
        body = kept.body(*chunks, length=length)
        with monkeypatch.context() as patch:
            patch.setattr("os.pwrite", full)
            await body.read_ahead(0)
        assert body.replayable
        assert kept.memory.used == 10
        assert await read(body, 1) == chunks[0]
        assert await read(body) == b"".join(chunks)
        body.close()
    assert kept.events == [SpoolFailed("no space left on device", is_new=is_new) for is_new in (True, False)]
    assert kept.used == (0, 0)
    kept.close()


async def test_a_file_that_cannot_be_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is an answer to its caller, in words."""

    def broken(*_: object) -> bytes:
        raise OSError(5, "Input/output error")

    kept = Kept(folder=tmp_path)
    await kept.open()
    for pread in (broken, lambda *_: b""):
        body = kept.body(b"x" * 20, length=20)
        await body.read_ahead(0)
        with monkeypatch.context() as patch:
            patch.setattr("os.pread", pread)
            with pytest.raises(Refusal, match="temporary file"):
                await read(body)
        body.close()
    kept.close()


async def test_without_a_folder_bodies_stay_in_memory(tmp_path: Path) -> None:
    """That is told at the start, unless no files are wanted; the rest of larger ones streams."""
    kept = Kept(folder=tmp_path / "nowhere")
    await kept.open()
    assert kept.events == [SpoolFailed("no such file or directory", is_new=True)]
    body = kept.body(*[b"x" * 10] * 4, length=40)
    await body.read_ahead(0)
    assert kept.used == (10, 0)
    assert len(await read(body)) == 40
    body.close()
    quiet = Kept(BodySettings(files=0), tmp_path / "nowhere")
    await quiet.open()
    assert quiet.events == []
    for one in (kept, quiet):
        one.close()


async def test_settings_may_change(tmp_path: Path) -> None:
    """For the next body; files come back when they are wanted again."""
    kept = Kept(folder=tmp_path)
    await kept.open()
    kept.adopt(BodySettings(memory=20, ahead=40, files=0))
    first = kept.body(b"x" * 20, length=20)
    await first.read_ahead(0)
    assert kept.used == (20, 0)
    kept.adopt(SETTINGS)
    second = kept.body(b"x" * 20, length=20)
    await second.read_ahead(0)
    assert kept.taken == [("memory", 20), ("file", 20)]
    for body in (first, second):
        body.close()
    kept.close()


async def test_the_length_is_the_bodys_own() -> None:
    """Reading ahead does not change the length announced to the upstream."""
    assert [Kept().body(length=length).length for length in (5, None)] == [5, None]
