"""The statements of docs/shared-store.md."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from keyturn.config import load
from keyturn.core.errors import StoreLost
from keyturn.core.exchange import FlowDemand, Spent, Unsent
from keyturn.core.model import SECOND, Pool
from keyturn.stores.clients import Opened
from keyturn.stores.links import Link
from keyturn.stores.redis import RedisStore
from keyturn.stores.shared_placements import SharedPlacements

from tests.core.worlds import BOUND, flow, limit, pool
from tests.process import ROOT, until
from tests.schedulers import Recorder
from tests.stores.conformance import wants
from tests.stores.fleets import FleetHistory
from tests.stores.servers import KINDS, Certificates, Server, cluster, sentinel_of, server
from tests.stores.test_redis import FAST, PATIENCE, ClockedRedis
from tests.stores.test_scripts import OnServer
from tests.virtual import micros

PAGE = (ROOT / "docs" / "shared-store.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
USER = re.findall(r"```text\n(ACL SETUSER .*?)\n```", PAGE, re.DOTALL)[0]
IN_A_CLUSTER = re.findall(r"also needs `([^`]*)`", PAGE)[0]
OF_SENTINELS = re.findall(r"own user needs `([^`]*)`", PAGE)[0]
STORED = PAGE.partition("## What is stored")[2].partition("\n## ")[0]
KEYS = {
    name.partition(":")[0]: kind
    for names, kinds in re.findall(r"^\| (`[^|]*`) \| ([^|]*) \|", STORED, re.MULTILINE)
    for name, kind in zip(re.findall(r"`([^`]+)`", names), kinds.split(", "), strict=True)
}
"""The type of each kind of key."""

PASSWORD = "pa5secret"


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Run for each kind of server."""
    return str(request.param)


@pytest.fixture(scope="module")
def running(kind: str) -> Iterator[Server]:
    """Run a server."""
    with server(kind) as one:
        yield one


@pytest.fixture
def one(running: Server) -> Server:
    """That server, emptied."""
    running.ask("FLUSHALL")
    return running


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_are_accepted(example: str, tmp_path: Path) -> None:
    """The configuration's check and the client accept each example."""
    files = Certificates(tmp_path)
    password = tmp_path / "password"
    password.write_text(PASSWORD)
    named = {"ca.pem": files.ca, "tls.crt": files.client, "tls.key": files.key, "password": password}
    for name, file in named.items():
        example = example.replace(f"/run/redis/{name}", str(file))
    path = tmp_path / "config.yaml"
    path.write_text(example, encoding="utf-8")
    environ = {"POSTMAN_API_KEYS": "one", "REDIS_PASSWORD": PASSWORD, "SENTINEL_PASSWORD": PASSWORD}
    config = load(path, environ)
    url = config.store_url
    assert PASSWORD not in url.shown
    assert (PASSWORD in url.reveal()) == ("assword" in example)
    link = Link(url.reveal(), shown=url.shown, timeout=config.store.timeout)
    assert isinstance(link._open(), Opened)


def test_all_keys_are_listed(one: Server) -> None:
    """Exactly the keys that are stored are listed, with their types."""
    seen: dict[str, str] = {}
    with redis.Redis(port=one.port) as client:
        typed: Any = client
        history = FleetHistory(3, [OnServer(client)], crowd=400)
        for _ in range(200):
            history.step()
            for key in typed.scan_iter():
                name = key.decode().removeprefix("t:{p}:").partition(":")[0]
                seen[name] = seen.get(name) or typed.type(key).decode()
    assert seen == KEYS


async def test_a_quota_takes_no_more_than_is_said(one: Server) -> None:
    """A quota takes 8 KB at 60 requests a minute, however often they are spent."""
    keys = 40
    store = ClockedRedis(one, pool(keys, limit(60)))
    with redis.Redis(port=one.port) as client:
        typed: Any = client
        sizes = []
        for _ in range(3):
            spent = 0
            while spent < 60 * keys:
                answer = await store.exchange("r", (), (FlowDemand(flow(), 1, 60 * keys),))
                assert answer.grants
                spent += len(answer.grants)
                await store.exchange("r", tuple(Spent(grant.lease, 0) for grant in answer.grants), ())
            sizes.append(sum(typed.memory_usage(key, samples=0) for key in typed.scan_iter()))
            store.pass_(61 * SECOND)
        await store.close()
    assert max(sizes) / keys < 8_500
    assert max(sizes) < 1.1 * sizes[0]


def let_in(one: Server, more: str = "", password: str = "") -> None:
    """Create the user that the page shows."""
    words = USER.replace(">PASSWORD", f">{PASSWORD}").split()
    one.ask(*words, *more.split(), password=password)


def new_store(link: Link, replica: str = "r", pool_: Pool = FAST) -> RedisStore:
    """Return a replica's store."""
    return RedisStore(
        link, pool_, prefix="keyturn", replica=replica, settle_bound=BOUND, clock=micros, observer=Recorder()
    )


async def serves(link: Link) -> None:
    """Check that everything that a replica does works over this link."""
    store = new_store(link)
    woken: list[int] = []
    store.listen(woken.append)
    await until(lambda: woken, "it listens")
    (grant,) = (await store.exchange((), (wants(1),))).grants
    assert (await store.exchange((Spent(grant.lease, 0),), (wants(1),))).grants
    assert await store.buckets()
    assert await link.check(store.key) == ()
    placement = {"#1": "default"}
    assert (await SharedPlacements(link, "keyturn").name(placement))[0].placement == placement


async def test_the_user_may_do_what_is_needed_and_no_more(one: Server) -> None:
    """The user may do all that is needed, and needs all that it may do."""
    let_in(one)
    try:
        link = Link(f"redis://keyturn:{PASSWORD}@{one.address}/2", shown="here", timeout=PATIENCE)
        await serves(link)
        await link.close()
        used = _used("lua/*.lua") | _used("*.py")
        asked = {word[1:] for word in USER.split() if word.startswith("+")}
        assert asked == used | {"eval", "evalsha", "subscribe", "select"}
    finally:
        one.ask("ACL", "DELUSER", "keyturn")


async def test_a_user_who_may_not_do_all_does_nothing(one: Server) -> None:
    """A user with a missing permission changes nothing, since scripts check first."""
    let_in(one)
    link = Link(f"redis://keyturn:{PASSWORD}@{one.address}", shown="here", timeout=PATIENCE)
    try:
        for word in USER.split():
            if word[0] != "+" or word[1:] not in _used("lua/*.lua") - {"publish", "info"}:
                continue
            store = new_store(link)
            one.ask("ACL", "SETUSER", "keyturn", f"-{word[1:]}")
            with pytest.raises(StoreLost) as caught:
                await store.exchange((), (wants(1),))
            assert "ACL does not allow" in caught.value.cause
            assert one.ask("KEYS", "keyturn:*") == [], word
            one.ask("ACL", "SETUSER", "keyturn", word)
        assert (await store.exchange((), (wants(1),))).grants
    finally:
        one.ask("ACL", "DELUSER", "keyturn")
        await link.close()


async def test_a_user_without_channels_is_served_and_told_of(one: Server) -> None:
    """A user without channels is served but not woken, and the log says so."""
    let_in(one)
    one.ask("ACL", "SETUSER", "keyturn", "resetchannels")
    link = Link(f"redis://keyturn:{PASSWORD}@{one.address}", shown="here", timeout=PATIENCE)
    try:
        near, far = (new_store(link, name, pool(1, limit(1, 10 * SECOND))) for name in ("near", "far"))
        (grant,) = (await near.exchange((), (wants(1),))).grants
        assert not (await far.exchange((), (wants(1, "b"),))).grants
        await near.exchange((Unsent(grant.lease),), ())
        assert (await far.exchange((), (wants(1, "b"),))).grants
        (warning,) = await link.check(near.key)
        assert "`+publish` and `&keyturn:*`" in warning
    finally:
        one.ask("ACL", "DELUSER", "keyturn")
        await link.close()


def _used(pattern: str) -> set[str]:
    """Return the commands that scripts in these files call."""
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "proxy" / "keyturn" / "stores").glob(pattern)]
    return {name.lower() for text in texts for name in re.findall(r"(?:call|create|chunked)\('([A-Z]+)'", text)}


async def test_the_user_of_a_cluster(kind: str) -> None:
    """In a cluster the user needs three more commands."""
    with cluster(kind) as nodes:
        for node in nodes:
            let_in(node, IN_A_CLUSTER)
        link = Link(f"redis+cluster://keyturn:{PASSWORD}@{nodes[0].address}", shown="here", timeout=PATIENCE)
        await serves(link)
        await link.close()


async def test_the_users_of_sentinels_and_of_their_master(kind: str) -> None:
    """Sentinels and their master have users of their own."""
    with server(kind) as master:
        let_in(master)
        watching = f"{sentinel_of(master)}\nuser watcher on >{PASSWORD} -@all {OF_SENTINELS}"
        with server(kind, sentinel=watching) as sentinel:
            query = f"sentinel_username=watcher&sentinel_password={PASSWORD}"
            url = f"redis+sentinel://keyturn:{PASSWORD}@{sentinel.address}/main?{query}"
            link = Link(url, shown="here", timeout=PATIENCE)
            await serves(link)
            await link.close()
