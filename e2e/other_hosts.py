"""Run newman on collections that call another host, in each way that the README names, over HTTP and HTTPS.

Run by `make e2e`. Only the collection and the environment may come through Keyturn; the collection's own requests go
to a service under test, which refuses every request that shows it a key. Exits with 1 when a check fails.
"""

import argparse
import asyncio
import secrets
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import trustme
from keyturn.practice import PracticeApi, PracticeSettings

from e2e.newman import (
    HERE,
    KEYS,
    NEWMAN,
    OVERHEAD,
    REQUESTS,
    Check,
    Ended,
    EndToEndError,
    Form,
    keyturn,
    run_newman,
    show,
    write_config,
)

NAME = "api.getpostman.com"
STAND_INS = frozenset({"ALIASES", "NODE_OPTIONS"})
"""Variables that a form sets in place of a line in the hosts file."""


@dataclass(frozen=True)
class Scene:
    """The parts of a run: the API, Keyturn with and without TLS, the services under test, the trusted authorities."""

    api: PracticeApi
    plain: str
    tls_port: str  # behind a colon
    services: tuple[PracticeApi, PracticeApi]
    authorities: Path
    token: str

    def resources(self, base: str) -> tuple[str, ...]:
        """Return the collection and the environment at that address."""
        collection, environment = f"collections/{self.api.run_collection}", f"environments/{self.api.run_environment}"
        return f"{base}/{collection}?apikey={self.token}", "-e", f"{base}/{environment}?apikey={self.token}"

    def forms(self) -> tuple[Form, ...]:
        """Return every way to route newman through Keyturn and the collection's own requests past it."""
        return (
            Form("address in the URLs", self.resources(self.plain), {}),
            Form(
                "host alias with TLS",
                self.resources(f"https://{NAME}{self.tls_port}"),
                {"ALIASES": NAME, "NODE_OPTIONS": f"--require {HERE / 'alias.cjs'}"},
            ),
            Form(
                "http_proxy, no_proxy",
                self.resources(f"http://{NAME}"),
                {"http_proxy": self.plain, "no_proxy": "127.0.0.1"},
            ),
        )


@asynccontextmanager
async def staged(folder: Path) -> AsyncIterator[Scene]:
    """Start everything, Keyturn twice, since its data listeners have TLS all or none."""
    token = secrets.token_hex(16)
    authority = trustme.CA()
    leaf = authority.issue_cert(NAME)
    certificate, key = folder / "tls.pem", folder / "tls.key"
    certificate.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
    leaf.private_key_pem.write_to_path(key)
    key.chmod(0o600)
    (folder / "tls").mkdir()
    async with AsyncExitStack() as stack:
        api = await stack.enter_async_context(PracticeApi(PracticeSettings(tls=True, keys=KEYS)))
        services = (PracticeApi(PracticeSettings(keys=())), PracticeApi(PracticeSettings(keys=(), tls=True)))
        for service in services:
            await stack.enter_async_context(service)
        plain = await stack.enter_async_context(keyturn(write_config(folder, api, token, KEYS[:1])))
        tls = {"cert": str(certificate), "key": str(key)}
        secure = await stack.enter_async_context(keyturn(write_config(folder / "tls", api, token, KEYS[1:], tls=tls)))
        authorities = folder / "authorities.pem"
        authorities.write_bytes(authority.cert_pem.bytes() + (services[1].ca_pem or b""))
        port = (await secure.address()).rpartition(":")[2]
        yield Scene(api, await plain.address(), f":{port}", services, authorities, token)


async def run_form(scene: Scene, form: Form, service: PracticeApi, newman: Path) -> tuple[Ended, Check]:
    """Run newman once, and check that each host saw its own requests only."""
    before, seen = len(scene.api.arrivals), len(service.arrivals)
    scheme = service.url.partition(":")[0]
    whole = replace(
        form,
        name=f"{form.name}, {scheme}",
        arguments=(*form.arguments, "--env-var", f"baseUrl={service.url}"),
        environment={**form.environment, "NODE_EXTRA_CA_CERTS": str(scene.authorities)},
    )
    ended = await run_newman(whole, scene.token, 1, newman)
    through = [arrival.status for arrival in scene.api.arrivals[before:]]
    past = [arrival.status for arrival in service.arrivals[seen:]]
    kept = (ended.status, through, past) == (0, [200] * OVERHEAD, [200] * REQUESTS)
    check = Check(
        f"{whole.name}: collection and environment come through Keyturn, {REQUESTS} requests go to their own host",
        kept,
        f"exit {ended.status}, through Keyturn {through}, to the other host {past}",
    )
    return ended, check


async def run(newman: Path) -> bool:
    """Run newman in every form, against both services; return whether all checks passed."""
    with tempfile.TemporaryDirectory(prefix="keyturn-e2e-") as folder:
        async with staged(Path(folder)) as scene:
            results = [
                await run_form(scene, form, service, newman) for form in scene.forms() for service in scene.services
            ]
    checks = [check for _, check in results]
    show([ended for ended, _ in results], checks)
    return all(check.kept for check in checks)


def main() -> None:
    """Read the arguments, run, exit."""
    parser = argparse.ArgumentParser(prog="python -m e2e.other_hosts", description=__doc__)
    parser.add_argument("--newman", type=Path, default=NEWMAN, help="another newman than that of package.json")
    try:
        kept = asyncio.run(run(parser.parse_args().newman))
    except EndToEndError as error:
        sys.exit(str(error))
    sys.exit(0 if kept else 1)


if __name__ == "__main__":
    main()
