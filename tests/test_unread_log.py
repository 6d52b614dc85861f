"""A stderr that nobody reads, that is full or closed: through the real process."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from keyturn.practice import PracticeApi, PracticeSettings

from tests.depth import deep
from tests.process import (
    DEADLINE,
    KEYS,
    ROOT,
    SECRETS,
    Keyturn,
    Running,
    ask,
    calling,
    client,
    document,
    request,
    start,
    until,
    write,
)

LONG = request("/" + "x" * 500)
"""Refused at once, with a long line of the log: its client may ask for `/me` only."""

TOGETHER = 50


class Log:
    """The reading end of a process's stderr."""

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()
        os.set_blocking(self.reading, False)
        self._text = b""

    def fill(self) -> None:
        """Have it take nothing more; what fills it is a line."""
        os.set_blocking(self.writing, False)
        with suppress(BlockingIOError):
            while True:
                os.write(self.writing, b"." * 4096)
        with suppress(BlockingIOError):
            while True:
                os.write(self.writing, b".")
        os.set_blocking(self.writing, True)

    @property
    def lines(self) -> list[str]:
        """The lines that have come so far, without one that has no end yet."""
        with suppress(BlockingIOError):
            while piece := os.read(self.reading, 2**16):
                self._text += piece
        return self._text.decode().split("\n")[:-1]

    def entries(self) -> list[dict[str, Any]]:
        """The lines but `ready`; all of them are JSON."""
        return [json.loads(line) for line in self.lines if not line.startswith("ready ")]


class Unread(Running):
    """A process whose stderr is a `Log`."""

    async def _collect(self) -> None:
        pass


@asynccontextmanager
async def unread(folder: Path) -> AsyncIterator[tuple[Keyturn, Log]]:
    """A process of which only the line `ready …` has been read, and its log."""
    log = Log()
    async with PracticeApi(PracticeSettings(tls=True, keys=KEYS, limit=10_000)) as api:
        clients = [client("ci", allow=["GET /me"])]
        path = write(folder, document(api, folder, log={"format": "json"}, clients=clients))
        process = Unread(await start("serve", "-c", str(path), folder=folder, stderr=log.writing))
        os.close(log.writing)
        try:
            await until(lambda: log.lines, "the line `ready …`")
            addresses = dict(part.split("=", 1) for part in log.lines[-1].split()[1:])
            yield Keyturn(process, addresses["data"], addresses["admin"]), log
        finally:
            await process.end()
            os.close(log.reading)


async def fill(keyturn: Keyturn) -> int:
    """Have so much logged that lines are dropped; returns how many requests that took."""
    number = 0
    async with calling(keyturn.data) as caller:
        while not await keyturn.metric("keyturn_log_lines_dropped_total"):
            caller.send(LONG * TOGETHER)
            for _ in range(TOGETHER):
                assert (await caller.reply()).status == 403
            number += TOGETHER
    return number


async def test_a_log_that_nobody_reads_stops_nothing(tmp_path: Path) -> None:
    """Requests are answered, and probes; when the log is read, it tells how many lines are missing, and no more are."""
    async with unread(tmp_path) as (keyturn, log):
        number = await fill(keyturn)
        assert number >= 500
        assert (await keyturn.ask(request("/me"))).status == 200
        assert (await keyturn.page("/healthz")).status == 200
        dropped = await keyturn.metric("keyturn_log_lines_dropped_total")
        gap = f"{dropped:.0f} log lines were dropped here"
        await until(lambda: any(gap in line for line in log.lines), "the gap is told")
        last = await keyturn.ask(request("/me"))
        assert last.status == 200
        await until(lambda: last.one("X-Request-Id") in log.lines[-1], "the log goes on")
        told = [entry for entry in log.entries() if entry["logger"] == "keyturn.requests"]
        assert len(told) + dropped == number + 2
        assert await keyturn.metric("keyturn_log_lines_dropped_total") == dropped
        assert [secret for secret in SECRETS if secret in "\n".join(log.lines)] == []


async def test_a_log_that_nobody_reads_holds_no_end_up(tmp_path: Path) -> None:
    """SIGTERM ends the process, and it ended well."""
    async with unread(tmp_path) as (keyturn, _):
        await fill(keyturn)
        keyturn.process.signal(signal.SIGTERM)
        assert await keyturn.process.ended() == 0


async def test_a_log_that_nobody_reads_holds_no_start_up(tmp_path: Path) -> None:
    """A pipe may be full from the process before; `ready` is said when it is read."""
    log, place = Log(), tmp_path / "admin"
    log.fill()
    async with PracticeApi(PracticeSettings(tls=True, keys=KEYS)) as api:
        path = write(tmp_path, {**document(api, tmp_path), "admin": f"unix:{place}"})
        process = Unread(await start("serve", "-c", str(path), folder=tmp_path, stderr=log.writing))
        os.close(log.writing)
        try:
            await until(place.exists, "it listens")
            await until(lambda: log.lines, "the line `ready …`")
            assert log.lines[0].strip(".").startswith("ready data=http://127.0.0.1:")
        finally:
            await process.end()
            os.close(log.reading)


async def test_a_reader_that_has_gone_stops_nothing(tmp_path: Path) -> None:
    """Lines are dropped and counted from then on."""
    async with unread(tmp_path) as (keyturn, log):
        os.close(log.reading)
        assert (await keyturn.ask(request("/me"))).status == 200

        async def counted() -> bool:
            return await keyturn.metric("keyturn_log_lines_dropped_total") >= 1

        await until(counted, "the line is counted")
        assert (await keyturn.ask(request("/me"))).status == 200
        keyturn.process.signal(signal.SIGTERM)
        assert await keyturn.process.ended() == 0
        log.reading = os.open(os.devnull, os.O_RDONLY)


async def shell(script: str, folder: Path) -> tuple[int, str]:
    """The exit code and the output of a command as a shell starts it."""
    process = await asyncio.create_subprocess_shell(
        f"exec {sys.executable} -m keyturn {script}",
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT / "proxy"), "POSTMAN_API_KEYS": KEYS[0]},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(DEADLINE):
        out, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode()


CLOSED = "keyturn: stderr is closed, and nothing could be said on it: leave it open, or redirect it\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux only")
@pytest.mark.parametrize(
    ("script", "code", "said"),
    [
        ("serve 2>&-", 1, CLOSED),
        ("serve 2>&- >&-", 1, ""),
        ("demo --listen 127.0.0.1:0 --admin 127.0.0.1:0 2>&-", 1, CLOSED),
        ("practice --port 0 2>&-", 1, CLOSED),
        ("serve 2>/dev/full", 1, ""),
        ("practice --port 0 2>/dev/full", 1, ""),
        ("serve -c missing.yaml 2>/dev/full", 2, ""),
        ("serve -c missing.yaml 2>&-", 2, ""),
        ("check --nope 2>/dev/full", 2, ""),
        ("schema >/dev/full 2>/dev/null", 1, ""),
    ][:: deep(1, brief=3)],
)
async def test_what_cannot_be_told_is_told_by_the_exit_code(tmp_path: Path, script: str, code: int, said: str) -> None:
    """A server does not run where nothing it says can be heard; a command ends as it would."""
    write(tmp_path, {"listen": "127.0.0.1:0", "admin": "127.0.0.1:0"})
    assert await shell(script, tmp_path) == (code, said)


async def test_every_line_is_json_if_that_is_asked_for(tmp_path: Path) -> None:
    """But for `ready`: also what is wrong with the configuration, which is told before anything else."""
    path = write(tmp_path, {"listen": "127.0.0.1:0", "admin": "127.0.0.1:0", "log": {"format": "json"}})
    path.chmod(0o644)
    write_keys = {"POSTMAN_API_KEYS": KEYS[0]}
    log = Log()
    process = Unread(await start("serve", "-c", str(path), folder=tmp_path, environ=write_keys, stderr=log.writing))
    os.close(log.writing)
    try:
        await until(lambda: any(line.startswith("ready ") for line in log.lines), "the line `ready …`")
        address = next(line for line in log.lines if line.startswith("ready ")).rpartition("admin=")[2]
        assert (await ask(address, request("/healthz", token=None))).status == 200
        process.signal(signal.SIGTERM)
        assert await process.ended() == 0
        assert {entry["event"] for entry in log.entries()} >= {"draining"}
    finally:
        await process.end()
        os.close(log.reading)
