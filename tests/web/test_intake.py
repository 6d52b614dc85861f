"""Each read is as large as its connection can take, over real sockets on both event loops."""

import asyncio
import ssl
from collections.abc import Callable
from typing import Any

import pytest
import trustme
import uvloop
from keyturn.web.intake import Intake
from keyturn.web.parsing import MOST_READ

from tests.web.callers import Gateway, World, get, okay

MANY = 4 * MOST_READ


@pytest.mark.parametrize("loop", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "tls"])
def test_a_read_is_no_larger_than_asked_for(loop: Callable[[Any], None], *, encrypted: bool) -> None:
    """A quarter before a request has been admitted, whatever has come meanwhile."""
    authority = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.issue_cert("localhost").configure_cert(server)
    authority.configure_trust(client)
    reads: list[int] = []
    updated = Intake.buffer_updated

    def counted(self: Intake, nbytes: int) -> None:
        reads.append(nbytes)
        updated(self, nbytes)

    async def scenario() -> None:
        async with World(gateway=Gateway(okay), tls=server if encrypted else None).running() as world:
            world.access.required = True
            world.access.cut = True
            tls: dict[str, Any] = {"ssl": client, "server_hostname": "localhost"} if encrypted else {}
            reader, writer = await asyncio.open_connection("127.0.0.1", world.port, **tls)
            writer.write(get(b"/", b"Content-Length: %d" % MANY, method=b"PUT", body=b"x" * MANY))
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 401 ")
            writer.transport.abort()

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Intake, "buffer_updated", counted)
        loop(scenario())
    assert 0 < reads[0] <= MOST_READ // 4
    assert max(reads) <= MOST_READ
