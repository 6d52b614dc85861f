"""Real processes, each with a misconfigured server: one line says what to do about it."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

from keyturn.practice import PracticeApi, PracticeSettings

from tests.depth import deep
from tests.fleet.fleet import OF_REQUESTS
from tests.process import KEYS, Keyturn, document, request, serving, until, write
from tests.stores.servers import KINDS, Certificates, free_port, sentinel_of, server, tls_before

PASSWORD = "pa5secret"
LOST = "the store does not respond: restore it. Until then, requests are rejected with 503"
UNFIT = "the store is not set up as it should be"


async def test_each_mistake_is_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    """Each mistake is reported in one line at the start; callers learn only that the store is lost.

    A brief run starts a process for every third mistake.
    """
    kind = KINDS[-1]
    async with AsyncExitStack() as stack:
        open_ = stack.enter_context(server(kind))
        locked = stack.enter_context(server(kind, f"requirepass {PASSWORD}", f"user limited on >{PASSWORD} ~k* +eval"))
        replica = stack.enter_context(server(kind, f"replicaof 127.0.0.1 {free_port()}"))
        sentinel = stack.enter_context(server(kind, sentinel=sentinel_of(open_)))
        full = stack.enter_context(server(kind, "maxmemory 1", "maxmemory-policy noeviction"))
        evicting = stack.enter_context(server(kind, "maxmemory 100mb", "maxmemory-policy allkeys-lru"))
        files = Certificates(tmp_path)
        tls = f"127.0.0.1:{await stack.enter_async_context(tls_before(open_, files.context(mutual=True)))}"
        ca = f"?ssl_ca_certs={files.ca}"
        mistakes = {
            f"redis://127.0.0.1:{free_port()}": "not reachable",
            f"redis://no-such-host.invalid:{open_.port}": "not reachable",
            f"unix://{tmp_path}/none": "not reachable",
            locked.url: "it wants a password: write it into store.url",
            f"redis://:wrong@{locked.address}": "refuses the user name or the password of store.url",
            f"redis://limited:{PASSWORD}@{locked.address}": "its ACL does not allow what Keyturn needs",
            f"redis://:{PASSWORD}@{open_.address}": "it has no password, and store.url has one",
            f"{open_.url}/99": "it has no such database",
            f"redis+cluster://{open_.address}": "it is no node of a cluster",
            f"redis+sentinel://{open_.address}/main": "it is no sentinel",
            f"redis+sentinel://{sentinel.address}/other": "no sentinel names a master: No master found for 'other'",
            sentinel.url: "write redis+sentinel:// if it is a sentinel",
            f"rediss://{open_.address}": "see whether",
            f"redis://{tls}": "see whether it runs, and whether that port wants TLS",
            f"rediss://{tls}": "its certificate is refused",
            f"rediss://{tls}{ca}": "certificate",
            replica.url: "it is a replica",
            full.url: "raise its maxmemory",
            evicting.url: "set maxmemory-policy to noeviction",
        }
        api = await stack.enter_async_context(PracticeApi(PracticeSettings(tls=True, keys=KEYS)))
        few = asyncio.Semaphore(4)
        async with asyncio.TaskGroup() as group:
            for number, (url, words) in enumerate(list(mistakes.items())[:: deep(1, brief=3)]):
                group.create_task(_said(_configured(tmp_path / str(number), api, url), url, words, few))


def _configured(folder: Path, api: PracticeApi, url: str) -> Path:
    folder.mkdir()
    return write(folder, document(api, folder, store={"url": url, "on_loss": "refuse", "timeout": "2s"}))


async def _said(path: Path, url: str, words: str, few: asyncio.Semaphore) -> None:
    async with few, serving(path) as keyturn:
        await until(lambda: list(_lines(keyturn)), f"{url}: {words}")
        answers = await asyncio.gather(*(keyturn.ask(request()) for _ in range(3)))
        (line,) = _lines(keyturn)
    assert line["event"] in (LOST, UNFIT)
    said = line.get("cause") or line["problem"]
    assert words in said
    assert PASSWORD not in said
    assert {answer.status for answer in answers} == {503 if line["event"] == LOST else 200}
    assert all(words not in answer.body.decode() for answer in answers)


def _lines(keyturn: Keyturn) -> Iterator[dict[str, str]]:
    """Return the lines of its log, except those of requests."""
    for line in keyturn.process.lines:
        if line.startswith("{") and OF_REQUESTS not in line:
            yield json.loads(line)
