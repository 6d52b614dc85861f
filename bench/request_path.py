"""List the classes and modules of Keyturn that one waiting request passes through.

    python -m bench.request_path [--names] [PACKAGE]

The real `serve` runs in this process, over an upstream that permits one request a second: the practice API, in another
process. The first request takes the only token. Each of the next ones has to wait for it, and is recorded by
`sys.setprofile`: each Python function of the package that is called, its module, and the class of its `self`. The
process does other work meanwhile. So only what each of several requests meets is counted, and the last row leaves out
what some seconds without a request show.

PACKAGE is the import name, `keyturn` by default, so that older commits can be measured from a checkout on PYTHONPATH.
"""

import argparse
import importlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

PATIENCE = 20
WINDOW_SECONDS = 1
IDLE_SECONDS = 6
ROUNDS = 3
REQUEST = b"GET /me HTTP/1.1\r\nHost: localhost\r\n\r\n"
CONFIGURATION = """
listen: unix:{folder}/socket
admin: 127.0.0.1:0
upstream: {{url: "{upstream}"}}
log: {{level: warning}}
authentication: required
clients: [{{name: bench, token: "{token}"}}]
pools:
  default:
    limits: [{{requests: 1, window: {window}s}}]
    keys: [{{name: one, secret: "practice-key"}}]
"""
TOKEN = "Bench-token-7Gx2Lq9ZpR4vW1nK"


@dataclass
class Recorder:
    """A profile function that keeps what is called while it is switched on."""

    package: str
    on: bool = False
    calls: int = 0
    classes: set[str] = field(default_factory=set)
    modules: set[str] = field(default_factory=set)
    functions: set[str] = field(default_factory=set)

    def __call__(self, frame: FrameType, event: str, _argument: object) -> None:
        """Note one call of a function; the signature is that of `sys.setprofile`."""
        if not self.on or event != "call":
            return
        code = frame.f_code
        module = str(frame.f_globals.get("__name__", ""))
        owner = type(frame.f_locals[code.co_varnames[0]]) if code.co_varnames[:1] == ("self",) else None
        if owner and self._ours(owner.__module__):
            self.classes.add(f"{owner.__module__}.{owner.__qualname__}")
            self.modules.add(owner.__module__)
        if self._ours(module):
            self.calls += 1
            self.modules.add(module)
            self.functions.add(f"{module}.{code.co_qualname}")

    def _ours(self, module: str) -> bool:
        return module == self.package or module.startswith(f"{self.package}.")

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Forget what was recorded, and record what happens inside."""
        self.calls = 0
        self.classes, self.modules, self.functions = set(), set(), set()
        self.on = True
        try:
            yield
        finally:
            self.on = False


@contextmanager
def practice(package: str) -> Iterator[str]:
    """Run the practice API in a process of its own; yields its URL."""
    options = ("--port", "0", "--limit", "1", "--window", f"{WINDOW_SECONDS}s", "--kind", "rolling")
    command = (sys.executable, "-m", package, "practice", *options)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            line = next((line for line in process.stderr if line.startswith("ready practice=")), "")
            if not line:
                sys.exit("the practice API did not start: run it by hand with `python -m keyturn practice`")
            yield line.strip().partition("=")[2]
        finally:
            process.terminate()


def ask(connection: socket.socket) -> float:
    """Send one request and read its answer; returns the seconds that it took. Anything but 200 ends the run."""
    began = time.monotonic()
    connection.sendall(REQUEST.replace(b"\r\n\r\n", b"\r\nAuthorization: Bearer " + TOKEN.encode() + b"\r\n\r\n"))
    answer = connection.recv(65536)
    if not answer.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(f"expected 200, got {answer[:200]!r}")
    return time.monotonic() - began


def connect(path: Path) -> socket.socket:
    """Connect to the data listener as soon as it is there."""
    deadline = time.monotonic() + PATIENCE
    while True:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(PATIENCE)
        try:
            connection.connect(str(path))
        except OSError:
            connection.close()
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return connection


def drive(recorder: Recorder, path: Path, rows: list[str], names: bool) -> None:
    """Make the recorded requests, then end the process that serves them, which is this one."""
    try:
        with connect(path) as connection:
            ask(connection)
            met = [waiting(recorder, connection) for _ in range(ROUNDS)]
            classes, modules, functions = (set.intersection(*sets) for sets in zip(*met, strict=True))
            rows.append(row("one waiting request", classes, modules, functions, f"{recorder.calls}"))
            time.sleep(2 * WINDOW_SECONDS)
            with recorder.recording():
                time.sleep(IDLE_SECONDS)
            idle = recorder.classes, recorder.modules, recorder.functions
            rows.append(row(f"{IDLE_SECONDS} s without a request", *idle, f"{recorder.calls}"))
            rows.append(row("met only with the request", classes - idle[0], modules - idle[1], functions - idle[2]))
            rows.extend(f"    {found}" for found in sorted(classes if names else ()))
    finally:
        os.kill(os.getpid(), signal.SIGTERM)


def waiting(recorder: Recorder, connection: socket.socket) -> tuple[set[str], set[str], set[str]]:
    """Record one request that has to wait; returns its classes, modules and functions."""
    with recorder.recording():
        took = ask(connection)
    if took < WINDOW_SECONDS / 2:
        raise RuntimeError(f"the request took only {took:.3f} s: it did not wait for its token")
    return recorder.classes, recorder.modules, recorder.functions


def row(name: str, classes: set[str], modules: set[str], functions: set[str], calls: str = "") -> str:
    """Return one row of the Markdown table."""
    return f"| {name} | {len(classes)} | {len(modules)} | {len(functions)} | {calls} |"


def main() -> None:
    """Print how many classes, modules and functions are met, and by how many calls."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", nargs="?", default="keyturn", help="the import name of the package")
    parser.add_argument("--names", action="store_true", help="print the names of all classes that are met, too")
    arguments = parser.parse_args()
    recorder, rows = Recorder(arguments.package), list[str]()
    with practice(arguments.package) as upstream, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = CONFIGURATION.format(folder=folder, upstream=upstream, token=TOKEN, window=WINDOW_SECONDS)
        (folder / "config.yaml").write_text(text, encoding="utf-8")
        (folder / "config.yaml").chmod(0o600)
        command = importlib.import_module(f"{arguments.package}.cli").main
        sys.argv = [arguments.package, "serve", "-c", str(folder / "config.yaml")]
        driver = threading.Thread(target=drive, args=(recorder, folder / "socket", rows, arguments.names), daemon=True)
        driver.start()
        sys.setprofile(recorder)
        try:
            command()
        except SystemExit as end:
            if end.code:
                raise
        finally:
            sys.setprofile(None)
        driver.join(PATIENCE)
    print("| what | classes | modules | functions | calls |\n|---|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
