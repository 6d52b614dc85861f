"""Run the dashboard's queries and the rules over a real Prometheus that has scraped a running demo for a while.

    python -m e2e.dashboard                    scrapes for 75 s: long enough for a key to be revoked
    python -m e2e.dashboard --seconds 200      longer

Needs Prometheus (`--prometheus`, or one in the PATH; Debian's package `prometheus`). Exits with 1 when a query brings
no data, or a rule cannot be evaluated.
"""

import argparse
import json
import math
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode, urlsplit
from urllib.request import Request, urlopen

import yaml

from e2e.demo_page import demo
from tests.observability.documents import ALERTS, queries

START_SECONDS = 30
WINDOW = "1m"
"""Stands for `$__rate_interval`: about as long as the demo has run."""


class Prometheus:
    """A server of ours that scrapes a replica once a second."""

    def __init__(self, address: str) -> None:
        self._address = address

    def ask(self, path: str, **parameters: str) -> Any:
        """Return the `data` of an answer of its API.

        Raises:
            URLError: it does not answer, or not with success.
        """
        url = f"{self._address}/api/v1/{path}?{urlencode(parameters)}"
        with urlopen(url, timeout=START_SECONDS) as answer:  # the loopback
            return json.load(answer)["data"]

    def numbers(self, query: str) -> list[float]:
        """Return the numbers that a query brings now."""
        found = [float(series["value"][1]) for series in self.ask("query", query=query)["result"]]
        return [number for number in found if not math.isnan(number)]

    def sick_rules(self) -> list[str]:
        """Return the rules that could not be evaluated, and why."""
        rules = [rule for group in self.ask("rules")["groups"] for rule in group["rules"]]
        return [f"{rule['name']}: {rule.get('lastError', rule['health'])}" for rule in rules if rule["health"] != "ok"]

    def ready(self) -> bool:
        """Return whether it answers."""
        with suppress(URLError, ConnectionError):
            return bool(self.ask("status/buildinfo"))
        return False


@contextmanager
def prometheus(program: str, target: str, folder: Path) -> Iterator[Prometheus]:
    """Run Prometheus with our rules for as long as the block lasts."""
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "5s"},
        "rule_files": [str(ALERTS)],
        "scrape_configs": [{"job_name": "keyturn", "static_configs": [{"targets": [target]}]}],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [
        program,
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL) as process:
        server = Prometheus(f"http://127.0.0.1:{port}")
        try:
            end = time.monotonic() + START_SECONDS
            while not server.ready():
                if time.monotonic() > end or process.poll() is not None:
                    sys.exit("Prometheus did not get ready.")
                time.sleep(0.2)
            yield server
        finally:
            process.terminate()


def be_refused(data: str) -> None:
    """Send a request that the proxy refuses: in a short demo there may be no other."""
    with suppress(HTTPError):
        urlopen(Request(data, method="TRACE"), timeout=START_SECONDS).close()  # the loopback


def run(program: str, seconds: int) -> bool:
    """Scrape, query, print; return whether every query brought data and every rule was evaluated."""
    with (
        tempfile.TemporaryDirectory(prefix="keyturn-prometheus-") as folder,
        demo() as (data, admin),
        prometheus(program, urlsplit(admin).netloc, Path(folder)) as server,
    ):
        be_refused(data)
        time.sleep(seconds)
        found = {query: server.numbers(query) for query in queries(WINDOW)}
        sick = server.sick_rules()
    for query, numbers in found.items():
        print(f"{f'{len(numbers):3} series' if numbers else 'NOTHING   '} {query}")
    for rule in sick:
        print(f"SICK       {rule}")
    empty = sum(not numbers for numbers in found.values())
    print(f"{len(found)} queries after {seconds} s of the demo, {empty} without data; {len(sick)} rules not evaluated")
    return not empty and not sick


def main() -> None:
    """Read the arguments, run, exit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=75, help="how long to scrape [75]")
    parser.add_argument("--prometheus", default=shutil.which("prometheus"))
    arguments = parser.parse_args()
    if not arguments.prometheus:
        sys.exit("No Prometheus on this machine: install it (Debian: `apt-get install prometheus`) or name it.")
    sys.exit(0 if run(arguments.prometheus, arguments.seconds) else 1)


if __name__ == "__main__":
    main()
