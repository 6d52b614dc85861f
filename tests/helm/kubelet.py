"""The kubelet's work for a container, on this machine: volumes, environment, command, user, probes, its end.

A mount path becomes a folder below a temporary one, everywhere that the container's command and files name it, and
ports are the system's choice. Nothing else is changed.
"""

import asyncio
import base64
import os
import re
import shutil
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import yaml

from tests.process import DEADLINE, Keyturn, Running, ask, request, until

Secrets = Mapping[str, Mapping[str, str]]
"""Secrets and ConfigMaps that the cluster has beside those of the release, by name."""
_EVERYWHERE = ":/usr/local/bin:/usr/bin:/bin"


# Volumes


@contextmanager
def folder() -> Iterator[Path]:
    """A folder that other users can look into, unlike those of pytest."""
    path = Path(mkdtemp(prefix="keyturn-pod-"))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path)


@dataclass(frozen=True)
class Layout:
    """Where the mount paths of a container are on this machine."""

    root: Path
    mounts: Mapping[str, Path]
    contained: bool = False
    """Whether the container has its own file system, so that paths in it are what they are."""

    def path(self, name: str) -> Path:
        """The place of a path of the container."""
        return Path(_placed(name, self.root, self.mounts))

    def text(self, text: str) -> str:
        """A text of the container, with paths as its process finds them."""
        return text if self.contained else _placed(text, self.root, self.mounts)

    def swap(self, mount: str, files: Mapping[str, str]) -> None:
        """Give a volume other contents as the kubelet does: a new folder, and one symbolic link that is renamed."""
        place = self.mounts[mount]
        old = (place / "..data").readlink()
        mode = next((place / old).iterdir()).stat().st_mode
        _write(place, f"..{old.name}x", files, mode & 0o777, (place / old).stat().st_gid)


def lay_out(
    pod: Any,
    container: Any,
    objects: Sequence[Any],
    secrets: Secrets,
    root: Path,
    ports: Mapping[str, str] | None = None,
    *,
    contained: bool = False,
) -> Layout:
    """Write the container's volumes below `root`, owned and readable as the pod says."""
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["mountPath"]: root / mount["mountPath"].lstrip("/") for mount in container["volumeMounts"]}
    layout = Layout(root, mounts, contained)
    group = pod.get("securityContext", {}).get("fsGroup", os.getgid())
    for mount in container["volumeMounts"]:
        root.mkdir(mode=0o755, exist_ok=True)
        if "emptyDir" in volumes[mount["name"]]:
            mounts[mount["mountPath"]].mkdir(parents=True)
            mounts[mount["mountPath"]].chmod(0o777)
            continue
        assert mount["readOnly"], mount
        files = _contents(volumes[mount["name"]], objects, secrets)
        mounts[mount["mountPath"]].mkdir(parents=True, exist_ok=True)
        texts = {name: _ported(layout.text(text), ports or {}) for name, text in files.items()}
        _write(mounts[mount["mountPath"]], "..2026_01_01", texts, _mode(volumes[mount["name"]]), group)
    return layout


def _placed(text: str, root: Path, mounts: Mapping[str, Path]) -> str:
    longest_first = "|".join(re.escape(mount) for mount in sorted(mounts, key=len, reverse=True))
    return re.sub(longest_first, lambda mount: str(root) + mount[0], text)


def _mode(volume: Any) -> int:
    (source,) = [value for name, value in volume.items() if name != "name"]
    return int(source.get("defaultMode", 0o644))


def _contents(volume: Any, objects: Sequence[Any], secrets: Secrets) -> Mapping[str, str]:
    if "configMap" in volume:
        name = volume["configMap"]["name"]
        return secrets[name] if name in secrets else dict(_named(objects, "ConfigMap", name)["data"])
    return _secret(objects, secrets, volume["secret"]["secretName"], optional=volume["secret"].get("optional", False))


def _secret(objects: Sequence[Any], secrets: Secrets, name: str, *, optional: bool = False) -> Mapping[str, str]:
    if name in secrets:
        return secrets[name]
    if optional and not any(thing["kind"] == "Secret" and thing["metadata"]["name"] == name for thing in objects):
        return {}
    data = _named(objects, "Secret", name)["data"]
    return {key: base64.b64decode(value).decode() for key, value in data.items()}


def _named(objects: Sequence[Any], kind: str, name: str) -> Any:
    (found,) = [thing for thing in objects if thing["kind"] == kind and thing["metadata"]["name"] == name]
    return found


def _ported(text: str, ports: Mapping[str, str]) -> str:
    for old, new in ports.items():
        text = text.replace(old, new)
    return text


def _write(place: Path, name: str, files: Mapping[str, str], mode: int, group: int) -> None:
    """The files of a volume: in a hidden folder, to which a hidden link leads, through which visible links lead."""
    inside = place / name
    inside.mkdir()
    for file, text in files.items():
        (inside / file).write_text(text, encoding="utf-8")
        (inside / file).chmod(mode)
        if os.geteuid() == 0:
            os.chown(inside / file, 0, group)
    (place / "..new").symlink_to(name)
    (place / "..new").rename(place / "..data")
    for link in place.iterdir():
        if not link.name.startswith("..") and link.name not in files:
            link.unlink()
    for file in files:
        if not (place / file).is_symlink():
            (place / file).symlink_to(Path("..data") / file)


# Processes


def environment(container: Any, objects: Sequence[Any], secrets: Secrets) -> dict[str, str]:
    """The container's environment variables."""
    found: dict[str, str] = {}
    for source in container.get("envFrom", []):
        found |= _secret(objects, secrets, source["secretRef"]["name"])
    for entry in container.get("env", []):
        if "value" in entry:
            found[entry["name"]] = entry["value"]
        else:
            reference = entry["valueFrom"]["secretKeyRef"]
            optional = reference.get("optional", False)
            secret = _secret(objects, secrets, reference["name"], optional=optional)
            if reference["key"] in secret or not optional:
                found[entry["name"]] = secret[reference["key"]]
    return found


@cache
def as_user(user: int, group: int) -> tuple[str, ...]:
    """The prefix that runs a command as a numeric user, as far as this process may and needs to.

    Where the interpreter stands in a folder of root's own, the user gets the capability to read it, and nothing more.
    """
    if os.geteuid() != 0 or not shutil.which("setpriv"):
        return ()
    become = ("setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups", "--no-new-privs")
    parents = [*Path(sys.executable).resolve().parents, *Path(sys.prefix).resolve().parents, *Path(__file__).parents]
    if all(parent.stat().st_mode & 0o005 == 0o005 for parent in parents):
        return (*become, "--inh-caps=-all")
    read = "dac_read_search"
    return (*become, f"--inh-caps=-all,+{read}", f"--ambient-caps=+{read}")


async def start(words: Sequence[str], environ: Mapping[str, str], security: Any, place: Path) -> Running:
    """Start a container's command, found beside the interpreter, with nothing in its environment but its own."""
    path = str(Path(sys.executable).parent) + _EVERYWHERE
    process = await asyncio.create_subprocess_exec(
        *as_user(security["runAsUser"], security["runAsGroup"]),
        *words,
        cwd=place,
        env={"PATH": path, **environ},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    return Running(process)


@dataclass(frozen=True)
class Container:
    """A container of Keyturn's that runs, as the kubelet sees it."""

    spec: Any
    layout: Layout
    keyturn: Keyturn

    def address(self, port: int | str) -> str:
        """Where a port of the container, by number or name, is on this machine."""
        names = {entry["name"]: entry["containerPort"] for entry in self.spec["ports"]}
        number = port if isinstance(port, int) else names[port]
        found = {names.get("keyturn"): self.keyturn.data, names["keyturn-admin"]: self.keyturn.admin}
        return found[number]

    async def probe(self, name: str) -> bool:
        """Whether a probe, `startup`, `liveness` or `readiness`, passes now."""
        get = self.spec[f"{name}Probe"]["httpGet"]
        reply = await ask(self.address(get["port"]), request(get["path"], token=None))
        return 200 <= reply.status < 400


@asynccontextmanager
async def running(
    pod: Any, container: Any, objects: Sequence[Any], secrets: Secrets, root: Path
) -> AsyncIterator[Container]:
    """A container of Keyturn's from its start to its end; its startup probe has passed."""
    layout = lay_out(pod, container, objects, secrets, root, free_ports(pod, container, objects))
    words = [layout.text(word) for word in (*container["command"], *container["args"])]
    process = await start(words, environment(container, objects, secrets), container["securityContext"], root)
    async with seen(process, container, layout) as up:
        yield up


def free_ports(pod: Any, container: Any, objects: Sequence[Any]) -> dict[str, str]:
    """Replacements for the addresses of config.yaml, so that the system chooses the ports."""
    config = _config(pod, container, objects)
    return {config[key]: "127.0.0.1:0" for key in ("listen", "admin")}


@asynccontextmanager
async def seen(process: Running, container: Any, layout: Layout) -> AsyncIterator[Container]:
    """A container of Keyturn's whose process has been started, up to its end; its startup probe has passed."""
    try:
        addresses = await process.ready()
        up = Container(container, layout, Keyturn(process, addresses["data"], addresses["admin"]))
        await until(lambda: up.probe("startup"), "the startup probe passes")
        yield up
    except BaseException as error:
        error.add_note(f"It wrote to stderr:\n{process.stderr}")
        raise
    finally:
        async with asyncio.timeout(DEADLINE):
            await process.end()


def _config(pod: Any, container: Any, objects: Sequence[Any]) -> Any:
    """The config.yaml that the container's command names."""
    path = Path(container["args"][-1])
    (mount,) = [one["name"] for one in container["volumeMounts"] if one["mountPath"] == str(path.parent)]
    (volume,) = [one for one in pod["volumes"] if one["name"] == mount]
    return yaml.safe_load(_contents(volume, objects, {})[path.name])
