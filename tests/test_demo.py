import asyncio
import signal
from pathlib import Path

import pytest
from keyturn import config, demo
from keyturn.core.health import CHECK_TRUST, KeyHealth
from keyturn.core.model import SECOND, Secret
from keyturn.practice import PracticeApi, PracticeSettings

from tests.core.worlds import pool
from tests.process import ROOT, Keyturn, request, running, until
from tests.virtual import micros, task_of, virtual


async def test_demo(tmp_path: Path) -> None:
    """`demo` says where to call it, answers, lets its clients through without a 429, and ends with Ctrl-C."""
    ports = ("--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0")
    async with running("demo", *ports, folder=tmp_path) as process:
        addresses = await process.ready()
        keyturn = Keyturn(process, addresses["data"], addresses["admin"])
        await until(lambda: "Press Ctrl-C to stop." in process.stderr, "the demo explains itself")
        assert f"curl -i {keyturn.data}/me" in process.stderr
        assert f"{keyturn.admin}/readyz" in process.stderr

        reply = await keyturn.ask(request("/me", token=None))
        assert (reply.status, reply.one("Keyturn-Key") in demo.KEYS) == (200, True)
        assert (await keyturn.page("/readyz")).status == 200

        async def served() -> bool:
            return await keyturn.metric("keyturn_requests_total", client="crawler", code="200") >= 1

        await until(served, "a client of the demo is served")
        assert await keyturn.metric("keyturn_upstream_throttled_total") == 0
        process.signal(signal.SIGINT)
        assert await process.ended() == 0
        assert [key for key in demo.KEYS.values() if key in process.stderr] == []


class Api(PracticeApi):
    """A practice API that remembers what was done to its keys, and when."""

    def __init__(self) -> None:
        super().__init__(PracticeSettings())
        self.done: list[tuple[str, str, int]] = []

    def revoke(self, key: str) -> None:
        self.done.append(("revoke", key, micros() // SECOND))

    def restore(self, key: str) -> None:
        self.done.append(("restore", key, micros() // SECOND))


@virtual
async def test_a_key_is_revoked_at_times() -> None:
    """And accepted again, so that one sees both."""
    api, began = Api(), micros() // SECOND
    losing = task_of(demo.lose_a_key(api))
    await asyncio.sleep(demo.FIRST_ACCEPTED_FOR + 2 * (demo.REVOKED_FOR + demo.ACCEPTED_FOR) - 1)
    losing.cancel()
    key = demo.KEYS[demo.REVOKED]
    moments = [("revoke", 25), ("restore", 65), ("revoke", 125), ("restore", 165)]
    assert api.done == [(what, key, began + at) for what, at in moments]


def test_configuration(tmp_path: Path) -> None:
    """The demo's configuration is one that `serve` takes: clients by token and weight, others as `you`."""
    ca = ROOT / "LICENSE"
    document = demo.configuration("https://localhost:1", ca, "127.0.0.1:0", "127.0.0.1:0")
    loaded = demo._configured(tmp_path, document)
    assert config.warnings(tmp_path / "config.yaml", loaded) == ()
    clients = {client.name: client for client in loaded.client_models()}
    assert {name: client.weight for name, client in clients.items()} == {
        name: habit.weight for name, habit in demo.CLIENTS.items()
    }
    assert clients["crawler"].digests == (Secret(demo.token_of("crawler")).digest(),)
    anonymous = loaded.anonymous_client()
    assert anonymous is not None
    assert anonymous.name == "you"


@pytest.mark.parametrize("noticed", range(int(demo.REVOKED_FOR)))
@pytest.mark.parametrize("chance", [0, 1])
def test_the_key_is_used_again_before_it_is_revoked_again(noticed: int, chance: float) -> None:
    """Whenever its first request noticed: a key that is found dead time and again stays away for hours."""
    health, name = KeyHealth(pool(1)), "k0"
    asked: int | None = noticed * SECOND
    while asked is not None and asked < demo.REVOKED_FOR * SECOND:
        health.rejected(name, asked, "revoked", chance)
        asked = health.next_check(name)
    assert asked is not None
    assert asked < (demo.REVOKED_FOR + demo.ACCEPTED_FOR) * SECOND - CHECK_TRUST
