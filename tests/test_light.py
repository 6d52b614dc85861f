"""A process loads what its configuration needs, and no more."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from keyturn.practice import PracticeApi, PracticeSettings

from tests.process import KEYS, document, request, serving, write

SELDOM = {
    "redis": "a shared store",
    "hiredis": "a shared store",
    "jwt": "callers with JSON Web Tokens",
    "cryptography": "callers with JSON Web Tokens, or a certificate that is refused",
    "opentelemetry": "traces",
    "requests": "traces",
    "trustme": "`keyturn practice` and `demo`",
    "rich.console": "`keyturn status`, `token` and help",
    "pygments": "the same",
    "keyturn.demo": "`keyturn demo`",
    "keyturn.practice": "`keyturn practice` and `demo`",
    "keyturn.status_view": "`keyturn status`",
    "keyturn.stores.links": "a shared store",
    "keyturn.stores.shared": "a shared store",
    "keyturn.telemetry.traces": "traces",
}
"""Packages and modules, and what loads them: together 20 MB of memory and a third of the start."""

JWT = {"issuer": "i", "audience": "a", "subject": "s", "jwks_file": "keys.json"}


def loaded(lines: list[str]) -> Iterator[str]:
    """The modules, and the packages around them, that `-X importtime` has told of."""
    for line in lines:
        if line.startswith("import time:"):
            parts = line.rpartition("|")[2].strip().split(".")
            yield from (".".join(parts[:number]) for number in range(1, len(parts) + 1))


async def test_a_plain_proxy_loads_nothing_that_it_does_not_use(tmp_path: Path) -> None:
    """On the memory store, over TLS to the upstream; nor does its first request, but for modules of Python's own."""
    async with PracticeApi(PracticeSettings(tls=True, keys=KEYS)) as api:
        path = write(tmp_path, document(api, tmp_path))
        async with serving(path, environ={"PYTHONPROFILEIMPORTTIME": "1"}) as keyturn:
            names = set(loaded(keyturn.process.lines))
            assert {"keyturn.cli", "keyturn.app.composition", "aiohttp"} <= names
            assert names & set(SELDOM) == set()
            told = len(keyturn.process.lines)
            assert (await keyturn.ask(request("/me"))).status == 200
            late = {name for name in loaded(keyturn.process.lines[told:]) if "." not in name}
            assert late <= sys.stdlib_module_names


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("redis", {"store": {"url": "redis://127.0.0.1:1"}}),
        (
            "jwt",
            {
                "clients": [
                    {"name": "ci", "jwt": {"issuer": "i", "audience": "a", "subject": "s", "jwks_file": "keys.json"}}
                ]
            },
        ),
    ],
)
async def test_what_is_configured_is_loaded_before_the_first_request(name: str, settings: Any, tmp_path: Path) -> None:
    """A request never waits for a package to be loaded."""
    async with PracticeApi(PracticeSettings(tls=True, keys=KEYS)) as api:
        (tmp_path / "keys.json").write_text('{"keys": []}', encoding="utf-8")
        path = write(tmp_path, document(api, tmp_path, **settings))
        async with serving(path, environ={"PYTHONPROFILEIMPORTTIME": "1"}) as keyturn:
            assert name in set(loaded(keyturn.process.lines))
