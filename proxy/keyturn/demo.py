"""The demo: a practice API over TLS, the proxy in front of it, three clients, and a key that is revoked at times."""

import asyncio
import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from keyturn.app import App, serve_until_told
from keyturn.config import Config, load
from keyturn.core.model import Secret
from keyturn.practice import PracticeApi, PracticeSettings
from keyturn.tasks import finish, spawn
from keyturn.telemetry import LogWriter

KEYS = {"team-a": "practice-key-a", "team-b": "practice-key-b", "team-c": "practice-key-c"}
LIMIT, WINDOW = 20, 20
"""Requests per window, and the window in seconds; short, to make waits visible."""

PLAN = 100_000
"""Requests of each key's month."""

REVOKED = "team-c"
FIRST_ACCEPTED_FOR, REVOKED_FOR, ACCEPTED_FOR = 25.0, 40.0, 60.0
"""The key that is revoked at times; seconds before the first revocation, of each revocation, and between them."""


@dataclass(frozen=True)
class Habit:
    """The traffic of a client: its weight, requests at once, and seconds between bursts."""

    weight: int
    burst: int
    pause: float


CLIENTS = {"crawler": Habit(1, 45, 45.0), "portal": Habit(3, 1, 1.5), "pipeline": Habit(1, 5, 12.0)}
ADMIN_TOKEN = "demo-admin"  # noqa: S105  # the whole demo stays on the loopback

PATHS = ("/me", "/workspaces", "/collections", "/environments")


async def run(log: LogWriter, *, listen: str, admin: str) -> int:
    """Run the demo until SIGTERM or SIGINT; returns the exit code."""
    keys = tuple(KEYS.values())
    settings = PracticeSettings(limit=LIMIT, window=float(WINDOW), tls=True, keys=keys, plan=PLAN)
    tasks: set[asyncio.Task[Any]] = set()
    with tempfile.TemporaryDirectory(prefix="keyturn-demo-") as folder:
        async with PracticeApi(settings) as api:
            api.write_ca(Path(folder, "ca.pem"))
            settings_of_proxy = configuration(api.url, Path(folder, "ca.pem"), listen, admin)
            app = App(_configured(Path(folder), settings_of_proxy), log=log)

            def announce(line: str) -> None:
                log.say(line)
                explain(app, log.say)
                for name, habit in CLIENTS.items():
                    spawn(call(app.data_addresses[0], name, habit), name=name, owner=tasks)
                spawn(lose_a_key(api), name="lose a key", owner=tasks)

            try:
                return await serve_until_told(app, announce)
            finally:
                await finish(tasks)


def _configured(folder: Path, document: dict[str, object]) -> Config:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(document))
    path.chmod(0o600)
    return load(path, {})


def configuration(url: str, ca: Path, listen: str, admin: str) -> dict[str, object]:
    """The demo's config.yaml."""
    return {
        "listen": listen,
        "admin": admin,
        "admin_token": ADMIN_TOKEN,
        "upstream": {"url": url, "ca": str(ca)},
        "pools": {
            "default": {
                "limits": [{"requests": LIMIT, "window": f"{WINDOW}s"}],
                "keys": [{"name": name, "secret": secret} for name, secret in KEYS.items()],
            }
        },
        "authentication": "off",
        "anonymous": {"name": "you"},
        "clients": [
            {"name": name, "token_sha256": Secret(token_of(name)).digest(), "weight": habit.weight}
            for name, habit in CLIENTS.items()
        ],
        "drain": "2s",
    }


def token_of(name: str) -> str:
    """The token of a demo client; not a secret, since the demo listens only on the loopback."""
    return f"demo-{name}"


def explain(app: App, say: Callable[[str], None]) -> None:
    """Print what is running, and what to try."""
    data, admin = app.data_addresses[0], app.admin_addresses[0]
    say(f"A practice Postman API permits {LIMIT} requests in {WINDOW} s on each of {len(KEYS)} keys.")
    say(f"Three clients share it through this proxy: {', '.join(CLIENTS)}. Call it yourself:")
    say(f"    curl -i {data}/me")
    say(f"The key {REVOKED} is revoked at times: it is quarantined, and the others take over. Pause a key yourself:")
    say(f"    curl -X POST -H 'Authorization: Bearer {ADMIN_TOKEN}' {admin}/keys/default/team-a/pause")
    say(f"Watch the tokens: {admin}/ in a browser, or in a terminal:")
    say(f"    keyturn status --watch --url {admin}")
    say(f"Health and metrics: {admin}/readyz {admin}/metrics")
    say("Press Ctrl-C to stop.")


async def lose_a_key(api: PracticeApi) -> None:
    """Revoke a key and accept it again, for ever."""
    await asyncio.sleep(FIRST_ACCEPTED_FOR)
    while True:
        api.revoke(KEYS[REVOKED])
        await asyncio.sleep(REVOKED_FOR)
        api.restore(KEYS[REVOKED])
        await asyncio.sleep(ACCEPTED_FOR)


async def call(address: str, name: str, habit: Habit) -> None:
    """Send bursts of requests as one client, regardless of the responses."""
    headers = {"X-Api-Key": token_of(name)}
    async with aiohttp.ClientSession(address, headers=headers) as session, asyncio.TaskGroup() as requests:
        while True:
            for _ in range(habit.burst):
                requests.create_task(_call(session))
            await asyncio.sleep(habit.pause * random.uniform(0.5, 1.5))  # noqa: S311  # a habit, not a secret


async def _call(session: aiohttp.ClientSession) -> None:
    try:
        async with session.get(random.choice(PATHS)) as answer:  # noqa: S311  # a habit, not a secret
            await answer.read()
    except aiohttp.ClientError:
        return
