"""Measure the shared store under load: the cost of an exchange, how many there are, and what they add to a request.

Run by `make bench`, on a server of the kind that `make test` installs. bench/README.md says how to read the result.
"""

import argparse
import asyncio

from bench import calls, exchanges, latency
from tests.stores.servers import KINDS


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m bench.store")
    parser.add_argument("--kind", choices=KINDS, default=KINDS[-1], help="the server (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="of what is compared in turns (default: %(default)s)")
    parser.add_argument("--only", choices=("exchanges", "calls", "latency"), help="a part of it")
    arguments = parser.parse_args()
    if arguments.only in (None, "exchanges"):
        asyncio.run(exchanges.run(arguments.kind, arguments.rounds))
    if arguments.only in (None, "calls"):
        asyncio.run(calls.run(arguments.kind))
    if arguments.only in (None, "latency"):
        latency.run(arguments.kind, arguments.rounds)


if __name__ == "__main__":
    main()
