import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from io import StringIO
from pathlib import Path
from typing import TextIO

import pytest
from keyturn.telemetry import log_writer
from keyturn.telemetry.log_writer import QUEUE_BYTES, LogWriter

LINE = "x" * 1023 + "\n"


class Pipe:
    """A pipe that is read when the test says so."""

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()
        self.stream: TextIO = os.fdopen(self.writing, "w")

    def fill(self) -> int:
        """Have it take nothing more; returns how many bytes it holds."""
        os.set_blocking(self.writing, False)
        held = 0
        with suppress(BlockingIOError):
            while True:
                held += os.write(self.writing, b"." * 4096)
        os.set_blocking(self.writing, True)
        return held

    def read(self, until: Callable[[bytes], bool]) -> bytes:
        """The bytes that come until a condition on them holds."""
        found = b""
        while not until(found):
            found += os.read(self.reading, 2**16)
        return found

    def close(self) -> None:
        """Both ends."""
        os.close(self.reading)
        with suppress(BrokenPipeError):
            self.stream.close()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    """A new one."""
    made = Pipe()
    yield made
    made.close()


def lines(number: int) -> bytes:
    """Numbered lines."""
    return b"".join(b"line %d\n" % index for index in range(number))


def test_lines_arrive_in_order_and_whole(pipe: Pipe) -> None:
    """Also those that are queued when it is closed."""
    with LogWriter(pipe.stream) as log:
        for index in range(1000):
            log.write(f"line {index}\n")
    assert pipe.read(lambda found: len(found) == len(lines(1000))) == lines(1000)
    assert log.dropped == 0


def test_logging_never_waits_and_a_gap_is_reported(pipe: Pipe) -> None:
    """A line that finds the queue full is dropped and counted; no line is missing without a report."""
    held, number = pipe.fill(), 3 * QUEUE_BYTES // len(LINE)
    with LogWriter(pipe.stream) as log:
        log.gap = "{} are missing\n".format
        for _ in range(number):
            log.write(LINE)
        dropped = log.dropped
        assert dropped >= number - QUEUE_BYTES // len(LINE) - 1
        found = pipe.read(lambda found: found.endswith(b" are missing\n"))[held:].decode().splitlines()
        assert found[-1] == f"{dropped} are missing"
        assert found[:-1] == [LINE.strip()] * (number - dropped)
        log.write("it flows again\n")
        assert pipe.read(lambda found: b"\n" in found) == b"it flows again\n"


def test_the_end_does_not_wait_for_a_reader(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that stands in a write keeps no process alive."""
    monkeypatch.setattr(log_writer, "CLOSE_TIMEOUT", 0.0)
    pipe.fill()
    with LogWriter(pipe.stream) as log:
        log.write("nobody reads this\n")
    assert log._thread.daemon
    pipe.read(lambda found: found.endswith(b"this\n"))
    log._thread.join()


def test_a_reader_that_has_gone_costs_lines_only(pipe: Pipe) -> None:
    """They are counted; nobody who logs meets an error."""
    os.close(pipe.reading)
    with LogWriter(pipe.stream) as log:
        log.write("one\ntwo\n")
    assert log.dropped == 2
    pipe.reading = os.open(os.devnull, os.O_RDONLY)


def test_a_descriptor_that_somebody_made_non_blocking_loses_nothing(pipe: Pipe) -> None:
    """It is shared with other processes, which may do so at any time."""
    held = pipe.fill()
    os.set_blocking(pipe.writing, False)
    with LogWriter(pipe.stream) as log:
        for index in range(100):
            log.write(f"line {index}\n")
        expected = held + len(lines(100))
        assert pipe.read(lambda found: len(found) == expected)[held:] == lines(100)
    assert log.dropped == 0


def test_a_line_that_somebody_waits_for_is_written_at_once(pipe: Pipe) -> None:
    """Before the thread has even begun."""
    LogWriter(pipe.stream).say("ready")
    assert pipe.read(lambda found: b"\n" in found) == b"ready\n"


def test_a_line_that_somebody_waits_for_fails_where_it_cannot_be_written(pipe: Pipe) -> None:
    """So that the start of the process fails, too."""
    os.close(pipe.reading)
    with pytest.raises(BrokenPipeError):
        LogWriter(pipe.stream).say("ready")
    pipe.reading = os.open(os.devnull, os.O_RDONLY)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux only")
def test_a_full_disk_is_told_at_once() -> None:
    """By the line that somebody waits for."""
    with Path("/dev/full").open("w") as stream, pytest.raises(OSError, match="No space left"):
        LogWriter(stream).say("ready")


def test_a_line_that_somebody_waits_for_is_queued_where_nobody_reads(pipe: Pipe) -> None:
    """The pipe may be full from an earlier process: that is no reason not to serve."""
    held = pipe.fill()
    with LogWriter(pipe.stream) as log:
        log.say("ready")
        assert pipe.read(lambda found: found.endswith(b"\n"))[held:] == b"ready\n"


def test_a_stream_without_a_descriptor_is_written_to() -> None:
    """As in tests of commands."""
    stream = StringIO()
    with LogWriter(stream) as log:
        log.say("ready")
        log.write("line\n")
    assert stream.getvalue() == "ready\nline\n"
    assert not log.isatty()


def test_many_threads_may_log(pipe: Pipe) -> None:
    """Their lines stay whole."""
    with LogWriter(pipe.stream) as log:

        def write_whole() -> None:
            for _ in range(500):
                log.write("whole\n")

        threads = [threading.Thread(target=write_whole) for _ in range(4)]
        for thread in threads:
            thread.start()
        assert pipe.read(lambda found: found.count(b"\n") == 2000) == b"whole\n" * 2000
        for thread in threads:
            thread.join()
