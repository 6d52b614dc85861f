"""Run real Postman clients through the real process: newman in two forms, over a practice API with real limits.

Run by `make e2e`. Four newman processes at once share one client's token; between them they ask for more than the keys
permit, so that most requests wait. Exits with 1 when a check fails.
"""

import argparse
import asyncio
import json
import os
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from keyturn.practice import PracticeApi, PracticeSettings
from keyturn.practice.gate import Arrival
from keyturn.tasks import finish, spawn

HERE = Path(__file__).parent
KEYTURN = Path(sys.executable).with_name("keyturn")
NEWMAN = HERE / "node_modules" / ".bin" / "newman"
KEYS = ("k1secret", "k2secret")
LIMIT = 60
WINDOW = 6.0
START_SECONDS = 20.0
RUN_SECONDS = 300.0
OVERHEAD = 2  # a run fetches its collection and its environment
REQUESTS = 3  # of the practice collection, in each iteration


class EndToEndError(Exception):
    """The run itself failed to start."""


@dataclass(frozen=True)
class Form:
    """One way to lead newman through a proxy: its arguments, and what it needs in its environment."""

    name: str
    arguments: Sequence[str]
    environment: Mapping[str, str]


@dataclass(frozen=True)
class Ended:
    """The end of one newman process: its exit status, its duration in seconds, and the end of its output."""

    form: str
    status: int
    seconds: float
    output: str


@dataclass(frozen=True)
class Check:
    """One expectation: its text, whether it was met, and what was seen."""

    text: str
    kept: bool
    seen: str


def forms(address: str, api: PracticeApi, token: str) -> tuple[Form, Form]:
    """Return newman with the proxy's address in its URLs, and with `http_proxy` (absolute-form targets)."""
    collection, environment = f"collections/{api.run_collection}", f"environments/{api.run_environment}"
    real = "http://api.getpostman.com"
    in_url = Form(
        "address in the URLs",
        (
            f"{address}/{collection}?apikey={token}",
            *("-e", f"{address}/{environment}?apikey={token}"),
            *("--env-var", f"baseUrl={address}", "--env-var", f"apiKey={token}"),
        ),
        {},
    )
    as_proxy = Form(
        "http_proxy",
        (
            f"{real}/{collection}",
            *("-e", f"{real}/{environment}"),
            *("--postman-api-key", token),
            *("--env-var", f"baseUrl={real}", "--env-var", f"apiKey={token}"),
        ),
        {"http_proxy": address},
    )
    return in_url, as_proxy


async def run_newman(form: Form, token: str, iterations: int, newman: Path = NEWMAN) -> Ended:
    """Run one newman process to its end; the token is removed from its output."""
    inherited = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    options = ("-n", str(iterations), "--color", "off", "--reporter-cli-no-banner")
    begin = time.monotonic()
    process = await asyncio.create_subprocess_exec(
        *(str(newman), "run", *form.arguments, *options),
        env={**inherited, **form.environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(RUN_SECONDS):
            output, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        raise EndToEndError(f"newman ({form.name}) did not end within {RUN_SECONDS:.0f} s") from None
    text = output.decode(errors="replace").replace(token, "…")
    return Ended(form.name, process.returncode or 0, time.monotonic() - begin, text[-3000:])


def write_config(folder: Path, api: PracticeApi, token: str, secret_keys: Sequence[str], **more: Any) -> Path:
    """Write a configuration: keys with the practice API's own limit, one client, and further settings."""
    ca = folder / "ca.pem"
    api.write_ca(ca)
    keys = [{"name": f"team-{number}", "secret": key} for number, key in enumerate(secret_keys, start=1)]
    config: dict[str, Any] = {
        "listen": "127.0.0.1:0",
        "admin": "127.0.0.1:0",
        "upstream": {"url": api.url, "ca": str(ca)},
        "pools": {"default": {"limits": [{"requests": LIMIT, "window": f"{WINDOW:.0f}s"}], "keys": keys}},
        "store": {"url": "memory://"},
        "clients": [{"name": "newman", "token_sha256": sha256(token.encode()).hexdigest()}],
        **more,
    }
    path = folder / "config.yaml"
    path.write_text(json.dumps(config, indent=2), encoding="utf-8")  # JSON is YAML
    return path


class Server:
    """A running `keyturn serve`: where it listens, and its output."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._lines: list[str] = []
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def output(self) -> str:
        """Return the end of what it wrote to stderr."""
        return "".join(self._lines[-30:])

    async def address(self) -> str:
        """Return the data listener's URL, from the `ready` line."""
        try:
            async with asyncio.timeout(START_SECONDS):
                while line := await self._read():
                    if line.startswith("ready "):
                        spawn(self._drain(), name="stderr of keyturn", owner=self._tasks)
                        return line.split()[1].removeprefix("data=").rstrip("/")
        except TimeoutError:
            pass
        raise EndToEndError(f"keyturn serve did not get ready:\n{self.output}")

    async def stop(self) -> int:
        """Drain the process; return its exit status."""
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(START_SECONDS):
                status = await self._process.wait()
        except TimeoutError:
            self._process.kill()
            status = await self._process.wait()
        await finish(self._tasks)
        return status

    async def _drain(self) -> None:
        while await self._read():
            pass

    async def _read(self) -> str:
        assert self._process.stderr is not None
        line = (await self._process.stderr.readline()).decode(errors="replace")
        self._lines.append(line)
        return line


@asynccontextmanager
async def keyturn(config: Path) -> AsyncIterator[Server]:
    """Run the real command line for as long as the block lasts."""
    process = await asyncio.create_subprocess_exec(
        *(str(KEYTURN), "serve", "-c", str(config)), stderr=asyncio.subprocess.PIPE
    )
    server = Server(process)
    try:
        yield server
    finally:
        await server.stop()


def share_used(arrivals: Sequence[Arrival]) -> str:
    """Return the used share of what the keys permitted, over the whole windows from the first request on."""
    begin = arrivals[0].at
    windows = int((arrivals[-1].at - begin) / WINDOW)
    if not windows:
        return f"unknown, all was over within one window of {WINDOW:.0f} s"
    span = windows * WINDOW
    used = sum(arrival.at < begin + span for arrival in arrivals)
    permitted = len(KEYS) * LIMIT * span / WINDOW
    return (
        f"{100 * used / permitted:.1f} %: {used} requests in the first {span:.0f} s (whole windows only), permitted "
        f"{len(KEYS)} keys x {LIMIT} requests x {span:.0f} s / {WINDOW:.0f} s = {permitted:.0f}"
    )


def judge(ended: Sequence[Ended], api: PracticeApi, expected: int, drained: int) -> list[Check]:
    """Compare the checks with what the practice API saw."""
    arrivals = api.arrivals
    worst = api.worst(WINDOW)
    ours = {api.name_of(key) for key in KEYS}
    strange = {arrival.key for arrival in arrivals} - ours
    other = sorted({arrival.status for arrival in arrivals} - {200})
    failed = [run.form for run in ended if run.status]
    return [
        Check("every newman run passes (exit 0, no failed assertion)", not failed, f"failed: {failed or 'none'}"),
        Check("every answer of the upstream is 200", not other, f"others: {other or 'none'}"),
        Check("the upstream never answers 429", api.throttled == 0, f"{api.throttled} times"),
        Check(
            f"at most {LIMIT} requests of a key in any {WINDOW:.0f} s",
            max(worst.values(), default=0) <= LIMIT,
            ", ".join(f"{name} {most}" for name, most in sorted(worst.items())),
        ),
        Check("each request is sent once", len(arrivals) == expected, f"{len(arrivals)} arrived of {expected}"),
        Check("only the pool's keys reach the upstream", not strange, f"others: {len(strange)}"),
        Check("SIGTERM drains and exits with 0", drained == 0, f"exit {drained}"),
    ]


def show(ended: Sequence[Ended], checks: Sequence[Check]) -> None:
    """Print the runs and the checks."""
    for run in ended:
        print(f"newman, {run.form:27} exit {run.status} after {run.seconds:.1f} s")
        if run.status:
            print(run.output)
    for check in checks:
        print(f"{'kept  ' if check.kept else 'BROKEN'} {check.text}: {check.seen}")


async def run(iterations: int, runs: int) -> bool:
    """Start everything, run newman in both forms at once, check; return whether all checks passed."""
    token = secrets.token_hex(16)
    api = PracticeApi(PracticeSettings(limit=LIMIT, window=WINDOW, tls=True, keys=KEYS))
    with tempfile.TemporaryDirectory(prefix="keyturn-e2e-") as folder:
        async with api, keyturn(write_config(Path(folder), api, token, KEYS)) as server:
            chosen = forms(await server.address(), api, token) * runs
            expected = len(chosen) * (OVERHEAD + REQUESTS * iterations)
            print(f"{len(chosen)} newman processes, {expected} requests, {len(KEYS)} keys of {LIMIT} in {WINDOW:.0f} s")
            ended = await asyncio.gather(*(run_newman(form, token, iterations) for form in chosen))
            checks = judge(ended, api, expected, await server.stop())
    show(ended, checks)
    if api.arrivals:
        print(f"share of the permitted requests used: {share_used(api.arrivals)}")
    kept = all(check.kept for check in checks)
    if not kept:
        print(f"\nThe last that keyturn said:\n{server.output}")
    return kept


def main() -> None:
    """Read the arguments, run, exit."""
    parser = argparse.ArgumentParser(prog="make e2e ARGS=…", description=__doc__)
    parser.add_argument("-n", "--iterations", type=int, default=30, help="iterations of each newman process [30]")
    parser.add_argument("--runs", type=int, default=2, help="newman processes of each form [2]")
    arguments = parser.parse_args()
    try:
        kept = asyncio.run(run(arguments.iterations, arguments.runs))
    except EndToEndError as error:
        sys.exit(str(error))
    sys.exit(0 if kept else 1)


if __name__ == "__main__":
    main()
