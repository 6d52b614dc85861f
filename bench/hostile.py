"""Measure what one hostile client costs a well-behaved one: how much of its load is served, and how fast.

Run by `make bench`; `--only uploads,readers` measures some rows. For each row a `keyturn serve` of its own on the
loopback, its upstream (`bench.backend`), and in turns the well-behaved client (`bench.behaved`) alone and beside the
hostile one (`bench.attacks`). bench/README.md says how to read the table.
"""

import argparse
import http.client
import json
import math
import os
import platform
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.backend import JOINED, SMALL
from bench.throughput import ROOT, address_of, running

SHARE, SLOWER, MEMORY = 0.95, 3.0, 200.0
"""The targets: at least that part of what is served alone, p99 no more than so many times that alone, and MB at
the most with a thousand connections without a credential."""
TOKENS = {name: f"token-of-the-{name}-client" for name in ("behaved", "hostile")}
MANY = {"requests": 100_000, "window": "1s"}
RECOVERY = 10.0
"""Seconds that the process has to serve again when an attack is over; else the row ends."""
SETTLED = 1.0
"""Further seconds of an attack whose memory is measured."""


@dataclass(frozen=True)
class Load:
    """The load of the well-behaved client: see `bench.behaved`."""

    target: str = "/small"
    rate: float = 50
    seconds: float = 3
    together: int = 1
    length: int = len(SMALL)


@dataclass(frozen=True)
class Row:
    """One attack: its kind and its connections, the point of the issue that it is, and what it meets."""

    name: str
    kind: str
    number: int
    load: Load = Load()
    rounds: int = 2
    limits: tuple[dict[str, Any], ...] = (MANY,)
    join: bool = False
    rest: float = 0.0
    """Seconds after each load in which tokens that it spent return."""
    more: int = 0
    """Connections of a larger attack, for its memory only."""


UPLOADS = {"requests": 15, "window": "3s"}
ONE_AT_A_TIME = {"requests": 1, "window": "2s", "match": ["GET /joined"]}
ROWS = (
    Row("heads", "heads", 3),
    Row("uploads", "uploads", 60, Load(rate=4, seconds=4), limits=(UPLOADS,), rest=3.5),
    Row("readers", "readers", 280),
    Row("unauthenticated", "bodies", 1000, rounds=1, more=3000),
    Row("unauthenticated", "pipelined", 1000, rounds=1, more=3000),
    Row("unauthenticated", "half-heads", 1000, rounds=1, more=3000),
    Row("failures", "failures", 20, Load(rate=2 / 3, seconds=7.5)),  # a faster one's successes end each row
    Row("joined", "joined", 2, Load("/joined", 1, 6, 2, JOINED), limits=(MANY, ONE_AT_A_TIME), join=True),
)


@dataclass
class Figures:
    """The figures of one round of the well-behaved client."""

    asked: int
    served: int
    p99: float
    """Milliseconds."""
    codes: dict[str, int]

    def __str__(self) -> str:
        others = ", ".join(f"{number} {code}" for code, number in self.codes.items() if code != "200")
        said = others.replace(" 0", " without an answer") if others else ""
        return f"{self.served} of {self.asked} served{f' ({said})' if said else ''}, p99 {self.p99:.0f} ms"


@dataclass
class Result:
    """A row's rounds in pairs, and the most memory that the process had, in MB."""

    row: Row
    pairs: list[tuple[Figures, Figures]] = field(default_factory=list)
    memory: float = 0.0
    more: float = 0.0

    @property
    def share(self) -> float:
        """Return the requests served beside the attack as a part of those served alone."""
        return statistics.median(beside.served / max(alone.served, 1) for alone, beside in self.pairs)

    @property
    def slower(self) -> float:
        """Return the p99 beside the attack divided by the p99 alone."""
        return statistics.median(beside.p99 / alone.p99 for alone, beside in self.pairs)

    @property
    def met(self) -> bool:
        """Return whether the targets are met."""
        fits = not self.row.more or self.memory <= MEMORY
        return self.share >= SHARE and self.slower <= SLOWER and fits


def ask(row: Row, address: str, seconds: float | None = None) -> Figures:
    """Run one round of the well-behaved client."""
    load = row.load
    words = (address, load.target, load.rate, seconds or load.seconds, load.together, load.length, TOKENS["behaved"])
    command = [sys.executable, "-m", "bench.behaved", *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False)
    if done.returncode:
        sys.exit(f"The well-behaved client failed. {done.stderr[-1000:].strip()}")
    told = json.loads(done.stdout)
    seconds_taken = told["seconds"] or [math.inf]
    p99 = 1000 * seconds_taken[math.ceil(0.99 * len(seconds_taken)) - 1]
    return Figures(told["asked"], told["codes"].get("200", 0), p99, told["codes"])


@contextmanager
def attacked(row: Row, number: int, address: str, source: str, folder: Path) -> Iterator[None]:
    """Run the attack from an address for as long as the block lasts."""
    command = [sys.executable, "-m", "bench.attacks", row.kind, address, str(number), TOKENS["hostile"], source]
    with running("attack", command, folder):
        yield


def recover(address: str) -> bool:
    """Wait until the process serves the well-behaved client again; return whether it does."""
    deadline = time.monotonic() + RECOVERY
    while time.monotonic() < deadline:
        asking = http.client.HTTPConnection(address, timeout=RECOVERY)
        with suppress(OSError, http.client.HTTPException):
            asking.request("GET", "/small", headers={"X-Api-Key": TOKENS["behaved"]})
            if asking.getresponse().status == 200:
                return True
        asking.close()
        time.sleep(0.1)
    return False


def peak(pid: int) -> float:
    """Return the peak resident memory of a process in MB (Linux only)."""
    status = Path(f"/proc/{pid}/status")
    return int(status.read_text().partition("VmHWM:")[2].split()[0]) * 1024 / 1e6 if status.exists() else 0.0


def delay(pid: int) -> float:
    """Return the milliseconds for which a process could have run but had no core (Linux only)."""
    told = Path(f"/proc/{pid}/schedstat")
    return int(told.read_text().split()[1]) / 1e6 if told.exists() else 0.0


def configuration(row: Row, upstream: str) -> dict[str, Any]:
    """Return a configuration that sets only what the row needs."""
    keys = [{"name": name, "secret": f"secret-of-{name}"} for name in ("one", "two")][: 1 if row.join else 2]
    return {
        "listen": "127.0.0.1:0",
        "admin": "127.0.0.1:0",
        "upstream": {"url": upstream},
        "pools": {"default": {"limits": list(row.limits), "keys": keys}},
        "queue": {"join": row.join},
        "clients": [{"name": name, "token": token} for name, token in TOKENS.items()],
        "log": {"level": "error"},
    }


def measure(row: Row, rounds: int | None, source: str) -> Result:
    """Measure a row before a process of its own."""
    result = Result(row)
    with tempfile.TemporaryDirectory(prefix="keyturn-hostile-") as name:
        folder = Path(name)
        python = [sys.executable, "-m"]
        with running("upstream", [*python, "bench.backend"], folder) as (_, upstream):
            path = folder / "config.yaml"
            path.write_text(json.dumps(configuration(row, upstream.split()[1])))
            path.chmod(0o600)
            with running("keyturn", [*python, "keyturn", "serve", "-c", str(path)], folder) as (pid, ready):
                address = address_of(ready)
                recover(address)
                for number in range(rounds or row.rounds):
                    alone = ask(row, address)
                    time.sleep(row.rest)
                    before = delay(pid)
                    with attacked(row, row.number, address, source, folder):
                        beside = ask(row, address)
                        result.memory = peak(pid)
                    result.pairs.append((alone, beside))
                    waited = f"Keyturn had to wait {delay(pid) - before:.0f} ms for a core"
                    print(f"{row.kind} {number + 1}: alone {alone}; beside {beside}; {waited}", flush=True)
                    if not recover(address):
                        os.kill(pid, signal.SIGKILL)
                        return result
                    time.sleep(row.rest)
                if row.more:
                    with attacked(row, row.more, address, source, folder):
                        time.sleep(SETTLED)
                        result.more = peak(pid)
    return result


def report(results: list[Result]) -> None:
    """Print the table, with the targets and whether they are met."""
    print(
        f"\n{'attack':12}{'connections':>12}{'served alone':>14}{'beside':>8}{'share':>8}"
        f"{'p99 alone':>11}{'beside':>9}{'ratio':>8}{'MB':>6}{'MB of 3,000':>13}  targets"
    )
    for result in results:
        alone, beside = (list(figures) for figures in zip(*result.pairs, strict=True))
        served = (f"{sum(each.served for each in figures)}" for figures in (alone, beside))
        late = (f"{statistics.median(each.p99 for each in figures):.0f} ms" for figures in (alone, beside))
        (first, second), (quick, slow) = served, late
        print(
            f"{result.row.kind:12}{result.row.number:12}{first:>14}{second:>8}{result.share:8.0%}"
            f"{quick:>11}{slow:>9}{result.slower:8.1f}{result.memory:6.0f}"
            f"{f'{result.more:.0f}' if result.more else '':>13}  {'met' if result.met else 'missed'}"
        )
    print(
        f"targets: share >= {SHARE:.0%}, p99 <= {SLOWER:g} times that alone; "
        f"<= {MEMORY:.0f} MB with 1,000 connections without a credential"
    )


def main() -> None:
    """Measure the rows that were asked for, and report."""
    names = list(dict.fromkeys(row.name for row in ROWS))
    parser = argparse.ArgumentParser(prog="python -m bench.hostile", description=__doc__)
    parser.add_argument("--only", default=",".join(names), help=f"some of {','.join(names)}, or kinds of attacks")
    parser.add_argument("--rounds", type=int, help="rounds of each row, alone and beside the attack [1 or 2]")
    parser.add_argument(
        "--source",
        default="127.0.0.1",
        help="the address of the hostile client [%(default)s, that of the other one, as behind one balancer]",
    )
    given = parser.parse_args()
    wanted = set(given.only.split(","))
    rows = [row for row in ROWS if {row.name, row.kind} & wanted]
    if not rows:
        parser.error(f"--only takes {', '.join(names)}")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    print(f"One hostile client; {platform.system()}, Python {platform.python_version()}", flush=True)
    began = time.monotonic()
    report([measure(row, given.rounds, given.source) for row in rows])
    print(f"{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
