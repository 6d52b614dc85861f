"""A process whose files change while it serves: nothing of it is dropped, nothing half of it is taken."""

import asyncio
import json
import os
import pty
import signal
import ssl
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import trustme
from keyturn.practice import PracticeApi, PracticeSettings
from keyturn.practice.gate import most_within

from tests.process import (
    KEYS,
    ROOT,
    TOKENS,
    Gate,
    House,
    Reply,
    calling,
    client,
    document,
    house,
    limit,
    request,
    until,
    write,
)

NEW_KEY = "secret-of-key-three"


class Files:
    """The configuration of a process, and the changing of it."""

    def __init__(self, home: House, folder: Path) -> None:
        self.home = home
        self.path = folder / "config.yaml"
        self.settings: dict[str, Any] = json.loads(self.path.read_text())

    @property
    def pool(self) -> dict[str, Any]:
        return self.settings["pools"]["default"]  # type: ignore[no-any-return]  # as it was written

    def save(self, text: str | None = None) -> None:
        """Write it as editors do: beside it, then renamed over it."""
        beside = self.path.with_suffix(".new")
        beside.write_text(json.dumps(self.settings) if text is None else text)
        beside.chmod(0o600)
        beside.rename(self.path)

    async def taken(self, text: str | None = None) -> None:
        """Write it, and see it taken."""
        before = await self._told()
        self.save(text)
        self.home.keyturn.process.signal(signal.SIGHUP)
        await self._news(before)
        assert (await self._told())["ok"], await self._told()

    async def refused(self, text: str | None = None) -> str:
        """Write it, and see it refused; returns why."""
        before = await self._told()
        self.save(text)
        self.home.keyturn.process.signal(signal.SIGHUP)
        await self._news(before)
        told = await self._told()
        assert not told["ok"]
        return str(told["reason"])

    async def _told(self) -> Any:
        return (await self.home.keyturn.page("/status.json")).json()["reload"]

    async def _news(self, before: Any) -> None:
        async def told() -> bool:
            return bool(await self._told() != before)

        await until(told, "a reload is told of")


@asynccontextmanager
async def editing(folder: Path, practice: PracticeSettings | None = None, **settings: Any) -> AsyncIterator[Files]:
    """A process and its files."""
    async with house(folder, practice, **settings) as home:
        yield Files(home, folder)


async def ask(files: Files, target: str = "/echo", *fields: str, token: str | None = TOKENS["ci"]) -> Reply:
    """One request."""
    return await files.home.ask(request(target, *fields, token=token))


def accepting(*keys: str) -> PracticeSettings:
    """An upstream that accepts these, and permits much."""
    return PracticeSettings(tls=True, keys=keys, limit=10_000)


async def test_a_changed_file_is_noticed(tmp_path: Path) -> None:
    """Without anybody's asking: callers come and go, and the metrics tell."""
    async with editing(tmp_path) as files:
        assert (await ask(files, token=TOKENS["reader"])).status == 401
        files.settings["clients"] = [client("reader")]
        files.save()

        async def known() -> bool:
            return (await ask(files, token=TOKENS["reader"])).status == 200

        await until(known, "the new client is known")
        assert (await ask(files)).status == 401
        assert await files.home.keyturn.metric("keyturn_reload_success") == 1
        assert await files.home.keyturn.metric("keyturn_reload_refused_total") == 0


async def test_what_has_problems_is_refused_as_a_whole(tmp_path: Path) -> None:
    """Every problem is told with its path, in status, metrics and once in the log; the old configuration goes on."""
    async with editing(tmp_path) as files:
        keyturn = files.home.keyturn
        good = json.dumps(files.settings)
        files.settings["clients"] = [client("reader", weight=0), client("ci", pool="nowhere")]
        reason = await files.refused()
        assert "clients[0].weight" in reason
        assert "clients[1].pool" in reason
        assert await keyturn.metric("keyturn_reload_success") == 0
        assert await keyturn.metric("keyturn_reload_refused_total") == 1
        assert (await ask(files)).status == 200
        assert (await ask(files, token=TOKENS["reader"])).status == 401
        assert "line 1" in await files.refused("{nonsense")
        await files.taken(good)
        assert await keyturn.metric("keyturn_reload_success") == 1
        assert keyturn.process.stderr.count("clients[0].weight") == 1


async def test_what_needs_a_restart_says_so(tmp_path: Path) -> None:
    """And nothing of that configuration is taken, whatever else has changed."""
    async with editing(tmp_path) as files:
        files.settings["admin"] = "127.0.0.1:1"
        files.settings["store"] = {"prefix": "other"}
        files.settings["clients"].append(client("reader"))
        reason = await files.refused()
        assert "admin: needs a restart" in reason
        assert "store.prefix: needs a restart" in reason
        assert (await ask(files, token=TOKENS["reader"])).status == 401


async def test_who_waits_is_served_by_what_holds_now(tmp_path: Path) -> None:
    """A rotated secret from the next request on, a raised limit at once; what is under way keeps its key."""
    async with editing(tmp_path, accepting(*KEYS, NEW_KEY), limits=(limit(1, "60s"),), keys=KEYS[:1]) as files:
        files.pool["keys"][0]["quota"] = "ann"
        await files.taken()
        gate = Gate(files.home.api)
        async with calling(files.home.keyturn.data) as first, calling(files.home.keyturn.data) as second:
            first.send(request("/echo/first"))
            await until(lambda: gate.held, "a request is held up")
            second.send(request("/echo/second", "Prefer: wait=290"))
            await files.home.keyturn.waiting(1)
            files.pool["keys"][0]["secret"] = NEW_KEY
            files.pool["limits"] = [limit(2, "60s")]
            await files.taken()
            gate.open()
            replies = [await caller.reply() for caller in (first, second)]
        assert [reply.status for reply in replies] == [200, 200]
        sent = [dict(reply.json()["headers"])["X-Api-Key"] for reply in replies]
        assert sent == [KEYS[0], NEW_KEY]
        assert [reply.one("Keyturn-Key") for reply in replies] == ["team-1", "team-1"]
        refused = await ask(files, "/me", "Prefer: wait=5")
        assert refused.status == 429, "both tokens of the quota are spent, whatever the key's secret is"


async def test_who_waits_for_what_is_gone_is_told(tmp_path: Path) -> None:
    """A client that was taken out, and one whose pool it was goes on in the other."""
    clients = [client("ci"), client("reader", pool="other"), client("pinner", pin=True)]
    async with editing(tmp_path, accepting(*KEYS, NEW_KEY), limits=(limit(1, "60s"),), keys=KEYS[:1]) as files:
        files.settings["pools"]["other"] = {"keys": [{"name": "o", "secret": KEYS[1]}], "limits": [limit(1, "60s")]}
        files.settings["clients"] = clients
        await files.taken()
        for token in ("ci", "reader"):
            assert (await ask(files, "/me", token=TOKENS[token])).status == 200
        waits = "Prefer: wait=290"
        async with (
            calling(files.home.keyturn.data) as gone,
            calling(files.home.keyturn.data) as moved,
            calling(files.home.keyturn.data) as pinned,
        ):
            gone.send(request("/echo/gone", waits))
            moved.send(request("/echo/moved", waits, token=TOKENS["reader"]))
            pinned.send(request("/echo/pinned", waits, "Keyturn-Key: team-1", token=TOKENS["pinner"]))
            await files.home.keyturn.waiting(3)
            del files.settings["pools"]["other"]
            files.settings["clients"] = [client("reader"), client("pinner", pin=True)]
            files.pool["limits"] = [limit(2, "60s")]
            files.pool["keys"] = [{"name": "o", "secret": KEYS[1]}, {"name": "new", "secret": NEW_KEY}]
            await files.taken()
            answers = {"gone": await gone.reply(), "moved": await moved.reply(), "pinned": await pinned.reply()}
        assert {name: reply.status for name, reply in answers.items()} == {"gone": 401, "moved": 200, "pinned": 400}
        assert files.home.arrivals("/echo/gone") == []


async def test_a_mounted_folder_of_keys(tmp_path: Path) -> None:
    """As Kubernetes mounts a Secret: links to `..data`, which is swapped for another folder in one step."""
    keys = tmp_path / "keys"
    keys.mkdir()
    mounted = Mount(keys)
    mounted.swap({"a": KEYS[0]})
    async with editing(tmp_path, accepting(*KEYS, NEW_KEY)) as files:
        files.pool.update(keys=[], keys_dir="keys")
        await files.taken()

        async def used(**secrets: str) -> None:
            async def seen() -> bool:
                replies = [await ask(files) for _ in range(4)]
                sent = {reply.one("Keyturn-Key"): dict(reply.json()["headers"])["X-Api-Key"] for reply in replies}
                return sent == secrets

            await until(seen, f"the keys {list(secrets)} are in use")

        await used(a=KEYS[0])
        mounted.swap({"a": KEYS[0], "b": KEYS[1]})
        await used(a=KEYS[0], b=KEYS[1])
        mounted.swap({"b": NEW_KEY})
        await used(b=NEW_KEY)


class Mount:
    """A folder as the kubelet writes it (`AtomicWriter`)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._number = 0

    def swap(self, files: dict[str, str]) -> None:
        """Put these files in place of those that are there."""
        self._number += 1
        content = self.folder / f"..2026_{self._number}"
        content.mkdir()
        for name, text in files.items():
            (content / name).write_text(text)
        (self.folder / "..data_tmp").symlink_to(content.name)
        (self.folder / "..data_tmp").rename(self.folder / "..data")
        shown = {path.name for path in self.folder.iterdir() if not path.name.startswith("..")}
        for name in files.keys() - shown:
            (self.folder / name).symlink_to(f"..data/{name}")
        for name in shown - files.keys():
            (self.folder / name).unlink()


def issue(authority: trustme.CA) -> dict[str, str]:
    """A certificate and its key, as a mount's contents."""
    issued = authority.issue_cert("127.0.0.1")
    chain = b"".join(part.bytes() for part in issued.cert_chain_pems).decode()
    return {"tls.crt": chain, "tls.key": issued.private_key_pem.bytes().decode()}


def trusting(*authorities: trustme.CA) -> ssl.SSLContext:
    """A caller's side of TLS."""
    context = ssl.create_default_context()
    for authority in authorities:
        authority.configure_trust(context)
    return context


async def test_another_certificate(tmp_path: Path) -> None:
    """New connections meet it, open ones go on; files that do not belong together change nothing."""
    first, second = trustme.CA(), trustme.CA()
    folder = tmp_path / "tls"
    folder.mkdir()
    mounted = Mount(folder)
    mounted.swap(issue(first))
    async with editing(tmp_path, tls={"cert": "tls/tls.crt", "key": "tls/tls.key"}) as files:
        data = files.home.keyturn.data
        async with calling(data, trusting(first)) as open_one:
            assert (await open_one.ask(request("/me"))).status == 200
            good = issue(second)
            mounted.swap({**good, "tls.key": issue(second)["tls.key"]})
            assert "hold no matching certificate" in await files.refused()
            mounted.swap(good)
            await files.taken()
            async with calling(data, trusting(second)) as new_one:
                assert (await new_one.ask(request("/me"))).status == 200
            assert (await open_one.ask(request("/me"))).status == 200
            with pytest.raises(ssl.SSLCertVerificationError):
                async with calling(data, trusting(first)):
                    pass


async def test_another_authority_of_the_upstream(tmp_path: Path) -> None:
    """It is trusted from the next connection on, and the one of before no more."""
    async with editing(tmp_path) as files:
        assert (await ask(files)).status == 200
        right = (tmp_path / "ca.pem").read_bytes()
        trustme.CA().cert_pem.write_to_path(tmp_path / "ca.pem")
        await files.taken()
        assert (await ask(files)).status == 502
        (tmp_path / "ca.pem").write_text("nonsense")
        assert "upstream.ca" in await files.refused()
        (tmp_path / "ca.pem").write_bytes(right)
        await files.taken()
        assert (await ask(files)).status == 200


async def test_a_closed_terminal_ends_the_process(tmp_path: Path) -> None:
    """A hang-up is a reload only while the terminal is there, or there never was one."""
    async with PracticeApi(accepting(*KEYS)) as api:
        path = write(tmp_path, document(api, tmp_path))
        pid, terminal = pty.fork()
        if not pid:
            os.chdir(ROOT)
            os.execv(sys.executable, [sys.executable, "-m", "keyturn", "serve", "-c", str(path)])
        written = b""
        try:
            while b"ready data" not in written:
                written += await asyncio.to_thread(os.read, terminal, 2**12)
            os.kill(pid, signal.SIGHUP)
            while b"reloaded" not in written:
                written += await asyncio.to_thread(os.read, terminal, 2**12)
        finally:
            os.close(terminal)
            _, status = await asyncio.to_thread(os.waitpid, pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0


# Under load

LIMIT, WINDOW = 30, 0.5
LOWERED = 12


class Crowd:
    """Callers who ask one request after another, each of which has to be answered."""

    def __init__(self, home: House, trust: ssl.SSLContext | None = None) -> None:
        self.home = home
        self.trust = trust
        self.answers: Counter[int] = Counter()
        self.numbers = count()
        self.over = False

    async def goes_on(self) -> None:
        """Wait until another window's worth of requests has arrived."""
        enough = len(self.home.api.arrivals) + LIMIT
        await until(lambda: len(self.home.api.arrivals) > enough, "the crowd goes on")

    async def call(self) -> None:
        """Ask over a connection of a few requests, and over another."""
        while not self.over:
            async with calling(self.home.keyturn.data, self.trust) as caller:
                for _ in range(5):
                    reply = await caller.ask(request(f"/echo/{next(self.numbers)}", "Prefer: wait=50"))
                    self.answers[reply.status] += 1


def worst(home: House, begin: float, end: float) -> int:
    """The most that arrived with one key in any window between two moments."""
    by_key: dict[str, list[float]] = {}
    for arrival in home.api.arrivals:
        if begin <= arrival.at <= end:
            by_key.setdefault(arrival.key, []).append(arrival.at)
    return max(most_within(sorted(instants), WINDOW) for instants in by_key.values())


async def test_no_request_fails_and_no_window_is_over_its_limit(tmp_path: Path) -> None:
    """Under load keys are rotated and taken out, a limit lowered and raised, a file spoilt, a certificate changed."""
    secrets = (*KEYS, NEW_KEY, "secret-of-key-four")
    practice = PracticeSettings(tls=True, keys=secrets, limit=LIMIT, window=WINDOW, kind="rolling")
    first, second = trustme.CA(), trustme.CA()
    folder = tmp_path / "tls"
    folder.mkdir()
    mounted = Mount(folder)
    mounted.swap(issue(first))
    tls = {"cert": "tls/tls.crt", "key": "tls/tls.key"}
    async with editing(tmp_path, practice, limits=(limit(LIMIT, "500ms"),), tls=tls) as files:
        home, pool = files.home, files.pool
        crowd = Crowd(home, trusting(first, second))
        async with asyncio.TaskGroup() as tasks:
            for _ in range(24):
                tasks.create_task(crowd.call())
            await until(lambda: len(home.api.arrivals) > 2 * LIMIT, "the crowd is there")
            one, two = pool["keys"]
            pool["keys"] = [one, two, {"name": "team-3", "secret": NEW_KEY}]
            await files.taken()
            pool["keys"] = [{**one, "secret": secrets[3]}, two, pool["keys"][2]]
            await files.taken()
            pool["keys"] = [pool["keys"][0], pool["keys"][2]]
            await files.taken()
            await files.refused("pools: {default: {keys: [")
            pool["keys"].append(two)
            pool["limits"] = [limit(LOWERED, "500ms")]
            await files.taken()
            mounted.swap(issue(second))
            await files.taken()
            began = home.api._clock() + WINDOW
            await until(lambda: home.api._clock() > began + 2 * WINDOW, "some windows have passed")
            ended = home.api._clock()
            pool["limits"] = [limit(LIMIT, "500ms")]
            await files.taken()
            crowd.over = True
        assert set(crowd.answers) == {200}
        assert sum(crowd.answers.values()) == len(home.arrivals("/echo/"))
        assert home.api.throttled == 0
        assert worst(home, 0, ended + 60) <= LIMIT
        assert worst(home, began, ended) <= LOWERED
        assert {arrival.key for arrival in home.api.arrivals} == {home.api.name_of(secret) for secret in secrets}


async def test_a_key_that_is_renamed_again_and_again_keeps_its_quota(tmp_path: Path) -> None:
    """Law 1 under a storm of reloads in which keys change their names and trade them: the secret tells them apart."""
    practice = PracticeSettings(tls=True, keys=KEYS, limit=LIMIT, window=WINDOW, kind="rolling")
    async with editing(tmp_path, practice, limits=(limit(LIMIT, "500ms"),)) as files:
        home, pool = files.home, files.pool
        crowd = Crowd(home)
        async with asyncio.TaskGroup() as tasks:
            for _ in range(12):
                tasks.create_task(crowd.call())
            one, two = pool["keys"]
            for first, second in (("a", "b"), ("b", "a"), ("c", "a"), ("b", "c"), ("team-1", "team-2"), ("x", "y")):
                await crowd.goes_on()
                pool["keys"] = [{**one, "name": first}, {**two, "name": second}]
                await files.taken()
            crowd.over = True
        assert set(crowd.answers) == {200}
        assert home.api.throttled == 0
        assert worst(home, 0, home.api._clock()) <= LIMIT
