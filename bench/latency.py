"""Measure what the shared store adds to a request: two idle proxies, one on memory, one on a server, in turns."""

import json
import secrets
import statistics
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from bench.throughput import Proxy, Round, address_of, load, running, write_certificates, write_config
from tests.stores.servers import server

REQUESTS = 300
"""In a round, one after the other over one connection."""


def start(stack: ExitStack, folder: Path, urls: dict[str, str]) -> list[Proxy]:
    """Start an upstream, and a proxy for each store; the stack ends them."""
    certificate, ca = write_certificates(folder)
    python = [sys.executable, "-m"]
    _, ready = stack.enter_context(running("upstream", [*python, "bench.upstream", str(certificate)], folder))
    upstream, tokens = ready.split()[1], [secrets.token_hex(16)]
    proxies = []
    for name, url in urls.items():
        own = folder / name
        own.mkdir()
        config = write_config(own, upstream, ca, tokens)
        told = json.loads(config.read_text(encoding="utf-8")) | {"store": {"url": url}}
        config.write_text(json.dumps(told), encoding="utf-8")
        pid, ready = stack.enter_context(running(name, [*python, "keyturn", "serve", "-c", str(config)], folder))
        proxies.append(Proxy(name, address_of(ready), pid, tokens))
    return proxies


def run(kind: str, rounds: int) -> None:
    """Print the figures."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="keyturn-bench-")))
        one = stack.enter_context(server(kind))
        memory, shared = start(stack, folder, {"memory": "memory://", "shared": one.url})
        for proxy in (memory, shared):
            load(proxy, 50, 1)  # connections are made, and keys known
        pairs = [(load(memory, REQUESTS, 1), load(shared, REQUESTS, 1)) for _ in range(rounds)]
    print(f"What the shared store adds to a request on an idle proxy ({REQUESTS} requests a round, {rounds} rounds)")
    for name, figure in (("p50", _p50), ("p99", _p99)):
        added = [figure(with_it) - figure(without) for without, with_it in pairs]
        before = statistics.median(figure(without) for without, _ in pairs)
        print(
            f"{name}: {statistics.median(added):+.2f} ms (rounds {min(added):+.2f} to {max(added):+.2f})"
            f" to {before:.2f} ms on memory"
        )


def _p50(one: Round) -> float:
    return one.p50


def _p99(one: Round) -> float:
    return one.p99
