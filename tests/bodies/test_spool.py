import asyncio
import os
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from keyturn.bodies.spool import READ_SIZE, Spool, SpoolFile
from keyturn.tasks import finish, spawn


@pytest_asyncio.fixture
async def spool(tmp_path: Path) -> AsyncIterator[Spool]:
    """Files in a folder of the test's own."""
    made = Spool(str(tmp_path))
    yield made
    made.close()


@pytest.fixture
def slow(spool: Spool) -> Iterator[threading.Event]:
    """Keeps the thread busy until it is set."""
    go_on = threading.Event()

    def wait() -> None:
        go_on.wait()

    spool.later(wait)
    yield go_on
    go_on.set()


async def done(spool: Spool) -> None:
    """Wait until the thread has done what it was asked for."""
    await spool.run(lambda: None)


async def test_what_is_written_is_read(spool: Spool, tmp_path: Path) -> None:
    """Piece by piece, from any place on; nobody else sees the file."""
    file, data = SpoolFile(spool), os.urandom(2 * READ_SIZE + 7)
    await file.append(data[:5])
    await file.append(data[5:])
    assert file.size == len(data)
    assert await file.read(0) == data[:READ_SIZE]
    assert await file.read(2 * READ_SIZE) == data[2 * READ_SIZE :]
    assert os.listdir(tmp_path) == []  # noqa: PTH208  # of a folder that is empty
    file.close()
    await done(spool)
    assert file._file is not None
    assert file._file.closed


async def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    """Is found out at the start, and again with each file."""
    spool = Spool(str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError):
        await spool.check()
    file = SpoolFile(spool)
    with pytest.raises(FileNotFoundError):
        await file.append(b"x")
    assert file.size == 0
    file.close()
    spool.close()


async def test_the_folder_is_the_systems(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """$TMPDIR, if it is set; a wrong one is not passed over."""
    monkeypatch.setenv("TMPDIR", str(tmp_path / "nowhere"))
    spool = Spool()
    with pytest.raises(FileNotFoundError):
        await spool.check()
    spool.close()
    monkeypatch.delenv("TMPDIR")
    spool = Spool()
    await spool.check()
    spool.close()


async def test_a_file_is_closed_behind_a_write_that_was_given_up(spool: Spool, slow: threading.Event) -> None:
    """Else its number might be another file's when the write comes to it."""
    file = SpoolFile(spool)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await file.append(b"x")
    file.close()
    assert file._file is None
    slow.set()
    await done(spool)
    assert file._file is None, "it had not begun"


async def test_a_disk_that_stands_still(tmp_path: Path) -> None:
    """Nobody waits for it for long, nothing more is asked of it, and it is used again when it goes on."""
    spool, go_on = Spool(str(tmp_path), patience=0), threading.Event()

    def wait() -> None:
        go_on.wait()

    spool.later(wait)
    first, second = SpoolFile(spool), SpoolFile(spool)
    for file in (first, second):
        with pytest.raises(OSError, match="does not answer"):
            await file.append(b"x")
        assert (file.size, spool.mute) == (0, True)
        file.close()
    assert spool._thread._work_queue.qsize() <= 3, "what was given up, a mark behind it, and one file to be closed"
    go_on.set()
    await asyncio.wrap_future(spool.later(lambda: None))
    assert not spool.mute
    spool.close()


async def test_a_write_that_goes_on_when_it_is_given_up_comes_first(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is closed behind it."""
    file, begun, go_on = SpoolFile(spool), threading.Event(), threading.Event()
    await file.append(b"x")
    write = os.pwrite

    def slowly(number: int, data: memoryview, position: int) -> int:
        begun.set()
        go_on.wait()
        return write(number, data, position)

    monkeypatch.setattr("os.pwrite", slowly)
    owner = set[asyncio.Task[object]]()
    task = spawn(file.append(b"y"), name="append", owner=owner)
    await asyncio.to_thread(begun.wait)
    await finish(owner)
    assert task.cancelled()
    file.close()
    assert file._file is not None
    assert not file._file.closed
    go_on.set()
    await done(spool)
    assert file._file.closed
