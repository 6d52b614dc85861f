"""The link of one process to the shared store on Redis or Valkey: it carries calls of scripts, and wakes sleepers.

Laws of this module: a call runs at most once; it ends within the timeout, connecting included; whatever goes wrong is
one error, `StoreLost`, whose cause says what to do. After a failure the next call finds its way anew.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from hashlib import sha1
from typing import Any

from proxy.core.errors import StartError, StoreLost
from proxy.core.model import SECOND, Micros
from proxy.stores.addresses import Node, parse_address
from proxy.stores.causes import lost
from proxy.stores.lines import Lines
from proxy.stores.routes import NoMaster, route
from proxy.stores.wire import Argument, Refused, Wire
from proxy.tasks import finish, spawn

_FAILURES = (OSError, Refused, NoMaster)
"""What may go wrong with a server; a timeout is an OSError, too."""

_REDIRECTIONS = 5
_OLDEST = (6, 2)

_PULSE = 10.0
_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 2.0
"""Seconds: how often a listening connection is tried, and how long to pause before it is made anew."""


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script, known to servers by its SHA-1."""

    text: bytes
    digest: str

    @classmethod
    def of(cls, text: str) -> "Script":
        """A script with its digest."""
        data = text.encode()
        return cls(data, sha1(data, usedforsecurity=False).hexdigest())


class Link:
    """The owner of this process's connections to the store that `url` names, of which `shown` is without secrets.

    `timeout` is for one call, connecting included.

    Raises:
        StartError: the URL has a parameter that there is not, or names a file that cannot be used.
    """

    def __init__(self, url: str, *, shown: str, timeout: Micros) -> None:
        try:
            address = parse_address(url)
        except ValueError as problem:
            raise StartError(f"store.url: {problem}") from None
        self._shown = shown
        self._timeout = timeout / SECOND
        self._lines = Lines(address)
        self._route = route(self._lines, timeout)
        self._tasks: set[asyncio.Task[Any]] = set()

    async def close(self) -> None:
        """End the listening and all connections."""
        await finish(self._tasks)
        await self._lines.close()

    async def run(self, script: Script, key: str, *arguments: Argument) -> Any:
        """Run a script on the server that has `key`, its only KEYS; answers what it returns, strings as bytes.

        Raises:
            StoreLost: no answer, or an error for one. The script has run once or not at all.
        """

        async def work(wire: Wire) -> Any:
            try:
                return await wire.call("EVALSHA", script.digest, 1, key, *arguments)
            except Refused as refused:
                if refused.code != "NOSCRIPT":
                    raise
            return await wire.call("EVAL", script.text, 1, key, *arguments)  # runs it, and the server remembers it

        return await self._carry(key, work)

    async def check(self, key: str) -> tuple[str, ...]:
        """What is wrong with the server that has `key` although it answers, a line each.

        Raises:
            StoreLost: it does not answer.
        """

        async def work(wire: Wire) -> Any:
            try:
                return await wire.call("INFO", "server"), await wire.call("INFO", "memory")
            except Refused as refused:
                if refused.code != "NOPERM":
                    raise
            return None

        told = await self._carry(key, work)
        if told is None:
            return (f"{self._shown}: its ACL does not allow INFO, so nobody knows whether it evicts; allow `+info`.",)
        return tuple(f"{self._shown}: {warning}" for warning in _warnings(_fields(b"\n".join(told))))

    def listen(
        self, channel: str, wake: Callable[[], None], deaf: Callable[[StoreLost], None] = lambda _: None
    ) -> None:
        """Call `wake` for each message of a channel, and whenever messages may have been missed: once connected anew.

        `deaf` is told each time that the connection is lost or does not come about.
        """
        spawn(self._listen(channel, wake, deaf), name=f"listen {channel}", owner=self._tasks)

    # Calls

    async def _carry(self, key: str, work: Callable[[Wire], Awaitable[Any]]) -> Any:
        node = None
        try:
            async with asyncio.timeout(self._timeout):
                node, wire = await self._route.find(key)
                for _ in range(_REDIRECTIONS):
                    try:
                        answer = await work(wire)
                    except Refused as refused:
                        self._lines.keep(node, wire)
                        if not (other := self._route.follow(key, refused, node)):
                            raise
                        node, wire = other, await self._lines.take(other)
                        if refused.code == "ASK":
                            await wire.call("ASKING")
                    else:
                        self._lines.keep(node, wire)
                        return answer
                raise ConnectionError("its nodes send us in circles")
        except _FAILURES as problem:
            self._route.forget(key)
            raise self._lost(problem, node) from None

    def _lost(self, problem: BaseException, node: Node | None) -> StoreLost:
        known = node is None or str(node) in self._shown
        return lost(problem, self._shown if known else f"{self._shown} at {node}")

    # Listening

    async def _listen(self, channel: str, wake: Callable[[], None], deaf: Callable[[StoreLost], None]) -> None:
        pause = _FIRST_PAUSE
        while True:
            node, wire = None, None
            try:
                async with asyncio.timeout(self._timeout):
                    node, spare = await self._route.find(channel)
                    self._lines.keep(node, spare)
                    wire = await self._lines.dial(node, self._lines.address.login, wake)
                    await wire.call("SUBSCRIBE", channel)
                wake()
                pause = _FIRST_PAUSE
                await self._attend(wire)
            except _FAILURES as problem:
                self._route.forget(channel)
                deaf(self._lost(problem, node))
            finally:
                if wire:
                    wire.abort()
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _attend(self, wire: Wire) -> None:
        """Stay until the connection ends; a silent one is tried, for the other side may be gone without a word."""
        while wire.alive:
            await asyncio.wait([wire.ended], timeout=_PULSE)
            async with asyncio.timeout(self._timeout):
                await wire.call("PING")


def _fields(info: bytes) -> dict[str, str]:
    lines = (line.strip().partition(":") for line in info.decode(errors="replace").splitlines())
    return {name: value for name, colon, value in lines if colon}


def _warnings(told: dict[str, str]) -> Iterator[str]:
    version = told.get("redis_version", "")
    if version and tuple(int(part) for part in version.split(".")[:2]) < _OLDEST:
        yield f"Redis {version} is too old: Keyturn needs 6.2 or any Valkey."
    policy = told.get("maxmemory_policy", "noeviction")
    if told.get("maxmemory", "0") != "0" and policy != "noeviction":
        yield (
            f"it evicts keys when its memory is full (maxmemory-policy {policy}), and then forgets what was spent: "
            "set maxmemory-policy to noeviction."
        )
