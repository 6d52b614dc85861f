"""The link of one process to the shared store on Redis or Valkey: it carries calls of scripts, and wakes sleepers.

Laws of this module: a call runs at most once; it ends within the timeout, connecting included; whatever goes wrong is
one error, `StoreLost`, whose cause says what to do. After a failure the next call finds its way anew: with another
client, that knows no connection, no master and no node yet.

Whatever: besides its own errors redis-py lets out an AttributeError (a cluster's `ASK` that names a node without any
slot, its issue 4015), and uvloop's RuntimeError (a write to a connection that has been reset).
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha1
from typing import Any

from redis.exceptions import NoScriptError

from keyturn.core.errors import StartError, StoreLost
from keyturn.core.model import SECOND, Micros
from keyturn.stores.causes import lost, strange
from keyturn.stores.clients import Opened, opener
from keyturn.tasks import finish, spawn

_OLDEST = (6, 2)

_GLANCE = 0.05
_CLOSING = 1.0
_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 2.0
"""Seconds: what of the timeout is kept for an answer that is there already, how long ended connections have to go away,
and how long to pause before listening is tried anew."""

_SILENCE = 30.0
_SLICE = 0.5
"""Seconds: for how long a connection that listens may be silent unasked, and how often it is seen whether it is."""

Argument = str | bytes | int


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script, known to servers by its SHA-1."""

    text: str
    digest: str

    @classmethod
    def of(cls, text: str) -> "Script":
        """A script with its digest."""
        return cls(text, sha1(text.encode(), usedforsecurity=False).hexdigest())


_SERVER_CHECK = Script.of("""
local told = redis.pcall('PUBLISH', KEYS[1] .. ':wake:', '')
return {redis.call('INFO', 'server'), redis.call('INFO', 'memory'), type(told) == 'table' and told.err or ''}
""")


class _Way:
    """A client, and who uses it."""

    def __init__(self, opened: Opened) -> None:
        self.opened = opened
        self.calls: set[asyncio.Task[Any]] = set()

    async def close(self) -> None:
        """End the client once nobody uses it any more: a failure of one call is no reason to break another's."""
        if self.calls:
            await asyncio.wait(self.calls)
        await _close(self.opened)


class Link:
    """The owner of this process's connections to the store that `url` names, of which `shown` is without secrets.

    `timeout` is for one call, connecting included; `strict_certificates`: see `keyturn.trust`.

    Raises:
        StartError: the URL has a parameter that there is not, or names a file that cannot be used.
    """

    def __init__(self, url: str, *, shown: str, timeout: Micros, strict_certificates: bool = False) -> None:
        self._timeout = timeout
        self._strict_certificates = strict_certificates
        self.renew(url)
        self._shown = shown
        self.timeout = timeout / SECOND
        """Seconds that a call may take."""
        self._way: _Way | None = None
        self._doubts = 0
        """How often a way was left: what is wrong with it may be wrong with those that listen, too."""
        self._listening: set[asyncio.Task[Any]] = set()
        self._leaving: set[asyncio.Task[Any]] = set()

    def renew(self, url: str) -> None:
        """Take another password of the same store for connections that are made from now on.

        Raises:
            StartError: as above; then nothing has changed.
        """
        try:
            self._open = opener(url, self._timeout, strict_certificates=self._strict_certificates)
        except ValueError as problem:
            raise StartError(f"store.url: {problem}") from None

    async def close(self) -> None:
        """End the listening and all connections."""
        await finish(self._listening)
        if self._way:
            await finish(self._way.calls)
            self._leave(self._way)
        if self._leaving:
            await asyncio.wait(self._leaving)

    async def run(
        self, script: Script, key: str, *arguments: Argument, read: Callable[[Any], Any] = lambda answer: answer
    ) -> Any:
        """Run a script on the server that has `key`; answers what `read` makes of what it returns, strings as bytes.

        KEYS[1] is `key`, from which the script may build the names of its keys. KEYS[2] is the name of a key that
        never is: with it a cluster refuses the call (`TRYAGAIN`) while it moves keys of that slot to another node,
        when neither of the two has all.

        Raises:
            StoreLost: no answer, an error for one, or one that `read` cannot read. The script has run once or not at
                all.
        """

        async def work(opened: Opened) -> Any:
            keys = (2, key, f"{key}:none")
            try:
                return await opened.client.evalsha(script.digest, *keys, *arguments)
            except NoScriptError:
                pass  # below, so that what EVAL raises was not raised while handling this
            return await opened.client.eval(script.text, *keys, *arguments)  # runs it, and the server remembers it

        answer = await self._carry(work)
        try:
            return read(answer)
        except Exception:  # noqa: BLE001  # the law
            raise strange(self._shown) from None

    async def check(self, key: str) -> tuple[str, ...]:
        """Check the server that has `key`, and return one line per problem.

        Raises:
            StoreLost: the server does not respond.
        """
        server, memory, denied = await self.run(_SERVER_CHECK, key, read=_three)
        warnings = (*_warnings(_fields(server + b"\n" + memory)), *_mute(key, denied.decode(errors="replace")))
        return tuple(f"{self._shown}: {warning}" for warning in warnings)

    def listen(
        self,
        channel: str,
        hear: Callable[[bytes], None],
        deaf: Callable[[StoreLost], None] = lambda _: None,
    ) -> None:
        """Call `hear` with each message of a channel, and with an empty one when some may have been missed.

        That is so once connected anew. `deaf` is told each time that the connection is lost or does not come about.
        """
        spawn(self._listen(channel, hear, deaf), name=f"listen {channel}", owner=self._listening)

    # Calls

    async def _carry(self, work: Callable[[Opened], Coroutine[Any, Any, Any]]) -> Any:
        """Do it within the timeout; what the client still does about it afterwards, it does without the caller."""
        way = self._way = self._way or _Way(self._open())
        call = spawn(work(way.opened), name="call the store", owner=way.calls)
        try:
            return await _within(self.timeout, call)
        except Exception as problem:  # noqa: BLE001  # the law
            self._leave(way)
            raise self._lost(problem, way.opened) from None
        finally:
            call.cancel()

    def _leave(self, way: _Way) -> None:
        """Let the next call find its way anew."""
        if self._way is way:
            self._way = None
            self._doubts += 1
            spawn(way.close(), name="leave the store", owner=self._leaving)

    def _lost(self, problem: BaseException, opened: Opened) -> StoreLost:
        server = opened.at(problem)
        known = not server or server in self._shown
        return lost(problem, self._shown if known else f"{self._shown} at {server}")

    # Listening

    async def _listen(self, channel: str, hear: Callable[[bytes], None], deaf: Callable[[StoreLost], None]) -> None:
        """Listen for ever, with a client for each connection."""
        pause = _FIRST_PAUSE
        while True:
            opened = self._open()
            subscription = opened.client.pubsub()
            try:
                async with asyncio.timeout(self.timeout):
                    await opened.client.initialize()
                    await subscription.subscribe(channel)
                async for message in self._messages(subscription, channel):
                    pause = _FIRST_PAUSE
                    hear(message)
            except Exception as problem:  # noqa: BLE001  # the law
                deaf(self._lost(problem, opened))
            finally:
                await subscription.aclose()  # type: ignore[no-untyped-call]  # as redis-py has it
                await _close(opened)
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _messages(self, subscription: Any, channel: str) -> AsyncIterator[bytes]:
        """Each message; the first is empty, and says that it is subscribed.

        A connection may be gone without a word, and nothing is ever written to it that would find that out. So when a
        call has failed, and every now and then, it subscribes once more, which a server that is there answers.

        Raises:
            TimeoutError: it did not.
        """
        now = asyncio.get_running_loop().time
        subscribed, doubts, heard, asked = False, self._doubts, now(), None
        while True:
            message = await subscription.get_message(timeout=_SLICE)
            if message is not None:
                heard, asked = now(), None
                if message["type"] == "message" or not subscribed:
                    subscribed = True
                    yield message["data"] if message["type"] == "message" else b""
            elif asked is not None:
                if now() - asked > self.timeout:
                    raise TimeoutError
            elif doubts != self._doubts or now() - heard > _SILENCE:
                doubts, asked = self._doubts, now()
                await subscription.subscribe(channel)


async def _within(seconds: float, call: "asyncio.Task[Any]") -> Any:
    """Wait for a call's result, with a timeout.

    A process that was stopped or short of CPU may find the response and its timeout at the same moment, so it looks for
    the response again before it reports the store as lost.

    Raises:
        TimeoutError: the call did not complete in time.
    """
    for part in (seconds - _GLANCE, _GLANCE):
        done, _ = await asyncio.wait((call,), timeout=max(0.0, part))
        if done:
            return call.result()
    raise TimeoutError


async def _close(opened: Opened) -> None:
    with suppress(Exception):
        async with asyncio.timeout(_CLOSING):
            await opened.close()


def _three(answer: Any) -> tuple[bytes, bytes, bytes]:
    server, memory, denied = map(bytes, answer)
    return server, memory, denied


def _mute(key: str, denied: str) -> Iterator[str]:
    if denied:
        yield (
            "it does not let this user call other replicas, so tokens that come early are used late: allow it "
            f"`+publish` and `&{key.partition(':')[0]}:*` ({denied})."
        )


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
