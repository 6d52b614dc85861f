"""The rendered chart, started on this machine: its own command, environment, files, ports and probes."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from keyturn.practice import PracticeApi, PracticeSettings
from keyturn.tasks import finish, spawn

from tests.helm import kubelet
from tests.helm.charts import RELEASE, Rendered, render
from tests.process import KEYS, ROOT, TOKENS, Gate, Running, ask, calling, client, request, until
from tests.stores.servers import binary, free_port, server

SECRETS = {"postman-keys": {"team-1": KEYS[0], "team-2": KEYS[1] + "\n"}}
NAME = f"{RELEASE}-keyturn"
USER = 10001
CALLERS = 4


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder for the pod's volumes."""
    with kubelet.folder() as path:
        yield path


@pytest.fixture
async def api() -> AsyncIterator[PracticeApi]:
    """The upstream, over TLS."""
    async with PracticeApi(PracticeSettings(tls=True, keys=KEYS, limit=10_000)) as api:
        yield api


def values(api: PracticeApi, **more: Any) -> dict[str, Any]:
    """Values for a pod in front of that API, whose authority it trusts by a ConfigMap."""
    assert api.ca_pem is not None
    config = {
        "upstream": {"url": api.url, "ca": "/etc/practice/ca.pem"},
        "pools": {"default": {"limits": [{"requests": 10_000, "window": "60s"}]}},
        **more.pop("config", {}),
    }
    return {
        "config": config,
        "keys": {"default": {"existingSecret": "postman-keys"}},
        "extraObjects": [
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": "practice"},
                "data": {"ca.pem": api.ca_pem.decode()},
            }
        ],
        "extraVolumes": [{"name": "practice", "configMap": {"name": "practice", "defaultMode": 0o444}}],
        "extraVolumeMounts": [{"name": "practice", "mountPath": "/etc/practice", "readOnly": True}],
        **more,
    }


@dataclass
class Service:
    """The pods that new connections go to, in turn."""

    addresses: list[str]
    _turn: int = 0

    def pick(self) -> str:
        """The next one's address."""
        self._turn += 1
        return self.addresses[self._turn % len(self.addresses)]


@dataclass
class Load:
    """Callers that ask again and again: some over one connection, some over one for each request."""

    service: Service
    data: bytes
    statuses: list[int] = field(default_factory=list)
    _tasks: set[asyncio.Task[Any]] = field(default_factory=set)
    _enough: asyncio.Event = field(default_factory=asyncio.Event)

    def begin(self) -> None:
        """Let them ask."""
        for number in range(CALLERS):
            spawn(self._call(kept=number % 2 == 0), name=f"caller {number}", owner=self._tasks)

    async def _call(self, *, kept: bool) -> None:
        while not self._enough.is_set():
            async with calling(self.service.pick()) as caller:
                more = True
                while more and not self._enough.is_set():
                    reply = await caller.ask(self.data)
                    self.statuses.append(reply.status)
                    more = kept and "close" not in reply.all("Connection")

    async def more(self, number: int) -> None:
        """See that so many more answers come."""
        goal = len(self.statuses) + number
        await until(lambda: len(self.statuses) >= goal, f"{number} more answers")

    async def end(self) -> None:
        """Wait for the answers under way, the last; whoever got none fails here."""
        self._enough.set()
        await asyncio.gather(*self._tasks)


@asynccontextmanager
async def load(service: Service, data: bytes) -> AsyncIterator[Load]:
    """Callers for as long as they are needed."""
    callers = Load(service, data)
    callers.begin()
    try:
        yield callers
    finally:
        await finish(callers._tasks)


# The gateway


def gateway(api: PracticeApi, **more: Any) -> Rendered:
    """The gateway's objects."""
    config = {"clients": [client("ci")], "lame_duck": "2s", "drain": "20s", **more.pop("config", {})}
    return render(values(api, config=config, **more))


@asynccontextmanager
async def started(rendered: Rendered, place: Path, redis: str = "") -> AsyncIterator[kubelet.Container]:
    """The gateway's container, in a cluster where that Redis is."""
    pod, container = rendered.gateway, rendered.container
    secrets = {**SECRETS, "keyturn-redis": {"url": redis}}
    async with kubelet.running(pod, container, rendered.objects, secrets, place) as up:
        yield up


async def test_the_pod_serves(api: PracticeApi, place: Path) -> None:
    """The container starts, its probes pass, and its port for callers forwards with a key of the mounted folder."""
    rendered = gateway(api)
    (port,) = rendered.one("Service")["spec"]["ports"]
    async with started(rendered, place) as container:
        for probe in ("startup", "liveness", "readiness"):
            assert await container.probe(probe), probe
        reply = await ask(container.address(port["targetPort"]), request("/me"))
        assert (reply.status, reply.one("Keyturn-Key") in SECRETS["postman-keys"]) == (200, True)
        assert (await ask(container.address(port["targetPort"]), request("/me", token=None))).status == 401


def status(pid: int) -> dict[str, str]:
    """The state of a process, as Linux reports it."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


async def test_the_pod_runs_as_its_user(api: PracticeApi, place: Path) -> None:
    """The process is the numeric user of the security context, as far as this test may choose."""
    async with started(gateway(api), place) as container:
        if not kubelet.as_user(USER, USER):
            pytest.skip("only root, by setpriv, may start a process as another user")
        fields = status(container.keyturn.process.pid)
        assert set(fields["Uid"].split() + fields["Gid"].split()) == {str(USER)}
        assert fields["NoNewPrivs"] == "1"
        assert int(fields["CapEff"], 16) in (0, 1 << 2)  # CAP_DAC_READ_SEARCH, for an interpreter in root's home


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may start a process as another user")
def test_the_user_may_read_its_files_and_change_none(place: Path) -> None:
    """Without any capability the user reads each mounted file, by the pod's file group, and nobody else does."""
    rendered = render({"keys": {"default": {"existingSecret": "postman-keys"}}})
    layout = kubelet.lay_out(rendered.gateway, rendered.container, rendered.objects, SECRETS, place)
    files = [path for mount in layout.mounts.values() for path in mount.iterdir() if not path.name.startswith(".")]
    assert {path.name for path in files} == {"config.yaml", "team-1", "team-2"}

    def may(user: int, *words: str) -> bool:
        ended = subprocess.run(words, user=user, group=user, extra_groups=[], capture_output=True, check=False)
        return ended.returncode == 0

    for path in files:
        assert may(USER, "cat", str(path)), path
        assert not may(USER, "sh", "-c", f"echo x >> {path}"), path
        assert not may(USER, "touch", str(path.with_name("other"))), path
        assert not may(USER + 1, "cat", str(path)), path


async def test_a_pod_without_keys_is_not_ready(api: PracticeApi, place: Path) -> None:
    """While its Secret is not there yet, the pod lives and gets no callers."""
    more = values(api, config={"clients": [client("ci")]})
    rendered = render({**more, "keys": {"default": {"existingSecret": ""}}})
    async with started(rendered, place) as container:
        assert await container.probe("liveness")
        assert not await container.probe("readiness")


async def test_the_release_test_passes(api: PracticeApi, place: Path) -> None:
    """The pod of `helm test` succeeds against the running one, and fails where something else answers."""
    rendered = gateway(api)
    (test,) = rendered.one("Pod")["spec"]["containers"]

    async def passes(url: str) -> bool:
        words = [sys.executable, *test["command"][1:], *test["args"]]
        process = await asyncio.create_subprocess_exec(*words, env={"URL": url}, stdout=subprocess.DEVNULL)
        return await process.wait() == 0

    async with started(rendered, place) as container:
        (url,) = [entry["value"] for entry in test["env"]]
        assert test["command"][0] == "python"
        assert url == "http://shop-keyturn:80/me"
        assert await passes(f"{container.keyturn.data}/me")
        assert not await passes(f"{container.keyturn.admin}/healthz")


@pytest.fixture
def redis() -> Iterator[str]:
    """The URL of a Redis."""
    with server("valkey") as running:
        yield running.url


async def test_an_update_loses_no_request(api: PracticeApi, place: Path, redis: str) -> None:
    """A pod takes another's place under load, as Kubernetes has it: every request is answered, within the grace period.

    The new pod gets callers once its probe passes. The old one is told to end at the moment in which new connections
    begin to go elsewhere; it serves on for those that have not noticed, and sends away those that keep a connection.
    """
    rendered = gateway(api, redis={"existingSecret": "keyturn-redis"})
    assert rendered.one("Deployment")["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    async with AsyncExitStack() as stack:
        old = await stack.enter_async_context(started(rendered, place / "old", redis))
        assert await old.probe("readiness")
        service = Service([old.keyturn.data])
        callers = await stack.enter_async_context(load(service, request("/me")))
        await callers.more(20)
        new = await stack.enter_async_context(started(rendered, place / "new", redis))
        await until(lambda: new.probe("readiness"), "the new pod is ready")
        service.addresses.append(new.keyturn.data)
        await callers.more(20)
        async with asyncio.timeout(rendered.gateway["terminationGracePeriodSeconds"]):
            old.keyturn.process.signal(signal.SIGTERM)
            await until(lambda: _fails(old, "readiness"), "the old pod is not ready any more")
            assert await old.probe("liveness")
            assert (await old.keyturn.ask(request("/me"))).status == 200
            service.addresses.remove(old.keyturn.data)
            await callers.more(20)
            assert await old.keyturn.process.ended() == 0
        await callers.more(20)
        await callers.end()
        assert set(callers.statuses) == {200}


async def _fails(container: kubelet.Container, probe: str) -> bool:
    return not await container.probe(probe)


async def test_what_is_under_way_is_answered(api: PracticeApi, place: Path) -> None:
    """Requests whose answers the upstream still owes at SIGTERM get them, while whoever comes is sent elsewhere."""
    rendered = gateway(api, config={"lame_duck": "0s"})
    gate, last = Gate(api), set[asyncio.Task[Any]]()
    async with started(rendered, place) as container:
        ask_for = container.keyturn.ask
        under_way = [spawn(ask_for(request("/me")), name="last", owner=last) for _ in range(CALLERS)]
        try:
            await until(lambda: gate.held == CALLERS, "the last requests are under way")
            async with asyncio.timeout(rendered.gateway["terminationGracePeriodSeconds"]):
                container.keyturn.process.signal(signal.SIGTERM)
                await until(container.keyturn.sends_away, "it drains")
                gate.open()
                assert [reply.status for reply in await asyncio.gather(*under_way)] == [200] * CALLERS
                assert await container.keyturn.process.ended() == 0
        finally:
            await finish(last)


async def test_a_rotated_key_is_taken_up_under_load(api: PracticeApi, place: Path) -> None:
    """When the kubelet swaps a Secret's files, new keys are used and old ones are not, and no request fails."""
    async with (
        started(gateway(api), place) as container,
        load(Service([container.keyturn.data]), request("/me")) as callers,
    ):
        await callers.more(20)
        container.layout.swap("/run/keyturn/keys/default", {"team-2": KEYS[1], "team-3": KEYS[0]})
        await until(lambda: _uses(container, "team-3"), "the new key is used")
        await callers.more(20)
        assert {await _key(container) for _ in range(8)} <= {"team-2", "team-3"}
        assert await container.probe("readiness")
        await callers.end()
        assert set(callers.statuses) == {200}


async def _key(container: kubelet.Container, *, token: str | None = TOKENS["ci"]) -> str:
    """The name of the key with which a request goes on."""
    return (await container.keyturn.ask(request("/me", token=token))).one("Keyturn-Key")


async def _uses(container: kubelet.Container, name: str, *, token: str | None = TOKENS["ci"]) -> bool:
    return await _key(container, token=token) == name


async def test_the_embedded_redis_is_a_store(api: PracticeApi, place: Path) -> None:
    """The command of `redis.embedded` starts a server that Keyturn has nothing to complain about, and counts in."""
    rendered = gateway(api, redis={"embedded": True})
    (container,) = rendered.one("Deployment", "-redis")["spec"]["template"]["spec"]["containers"]
    port, (name, *_) = free_port(), container["command"]
    (entry,) = [entry for entry in rendered.container["env"] if entry["name"] == "KEYTURN_STORE_URL"]
    words = [binary(name.removesuffix("-server")), *container["args"], "--port", str(port), "--bind", "127.0.0.1"]
    redis = await kubelet.start(words, {}, container["securityContext"], place)
    try:
        entry["value"] = entry["value"].replace(f"{NAME}-redis:6379", f"127.0.0.1:{port}")
        async with started(rendered, place / "pod") as up:
            await until(lambda: up.probe("readiness"), "it is ready")
            assert (await up.keyturn.ask(request("/me"))).status == 200
            assert await up.keyturn.metric("keyturn_store_up") == 1
            assert "not fit" not in up.keyturn.process.stderr
    finally:
        await redis.end()


# The sidecar


@asynccontextmanager
async def application(pod: Any, keyturn: str, place: Path) -> AsyncIterator[tuple[Running, str]]:
    """The application of the example chart, with its own environment; the sidecar's port is this machine's."""
    (container,) = pod["containers"]
    environ = {entry["name"]: entry["value"] for entry in container["env"]}
    environ["POSTMAN_API_URL"] = environ["POSTMAN_API_URL"].replace("http://127.0.0.1:8080", keyturn)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(ROOT / "tests" / "helm" / "application.py")),
        cwd=place,
        env=environ,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    running = Running(process)
    try:
        yield running, (await running.ready())["application"]
    finally:
        await running.end()


async def test_a_sidecar_outlives_its_application(api: PracticeApi, place: Path, example: Path) -> None:
    """Beside an application Keyturn is up first, takes up a rotated key, and ends last: no request of its fails."""
    more = values(api, redis={"existingSecret": ""}, sidecar={"alone": True, "readiness": True})
    rendered = render({"keyturn": more}, chart=example)
    pod = rendered.gateway
    (sidecar,) = pod["initContainers"]
    assert sidecar["restartPolicy"] == "Always"
    async with AsyncExitStack() as stack:
        container = await stack.enter_async_context(kubelet.running(pod, sidecar, rendered.objects, SECRETS, place))
        assert container.keyturn.data.startswith("http://127.0.0.1:")
        process, url = await stack.enter_async_context(application(pod, container.keyturn.data, place))
        assert await container.probe("readiness")
        callers = await stack.enter_async_context(load(Service([url]), request("/me", token=None)))
        await callers.more(20)
        assert await container.keyturn.metric("keyturn_requests_total", client="orders") >= 20
        container.layout.swap("/run/keyturn/keys/default", {"team-2": KEYS[1], "team-3": KEYS[0]})
        await until(lambda: _uses(container, "team-3", token=None), "the new key is used")
        async with asyncio.timeout(pod["terminationGracePeriodSeconds"]):
            await callers.end()
            gate, last = Gate(api), set[asyncio.Task[Any]]()
            under_way = [spawn(ask(url, request("/me", token=None)), name="last", owner=last) for _ in range(CALLERS)]
            await until(lambda: gate.held == CALLERS, "the application's last requests are under way")
            process.signal(signal.SIGTERM)
            gate.open()
            assert [reply.status for reply in await asyncio.gather(*under_way)] == [200] * CALLERS
            assert await process.ended() == 0
            assert await container.probe("readiness")
            container.keyturn.process.signal(signal.SIGTERM)
            assert await container.keyturn.process.ended() == 0
        assert set(callers.statuses) == {200}
