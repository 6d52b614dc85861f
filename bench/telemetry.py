"""Measure the part of a request's CPU time that metrics and the log take.

Run by `make bench`. A whole request is measured as in `bench.throughput`, on the real command line without lines for
requests; telemetry is measured in this process, on the events of one such request.
"""

import argparse
import json
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from secrets import token_hex

from keyturn.core.events import Event, Exchanged, RequestLog, UpstreamAnswered
from keyturn.telemetry import AccessLog, Metrics
from keyturn.telemetry.access_log import REQUEST_LOGGER

from bench.throughput import Proxy, address_of, load, running, write_certificates, write_config

CLIENTS = 20
LIMIT = 3.0
"""Percent of a request's CPU time that metrics may cost."""


def log(client: int) -> RequestLog:
    """Return the record of a forwarded request."""
    return RequestLog(
        id=token_hex(16), method="GET", path="/collections/12345678-aaaa-bbbb-cccc-1234567890ab",
        client=f"client-{client}", pool="default", key="bench", code=200, outcome="forwarded",
        queued=300, upstream=1_500, streamed=200, total=2_300, tries=1, sent=1_024,
    )  # fmt: skip


def events(client: int) -> list[Event]:
    """Return the events of one request: on an idle proxy it also has a round trip to the store to itself."""
    return [UpstreamAnswered("default", "bench", 200), Exchanged("default", 0.0002, 1), log(client)]


def cost(work: Callable[[int], None], repetitions: int = 20_000, rounds: int = 7) -> float:
    """Return the microseconds of CPU of one call: the median of some rounds."""
    found = []
    for _ in range(rounds):
        begin = time.process_time_ns()
        for number in range(repetitions):
            work(number % CLIENTS)
        found.append((time.process_time_ns() - begin) / 1000 / repetitions)
    return statistics.median(found)


def metrics_cost() -> float:
    """Return the cost of counting one request."""
    metrics, stories = Metrics(), [events(client) for client in range(CLIENTS)]

    def count(client: int) -> None:
        for event in stories[client]:
            metrics.observe(event)

    return cost(count)


def log_cost(folder: Path) -> float:
    """Return the cost of one line in JSON, written to a file."""
    logging.getLogger(REQUEST_LOGGER).setLevel(logging.INFO)
    stories = [log(client) for client in range(CLIENTS)]
    with (folder / "requests.log").open("w", encoding="utf-8") as stream:
        log = AccessLog("json", stream=stream)
        return cost(lambda client: log.write(stories[client]))


def request_cost(folder: Path, requests: int, rounds: int) -> float:
    """Return the cost of a whole request, without its line."""
    certificate, ca = write_certificates(folder)
    tokens = [token_hex(16) for _ in range(CLIENTS)]
    with ExitStack() as stack:
        command = [sys.executable, "-m", "bench.upstream", str(certificate)]
        _, ready = stack.enter_context(running("upstream", command, folder))
        path = write_config(folder, ready.split()[1], ca, tokens)
        path.write_text(json.dumps({**json.loads(path.read_text()), "log": {"level": "warning"}}))
        command = [sys.executable, "-m", "keyturn", "serve", "-c", str(path)]
        pid, ready = stack.enter_context(running("keyturn", command, folder))
        proxy = Proxy("keyturn", address_of(ready), pid, tokens)
        load(proxy, requests, 40)
        return statistics.median(load(proxy, requests, 40).cpu for _ in range(rounds))


def report(whole: float, parts: Sequence[tuple[str, float]]) -> None:
    """Print a line for each part."""
    print(f"\na request's CPU time without its line of the log: {whole:.0f} us")
    for name, part in parts:
        print(f"{name}: {part:.1f} us, {100 * part / whole:.1f} % of that")


def main() -> None:
    """Measure and print; nothing is asserted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=6000, help="requests in each load [6000]")
    parser.add_argument("--rounds", type=int, default=3, help="loads [3]")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="keyturn-bench-") as name:
        folder = Path(name)
        whole = request_cost(folder, arguments.requests, arguments.rounds)
        metrics, line = metrics_cost(), log_cost(folder)
    report(whole, [(f"metrics (aim: below {LIMIT:.0f} %)", metrics), ("a line of the log, in JSON", line)])


if __name__ == "__main__":
    main()
