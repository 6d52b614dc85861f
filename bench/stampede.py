"""Measure what joining saves: 200 callers ask for the same 20 collections in a second, `queue.join` off and on.

Run by `make bench`. Each run has a practice API with one key of 60 requests per 6 s over TLS, the real command line
before it, and callers that come as pipelines do: each on a connection of its own, at a moment of its own.
"""

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from keyturn.practice import PracticeApi, PracticeSettings

from bench.throughput import address_of, running

LIMIT, WINDOW, WAIT = 60, 6.0, 60
KEY = "secret-of-the-stampede"


@dataclass(frozen=True)
class Outcome:
    """One stampede: requests that the upstream counted, its 429s, answers by status, seconds until the last one."""

    arrived: int
    throttled: int
    answers: Counter[int]
    seconds: float
    joined: int


async def stampede(*, join: bool, callers: int, collections: int, seed: int) -> Outcome:
    """Run one stampede on an unused key."""
    settings = PracticeSettings(limit=LIMIT, window=WINDOW, tls=True, keys=(KEY,))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        async with PracticeApi(settings) as api:
            (folder / "ca.pem").write_bytes(api.ca_pem or b"")
            configuration = {
                "listen": "127.0.0.1:0",
                "admin": "127.0.0.1:0",
                "upstream": {"url": api.url, "ca": str(folder / "ca.pem")},
                "pools": {
                    "default": {
                        "limits": [{"requests": LIMIT, "window": f"{WINDOW:.0f}s"}],
                        "keys": [{"name": "only", "secret": KEY}],
                    }
                },
                "queue": {"max_wait": f"{WAIT}s", "join": join},
                "log": {"level": "warning"},
            }
            path = folder / "config.yaml"
            path.write_text(json.dumps(configuration))
            command = [sys.executable, "-m", "keyturn", "serve", "-c", str(path)]
            with running("keyturn", command, folder) as (_, ready):
                return await _measure(api, ready, callers, collections, seed)


async def _measure(api: PracticeApi, ready: str, callers: int, collections: int, seed: int) -> Outcome:
    address, rng = f"http://{address_of(ready)}", random.Random(seed)
    admin = next(word for word in ready.split() if word.startswith("admin=")).partition("=")[2]
    began = time.perf_counter()
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def call(number: int) -> int:
            await asyncio.sleep(rng.random())
            url = f"{address}/collections/10000001-{number % collections:08d}-practice"
            headers = {"Postman-Token": f"{rng.getrandbits(128):032x}", "User-Agent": "PostmanRuntime/7"}
            async with session.get(url, headers=headers) as answer:
                await answer.read()
                return answer.status

        answers = Counter(await asyncio.gather(*(call(number) for number in range(callers))))
        seconds = time.perf_counter() - began
        async with session.get(f"{admin}/metrics") as scraped:
            lines = (await scraped.text()).splitlines()
    joined = sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("keyturn_joined_total{"))
    arrivals = api.arrivals
    return Outcome(len(arrivals), sum(arrival.status == 429 for arrival in arrivals), answers, seconds, int(joined))


def main() -> None:
    """Print the outcomes of both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--callers", type=int, default=200)
    parser.add_argument("--collections", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    print(
        f"\n{given.callers} callers ask for the same {given.collections} collections within a second; "
        f"{LIMIT} per {WINDOW:.0f} s"
    )
    print(f"{'':12} {'tokens spent':>12} {'joined':>7} {'429s':>5} {'served':>7} {'last after':>11}")
    outcomes = {}
    for join in (False, True):
        outcome = asyncio.run(
            stampede(join=join, callers=given.callers, collections=given.collections, seed=given.seed)
        )
        outcomes[join] = outcome
        served = sum(number for status, number in outcome.answers.items() if status != 429)
        name = "joining" if join else "not joining"
        print(
            f"{name:12} {outcome.arrived:12} {outcome.joined:7} {outcome.throttled:5} {served:7} "
            f"{outcome.seconds:9.1f} s"
        )
    print(f"joining saves {1 - outcomes[True].arrived / outcomes[False].arrived:.0%} of the tokens")


if __name__ == "__main__":
    main()
