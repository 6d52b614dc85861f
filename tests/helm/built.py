"""The image that `make image` has built, started as a container runtime starts the chart's container.

Needs root, runc, and the root file system in `KEYTURN_IMAGE_ROOT`; docs/development.md says how to get there.
"""

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from keyturn.practice import PracticeApi

from tests.helm import kubelet
from tests.helm.charts import Rendered
from tests.helm.test_process import SECRETS, USER, api, gateway
from tests.process import Running, ask, request

__all__ = ["api"]

IMAGE = Path(os.environ["KEYTURN_IMAGE_ROOT"])
NAME = f"keyturn-{os.getpid()}"
PATH = "/opt/keyturn/bin:/usr/local/bin:/usr/bin:/bin"


def specification(pod: Any, container: Any, rendered: Rendered, layout: kubelet.Layout) -> dict[str, Any]:
    """The container's runtime configuration, as the OCI defines it; the network is this machine's."""
    context = container["securityContext"]
    assert context["capabilities"] == {"drop": ["ALL"]}
    environ = {"PATH": PATH, **kubelet.environment(container, rendered.objects, SECRETS)}
    system: list[dict[str, Any]] = [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
    ]
    volumes = [
        {
            "destination": name,
            "type": "bind",
            "source": str(place),
            "options": ["bind", "rw" if name == "/tmp" else "ro"],
        }
        for name, place in layout.mounts.items()
    ]
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {
                "uid": context["runAsUser"],
                "gid": context["runAsGroup"],
                "additionalGids": [pod["securityContext"]["fsGroup"]],
            },
            "args": [*container["command"], *container["args"]],
            "env": [f"{name}={value}" for name, value in environ.items()],
            "cwd": "/etc/keyturn",
            "capabilities": {name: [] for name in ("bounding", "effective", "permitted", "inheritable", "ambient")},
            "noNewPrivileges": not context["allowPrivilegeEscalation"],
        },
        "root": {"path": str(IMAGE), "readonly": context["readOnlyRootFilesystem"]},
        "mounts": [*system, *volumes],
        "linux": {"namespaces": [{"type": name} for name in ("pid", "ipc", "uts", "mount")]},
    }


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder for the pod's volumes and the runtime's files."""
    with kubelet.folder() as path:
        yield path


@asynccontextmanager
async def started(rendered: Rendered, place: Path) -> AsyncIterator[kubelet.Container]:
    """The chart's container in the image."""
    pod, container, objects = rendered.gateway, rendered.container, rendered.objects
    ports = kubelet.free_ports(pod, container, objects)
    layout = kubelet.lay_out(pod, container, objects, SECRETS, place, ports, contained=True)
    (place / "config.json").write_text(json.dumps(specification(pod, container, rendered, layout)), encoding="utf-8")
    process = await asyncio.create_subprocess_exec(
        *("runc", "--root", str(place / "runc"), "run", "--bundle", str(place), NAME),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    async with kubelet.seen(Running(process), container, layout) as up:
        yield up


def inside(place: Path, *words: str, **environ: str) -> "subprocess.CompletedProcess[str]":
    """Run a command in the container, as its user."""
    given = [word for name, value in environ.items() for word in ("--env", f"{name}={value}")]
    command = ["runc", "--root", str(place / "runc"), "exec", *given, NAME, *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


async def test_the_image_serves(api: PracticeApi, place: Path) -> None:
    """Its own entry point in its own file system passes the chart's probes, forwards, and ends well as process 1."""
    rendered = gateway(api)
    async with started(rendered, place) as container:
        for probe in ("startup", "liveness", "readiness"):
            assert await container.probe(probe), probe
        reply = await ask(container.keyturn.data, request("/me"))
        assert (reply.status, reply.one("Keyturn-Key") in SECRETS["postman-keys"]) == (200, True)
        assert (await ask(container.keyturn.data, request("/me", token=None))).status == 401
        assert inside(place, "cat", "/proc/1/comm").stdout.strip().startswith(("keyturn", "python"))
        container.keyturn.process.signal(signal.SIGTERM)
        assert await container.keyturn.process.ended() == 0


async def test_the_image_takes_rights_away(api: PracticeApi, place: Path) -> None:
    """The user is a number without a capability, only /tmp can be written to, and there is no pip and no compiler."""
    async with started(gateway(api), place):
        status = inside(place, "cat", "/proc/1/status").stdout
        for line in (f"Uid:\t{USER}\t{USER}", f"Gid:\t{USER}\t{USER}", "CapEff:\t0000000000000000", "NoNewPrivs:\t1"):
            assert line in status
        for name in ("/etc/keyturn/x", "/opt/keyturn/x", "/x", "/run/keyturn/keys/default/x"):
            assert inside(place, "touch", name).returncode, name
        assert inside(place, "touch", "/tmp/x").returncode == 0
        for module in ("pip", "ensurepip", "setuptools"):
            assert inside(place, "python", "-c", f"import {module}").returncode, module
        for program in ("pip", "pip3", "gcc", "cc", "ld", "make"):
            assert inside(place, "which", program).returncode == 1, program


async def test_the_image_has_bytecode(api: PracticeApi, place: Path) -> None:
    """All that the command imports was compiled when the image was built: nobody could write it later."""
    code = (
        "import sys, keyturn.app, keyturn.cli, importlib.util, pathlib\n"
        "for module in list(sys.modules.values()):\n"
        "    file = getattr(module, '__file__', None) or ''\n"
        "    if file.endswith('.py') and module.__spec__ and module.__spec__.origin != 'frozen':\n"
        "        compiled = pathlib.Path(importlib.util.cache_from_source(file)).exists()\n"
        "        print(module.__name__, compiled)"
    )
    async with started(gateway(api), place):
        lines = inside(place, "python", "-c", code).stdout.splitlines()
    assert "keyturn.cli True" in lines
    assert [line for line in lines if not line.endswith("True")] == []


async def test_the_image_can_trace(api: PracticeApi, place: Path) -> None:
    """The packages for traces are installed, though not imported without them."""
    async with started(gateway(api), place):
        ended = inside(place, "python", "-c", "import opentelemetry.sdk.trace, opentelemetry.exporter.otlp.proto.http")
        assert ended.returncode == 0, ended.stderr


async def test_the_release_test_runs_in_the_image(api: PracticeApi, place: Path) -> None:
    """The pod of `helm test` uses the same image, and finds all that it needs there."""
    rendered = gateway(api)
    (test,) = rendered.one("Pod")["spec"]["containers"]
    async with started(rendered, place) as container:
        ended = inside(place, *test["command"], *test["args"], URL=f"{container.keyturn.data}/me")
        assert (ended.returncode, ended.stdout) == (0, "401 Via: 1.1 keyturn\n"), ended.stderr
