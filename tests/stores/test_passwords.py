"""A real process, and a server with a password that needs escaping in a URL."""

import signal
from pathlib import Path

import pytest
from keyturn.practice import PracticeApi, PracticeSettings

from tests.process import KEYS, Keyturn, document, request, serving, until, write
from tests.stores.servers import KINDS, server

ODD = "p%41+/#?[@&=ü"
"""Characters that have a meaning in a URL."""


@pytest.mark.parametrize("where", ["password", "password_file"])
async def test_a_password_is_taken_literally(tmp_path: Path, where: str) -> None:
    """A password is taken literally from the file; a new one is used by new connections."""
    file = tmp_path / "password"
    file.write_text(f"{ODD}\n", encoding="utf-8")
    api = PracticeApi(PracticeSettings(tls=True, keys=KEYS))
    with server(KINDS[-1]) as redis:
        redis.ask("ACL", "SETUSER", "a%41", "on", f">{ODD}", "~*", "&*", "+@all")
        redis.ask("ACL", "SETUSER", "default", "-@all", "+acl", "+client", "+ping")
        login = {"username": "a%41", where: ODD if where == "password" else "password"}
        store = {"url": redis.url, "on_loss": "refuse", "timeout": "2s", **login}
        async with api, serving(write(tmp_path, document(api, tmp_path, store=store))) as keyturn:
            assert (await keyturn.ask(request())).status == 200
            if where == "password_file":
                redis.ask("ACL", "SETUSER", "a%41", "resetpass", ">another#")
                file.write_text("another#\n", encoding="utf-8")
                keyturn.process.signal(signal.SIGHUP)
                await until(lambda: "the configuration was reloaded" in keyturn.process.stderr, "it is read again")
                redis.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
                await until(lambda: _serves(keyturn), "the new password is used")
            else:
                assert "WRONGPASS" not in keyturn.process.stderr
            assert ODD not in keyturn.process.stderr


async def _serves(keyturn: Keyturn) -> bool:
    return (await keyturn.ask(request())).status == 200
