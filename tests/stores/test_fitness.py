import asyncio
from typing import Any

from keyturn.core.model import SECOND
from keyturn.stores.fitness import watch
from keyturn.stores.links import Link
from keyturn.tasks import finish, spawn

from tests.process import until
from tests.stores.servers import KINDS, Server, server


async def test_what_is_wrong_is_told_when_it_is_first_seen() -> None:
    """A wrong setting is reported once when it is first seen, also later on or after an absence."""
    told: list[str] = []
    tasks: set[asyncio.Task[Any]] = set()
    with server(KINDS[-1], "maxmemory 100mb", "maxmemory-policy allkeys-lru") as one:
        one.kill()
        link = Link(one.url, shown=one.url, timeout=5 * SECOND)
        spawn(watch(link, "k", told.append, every=0.02), name="watch", owner=tasks)
        await asyncio.sleep(0.1)
        assert told == []
        await asyncio.to_thread(one.start)
        await until(lambda: told, "the eviction is told")
        one.ask("CONFIG", "SET", "maxmemory-policy", "volatile-lru")
        await until(lambda: len(told) > 1, "the change is told")
        one.ask("CONFIG", "SET", "maxmemory-policy", "noeviction")
        looks = _looks(one)
        await until(lambda: _looks(one) > looks + 2, "it is looked at again")
        assert ["allkeys-lru" in told[0], "volatile-lru" in told[1]] == [True, True]
        assert len(told) == 2
        await finish(tasks)
        await link.close()


def _looks(one: Server) -> int:
    """Return how often a script was called."""
    lines = one.ask("INFO", "commandstats").splitlines()
    return sum(int(line.partition("calls=")[2].partition(",")[0]) for line in lines if line.startswith("cmdstat_eval"))
