"""Measure requests per second and CPU per request of Keyturn and of a bare aiohttp proxy, in turns.

Run by `make bench`. Four processes on the loopback: an HTTPS upstream (`bench.upstream`), the bare proxy
(`bench.bare`), Keyturn by its command line, and the load (`bench.load`). bench/README.md says how to read the result.
"""

import argparse
import json
import platform
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import trustme

from bench.cpu import cpu_seconds
from bench.upstream import BODY

ROOT = Path(__file__).parent.parent
START_SECONDS = 20


@dataclass(frozen=True)
class Proxy:
    """A proxy under load: its name, where it listens, the process whose CPU time counts, and the callers' tokens."""

    name: str
    address: str
    pid: int
    tokens: Sequence[str]


@dataclass(frozen=True)
class Round:
    """The figures of one load of one proxy: requests per second, microseconds of CPU per request, milliseconds."""

    rate: float
    cpu: float
    p50: float
    p99: float


@contextmanager
def running(name: str, command: Sequence[str], folder: Path) -> Iterator[tuple[int, str]]:
    """Run a process for as long as the block lasts; yields its id and its `ready` line."""
    log = folder / f"{name}.log"
    with log.open("wb") as stderr, subprocess.Popen(command, cwd=ROOT, stderr=stderr) as process:
        try:
            yield process.pid, wait_ready(name, process, log)
        finally:
            process.terminate()


def wait_ready(name: str, process: subprocess.Popen[bytes], log: Path) -> str:
    """Wait for the `ready` line of a process that was just started."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        for line in log.read_text(errors="replace").splitlines(keepends=True):
            if line.startswith("ready ") and line.endswith("\n"):
                return line.strip()
        time.sleep(0.02)
    process.terminate()
    sys.exit(f"{name} did not start:\n{log.read_text(errors='replace')}")


def address_of(ready: str) -> str:
    """HOST:PORT of the data listener in `ready data=http://127.0.0.1:8080 admin=…`."""
    return next(word for word in ready.split() if word.startswith("data=")).partition("://")[2].rstrip("/")


def write_certificates(folder: Path) -> tuple[Path, Path]:
    """Write a certificate with its key for the upstream, and the authority that signed it."""
    authority = trustme.CA()
    certificate, ca = folder / "upstream.pem", folder / "ca.pem"
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(certificate))
    authority.cert_pem.write_to_path(str(ca))
    return certificate, ca


def write_config(folder: Path, upstream: str, ca: Path, tokens: Sequence[str]) -> Path:
    """Write a configuration with authentication on, and a limit that never binds."""
    config: dict[str, Any] = {
        "listen": "127.0.0.1:0",
        "admin": "127.0.0.1:0",
        "upstream": {"url": upstream, "ca": str(ca)},
        "pools": {
            "default": {
                "limits": [{"requests": 100_000, "window": "1s"}],
                "keys": [{"name": "bench", "secret": secrets.token_hex(16)}],
            }
        },
        "store": {"url": "memory://"},
        "authentication": "required",
        "clients": [
            {"name": f"client-{number}", "token_sha256": sha256(token.encode()).hexdigest()}
            for number, token in enumerate(tokens)
        ],
    }
    path = folder / "config.yaml"
    path.write_text(json.dumps(config, indent=2), encoding="utf-8")  # JSON is YAML
    return path


def load(proxy: Proxy, requests: int, connections: int) -> Round:
    """Put one load on one proxy."""
    command = [sys.executable, "-m", "bench.load", proxy.address, str(requests), str(connections), str(len(BODY))]
    before = cpu_seconds(proxy.pid)
    done = subprocess.run(command, cwd=ROOT, input="\n".join(proxy.tokens), text=True, capture_output=True, check=False)
    used = cpu_seconds(proxy.pid) - before
    if done.returncode:
        sys.exit(f"The load on {proxy.name} failed. {done.stderr[-1000:].strip()}")
    result = json.loads(done.stdout)
    return Round(result["requests"] / result["seconds"], 1e6 * used / result["requests"], result["p50"], result["p99"])


def median(rounds: Sequence[Round]) -> Round:
    """Return the median of each figure."""
    return Round(*(statistics.median(values) for values in zip(*map(figures, rounds), strict=True)))


def figures(one: Round) -> tuple[float, float, float, float]:
    """Return a round's figures in the order of its fields."""
    return one.rate, one.cpu, one.p50, one.p99


def start(stack: ExitStack, folder: Path, arguments: argparse.Namespace) -> list[Proxy]:
    """Start the upstream and the proxies; the stack ends them."""
    certificate, ca = write_certificates(folder)
    tokens = [secrets.token_hex(16) for _ in range(arguments.clients)]
    python = [sys.executable, "-m"]
    _, ready = stack.enter_context(running("upstream", [*python, "bench.upstream", str(certificate)], folder))
    upstream = ready.split()[1]
    pid, ready = stack.enter_context(running("bare", [*python, "bench.bare", upstream, str(ca), "key"], folder))
    proxies = [Proxy("bare", address_of(ready), pid, tokens)]
    if not arguments.bare_only:
        config = write_config(folder, upstream, ca, tokens)
        command = [str(Path(sys.executable).with_name("keyturn")), "serve", "-c", str(config)]
        pid, ready = stack.enter_context(running("keyturn", command, folder))
        proxies.append(Proxy("keyturn", address_of(ready), pid, tokens))
    return proxies


def report(results: dict[str, list[Round]]) -> None:
    """Print the table, and the ratios as medians of the ratios of neighbouring rounds."""
    print(f"\n{'':10}{'requests/s':>12}{'CPU us/request':>16}{'p50 ms':>9}{'p99 ms':>9}")
    for name, rounds in results.items():
        rate, cpu, p50, p99 = figures(median(rounds))
        print(f"{name:10}{rate:12.0f}{cpu:16.0f}{p50:9.2f}{p99:9.2f}")
    if "keyturn" in results:
        pairs = list(zip(results["keyturn"], results["bare"], strict=True))
        rates = [ours.rate / bare.rate for ours, bare in pairs]
        cpus = [ours.cpu / bare.cpu for ours, bare in pairs]
        print(
            f"\nrate ratio keyturn/bare: {statistics.median(rates):.2f} (rounds {min(rates):.2f} to {max(rates):.2f})"
        )
        print(f"cpu ratio rounds: {min(cpus):.2f} to {max(cpus):.2f}")
        print(f"cpu ratio keyturn/bare: {statistics.median(cpus):.2f} (aim <= 0.9)")


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="make bench ARGS=…", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="loads of each proxy, in turns [7]")
    parser.add_argument("--requests", type=int, default=8000, help="requests in each load [8000]")
    parser.add_argument("--connections", type=int, default=40, help="connections that keep asking [40]")
    parser.add_argument("--clients", type=int, default=20, help="callers, each with a token of its own [20]")
    parser.add_argument("--bare-only", action="store_true", help="measure the bare proxy alone")
    return parser.parse_args()


def main() -> None:
    """Start everything, warm up, measure in turns, report."""
    arguments = parse()
    print(
        f"{arguments.rounds} rounds of {arguments.requests} requests, {arguments.connections} connections, "
        f"{arguments.clients} clients; {platform.system()}, Python {platform.python_version()}",
        flush=True,
    )
    with tempfile.TemporaryDirectory(prefix="keyturn-bench-") as folder, ExitStack() as stack:
        proxies = start(stack, Path(folder), arguments)
        results: dict[str, list[Round]] = {proxy.name: [] for proxy in proxies}
        for proxy in proxies:
            load(proxy, max(arguments.requests // 4, arguments.connections), arguments.connections)
        for number in range(arguments.rounds):
            for proxy in proxies:
                results[proxy.name].append(load(proxy, arguments.requests, arguments.connections))
            line = (f"{name} {rounds[-1].rate:.0f}/s {rounds[-1].cpu:.0f} us" for name, rounds in results.items())
            print(f"round {number + 1}: {', '.join(line)}", flush=True)
    report(results)


if __name__ == "__main__":
    main()
