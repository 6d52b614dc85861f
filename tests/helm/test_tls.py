"""The pod with the certificates of a mounted Secret, started on this machine, and the test of the release beside it."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from keyturn.practice import PracticeApi

from tests.helm import kubelet
from tests.helm.test_process import SECRETS, api, gateway, place

__all__ = ["api", "place"]


@pytest.fixture(scope="module")
def certificates() -> dict[str, str]:
    """A Secret of type kubernetes.io/tls, with the authority of callers' certificates."""
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    chain = "".join(blob.bytes().decode() for blob in issued.cert_chain_pems)
    return {
        "tls.crt": chain,
        "tls.key": issued.private_key_pem.bytes().decode(),
        "ca.crt": authority.cert_pem.bytes().decode(),
    }


@pytest.fixture(params=[False, True], ids=["tls", "mutual"])
async def pod(
    request: Any, certificates: dict[str, str], api: PracticeApi, place: Path
) -> AsyncIterator[tuple[Any, kubelet.Container]]:
    """The container of `helm test`, and the gateway that runs."""
    rendered = gateway(api, tls={"existingSecret": "gateway-tls", "clientCa": request.param})
    secrets = {**SECRETS, "gateway-tls": certificates}
    (test,) = rendered.one("Pod")["spec"]["containers"]
    async with kubelet.running(rendered.gateway, rendered.container, rendered.objects, secrets, place) as up:
        yield test, up


async def test_the_release_test_passes_over_tls(pod: tuple[Any, kubelet.Container]) -> None:
    """The probes stay on plain HTTP, the listener speaks TLS, and the test passes without a certificate of its own.

    Several times, since what ends a connection without a certificate, the alert or the end, is a race. Where nobody
    listens, and where somebody does without TLS, it fails.
    """
    test, container = pod
    assert container.keyturn.data.startswith("https://")
    for name in ("startup", "liveness", "readiness"):
        assert await container.probe(name), name
    for _ in range(5):
        assert await ended(test, f"{container.keyturn.data}/me") == 0
    for nothing in (f"{container.keyturn.admin}/healthz".replace("http:", "https:"), "https://127.0.0.1:1/me"):
        assert await ended(test, nothing) == 1, nothing


async def ended(test: Any, url: str) -> int:
    """How the container of `helm test` ends when it asks there."""
    words = [sys.executable, *test["command"][1:], *test["args"]]
    process = await asyncio.create_subprocess_exec(*words, env={"URL": url}, stdout=subprocess.DEVNULL)
    return await process.wait()
