"""The setting `strict_certificates`, in the real process."""

from pathlib import Path
from typing import Any

import pytest

from tests.authorities import FAULTS, Authority
from tests.process import TOKENS, client, house, request, until
from tests.upstream.origin import OK, answering, origin


@pytest.mark.parametrize("strict", [False, True])
async def test_a_company_s_own_authority(tmp_path: Path, *, strict: bool) -> None:
    """The upstream is asked unless certificates are strict; then the answer and the log name what is missing."""
    issued = Authority(tmp_path, "no subject key identifier")
    fault = f"{FAULTS['no subject key identifier']}, and `strict_certificates` is true: "
    async with origin(answering(OK), issued.server_context()) as url:
        jwt = {"issuer": "https://i", "audience": "a", "subject": "s", "jwks_url": f"{url}/keys", "ca": str(issued.ca)}
        settings: dict[str, Any] = {"upstream": {"url": url, "ca": str(issued.ca)}, "strict_certificates": strict}
        async with house(tmp_path, clients=[client("ci"), {"name": "team", "jwt": jwt}], **settings) as home:
            log = home.keyturn.process
            await until(lambda: "the keys of issuer https://i: " in log.stderr, "the keys are asked for")
            assert (f"the certificate of {url.removeprefix('https://')} is refused: {fault}" in log.stderr) is strict
            reply = await home.ask(request("/me", token=TOKENS["ci"]))
            assert reply.status == (502 if strict else 200)
            assert (fault in reply.body.decode()) is strict
