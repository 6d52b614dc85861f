import asyncio
import os
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from proxy.bodies.spool import PIECE, Spool, SpoolFile


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
    spool.later(lambda: go_on.wait() and None)
    yield go_on
    go_on.set()


async def done(spool: Spool) -> None:
    """Wait until the thread has done what it was asked for."""
    await spool.run(lambda: None)


async def test_what_is_written_is_read(spool: Spool, tmp_path: Path) -> None:
    """Piece by piece, from any place on; nobody else sees the file."""
    file, data = SpoolFile(spool), os.urandom(2 * PIECE + 7)
    await file.append(data[:5])
    await file.append(data[5:])
    assert file.size == len(data)
    assert await file.read(0) == data[:PIECE]
    assert await file.read(2 * PIECE) == data[2 * PIECE :]
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
    assert file._file is None or file._file.closed
