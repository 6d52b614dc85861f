"""Keys that change their pool, in one process and while replicas differ: the upstream never refuses (law 1)."""

import asyncio
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from keyturn.practice import PracticeApi, PracticeSettings
from keyturn.practice.gate import most_within

from tests.process import KEYS, TOKENS, Keyturn, calling, client, document, limit, request, serving, until, write
from tests.stores.servers import KINDS, server

LIMIT, WINDOW = 20, 0.5
SECRETS = (*KEYS, "secret-of-key-three")
MOVING = "moving"


class Crowd:
    """Callers of both pools at several replicas, and the names of the keys that served them, by pool."""

    def __init__(self, api: PracticeApi) -> None:
        self.api = api
        self.served: Counter[tuple[str, str]] = Counter()
        self.answers: Counter[int] = Counter()
        self.over = False

    async def call(self, keyturn: Keyturn, name: str) -> None:
        """Ask one request after another."""
        while not self.over:
            async with calling(keyturn.data) as caller:
                for _ in range(10):
                    reply = await caller.ask(request("/echo", "Prefer: wait=60", token=TOKENS[name]))
                    self.answers[reply.status] += 1
                    self.served[name, reply.one("Keyturn-Key")] += 1

    async def is_served(self, name: str, key: str) -> None:
        """Wait until a client was served with a key once more."""
        enough = self.served[name, key] + 1
        await until(lambda: self.served[name, key] > enough, f"{name} is served with {key}")

    def judge(self) -> None:
        """Nobody was refused, here or by the upstream, and no window of a key is over its limit."""
        assert set(self.answers) == {200}
        assert self.api.throttled == 0
        by_key: dict[str, list[float]] = {}
        for arrival in self.api.arrivals:
            by_key.setdefault(arrival.key, []).append(arrival.at)
        assert max(most_within(sorted(instants), WINDOW) for instants in by_key.values()) <= LIMIT


@asynccontextmanager
async def upstream() -> AsyncIterator[PracticeApi]:
    """One that counts strictly."""
    practice = PracticeSettings(tls=True, keys=SECRETS, limit=LIMIT, window=WINDOW, kind="rolling")
    async with PracticeApi(practice) as api:
        yield api


def distributed(api: PracticeApi, folder: Path, pool: str, **sections: Any) -> dict[str, Any]:
    """A configuration in which one key is in that pool; each pool has another one of its own."""
    told = document(api, folder, upstream={"settle_bound": "200ms"}, clients=[], drain="2s", **sections)
    keys = {name: [{"name": name, "secret": secret}] for name, secret in zip(("first", "second"), KEYS, strict=True)}
    keys[pool].append({"name": MOVING, "secret": SECRETS[2]})
    limits = [limit(LIMIT, "500ms")]
    told["pools"] = {name: {"guard": "20ms", "limits": limits, "keys": own} for name, own in keys.items()}
    told["clients"] = [client("ci", pool="first"), client("reader", pool="second")]
    return told


async def test_a_key_that_is_moved_to_and_fro_is_not_spent_twice(tmp_path: Path) -> None:
    """In a process that reloads all the time; the key rests meanwhile, and then serves its last pool."""
    async with AsyncExitStack() as stack:
        api = await stack.enter_async_context(upstream())
        path = write(tmp_path, distributed(api, tmp_path, "first"))
        keyturn = await stack.enter_async_context(serving(path))
        crowd = Crowd(api)
        async with asyncio.TaskGroup() as tasks:
            for name in ("ci", "reader") * 6:
                tasks.create_task(crowd.call(keyturn, name))
            await crowd.is_served("ci", MOVING)
            for number, pool in enumerate(("second", "first", "second", "first", "second"), 1):
                write(tmp_path, distributed(api, tmp_path, pool))
                keyturn.process.signal(signal.SIGHUP)
                await until(lambda: keyturn.process.stderr.count("was reloaded") >= number, "a reload")  # noqa: B023
                await crowd.is_served("reader", "second")
            await crowd.is_served("reader", MOVING)
            crowd.over = True
        crowd.judge()


async def test_replicas_that_place_a_key_differently_take_turns(tmp_path: Path) -> None:
    """The later configuration has it, a window after the others have stopped; they get it back when it is gone."""
    with server(KINDS[-1]) as store:
        async with AsyncExitStack() as stack:
            api = await stack.enter_async_context(upstream())
            folders = [tmp_path / name for name in ("before", "after")]
            for folder in folders:
                folder.mkdir()
            shared = {"store": {"url": store.url, "timeout": "2s"}}
            before, after = (
                write(folder, distributed(api, folder, pool, **shared))
                for folder, pool in zip(folders, ("first", "second"), strict=True)
            )
            crowd, left = Crowd(api), Crowd(api)
            old = await stack.enter_async_context(serving(before))
            async with asyncio.TaskGroup() as tasks:
                for name in ("ci", "reader") * 4:
                    tasks.create_task(crowd.call(old, name))
                await crowd.is_served("ci", MOVING)
                async with serving(after) as new, asyncio.TaskGroup() as others:
                    for name in ("ci", "reader") * 4:
                        others.create_task(left.call(new, name))
                    await left.is_served("reader", MOVING)
                    seen = crowd.served["ci", MOVING]
                    await left.is_served("reader", MOVING)
                    assert crowd.served["ci", MOVING] == seen, "it rests where it was"
                    left.over = True
                await crowd.is_served("ci", MOVING)
                crowd.over = True
            crowd.judge()
            left.judge()
